"""The smallest task of translation: random sequences of letters to copy or to reverse. NumPy alone.

A model reads a source and writes a target. Both end with END. What the decoder reads is the target, one step
late: it begins with BEGIN. Rows are padded on the right with PADDING.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxgpt.config.checks import check_types, require, require_positive

PADDING, BEGIN, END = 0, 1, 2
FIRST = 3  # the id of the first letter


class Pairs(NamedTuple):
    """Sources and their targets. Any array library's arrays."""

    source_BS: Any
    """Token ids, int32."""
    inputs_BT: Any
    """What the decoder reads."""
    targets_BT: Any
    """What it should write."""
    weights_BT: Any
    """How much each prediction counts, float32; 0 for padding."""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Random sequences of letters. A batch depends on nothing but these settings and its step."""

    task: Literal["copy", "reverse"] = "reverse"
    shortest: int = 1
    longest: int
    letters: int = 26
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(self, "shortest", "letters")
        rule = f"at least as much as shortest ({self.shortest})"
        require(self.longest >= self.shortest, "longest", self.longest, rule)

    @property
    def vocab(self) -> int:
        """The number of ids: the letters, and the three others."""
        return FIRST + self.letters

    def rows(self, step: int, start: int, stop: int) -> Pairs:
        """Rows `start` to `stop` - 1 of the batch of a step, which is counted from 0."""
        return self.pairs(self._drawn(step, start, stop))

    def of_length(self, length: int, count: int) -> Pairs:
        """So many pairs of one length, drawn from another seed than the batches."""
        same = dataclasses.replace(self, shortest=length, longest=length, seed=self.seed + 1)
        return self.pairs(same._drawn(0, 0, count))

    def _drawn(self, step: int, start: int, stop: int) -> list[np.ndarray]:
        draws = [np.random.default_rng((self.seed, step, row)) for row in range(start, stop)]
        lengths = [int(draw.integers(self.shortest, self.longest + 1)) for draw in draws]
        return [draw.integers(FIRST, self.vocab, n) for draw, n in zip(draws, lengths, strict=True)]

    def pairs(self, sequences: Sequence[Any]) -> Pairs:
        """These sequences of ids with their targets, in rows as long as the longest one that is drawn."""
        shape = len(sequences), self.longest + 1
        source_BS, targets_BT = np.full(shape, PADDING, np.int32), np.full(shape, PADDING, np.int32)
        for row, ids in enumerate(sequences):
            source_BS[row, : len(ids) + 1] = [*ids, END]
            targets_BT[row, : len(ids) + 1] = [*(ids if self.task == "copy" else ids[::-1]), END]
        begin_B1 = np.full((len(sequences), 1), BEGIN, np.int32)
        inputs_BT = np.concatenate([begin_B1, targets_BT[:, :-1]], axis=1)
        return Pairs(source_BS, inputs_BT, targets_BT, (targets_BT != PADDING).astype(np.float32))


def right(written_BT: np.ndarray, targets_BT: np.ndarray) -> np.ndarray:
    """Which targets were written without any mistake, [B]. What stands behind a target's end is not read."""
    found: np.ndarray = ((written_BT == targets_BT) | (targets_BT == PADDING)).all(axis=1)
    return found
