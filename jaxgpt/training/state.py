"""The train state and the train step: a pure function of state and batch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding

from jaxgpt.model.gpt import Model, stack_blocks, unstack_blocks
from jaxgpt.parallel import P, abstract, shardings
from jaxgpt.training.loss import Loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a step needs and changes."""

    step: Array
    """Steps done, int32."""
    key: Array
    """The run's random key; a step uses fold_in(key, step)."""
    params: Any
    opt_state: Any


def new_state(model: Model, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step. Traceable: jit it with `out_shardings` and no host holds a full copy."""
    init_key, key = jax.random.split(jax.random.key(seed))
    params = model.init(init_key)
    return TrainState(jnp.zeros((), jnp.int32), key, params, optimizer.init(params))


def create_state(model: Model, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
    """`new_state`, created sharded over the mesh."""
    create = functools.partial(new_state, model, optimizer)
    target = shardings(jax.eval_shape(create, seed), mesh)
    return jax.jit(create, static_argnums=0, out_shardings=target)(seed)


def abstract_state(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, no arrays."""
    return abstract(jax.eval_shape(functools.partial(new_state, model, optimizer), 0), mesh)


def train_step(
    state: TrainState,
    batch: Any,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    accumulate: int = 1,
    unrolled: bool = False,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on one global batch (any pytree whose leaves share their first axis).

    The batch is cut into `accumulate` micro-batches; sums and weights are added up and divided once, so the result
    is the big batch's also where micro-batches weigh differently. `unrolled` runs the blocks one after another
    instead of scanning them. Returns the new state and `loss` (mean, nats), `grad_norm` (before clipping),
    `learning_rate` and whatever else the loss reports, as means.
    """
    key = jax.random.fold_in(state.key, state.step)
    params = unstack_blocks(state.params) if unrolled else state.params
    grads, sums, weight = _accumulated(loss, params, batch, key, accumulate)
    if unrolled:
        grads = stack_blocks(grads)
    weight = jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
    grads = jax.tree.map(lambda grad: grad / weight, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {name: total / weight for name, total in sums.items()}
    metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": schedule(state.step)}
    return TrainState(
        state.step + 1, state.key, optax.apply_updates(state.params, updates), opt_state
    ), metrics


def _accumulated(
    loss: Loss, params: Any, batch: Any, key: Array, parts: int
) -> tuple[Any, dict[str, Array], Array]:
    """Gradients, sums (the loss among them) and weight, added over the micro-batches."""

    def one(micro_batch: Any, key: Array) -> tuple[Any, dict[str, Array], Array]:
        def objective(params: Any) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            total, weight, metrics = loss(params, micro_batch, key)
            return total, (weight, metrics)

        (total, (weight, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, metrics | {"loss": total}, weight

    if parts == 1:
        return one(batch, key)

    def every_nth_row(leaf: Array) -> Array:  # [parts * b, ...] -> [parts, b, ...]; no row leaves its device
        return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)

    def add(total: Any, numbered: Any) -> tuple[Any, None]:
        number, micro_batch = numbered
        return jax.tree.map(jnp.add, total, one(micro_batch, jax.random.fold_in(key, number))), None

    micro_batches = jax.tree.map(every_nth_row, batch)
    shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], micro_batches), key)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(parts), micro_batches))[0]


def compile_step(step: Any, state: TrainState, mesh: Mesh) -> Any:
    """`step` jitted: state donated and kept in its shardings, metrics on every device."""
    placed = shardings(state, mesh)
    return jax.jit(
        step, in_shardings=(placed, None), out_shardings=(placed, NamedSharding(mesh, P())), donate_argnums=0
    )


def runs_unrolled(blocks: str) -> bool:
    """Whether blocks run one after another; `auto` takes what measured best on this backend."""
    return blocks == "unrolled" or (blocks == "auto" and jax.default_backend() == "cpu")
