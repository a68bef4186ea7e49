"""The training state, and the training step, which is a pure function of a state and a batch."""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding

from jaxgpt.config import BackwardKeeps, GPTConfig, Keeps
from jaxgpt.memory import return_free_memory
from jaxgpt.model.gpt import Model, Params, define
from jaxgpt.model.layers import AS_TRAINED, Layers
from jaxgpt.parallel import P, Placement, abstract, shardings
from jaxgpt.training.loss import Loss, Losses
from jaxgpt.training.trainable import EVERYTHING, Chosen, combine, partition

Blocks = Literal["scan", "unrolled", "auto"]
UNROLLED_ON_TPU = 12  # blocks: their compiler takes about nine seconds of a core for each


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a training step needs and changes."""

    step: Array
    """The number of steps done, int32."""
    key: Array
    """The run's random key. A step uses fold_in(key, step)."""
    trainable: Params
    """The parameters that train."""
    frozen: Params
    """The other parameters, which never change. Pretraining has none."""
    opt_state: Any
    """The optimizer's state, for the trainable parameters only."""
    chosen: Chosen = field(default=EVERYTHING, metadata={"static": True})
    """Which parameters train."""
    recent: Any = None
    """The losses of the last steps (`guard.Recent`), where the run looks for spikes of the loss."""

    @property
    def params(self) -> Params:
        """All parameters, as the model takes them."""
        return combine(self.trainable, self.frozen, self.chosen)


def training_model(
    config: GPTConfig,
    mesh: Mesh,
    *,
    keeps: BackwardKeeps = "all",
    blocks: Blocks = "auto",
    layers: Layers = AS_TRAINED,
) -> Model:
    """The model as a run on this mesh computes it, with layers of this kind.

    See `unrolled_on` for `blocks="auto"` and `kept_on` for `keeps="auto"`.
    """
    placement = Placement(mesh)
    unrolled = unrolled_on(placement.platform, config.layers, blocks)
    kept = kept_on(placement.platform, keeps)
    return define(config, keeps=kept, unrolled=unrolled, layers=layers, placement=placement)


def unrolled_on(platform: str | None, layers: int, blocks: Blocks) -> bool:
    """Whether so many blocks are compiled one by one on this platform, and not scanned.

    With `auto` whichever is faster: on TPU one by one, but for many blocks, which take long to compile.
    """
    if blocks != "auto":
        return blocks == "unrolled"
    return platform == "cpu" or (platform == "tpu" and layers <= UNROLLED_ON_TPU)


def kept_on(platform: str | None, keeps: BackwardKeeps) -> Keeps:
    """What the backward pass finds kept on this platform."""
    if keeps != "auto":
        return keeps
    return "products" if platform == "tpu" else "all"


def start_state(
    params: Params, optimizer: optax.GradientTransformation, key: Array, chosen: Chosen = EVERYTHING
) -> TrainState:
    """The state before the first step, made from parameters. An average of weights begins with them."""
    trainable, frozen = partition(params, chosen)
    return TrainState(jnp.zeros((), jnp.int32), key, trainable, frozen, optimizer.init(trainable), chosen)


def new_state(
    model: Model, optimizer: optax.GradientTransformation, seed: int, chosen: Chosen = EVERYTHING
) -> TrainState:
    """The state before the first step with random parameters. It may be called under `jax.jit`."""
    init_key, key = jax.random.split(jax.random.key(seed))
    return start_state(model.init(init_key), optimizer, key, chosen)


def create_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    *,
    params: Params | None = None,
    chosen: Chosen = EVERYTHING,
) -> TrainState:
    """The state before the first step, created in its shards, so that no host holds a full copy.

    It begins with the given `params`, or else with random ones. Given arrays are donated, so they must not be
    used afterwards.
    """
    if params is None:
        create = functools.partial(new_state, model, optimizer, seed, chosen)
        fresh: TrainState = jax.jit(create, out_shardings=shardings(jax.eval_shape(create), mesh))()
        return fresh
    _, key = jax.random.split(jax.random.key(seed))
    begin = functools.partial(start_state, optimizer=optimizer, key=key, chosen=chosen)
    target = shardings(jax.eval_shape(begin, params), mesh)
    given = () if chosen.layers else (0,)  # a leaf that is cut in two cannot become its parts in place
    begun: TrainState = jax.jit(begin, out_shardings=target, donate_argnums=given)(params)
    return begun


def abstract_state(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh, chosen: Chosen = EVERYTHING
) -> TrainState:
    """The shapes, dtypes and shardings of the state, without any arrays."""
    state: TrainState = abstract(jax.eval_shape(lambda: new_state(model, optimizer, 0, chosen)), mesh)
    return state


