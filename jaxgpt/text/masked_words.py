"""Words to guess: BERT's way of hiding some of a text's tokens. NumPy alone.

Of all tokens, 15% are chosen. Of these, 80% become the mask, 10% become a random token, and 10% stay as they
are. The model must say of each chosen token which one it was. It cannot tell where a wrong token stands, and
so it must understand every position, the masked ones and the others.

Source: Devlin et al. 2019, BERT, section 3.1 and appendix A.1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxgpt.config.checks import require, require_positive
from jaxgpt.text.batch import Batch

CHOSEN, MASKED, RANDOM = 0.15, 0.8, 0.1


@dataclass(frozen=True, kw_only=True)
class MaskedWords:
    """Batches of texts with hidden words, made from batches of plain texts."""

    plain: Callable[[int, int, int], Batch]
    """`plain(step, start, stop)` gives rows of a step's batch; only its inputs are read."""
    words: int
    """Random tokens are drawn from the ids below this number."""
    mask: int
    """The id of the mask."""
    seed: int

    def __post_init__(self) -> None:
        require_positive(self, "words")
        require(self.mask >= self.words, "mask", self.mask, f"an id behind the words, {self.words} or more")

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` - 1 of the batch of a step, which is counted from 0.

        The inputs have hidden words. The targets are the texts themselves, and the weight of a target is 1
        where a token was chosen. What is chosen depends on nothing but seed, step and row.
        """
        targets_BT = np.asarray(self.plain(step, start, stop).inputs_BT)
        rows = [self._hidden(ids_T, step, start + row) for row, ids_T in enumerate(targets_BT)]
        inputs, chosen = zip(*rows, strict=True)
        return Batch(np.stack(inputs), targets_BT, np.stack(chosen).astype(np.float32))

    def _hidden(self, ids_T: np.ndarray, step: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """A text with hidden words, and which of its tokens were chosen."""
        draw = np.random.default_rng((self.seed, step, row))
        chosen_T = draw.random(len(ids_T)) < CHOSEN
        fate_T = draw.random(len(ids_T))
        random_T = draw.integers(0, self.words, len(ids_T), dtype=ids_T.dtype)
        masked_T = chosen_T & (fate_T < MASKED)
        replaced_T = chosen_T & (fate_T >= MASKED) & (fate_T < MASKED + RANDOM)
        hidden_T = np.where(masked_T, self.mask, np.where(replaced_T, random_T, ids_T))
        return hidden_T.astype(ids_T.dtype), chosen_T
