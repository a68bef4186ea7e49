"""The train step: equal to PyTorch's, to itself on other meshes, and to itself cut into micro-batches."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgpt
from jaxgpt.config import GPTConfig, MeshConfig, OptimConfig
from jaxgpt.model.gpt import define
from jaxgpt.parallel import mesh_of, place_rows, shardings
from jaxgpt.text.batch import Batch, shifted
from jaxgpt.training.loss import next_token_loss
from jaxgpt.training.optim import adamw, learning_rate
from jaxgpt.training.state import TrainState, compile_step, create_state, train_step

TRAINING = Path(__file__).parent / "golden" / "training"


def random_batch(config: GPTConfig, rows: int, seed: int = 0) -> Batch:
    """Tokens with unequal weights, some of them 0."""
    rng = np.random.default_rng(seed)
    windows = rng.integers(0, config.vocab, (rows, config.context + 1)).astype(np.int32)
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], (rows, config.context)).astype(np.float32)
    return shifted(windows, weights)


def check_against_pytorch(folder: Path) -> None:
    start = jaxgpt.load(folder)
    config, params = start.config, start.params
    expected = np.load(folder / "expected.npz")
    rates = jnp.asarray(expected["learning_rate"], jnp.float32)
    optim = OptimConfig(beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, clip_norm=1.0)
    optimizer = adamw(optim, lambda count: rates[count])
    step = jax.jit(
        functools.partial(
            train_step,
            loss=next_token_loss(define(config)),
            optimizer=optimizer,
            schedule=lambda count: rates[count],
        )
    )
    state = TrainState(jnp.zeros((), jnp.int32), jax.random.key(0), params, optimizer.init(params))
    for k, tokens in enumerate(expected["tokens"]):
        state, metrics = step(state, shifted(tokens))
        np.testing.assert_allclose(metrics["loss"], expected["loss"][k], rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"][k], rtol=1e-5)
        np.testing.assert_allclose(metrics["learning_rate"], rates[k])
    final = jaxgpt.load(folder / "final.safetensors").params
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5), state.params, final
    )


def test_ten_steps_equal_pytorchs() -> None:
    check_against_pytorch(TRAINING)


def stepper(config: GPTConfig, optim: OptimConfig, **settings: Any) -> tuple[Any, Any]:
    """(step, optimizer) for a random model."""
    remat, chunk = settings.pop("remat", False), settings.pop("chunk", 0)
    schedule = learning_rate(optim, 20)
    optimizer = adamw(optim, schedule)
    loss = next_token_loss(define(config, remat=remat), chunk=chunk)
    return functools.partial(
        train_step, loss=loss, optimizer=optimizer, schedule=schedule, **settings
    ), optimizer


def run(
    config: GPTConfig, mesh: jax.sharding.Mesh, steps: int, rows: int = 8, **settings: Any
) -> tuple[list, Any]:
    """Losses of some steps from the same start on the same batches, and the final parameters on the host."""
    step, optimizer = stepper(config, OptimConfig(warmup_steps=5, learning_rate=3e-3), **settings)
    state = create_state(define(config), optimizer, 0, mesh)
    compiled, losses = compile_step(step, state, mesh), []
    for number in range(steps):
        batch = random_batch(config, rows, number)
        placed = place_rows(lambda a, b, batch=batch: jax.tree.map(lambda x: x[a:b], batch), rows, mesh)
        state, metrics = compiled(state, placed)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@pytest.fixture(scope="module")
def single(config: GPTConfig) -> tuple[list, Any]:
    """The reference: 20 steps on one device."""
    return run(config, mesh_of(MeshConfig(data=1), jax.devices()[:1]), 20)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 2, 4)])
def test_sharded_steps_equal_single_device_steps(
    config: GPTConfig, single: Any, sizes: tuple[int, int, int]
) -> None:
    mesh = mesh_of(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]))
    losses, _ = run(config, mesh, 20)
    np.testing.assert_allclose(losses, single[0], rtol=1e-5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("settings", [{"unrolled": True}, {"remat": True}, {"chunk": 5}, {"accumulate": 4}])
def test_how_a_step_is_computed_changes_nothing(
    config: GPTConfig, single: Any, settings: dict[str, Any]
) -> None:
    losses, params = run(config, mesh_of(MeshConfig(data=1), jax.devices()[:1]), 5, **settings)
    np.testing.assert_allclose(losses, single[0][:5], rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "settings", [{"accumulate": 4}, {"accumulate": 2, "chunk": 7, "remat": True, "unrolled": True}]
)
def test_accumulation_equals_the_big_batch_also_with_unequal_weights(
    config: GPTConfig, settings: dict[str, Any]
) -> None:
    """Gradients themselves: one step of plain descent with rate 1 changes the parameters by exactly them."""
    batch = random_batch(config, 8)
    batch = batch._replace(
        weights_BT=batch.weights_BT * (np.arange(8)[:, None] % 4 == 1)
    )  # three parts weigh nothing

    def gradients(**settings: Any) -> Any:
        step, _ = stepper(config, OptimConfig(), **settings)
        step = functools.partial(step, optimizer=optax.sgd(1.0))
        params = jax.jit(define(config).init)(jax.random.key(0))
        state = TrainState(jnp.zeros((), jnp.int32), jax.random.key(0), params, optax.sgd(1.0).init(params))
        new, metrics = jax.jit(step)(state, batch)
        return jax.tree.map(jnp.subtract, params, new.params), metrics["loss"]

    expected, loss = gradients()
    actual, other_loss = gradients(**settings)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected)


def test_sharded_accumulation_moves_no_row_between_devices(config: GPTConfig, single: Any) -> None:
    losses, _ = run(config, mesh_of(MeshConfig(data=4, fsdp=2)), 3, rows=16, accumulate=2)
    reference, _ = run(config, mesh_of(MeshConfig(data=1), jax.devices()[:1]), 3, rows=16)
    np.testing.assert_allclose(losses, reference, rtol=1e-5)


def test_dropout_draws_anew_each_step_and_micro_batch_and_repeats_with_the_seed(config: GPTConfig) -> None:
    dropping = dataclasses.replace(config, dropout=0.3)
    mesh = mesh_of(MeshConfig(data=1), jax.devices()[:1])
    step, optimizer = stepper(dropping, OptimConfig(learning_rate=1e-30))
    halves, _ = stepper(dropping, OptimConfig(learning_rate=1e-30), accumulate=2)
    batch = random_batch(config, 4)
    twice = jax.tree.map(lambda x: np.repeat(x[:2], 2, axis=0), batch)  # both micro-batches the same

    start = create_state(define(dropping), optimizer, 0, mesh)

    def losses(step: Any, batch: Batch) -> list[float]:
        state, found = start, []
        for _ in range(2):
            state, metrics = step(state, batch)
            found.append(float(metrics["loss"]))
        return found

    whole = jax.jit(step)
    first = losses(whole, batch)
    assert first == losses(whole, batch) and abs(first[0] - first[1]) > 1e-5
    micro = losses(jax.jit(halves), twice)
    assert abs(micro[0] - losses(jax.jit(step), jax.tree.map(lambda x: x[:2], batch))[0]) > 1e-6


def test_state_is_created_in_its_shards_and_stays_there(config: GPTConfig) -> None:
    mesh = mesh_of(MeshConfig(data=2, fsdp=2, tensor=2))
    step, optimizer = stepper(config, OptimConfig())
    state = create_state(define(config), optimizer, 0, mesh)
    placed = shardings(state, mesh)
    new, _ = compile_step(step, state, mesh)(state, random_batch(config, 8))
    for leaf, sharding in zip(jax.tree.leaves(new), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    kernel = new.params["h"]["mlp"]["c_fc"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (config.layers, config.width // 2, config.mlp_size // 2)
    assert state.params["wte"]["embedding"].is_deleted()  # donated


def test_a_batch_without_weight_changes_nothing_but_the_count(config: GPTConfig) -> None:
    step, optimizer = stepper(config, OptimConfig(weight_decay=0.0))
    state = create_state(define(config), optimizer, 0, mesh_of(MeshConfig(data=1), jax.devices()[:1]))
    batch = random_batch(config, 2)
    new, metrics = jax.jit(step)(state, batch._replace(weights_BT=0 * batch.weights_BT))
    assert metrics["loss"] == 0 and int(new.step) == 1
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
