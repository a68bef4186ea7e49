"""Texts of which only an end is scored, as batches: padded, one a row, or packed, several a row. NumPy alone.

A prompt and its answer, or a text and its label, are one `Example`: all the ids, and where the scored part
starts. What stands before it is read but weighs nothing.
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
    places = _first_fit([example.length for example in examples], length)
    rows = max((row for row, _ in places), default=-1) + 1
    batch = _empty(rows, length)
    positions_BT, segments_BT = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    count = [0] * rows
    for example, (row, column) in zip(examples, places, strict=True):
        _write(batch, row, column, example)
        count[row] += 1
        positions_BT[row, column : column + example.length] = np.arange(example.length)
        segments_BT[row, column : column + example.length] = count[row]
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


def _first_fit(lengths: Sequence[int], length: int) -> list[tuple[int, int]]:
    """Where each example goes, (row, column): the first row that has room for it, or a new one."""
    taken_B = np.zeros(len(lengths), np.int64)  # as many rows as can be needed
    places = []
    for needed in lengths:
        row = int(np.argmax(taken_B + needed <= length))
        places.append((row, int(taken_B[row])))
        taken_B[row] += needed
    return places


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
