"""Texts of which only parts are scored, as batches: padded, one a row, or packed, several a row. NumPy alone.

A prompt and its answer, or a conversation, are one `Example`: all the ids, and which of them are scored. The
others are read but weigh nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.text.batch import Batch

MOST_SHOWN = 20  # problems that an error spells out


class Example(NamedTuple):
    """The ids of a text, and which of them are scored."""

    ids: Sequence[int]
    start: int
    """The index of the first token that is scored. The token at index 0 never is: nothing predicts it."""
    gaps: Sequence[tuple[int, int]] = ()
    """Where the tokens stand, (begin, end), that are not scored although they come after the start."""

    @property
    def length(self) -> int:
        """How many columns of a batch it takes: every token but the last is an input."""
        return len(self.ids) - 1


def padded(examples: Sequence[Example], length: int, *, rows: int | None = None) -> Batch:
    """A row of `length` predictions for each example, padded on the right with id 0 and weight 0.

    `rows` asks for so many rows: those behind the examples are padding. Raises DataError for examples that do
    not fit, ConfigError for more examples than rows.
    """
    rows = len(examples) if rows is None else rows
    if len(examples) > rows:
        raise ConfigError(
            f"rows = {rows}", why=f"there are {len(examples)} examples", fix="ask for a row for each example"
        )
    _check(examples, length)
    batch = _empty(rows, length)
    for row, example in enumerate(examples):
        _write(batch, row, 0, example)
    return batch


def packed(examples: Sequence[Example], length: int) -> Batch:
    """Rows of `length` predictions with several examples each, in as few rows as first fit finds.

    Examples of a row are told apart by segments, numbered from 1 (padding has 0), so that they do not see one
    another; the positions of each begin at 0. Raises DataError for examples that do not fit.
    """
    _check(examples, length)
    groups = first_fit([example.length for example in examples], length)
    return side_by_side([[examples[number] for number in group] for group in groups], length)


def first_fit(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Which examples, by their numbers, share each row of `length` predictions.

    Each goes into the first row that has room for it, or into a new one.
    """
    taken_B = np.zeros(len(lengths), np.int64)  # as many rows as can be needed
    groups: list[list[int]] = []
    for number, needed in enumerate(lengths):
        row = int(np.argmax(taken_B + needed <= length))
        if row == len(groups):
            groups.append([])
        groups[row].append(number)
        taken_B[row] += needed
    return groups


def side_by_side(groups: Sequence[Sequence[Example]], length: int) -> Batch:
    """A row of `length` predictions for each group of examples, as `packed` writes it. They must fit."""
    shape = len(groups), length
    batch, positions_BT, segments_BT = _empty(*shape), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, group in enumerate(groups):
        column = 0
        for segment, example in enumerate(group, start=1):
            end = column + example.length
            _write(batch, row, column, example)
            positions_BT[row, column:end] = np.arange(example.length)
            segments_BT[row, column:end] = segment
            column = end
    return batch._replace(positions_BT=positions_BT, segments_BT=segments_BT)


def _empty(rows: int, length: int) -> Batch:
    inputs_BT, targets_BT = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    return Batch(inputs_BT, targets_BT, np.zeros((rows, length), np.float32))


def _write(batch: Batch, row: int, column: int, example: Example) -> None:
    """Put an example into a batch, its first token in this column."""
    end = column + example.length
    batch.inputs_BT[row, column:end] = example.ids[:-1]
    batch.targets_BT[row, column:end] = example.ids[1:]
    batch.weights_BT[row, column + max(example.start - 1, 0) : end] = 1
    for begin, stop in example.gaps:  # the prediction of a token stands in the column before its own
        batch.weights_BT[row, column + max(begin - 1, 0) : column + stop - 1] = 0


def _check(examples: Sequence[Example], length: int) -> None:
    """Raise DataError, naming all of them, for examples that cannot be written into rows of this length."""
    problems = []
    for number, example in enumerate(examples):
        if not example.ids:
            problems.append(f"example {number} has no tokens")
        elif not 0 <= example.start <= len(example.ids):
            problems.append(f"example {number} has {len(example.ids)} tokens and starts at {example.start}")
        elif example.length > length:
            problems.append(f"example {number} has {len(example.ids)} tokens")
    if problems:
        shown = problems[:MOST_SHOWN] + [f"{len(problems) - MOST_SHOWN} more"] * (len(problems) > MOST_SHOWN)
        raise DataError(
            f"examples for rows of {length} predictions",
            why="; ".join(shown),
            fix=f"give examples of 1 to {length + 1} tokens, each with a start among them",
        )
