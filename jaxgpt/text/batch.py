"""A batch of sequences to predict, and the check of its ids. Generating text needs this and no Grain."""

from typing import Any, NamedTuple

import numpy as np

from jaxgpt.errors import DataError


class Batch(NamedTuple):
    """Sequences to predict. Any array library's arrays; `None` where all positions and segments are plain."""

    inputs_BT: Any
    """Token ids, int32."""
    targets_BT: Any
    """The token that follows each input."""
    weights_BT: Any
    """How much each prediction counts, float32; 0 for padding."""
    positions_BT: Any = None
    """Position of each input, where it is not its column."""
    segments_BT: Any = None
    """Which packed text each input belongs to; texts do not see one another."""


class Origin(NamedTuple):
    """Where a row of a training batch was read."""

    place: dict[str, Any]
    """The place, such as `{"file": "train_000000.bin", "token": 1024}` or `{"example": 7}`, as JSON."""
    texts: list[list[int]]
    """The token ids of each text of the row."""


def shifted(windows_BT1: np.ndarray, weights_BT: np.ndarray | None = None) -> Batch:
    """Windows of T + 1 tokens as inputs and targets of T: the one place where the shift by one happens."""
    inputs_BT, targets_BT = windows_BT1[:, :-1], windows_BT1[:, 1:]
    return Batch(
        inputs_BT, targets_BT, np.ones(inputs_BT.shape, np.float32) if weights_BT is None else weights_BT
    )


def check_ids(tokens: np.ndarray, vocab: int) -> np.ndarray:
    """Return the tokens as they are.

    Raises DataError for an id outside the vocabulary, which JAX would turn into NaN silently.
    """
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocab):
        wrong = int(tokens.max() if tokens.max() >= vocab else tokens.min())
        raise DataError(
            f"token id {wrong}",
            why=f"the vocabulary has {vocab} ids",
            fix="make the ids, or prepare the data, with the model's own tokenizer",
        )
    return tokens
