import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model.attention import (
    causal_self_attention,
    multi_head_attention,
    multi_head_attention_wrapped,
    self_attention,
    simple_self_attention,
)

B, T, D, H, K = 2, 6, 8, 4, 3


@pytest.fixture
def x_BTD() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (B, T, D))


@pytest.fixture
def projections() -> list[jax.Array]:
    return [jax.random.normal(key, (D, H * K)) for key in jax.random.split(jax.random.key(1), 3)]


def test_simple_attention_by_hand() -> None:
    x_BTD = jnp.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
    context_BTD, weights_BTT = simple_self_attention(x_BTD)
    np.testing.assert_allclose(weights_BTT[0, 0], [1 / 3] * 3, rtol=1e-6)  # all scores 0
    e = np.e
    np.testing.assert_allclose(weights_BTT[0, 1], np.array([1, e, 1]) / (2 + e), rtol=1e-6)  # scores 0, 1, 0
    np.testing.assert_allclose(context_BTD[0, 1], np.array([e, 2]) / (2 + e), rtol=1e-6)


def test_identity_projections_give_simple_attention_up_to_the_scale(x_BTD: jax.Array) -> None:
    eye = jnp.eye(D)
    plain, _ = simple_self_attention(x_BTD)
    scaled, _ = self_attention(x_BTD, eye * D**0.25, eye * D**0.25, eye)
    np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-6)


def test_causal_weights_are_the_masked_ones_renormalised(
    x_BTD: jax.Array, projections: list[jax.Array]
) -> None:
    w = [p[:, :K] for p in projections]
    _, full_BTT = self_attention(x_BTD, *w)
    _, causal_BTT = causal_self_attention(x_BTD, *w)
    lower_BTT = np.tril(full_BTT)
    np.testing.assert_allclose(causal_BTT, lower_BTT / lower_BTT.sum(-1, keepdims=True), rtol=1e-5)
    assert not np.triu(causal_BTT, 1).any()


def test_split_heads_equal_wrapped_heads(x_BTD: jax.Array, projections: list[jax.Array]) -> None:
    wrapped = [tuple(p[:, h * K : (h + 1) * K] for p in projections) for h in range(H)]
    expected, expected_weights = multi_head_attention_wrapped(x_BTD, wrapped)
    context, weights = multi_head_attention(x_BTD, *projections, heads=H)
    np.testing.assert_allclose(context, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-5, atol=1e-6)
