"""AdamW and what surrounds it, against NumPy and hand numbers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.config import GPTConfig, MeshConfig, OptimConfig
from jaxgpt.model.gpt import Params, define
from jaxgpt.parallel import mesh_of, path_of, shardings
from jaxgpt.training.optim import averaged, decay_mask, learning_rate, optimizer_of, track_average


def rates(steps: int, **settings: Any) -> np.ndarray:
    """The learning rate of every step, the peak being 1."""
    schedule = learning_rate(OptimConfig(learning_rate=1.0, **settings), steps)
    return np.array(jax.jit(jax.vmap(schedule))(jnp.arange(steps)))


def test_the_warm_up_is_a_line_to_the_peak() -> None:
    np.testing.assert_allclose(rates(9, warmup_steps=4)[:5], [1 / 4, 2 / 4, 3 / 4, 1, 1], rtol=1e-6)
    assert rates(9, warmup_steps=0)[0] == 1


@pytest.mark.parametrize(
    ("settings", "after_warm_up"),
    [
        # steps 2 to 6 after 2 of warm-up; from 1 to 0.2: 0.2 + 0.8 x shape
        ({"schedule": "constant"}, [1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "cosine"}, [1, 0.2 + 0.4 * (1 + 0.5**0.5), 0.6, 0.2 + 0.4 * (1 - 0.5**0.5), 0.2]),
        # 2/7 of 7 steps decay: from step 4 to step 6
        ({"schedule": "wsd", "decay_fraction": 2 / 7}, [1, 1, 1, 0.6, 0.2]),
        # all of them would: but not before the warm-up is over
        ({"schedule": "wsd", "decay_fraction": 1.0}, [1, 0.8, 0.6, 0.4, 0.2]),
    ],
)
def test_schedules_by_hand(settings: dict[str, Any], after_warm_up: list[float]) -> None:
    expected = [0.5, 1, *after_warm_up]
    np.testing.assert_allclose(rates(7, warmup_steps=2, final_fraction=0.2, **settings), expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_the_last_step_reaches_the_final_fraction_and_none_falls_below(
    schedule: str, warmup: int, final: float
) -> None:
    found = rates(100, schedule=schedule, warmup_steps=warmup, final_fraction=final)
    assert found[-1] == pytest.approx(final, abs=1e-7)
    assert found[warmup:].max() == 1 and (np.diff(found[warmup:]) <= 0).all()


def test_a_stated_beginning_rises_to_the_peak_behind_the_warm_up() -> None:
    found = rates(9, warmup_steps=4, initial_fraction=0.2, schedule="constant")
    np.testing.assert_allclose(found[:6], [0.2, 0.4, 0.6, 0.8, 1, 1], rtol=1e-6)
    assert rates(9, warmup_steps=0, initial_fraction=0.2)[0] == 1


def test_the_peak_scales_the_schedule() -> None:
    schedule = learning_rate(OptimConfig(learning_rate=3e-4, warmup_steps=4), 10)
    assert float(schedule(jnp.array(0))) == pytest.approx(3e-4 / 4, rel=1e-6)


def test_decay_is_for_kernels_and_embeddings_only_whatever_their_rank() -> None:
    config = GPTConfig(vocab=64, context=8, layers=2, heads=2, width=16, tied_head=False)
    shapes = jax.eval_shape(define(config).init, jax.random.key(0))
    decayed = {
        path_of(path) for path, true in jax.tree_util.tree_flatten_with_path(decay_mask(shapes))[0] if true
    }
    assert decayed == {
        "wte/embedding",
        "wpe/embedding",
        "lm_head/embedding",
        "h/attn/c_attn/kernel",
        "h/attn/c_proj/kernel",
        "h/mlp/c_fc/kernel",
        "h/mlp/c_proj/kernel",
    }
    assert shapes["h"]["mlp"]["c_fc"]["bias"].ndim == 2  # a stacked bias: rank would say matrix


def adamw_numpy(params: dict, gradients: list[dict], config: OptimConfig, rates: list[float]) -> list[dict]:
    """The parameters after each step of algorithm 2 of Loshchilov & Hutter 2019.

    The gradients are clipped to a global norm first.
    """
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    trajectory = []
    for t, (grads, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
        clipped = config.clip_norm and t > config.clip_after
        scale = min(1.0, config.clip_norm / norm) if clipped else 1.0
        new = {}
        for name, value in params.items():
            grad = grads[name] * scale
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * grad
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * grad**2
            step = first[name] / (1 - config.beta1**t)
            step = step / (np.sqrt(second[name] / (1 - config.beta2**t)) + config.epsilon)
            decay = config.weight_decay if config.decay_all or name != "bias" else 0.0
            new[name] = value - rate * (step + decay * value)
        params = new
        trajectory.append(params)
    return trajectory


def problem() -> tuple[dict, list[dict]]:
    """Parameters, and gradients of which some have a norm below 1 and some above."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "embedding": (5, 2), "bias": (2, 3)}
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    sizes = [0.05, 3.0, 0.1, 1.0, 0.01, 10.0]
    return params, [
        {name: size * rng.standard_normal(shape) for name, shape in shapes.items()} for size in sizes
    ]


def updated(
    optimizer: optax.GradientTransformation, params: dict, gradients: list[dict]
) -> tuple[list[dict], Any]:
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state, trajectory = optimizer.init(params), []
    for grads in gradients:
        updates, state = jax.jit(optimizer.update)(jax.tree.map(jnp.float32, grads), state, params)
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory, state


