"""A small model trains in one call: as a run does, the same each time, and without touching what is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxgpt.config import OptimConfig
from jaxgpt.errors import DivergedError
from jaxgpt.model.gpt import Params
from jaxgpt.training.fit import fit
from jaxgpt.training.loop import Event

OPTIM = OptimConfig(learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.0, clip_norm=0.0)


def rows(step: int, start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float32) + 10 * step


def loss(params: Params, batch: Array, key: Array | None) -> tuple[Array, Array, dict[str, Array]]:
    assert key is not None
    return jnp.sum(batch * params["w"]), jnp.asarray(float(len(batch))), {"first": batch[0]}


def test_it_trains_as_a_run_does_and_leaves_what_is_given() -> None:
    """Adam's first steps are about as long as the learning rate, and the very first one exactly."""
    given = {"w": jnp.ones(())}
    seen = Event("w", 2, lambda state: {"w": float(state.params["w"])})
    fitted = fit(given, loss, rows, steps=4, sequences=3, optim=OPTIM, log_every=2, events=[seen])
    np.testing.assert_allclose([row["w"] for row in fitted.rows if "w" in row], [1.0, 0.8, 0.6], atol=0.06)
    assert float(given["w"]) == 1.0
    losses = {row["step"]: row["loss"] for row in fitted.rows if "loss" in row}
    assert list(losses) == [1, 2, 4]
    np.testing.assert_allclose([losses[1], losses[2]], [1.0, 11 * 0.9], rtol=1e-5)
    first = [3 * row["first"] for row in fitted.rows if "first" in row]
    np.testing.assert_allclose(first, [0.0, 10.0, 30.0], rtol=1e-6)
    again = fit(given, loss, rows, steps=4, sequences=3, optim=OPTIM)
    np.testing.assert_array_equal(again.params["w"], fitted.params["w"])


def test_a_loss_that_is_not_finite_ends_it() -> None:
    def infinite(params: Params, batch: Array, key: Array | None) -> tuple[Array, Array, dict[str, Array]]:
        total, weight, _ = loss(params, batch, key)
        return total / 0.0, weight, {}

    with pytest.raises(DivergedError, match="diverged at step 1"):
        fit({"w": jnp.ones(())}, infinite, rows, steps=2, sequences=3, optim=OPTIM)


def test_another_seed_is_another_dropout() -> None:
    def noisy(params: Params, batch: Array, key: Array | None) -> tuple[Array, Array, dict[str, Array]]:
        assert key is not None
        return jnp.sum(params["w"] * jax.random.normal(key)), jnp.asarray(1.0), {}

    ends = [
        fit({"w": jnp.ones(())}, noisy, rows, steps=5, sequences=1, seed=seed).params["w"] for seed in (0, 1)
    ]
    assert ends[0] != ends[1]
