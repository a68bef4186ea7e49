"""The loss: equal to NumPy in float64, the same in chunks, and blind to padding."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxgpt.config import GPTConfig
from jaxgpt.model.gpt import Model, Params, define
from jaxgpt.text.batch import Batch, shifted
from jaxgpt.training import loss
from jaxgpt.training.loss import cross_entropy, next_token_loss


def cross_entropy_numpy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probabilities, targets[..., None], -1)[..., 0]


def weighted_batch(config: GPTConfig, T: int, seed: int = 0) -> Batch:
    """Random tokens with unequal weights, some of them 0."""
    rng = np.random.default_rng(seed)
    windows = rng.integers(0, config.vocab, (3, T + 1)).astype(np.int32)
    return shifted(windows, rng.choice([0.0, 0.5, 1.0, 3.0], (3, T)).astype(np.float32))


def test_cross_entropy_equals_numpys_in_float64() -> None:
    rng = np.random.default_rng(0)
    logits_BTV = 5 * rng.standard_normal((2, 7, 11)).astype(np.float32)
    targets_BT = rng.integers(0, 11, (2, 7))
    expected = cross_entropy_numpy(logits_BTV, targets_BT)
    np.testing.assert_allclose(cross_entropy(logits_BTV, targets_BT), expected, rtol=1e-5)


def test_cross_entropy_by_hand() -> None:
    assert float(cross_entropy(jnp.zeros(4), jnp.array(2))) == pytest.approx(np.log(4))
    logits = jnp.log(jnp.array([1.0, 2.0, 5.0]))
    assert float(cross_entropy(logits, jnp.array(1))) == pytest.approx(
        np.log(4), rel=1e-6
    )  # probability 2 of 8


def test_cross_entropy_survives_large_logits_and_ids_that_cannot_be() -> None:
    logits = jnp.array([1e4, 1e4, -jnp.inf])
    np.testing.assert_allclose(cross_entropy(logits, jnp.array(0)), np.log(2), atol=1e-3)  # float32 at 1e4
    assert np.isfinite(jax.grad(cross_entropy)(logits, jnp.array(0))).all()


def plain_cross_entropy(logits_V: jax.Array, targets: jax.Array) -> jax.Array:
    """The same by JAX's own functions, with the backward pass that JAX derives."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits_V), targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("largest", [5, 300])
def test_the_gradient_is_the_one_that_jax_derives(largest: float) -> None:
    """With weights of zero, ids that pad the vocabulary, and logits whose log-sum has few digits."""
    rng = np.random.default_rng(0)
    logits_BTV = (
        jnp.asarray(largest * rng.standard_normal((3, 7, 40)), jnp.float32).at[..., 37:].set(-jnp.inf)
    )
    targets_BT = jnp.asarray(rng.integers(0, 37, (3, 7)))
    weights_BT = jnp.asarray(rng.choice([0.0, 0.5, 3.0], (3, 7)), jnp.float32)

    def total(logits_BTV: jax.Array, function: Any) -> jax.Array:
        return jnp.sum(function(logits_BTV, targets_BT) * weights_BT)

    (value, grads), (expected, expected_grads) = (
        jax.jit(jax.value_and_grad(functools.partial(total, function=function)))(logits_BTV)
        for function in (cross_entropy, plain_cross_entropy)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-6, atol=1e-7)
    assert not grads[..., 37:].any() and not grads[weights_BT == 0].any() and grads[weights_BT > 0].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [0, 5])
def test_a_model_trains_on_the_gradients_that_jax_derives(
    config: GPTConfig, params: Params, dtype: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, compute_dtype=dtype)
    value, grads = value_and_grad(config, params, chunk)
    monkeypatch.setattr(loss, "cross_entropy", plain_cross_entropy)
    expected, expected_grads = value_and_grad(config, params, chunk)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    largest = max(float(jnp.abs(grad).max()) for grad in jax.tree.leaves(expected_grads))
    within = {"float32": 1e-6, "bfloat16": 1e-2}[dtype] * largest  # bfloat16 keeps 8 bits of what rounds anew
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=within, rtol=0), grads, expected_grads)


def test_the_backward_pass_adds_no_array_of_ones_to_the_softmax() -> None:
    def program(function: Any) -> str:
        return str(
            jax.make_jaxpr(jax.grad(lambda x: function(x, jnp.zeros(5, jnp.int32)).sum()))(jnp.eye(5, 64))
        )

    assert "scatter" not in program(cross_entropy) and "scatter" in program(plain_cross_entropy)


