"""A step that does harm makes no update: a number of it is not finite, or its loss is far above those before.

The step decides that on the devices. So nothing waits for the decision, and it is the same on every process.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding

from jaxgpt.parallel import P
from jaxgpt.training.state import TrainState, without_update

# The window of OLMo-core's SkipStepOptimizer and of Levanter's skip_bad_steps; both take 6 deviations.
WINDOW = 128  # how many losses are looked back on
FEWEST = 64  # how many there must be before one of them can be a spike
NO_UPDATE, LIMIT = "no_update", "loss_limit"  # what a guarded step reports besides


class Recent(NamedTuple):
    """The losses of the last steps that made an update."""

    losses: Array
    """[WINDOW], float32, the newest one first. Those that are not there yet are 0."""
    seen: Array
    """How many there have been, int32."""


def no_losses(mesh: Mesh) -> Recent:
    """What a run begins with, on every device."""
    begun = Recent(jnp.zeros(WINDOW), jnp.zeros((), jnp.int32))
    placed: Recent = jax.jit(lambda: begun, out_shardings=NamedSharding(mesh, P()))()
    return placed


def guarded(
    state: TrainState,
    batch: Any,
    *,
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]],
    deviations: float,
) -> tuple[TrainState, dict[str, Array]]:
    """A training step whose update is left out where it would do harm. See `state.train_step`.

    That is where a metric, a new parameter or a moment is not finite, or the loss is more than `deviations`
    standard deviations above the mean of the recent ones. A state without those has no such limit. The
    metrics besides are `no_update`, which is 1 then and otherwise 0, and the `loss_limit`, if there is one.
    """
    after, metrics = step(state, batch)
    harmless = _all_finite((metrics, after.trainable, after.opt_state))
    if state.recent is not None:
        limit = _limit(state.recent, deviations)
        harmless &= metrics["loss"] <= limit
        after = dataclasses.replace(after, recent=_followed(state.recent, metrics["loss"]))
        metrics = metrics | {LIMIT: limit}
    kept = without_update(state, lambda count: count + 1)
    trainable, opt_state, recent = jax.tree.map(
        functools.partial(jnp.where, harmless), _changing(after), _changing(kept)
    )
    after = dataclasses.replace(after, trainable=trainable, opt_state=opt_state, recent=recent)
    return after, metrics | {NO_UPDATE: 1 - harmless.astype(jnp.int32)}


def _changing(state: TrainState) -> tuple[Any, ...]:
    return state.trainable, state.opt_state, state.recent


def _all_finite(tree: Any) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _limit(recent: Recent, deviations: float) -> Array:
    """The highest loss that is no spike. It is infinite as long as there are too few to compare it with."""
    known = jnp.minimum(recent.seen, WINDOW)
    is_known = jnp.arange(WINDOW) < known
    mean = jnp.sum(recent.losses, where=is_known) / known
    variance = jnp.sum(jnp.square(recent.losses - mean), where=is_known) / known
    return jnp.where(recent.seen < FEWEST, jnp.inf, mean + deviations * jnp.sqrt(variance))


def _followed(recent: Recent, loss: Array) -> Recent:
    return Recent(jnp.roll(recent.losses, 1).at[0].set(loss), recent.seen + 1)