@pytest.mark.parametrize(
    "settings",
    [{"clip_norm": 0.0}, {"clip_norm": 1.0}, {"clip_norm": 1.0, "clip_after": 3}, {"decay_all": True}],
    ids=str,
)
def test_steps_equal_those_of_numpys_adamw(settings: dict[str, Any]) -> None:
    """Of the gradients, some are longer than 1 both before and after the third step."""
    params, gradients = problem()
    # A large epsilon, so that it matters where it is added.
    config = OptimConfig(learning_rate=0.1, warmup_steps=3, epsilon=1e-2, weight_decay=0.3, **settings)
    schedule = learning_rate(config, len(gradients))
    expected = adamw_numpy(
        params, gradients, config, [float(schedule(jnp.array(k))) for k in range(len(gradients))]
    )
    actual, _ = updated(optimizer_of(config, schedule), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected)


def test_the_average_follows_its_recurrence_and_changes_no_step() -> None:
    params, gradients = problem()
    plain = OptimConfig(learning_rate=0.1)
    config = OptimConfig(learning_rate=0.1, ema_decay=0.75)
    schedule = learning_rate(config, len(gradients))
    expected, without = updated(optimizer_of(plain, schedule), params, gradients)
    actual, state = updated(optimizer_of(config, schedule), params, gradients)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    average = params
    for new in expected:
        average = {name: 0.75 * average[name] + 0.25 * np.asarray(new[name]) for name in average}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), averaged(state), average
    )
    assert averaged(without) is None


def test_the_average_does_not_share_memory_with_the_parameters() -> None:
    """The train step donates both; one buffer cannot be donated twice."""
    params = {"kernel": jnp.ones(3)}
    average = averaged(track_average(0.9).init(params))
    assert average["kernel"].unsafe_buffer_pointer() != params["kernel"].unsafe_buffer_pointer()


def turned_by_numpy(matrix: np.ndarray) -> np.ndarray:
    """Five steps of Newton-Schulz with Muon's coefficients, in float64."""
    turned = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = turned @ turned.T
        turned = 3.4445 * turned + (-4.775 * square + 2.0315 * square @ square) @ turned
    return turned


def test_muon_turns_each_matrix_of_the_blocks_and_adamw_does_the_rest() -> None:
    """The first step, by hand. Layers are apart, and so are queries, keys and values."""
    rng = np.random.default_rng(0)
    params = {
        "h": {
            "attn": {"c_attn": {"kernel": rng.standard_normal((2, 4, 3, 4)), "bias": np.ones((2, 3, 4))}},
            "mlp": {"c_fc": {"kernel": rng.standard_normal((2, 4, 6))}},
        },
        "wte": {"embedding": rng.standard_normal((5, 4))},
    }
    grads = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)
    config = OptimConfig(optimizer="muon", learning_rate=0.1, clip_norm=0.0, weight_decay=0.3)
    (found,), _ = updated(optimizer_of(config, lambda _: 0.1), params, [grads])
    plain = dataclasses.replace(config, optimizer="adamw")
    (expected,), _ = updated(optimizer_of(plain, lambda _: 0.1), params, [grads])
    before, given = params["h"]["attn"]["c_attn"]["kernel"], grads["h"]["attn"]["c_attn"]["kernel"]
    for layer in range(2):
        for part in range(3):
            step = 0.2 * np.sqrt(4) * turned_by_numpy(given[layer, :, part])
            expected["h"]["attn"]["c_attn"]["kernel"] = (
                expected["h"]["attn"]["c_attn"]["kernel"]
                .at[layer, :, part]
                .set(before[layer, :, part] * (1 - 0.1 * 0.3) - 0.1 * step)
            )
        step = 0.2 * np.sqrt(6) * turned_by_numpy(grads["h"]["mlp"]["c_fc"]["kernel"][layer])
        kernel = params["h"]["mlp"]["c_fc"]["kernel"][layer] * (1 - 0.1 * 0.3) - 0.1 * step
        expected["h"]["mlp"]["c_fc"]["kernel"] = expected["h"]["mlp"]["c_fc"]["kernel"].at[layer].set(kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_mean_of_the_gradients_can_be_kept_in_bfloat16(optimizer: str) -> None:
    params = {"h": {"mlp": {"kernel": jnp.ones((2, 4, 4))}}, "bias": jnp.ones(3)}
    config = OptimConfig(optimizer=optimizer, moment_dtype="bfloat16")
    state = optimizer_of(config, lambda _: 0.1).init(params)
    kept = [
        (path_of(path), leaf.dtype.name)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.ndim and "ns_coeffs" not in path_of(path)
    ]
    assert {dtype for path, dtype in kept if "/mu/" in f"/{path}/"} == {"bfloat16"}
    assert {dtype for path, dtype in kept if "/nu/" in f"/{path}/"} == {"float32"}


def test_muon_on_a_mesh_is_muon(config: GPTConfig, params: Params) -> None:
    """Its state lies as the parameters do, and its update is that of one device."""
    optimizer = optimizer_of(OptimConfig(optimizer="muon"), lambda _: 0.1)
    grads = jax.tree.map(jnp.sin, params)
    expected, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    given = params, grads, optimizer.init(params)
    placed = jax.device_put(given, shardings(given, mesh_of(MeshConfig(data=2, fsdp=2, tensor=2))))
    kept = placed[2][1].inner_states["muon"].inner_state[0].mu["h"]["mlp"]["c_fc"]["kernel"]
    assert kept.sharding == placed[0]["h"]["mlp"]["c_fc"]["kernel"].sharding
    assert kept.addressable_shards[0].data.size == kept.size / 4
    found, _ = jax.jit(optimizer.update)(placed[1], placed[2], placed[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)
