"""The validation loss: the mean of a loss over a split, or over its first batches."""

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
    measure = validation_means(loss, batches, mesh, limit=limit, between=between)
    return lambda params: measure(params)["loss"]


def validation_means(
    loss: Loss, batches: Batches, mesh: Mesh, *, limit: int = 0, between: Between = lambda *_: None
) -> Callable[[Any], dict[str, float]]:
    """The same for all that the loss reports: a function that returns the mean `loss` and the other means."""

    def sums(params: Any, batch: Any) -> tuple[dict[str, jax.Array], jax.Array]:
        total, weight, others = loss(params, batch, None)
        return others | {"loss": total}, weight

    jitted = jax.jit(sums, out_shardings=NamedSharding(mesh, P()))
    count = min(limit or len(batches), len(batches))

    def evaluate(params: Any) -> dict[str, float]:
        totals: dict[str, float] = {}
        weight = np.float64(0)
        between(0, count)
        for number in range(count):
            batch = place_rows(functools.partial(batches.rows, number), batches.sequences, mesh)
            batch_totals, batch_weight = jitted(params, batch)
            totals = {name: totals.get(name, 0) + float(total) for name, total in batch_totals.items()}
            weight += float(batch_weight)
            between(number + 1, count)
        return {name: float(total / weight) for name, total in totals.items()}

    return evaluate