def stored(matrix_DV: Any) -> Model:
    """A model whose hidden states are its parameters, and whose logits are those times a fixed matrix."""

    def hidden(params, tokens_BT, *, positions_BT=None, segments_BT=None, cache=None, key=None):  # type: ignore[no-untyped-def]
        return params, None

    def unembed(params: Any, x_BTD: Any) -> Any:
        return x_BTD @ matrix_DV

    return Model(lambda key: None, hidden, unembed, unembed, unembed)


def test_sums_and_weights_by_hand() -> None:
    """The hidden states are the logits: log 1 and log 3, or log 1 twice.

    A target therefore costs log 4 or log 4/3 in the first case, and log 2 in the second.
    """
    x_BTD = jnp.log(jnp.array([[[1.0, 3.0], [1.0, 3.0]], [[1.0, 1.0], [1.0, 3.0]]]))
    batch = Batch(
        np.zeros((2, 2), np.int32), np.array([[0, 1], [0, 0]]), np.array([[1.0, 0.5], [2.0, 0.0]], np.float32)
    )
    total, weight, metrics = next_token_loss(stored(jnp.eye(2)))(x_BTD, batch, None)
    assert float(total) == pytest.approx(np.log(4) + 0.5 * np.log(4 / 3) + 2 * np.log(2), rel=1e-6)
    assert float(weight) == 3.5 and metrics == {}


@pytest.mark.parametrize("chunk", [0, 2, 3])
def test_padding_gets_no_loss_and_no_gradient(chunk: int) -> None:
    rng = np.random.default_rng(0)
    x_BTD = jnp.asarray(rng.standard_normal((2, 5, 4)), jnp.float32)
    weights_BT = np.array([[1, 1, 1, 0, 0], [1, 0, 2, 1, 0]], np.float32)
    loss = next_token_loss(stored(jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)), chunk=chunk)

    def gradient(targets_BT: np.ndarray) -> tuple[Any, Any]:
        batch = Batch(targets_BT, targets_BT, weights_BT)
        return jax.jit(jax.value_and_grad(lambda x: loss(x, batch, None)[0]))(x_BTD)

    targets_BT = rng.integers(0, 6, (2, 5))
    value, grad = gradient(targets_BT)
    assert not np.asarray(grad)[weights_BT == 0].any() and np.asarray(grad)[weights_BT > 0].any(-1).all()
    other, other_grad = gradient(np.where(weights_BT == 0, (targets_BT + 1) % 6, targets_BT))
    np.testing.assert_array_equal(other, value)
    np.testing.assert_array_equal(other_grad, grad)


def value_and_grad(config: GPTConfig, params: Params, chunk: int) -> Any:
    batch, loss = weighted_batch(config, 12), next_token_loss(define(config), chunk=chunk)
    return jax.jit(jax.value_and_grad(lambda params: loss(params, batch, None)[0]))(params)


@pytest.fixture(scope="module")
def whole(config: GPTConfig, params: Params) -> Any:
    """The loss of 12 positions at once, and its gradient."""
    return value_and_grad(config, params, 0)


def test_the_loss_is_the_weighted_cross_entropy_of_the_logits(
    config: GPTConfig, params: Params, whole: Any
) -> None:
    batch = weighted_batch(config, 12)
    logits_BTV = jax.jit(define(config).apply)(params, batch.inputs_BT)
    total = (cross_entropy_numpy(logits_BTV, batch.targets_BT) * batch.weights_BT).sum()
    np.testing.assert_allclose(whole[0], total, rtol=1e-5)


@pytest.mark.parametrize("chunk", [4, 5, 12])  # dividing 12, not dividing it, all of it
def test_a_chunked_loss_has_the_value_and_gradient_of_the_whole(
    config: GPTConfig, params: Params, whole: Any, chunk: int
) -> None:
    chunked = value_and_grad(config, params, chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), chunked, whole)


def values(jaxpr: Any) -> Iterator[Any]:
    """The types of all that a jaxpr computes, in its loops and calls too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from values(inner)


@pytest.mark.parametrize("chunk", [0, 4, 5])
def test_a_chunked_loss_never_holds_all_logits(chunk: int) -> None:
    config = GPTConfig(vocab=512, context=16, layers=1, heads=1, width=4, mlp_width=4)
    loss, batch = next_token_loss(define(config), chunk=chunk), weighted_batch(config, 16)
    params = jax.eval_shape(define(config).init, jax.random.key(0))
    jaxpr = jax.make_jaxpr(jax.value_and_grad(lambda params: loss(params, batch, None)[0]))(params)
    largest = max(value.size for value in values(jaxpr.jaxpr) if hasattr(value, "size"))
    B, T, V = 3, 16, 512
    assert largest >= B * T * V if chunk == 0 else largest <= B * chunk * V