def train_step(
    state: TrainState,
    batch: Any,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on one global batch, which is any pytree whose leaves share their first axis.

    The batch is divided into `accumulate` micro-batches. Their sums and their weights are added up, and
    divided once at the end. The result is therefore the one for the whole batch, even where the micro-batches
    have different weights. Returns the new state and the metrics: the mean `loss` (nats), `grad_norm` (before
    clipping), `learning_rate`, and the mean of whatever else the loss reports.
    """
    grads, metrics = gradients(state, batch, loss=loss, accumulate=accumulate)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": schedule(state.step)}
    trainable = optax.apply_updates(state.trainable, updates)
    after = dataclasses.replace(state, step=state.step + 1, trainable=trainable, opt_state=opt_state)
    return after, metrics


def pass_by(state: TrainState) -> TrainState:
    """The state after a step without an update, for the host to call (`without_update`)."""
    return without_update(state, _increased)


def without_update(state: TrainState, increased: Callable[[Array], Array]) -> TrainState:
    """The state after a step without an update. What goes by the step goes on: the learning rate, and where
    clipping begins. `increased(count)` is count + 1.
    """
    by_step = optax.ScaleByScheduleState, optax.ConditionallyTransformState

    def later(node: Any) -> Any:
        match node:
            case optax.ScaleByScheduleState(count=count):
                return node._replace(count=increased(count))
            case optax.ConditionallyTransformState(step=step):
                return node._replace(step=increased(step))
        return node

    opt_state = jax.tree.map(later, state.opt_state, is_leaf=lambda node: isinstance(node, by_step))
    return dataclasses.replace(state, step=increased(state.step), opt_state=opt_state)


def _increased(count: Array) -> Array:
    one_more: Array = jax.jit(lambda count: count + 1, out_shardings=count.sharding)(count)
    return one_more


def gradients(
    state: TrainState, batch: Any, *, loss: Loss, accumulate: int = 1
) -> tuple[Params, dict[str, Array]]:
    """The gradients of a step, before clipping, and the means of what the loss reports. See `train_step`."""
    key = jax.random.fold_in(state.key, state.step)

    def objective(trainable: Params, part: Any, key: Array) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        total, weight, metrics = loss(combine(trainable, state.frozen, state.chosen), part, key)
        return total, (weight, metrics)

    grads, sums, weight = _accumulated(objective, state.trainable, batch, key, accumulate)
    weight = jnp.maximum(weight, np.finfo(np.float32).tiny)
    grads = jax.tree.map(lambda grad: grad / weight, grads)
    return grads, {name: total / weight for name, total in sums.items()}


def prediction_losses(state: TrainState, batch: Any, *, losses: Losses, accumulate: int = 1) -> Array:
    """The loss of each prediction of a step's batch, [B, ...], with the random numbers of that step."""
    key = jax.random.fold_in(state.key, state.step)
    if accumulate == 1:
        return losses(state.params, batch, key)

    def one(numbered: tuple[Array, Any]) -> Array:
        return losses(state.params, numbered[1], jax.random.fold_in(key, numbered[0]))

    found: Array = jax.lax.map(one, (jnp.arange(accumulate), _micro_batches(batch, accumulate)))
    return jnp.moveaxis(found, 0, 1).reshape(-1, *found.shape[2:])


def _micro_batches(batch: Any, parts: int) -> Any:
    """[parts * b, ...] -> [parts, b, ...]. Micro-batch n has every row n, n + parts, n + 2 * parts, ..., so
    that every row stays on its device.
    """
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0), batch)


def _accumulated(
    objective: Callable[..., Any], trainable: Params, batch: Any, key: Array, parts: int
) -> tuple[Params, dict[str, Array], Array]:
    """The gradients, the sums (the loss is one of them) and the weight, added over the micro-batches."""

    def one(micro_batch: Any, key: Array) -> tuple[Params, dict[str, Array], Array]:
        gradient = jax.value_and_grad(objective, has_aux=True)
        (total, (weight, metrics)), grads = gradient(trainable, micro_batch, key)
        return grads, metrics | {"loss": total}, weight

    if parts == 1:
        return one(batch, key)

    def add(total: Any, numbered: Any) -> tuple[Any, None]:
        number, micro_batch = numbered
        return jax.tree.map(jnp.add, total, one(micro_batch, jax.random.fold_in(key, number))), None

    micro_batches = _micro_batches(batch, parts)
    shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], micro_batches), key)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    total: tuple[Params, dict[str, Array], Array]
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), micro_batches))
    return total


def compile_step(step: Any, state: TrainState, mesh: Mesh) -> Any:
    """`step` under `jax.jit`: the state is donated and keeps its shardings; metrics are on every device."""
    placed = shardings(state, mesh)
    return jax.jit(
        step, in_shardings=(placed, None), out_shardings=(placed, NamedSharding(mesh, P())), donate_argnums=0
    )


class StepPrograms:
    """A step that is compiled once for each shape of its batch."""

    def __init__(self, jitted: Any) -> None:
        """Take what `compile_step` returned."""
        self._jitted = jitted
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._seconds = 0.0

    def of(self, state: TrainState, batch: Any) -> Any:
        """The program for batches of this shape. It is compiled when it is first asked for."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in self._compiled:
            since = time.perf_counter()
            self._compiled[shapes] = self._jitted.lower(state, batch).compile()
            self._seconds += time.perf_counter() - since
            return_free_memory()
        return self._compiled[shapes]

    def compiling(self) -> float:
        """For how many seconds programs were compiled so far."""
        return self._seconds

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        """One step. Returns the new state and the metrics."""
        result: tuple[TrainState, dict[str, Array]] = self.of(state, batch)(state, batch)
        return result
