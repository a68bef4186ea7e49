"""Attention, one rung of the book's ladder at a time, from dot products to GPT's multi-head attention.

The ladder (each rung is built on the one before and tested against it):

    scaled_dot_product_attention   the operation itself: scores, softmax, weighted sum
    simple_self_attention          no trainable weights: every token looks at every token through dot products
    self_attention                 trainable query, key and value projections
    causal_self_attention          no token sees a later one
    multi_head_attention_wrapped   several small causal attentions side by side
    multi_head_attention           the same in one product for all heads, as GPT computes it

The model itself calls `attend` (model/attend.py), which is tested against this ladder.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def scaled_dot_product_attention(
    q_TK: Array, k_SK: Array, v_SK: Array, *, mask_TS: Array | None = None, scale: float | None = None
) -> tuple[Array, Array]:
    """Weighted sums of values, and the weights: softmax(q k^T * scale) v.

    Leading axes (batch, heads) are shared by all three. `mask_TS` is True where a query may look; `scale` is
    1/sqrt(K) unless given. Returns the context vectors [..., T, K] and the float32 weights [..., T, S].
    Source: Vaswani et al. 2017, equation 1.
    """
    scale = 1 / math.sqrt(q_TK.shape[-1]) if scale is None else scale
    scores_TS = jnp.einsum("...tk,...sk->...ts", q_TK, k_SK, preferred_element_type=jnp.float32) * scale
    if mask_TS is not None:
        scores_TS = jnp.where(jnp.broadcast_to(mask_TS, scores_TS.shape), scores_TS, -jnp.inf)
    weights_TS = jax.nn.softmax(scores_TS, axis=-1)
    return jnp.einsum("...ts,...sk->...tk", weights_TS.astype(v_SK.dtype), v_SK), weights_TS


def causal_mask(T: int) -> Array:
    """[T, T], True where position t may look at position s: s <= t."""
    return jnp.tril(jnp.ones((T, T), bool))


def simple_self_attention(x_BTD: Array) -> tuple[Array, Array]:
    """Self-attention without trainable weights: the tokens are their own queries, keys and values, unscaled.

    Returns contexts [B, T, D] and weights [B, T, T].
    """
    return scaled_dot_product_attention(x_BTD, x_BTD, x_BTD, scale=1.0)


def self_attention(
    x_BTD: Array, w_query_DK: Array, w_key_DK: Array, w_value_DK: Array, *, mask_TS: Array | None = None
) -> tuple[Array, Array]:
    """Self-attention with trainable projections. Returns contexts [B, T, K] and weights [B, T, T]."""
    return scaled_dot_product_attention(
        x_BTD @ w_query_DK, x_BTD @ w_key_DK, x_BTD @ w_value_DK, mask_TS=mask_TS
    )


def causal_self_attention(
    x_BTD: Array, w_query_DK: Array, w_key_DK: Array, w_value_DK: Array
) -> tuple[Array, Array]:
    """Self-attention in which position t sees positions 0..t. Returns contexts [B, T, K] and weights [B, T,
    T].
    """
    return self_attention(x_BTD, w_query_DK, w_key_DK, w_value_DK, mask_TS=causal_mask(x_BTD.shape[1]))


def multi_head_attention_wrapped(
    x_BTD: Array, heads: Sequence[tuple[Array, Array, Array]]
) -> tuple[Array, Array]:
    """Several causal attentions side by side, each with its own (query, key, value) projections [D, K].

    Returns the contexts concatenated over heads [B, T, H*K] and weights [B, H, T, T].
    """
    contexts, weights = zip(
        *(causal_self_attention(x_BTD, *projections) for projections in heads), strict=True
    )
    return jnp.concatenate(contexts, axis=-1), jnp.stack(weights, axis=1)


def multi_head_attention(
    x_BTD: Array, w_query_DE: Array, w_key_DE: Array, w_value_DE: Array, *, heads: int
) -> tuple[Array, Array]:
    """Causal attention of all heads at once: project to E = heads * K, split, attend, join.

    Head h owns columns h*K to (h+1)*K of each projection. Returns contexts [B, T, E] and weights [B, H, T,
    T].
    """
    q_BHTK, k_BHTK, v_BHTK = (
        jnp.moveaxis(split_heads(x_BTD @ w, heads), -2, -3) for w in (w_query_DE, w_key_DE, w_value_DE)
    )
    context_BHTK, weights_BHTT = scaled_dot_product_attention(
        q_BHTK, k_BHTK, v_BHTK, mask_TS=causal_mask(x_BTD.shape[1])
    )
    return join_heads(jnp.moveaxis(context_BHTK, -3, -2)), weights_BHTT


def split_heads(x_BTE: Array, heads: int) -> Array:
    """[..., H*K] -> [..., H, K]."""
    return x_BTE.reshape(*x_BTE.shape[:-1], heads, -1)


def join_heads(x_BTHK: Array) -> Array:
    """[..., H, K] -> [..., H*K]."""
    return x_BTHK.reshape(*x_BTHK.shape[:-2], -1)
