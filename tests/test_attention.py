import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import attention
from jaxgpt.model.attention import (
    cached_attention,
    causal_attention,
    causal_mask,
    causal_self_attention,
    drop,
    multi_head_attention,
    multi_head_attention_wrapped,
    scaled_dot_product_attention,
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


def qkv(T: int, S: int | None = None) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(2), 3)
    return [
        jax.random.normal(key, (B, size, H, K)) for key, size in zip(keys, (T, S or T, S or T), strict=True)
    ]


def plainly(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, mask: jax.Array, **more: float
) -> jax.Array:
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q_BTHK, k_BSHK, v_BSHK))
    return jnp.moveaxis(scaled_dot_product_attention(q, k, v, mask_TS=mask, **more)[0], 1, 2)


@pytest.mark.parametrize("T", [5, 12])  # 12: three blocks of four queries; 5: one block
def test_the_models_attention_equals_the_ladders(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    q, k, v = qkv(T)
    fast = causal_attention(q, k, v, scale=0.3)
    np.testing.assert_allclose(fast, plainly(q, k, v, causal_mask(T), scale=0.3), rtol=1e-5, atol=1e-6)


def test_the_fused_kernels_equal_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(8)
    blocks = causal_attention(q, k, v, scale=0.3)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    np.testing.assert_allclose(causal_attention(q, k, v, scale=0.3), blocks, rtol=1e-5, atol=1e-6)


def test_blocks_have_the_gradients_of_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(8)
    expected = jax.grad(lambda q: plainly(q, k, v, causal_mask(8), scale=0.3).sum() ** 2)(q)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 2)
    grad = jax.grad(lambda q: causal_attention(q, k, v, scale=0.3).sum() ** 2)(q)
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-4)


def test_segments_are_texts_alone() -> None:
    q, k, v = qkv(8)
    segments_BT = jnp.array([[0, 0, 0, 1, 1, 1, 1, 1]] * B)
    packed = causal_attention(q, k, v, scale=0.3, segments_BT=segments_BT)
    for part in (slice(0, 3), slice(3, 8)):
        alone = causal_attention(q[:, part], k[:, part], v[:, part], scale=0.3)
        np.testing.assert_allclose(packed[:, part], alone, rtol=1e-5, atol=1e-6)


def test_a_start_places_queries_among_more_keys() -> None:
    q, k, v = qkv(8, 8)
    full = causal_attention(q, k, v, scale=0.3)
    cached = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    both = jnp.stack([q[0, 5:7], q[1, 3:5]])
    tail = cached_attention(both, *cached, jnp.array([5, 3]), scale=0.3)
    np.testing.assert_allclose(tail, jnp.stack([full[0, 5:7], full[1, 3:5]]), rtol=1e-5, atol=1e-6)


def test_slopes_lower_scores_by_distance() -> None:
    q, k, v = qkv(4)
    slopes_H = jnp.array([0.5, 0.25, 0.1, 0.0])
    out = causal_attention(q * 0, k, v, scale=1.0, slopes_H=slopes_H)
    weights = np.exp(-0.5 * np.arange(3, -1, -1))  # head 0, last query: distances 3, 2, 1, 0
    expected = np.einsum("s,bsk->bk", weights / weights.sum(), v[:, :, 0])
    np.testing.assert_allclose(out[:, 3, 0], expected, rtol=1e-5)


def test_dropped_weights_keep_their_mean_and_need_a_key() -> None:
    x = jnp.ones((200, 200))
    assert drop(x, 0.4, None) is x
    dropped = np.asarray(drop(x, 0.4, jax.random.key(0)))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.6)}
    assert abs((dropped == 0).mean() - 0.4) < 0.01
