"""The validation loss: the mean cross-entropy in nats over a split, or over its first batches."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxgpt.parallel import P, place_rows
from jaxgpt.training.loss import Loss

Between = Callable[[int, int], None]
"""Called between batches with how many are done and how many there are. It may raise to end early."""


class Batches(Protocol):
    """Batches in an order that stays the same, of `sequences` rows each."""

    sequences: int

    def __len__(self) -> int:
        """The number of batches."""

    def rows(self, number: int, start: int, stop: int, /) -> Any:
        """Rows `start` to `stop` - 1 of a batch, as a pytree of NumPy arrays."""


def validation_loss(
    loss: Loss, batches: Batches, mesh: Mesh, *, limit: int = 0, between: Between = lambda *_: None
) -> Callable[[Any], float]:
    """A function that takes parameters and returns their mean loss in nats over the first `limit` batches.

    A limit of 0 means all batches. Every prediction counts as much as its weight says. `between` is called
    before the first batch, which compiles, and after each.
    """

    def sums(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        return loss(params, batch, None)[:2]

    jitted = jax.jit(sums, out_shardings=NamedSharding(mesh, P()))
    count = min(limit or len(batches), len(batches))

    def evaluate(params: Any) -> float:
        total = weight = np.float64(0)
        between(0, count)
        for number in range(count):
            batch = place_rows(functools.partial(batches.rows, number), batches.sequences, mesh)
            batch_total, batch_weight = jitted(params, batch)
            total, weight = total + float(batch_total), weight + float(batch_weight)
            between(number + 1, count)
        return float(total / weight)

    return evaluate
