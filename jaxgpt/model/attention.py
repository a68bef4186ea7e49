"""Attention, one rung at a time, and the one causal attention the model runs.

The ladder (each rung is built on the one before and tested against it):

    scaled_dot_product_attention   the operation itself: scores, softmax, weighted sum
    simple_self_attention          no trainable weights: every token looks at every token through dot products
    self_attention                 trainable query, key and value projections
    causal_self_attention          no token sees a later one
    multi_head_attention_wrapped   several small causal attentions side by side
    multi_head_attention           the same in one product for all heads, as GPT computes it

The last floor is `causal_attention`: what the model calls, with the masks, position biases and kernels it needs.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

QUERY_BLOCK = (
    128  # queries a block on CPU: 2x1024 tokens, 12 heads of 64: about half the time of one full product
)


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
    """Self-attention in which position t sees positions 0..t. Returns contexts [B, T, K] and weights [B, T, T]."""
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

    Head h owns columns h*K to (h+1)*K of each projection. Returns contexts [B, T, E] and weights [B, H, T, T].
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


def causal_attention(
    q_BTHK: Array,
    k_BTHK: Array,
    v_BTHK: Array,
    *,
    scale: float | Array,
    segments_BT: Array | None = None,
    slopes_H: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Causal multi-head attention [B, T, H, K] over a whole text, as the model trains and reads prompts with.

    `segments_BT` keeps packed texts apart: a query sees keys of its own segment only. `slopes_H` adds ALiBi's
    -slope * distance to the scores. `key` turns dropout of the weights on. On CPU queries are taken in blocks, each
    against the keys that it can see; elsewhere, where nothing special is asked for, the call goes to JAX's own
    attention and its fused kernels.
    """
    key = key if dropout > 0 else None
    plain = segments_BT is None and slopes_H is None and key is None
    if plain and jax.default_backend() != "cpu":
        q_BTHK = q_BTHK * jnp.asarray(scale, q_BTHK.dtype)  # the fused kernels take only a constant scale
        return jax.nn.dot_product_attention(q_BTHK, k_BTHK, v_BTHK, scale=1.0, is_causal=True)
    T = q_BTHK.shape[1]
    size = QUERY_BLOCK if T % QUERY_BLOCK == 0 else T
    blocks = []
    for begin in range(0, T, size):
        end = begin + size
        distance_TS = begin + jnp.arange(size)[:, None] - jnp.arange(end)[None, :]
        allowed_BTS = (distance_TS >= 0)[None]
        if segments_BT is not None:
            allowed_BTS = allowed_BTS & (segments_BT[:, begin:end, None] == segments_BT[:, None, :end])
        block_key = jax.random.fold_in(key, begin) if key is not None else None
        blocks.append(
            _attend(
                q_BTHK[:, begin:end],
                k_BTHK[:, :end],
                v_BTHK[:, :end],
                allowed_BTS,
                _alibi(slopes_H, distance_TS[None]),
                scale,
                dropout,
                block_key,
            )
        )
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)


def cached_attention(
    q_BTHK: Array,
    k_BHSK: Array,
    v_BHSK: Array,
    start_B: Array,
    *,
    scale: float | Array,
    slopes_H: Array | None = None,
) -> Array:
    """Attention [B, T, H, K] of the newest T positions over a preallocated cache of S, as decoding runs it.

    Query t of row b stands at position start_B[b] + t and sees the keys up to there. The products have the cache on
    the left and leave its axes first: XLA on CPU transposes it for a single row otherwise. (124M, one row, with
    `write_positions` as it is: 36.2 and 22.0 ms a token at 1024 positions, 21.1 and 19.9 ms at 128.)
    """
    at_BT = start_B[:, None] + jnp.arange(q_BTHK.shape[1])[None, :]
    distance_BTS = at_BT[:, :, None] - jnp.arange(k_BHSK.shape[2])[None, None, :]
    scores_BHST = jnp.einsum("bhsk,bthk->bhst", k_BHSK, q_BTHK, preferred_element_type=jnp.float32)
    scores_BHTS = jnp.swapaxes(scores_BHST, 2, 3) * scale
    if (bias_BHTS := _alibi(slopes_H, distance_BTS)) is not None:
        scores_BHTS = scores_BHTS + bias_BHTS
    weights_BHTS = jax.nn.softmax(jnp.where((distance_BTS >= 0)[:, None], scores_BHTS, -jnp.inf), axis=-1)
    context_BHKT = jnp.einsum("bhsk,bhts->bhkt", v_BHSK, weights_BHTS.astype(v_BHSK.dtype))
    return jnp.moveaxis(context_BHKT, 3, 1)


def _alibi(slopes_H: Array | None, distance_BTS: Array) -> Array | None:
    return None if slopes_H is None else -slopes_H[None, :, None, None] * distance_BTS[:, None]


def _attend(q_BTHK, k_BSHK, v_BSHK, allowed_BTS, bias_BHTS, scale, dropout, key):
    scores_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=jnp.float32) * scale
    if bias_BHTS is not None:
        scores_BHTS = scores_BHTS + bias_BHTS
    weights_BHTS = jax.nn.softmax(jnp.where(allowed_BTS[:, None], scores_BHTS, -jnp.inf), axis=-1)
    if key is not None:
        weights_BHTS = drop(weights_BHTS, dropout, key)
    return jnp.einsum("bhts,bshk->bthk", weights_BHTS.astype(v_BSHK.dtype), v_BSHK)


def drop(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout: zero with probability `rate`, the rest scaled by 1/(1-rate). `key=None` changes nothing."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)
