"""Attention by blocks of queries in plain XLA, with a backward pass of its own.

What the backward pass keeps is what a softmax divides by, and not the weights, which are T x T floats a head:
it makes them again, a block at a time. It makes them the other way round, keys x queries. That is the order
that the gradients of keys and values need, and XLA then cannot take them for those of the forward pass and
keep those after all. Source: Dao et al. 2022, FlashAttention, algorithms 1 and 4, without its tiles of keys.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxgpt.model.dropout import drop
from jaxgpt.model.mask import Mask
from jaxgpt.model.positions import alibi_bias

CONTEXT = "context"  # the result of attention, by its name for what the backward pass keeps
QUERY_BLOCK = 128  # queries in a block
Kept = tuple[Array, ...]


def blocks(
    q_BTHK: Array,
    k_BSHK: Array,
    v_BSHK: Array,
    mask: Mask,
    *,
    scale: float | Array,
    slopes_H: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Attention [B, T, H, K] by blocks of queries, as `attend` says.

    A causal block is not multiplied with the keys behind it: half the work. The slopes and the scale have no
    gradient.
    """
    factor = jnp.asarray(scale, jnp.float32)
    return _attention(dropout, q_BTHK, k_BSHK, v_BSHK, mask, factor, slopes_H, key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(dropout: float, *given: Any) -> Array:
    return _forward(dropout, *given)[0]


def _forward(
    dropout: float,
    q_BTHK: Array,
    k_BSHK: Array,
    v_BSHK: Array,
    mask: Mask,
    scale: Array,
    slopes_H: Array | None,
    key: Array | None,
) -> tuple[Array, tuple[Kept, Mask, Array, Array | None, list[Array | None]]]:
    """The contexts, and what the backward pass needs."""
    q_BHTK, k_BHSK, v_BHSK = (jnp.swapaxes(x, 1, 2) for x in (q_BTHK, k_BSHK, v_BSHK))
    contexts, normalisers, kept = [], [], []
    for first, last, keys in _spans(q_BTHK.shape[1], k_BSHK.shape[1], mask):
        scores_BHTS = _product("bhtk,bhsk->bhts", q_BHTK[:, :, first:last], k_BHSK[:, :, :keys]) * scale
        scores_BHTS = _masked(scores_BHTS, mask, slopes_H, first, last, keys)
        largest_BHT1 = jnp.max(scores_BHTS, axis=-1, keepdims=True)
        weights_BHTS = jnp.exp(scores_BHTS - largest_BHT1)
        total_BHT1 = jnp.sum(weights_BHTS, axis=-1, keepdims=True)
        normalisers.append((largest_BHT1 + jnp.log(total_BHT1))[..., 0])
        kept.append(_kept(weights_BHTS.shape, dropout, key, first))
        weights_BHTS = _dropped(weights_BHTS, kept[-1], dropout).astype(v_BHSK.dtype)
        contexts.append(_product("bhts,bhsk->bhtk", weights_BHTS, v_BHSK[:, :, :keys]) / total_BHT1)
    context_BHTK = jnp.concatenate(contexts, axis=2).astype(v_BSHK.dtype)
    context_BTHK: Array = checkpoint_name(jnp.swapaxes(context_BHTK, 1, 2), CONTEXT)
    normaliser_BHT: Array = checkpoint_name(jnp.concatenate(normalisers, axis=2), CONTEXT)
    saved = (q_BHTK, k_BHSK, v_BHSK, context_BTHK, normaliser_BHT)
    return context_BTHK, (saved, mask, scale, slopes_H, kept)


def _backward(
    dropout: float, saved: tuple[Kept, Mask, Array, Array | None, list[Array | None]], grad_BTHK: Array
) -> tuple[Array | None, ...]:
    """The gradients of queries, keys and values."""
    (q_BHTK, k_BHSK, v_BHSK, context_BTHK, normaliser_BHT), mask, scale, slopes_H, kept = saved
    T, S = q_BHTK.shape[2], k_BHSK.shape[2]
    dtype = v_BHSK.dtype
    grad_BHTK = jnp.swapaxes(grad_BTHK, 1, 2)
    # XLA on CPU computes what it can as early as it can, and what was computed once it keeps. The scores and
    # the keys and values of each block are to wait for the backward pass.
    nothing_BH1K = 0 * grad_BHTK[:, :, :1]
    q_BHTK, k_BHSK, v_BHSK = (x + nothing_BH1K for x in (q_BHTK, k_BHSK, v_BHSK))
    exact = context_BTHK.astype(jnp.float32) * grad_BTHK.astype(jnp.float32)
    common_BHT = jnp.swapaxes(jnp.sum(exact, axis=-1), 1, 2)  # the sum over keys of weight x its gradient
    dq, dk_BHSK, dv_BHSK = [], jnp.zeros(k_BHSK.shape, jnp.float32), jnp.zeros(v_BHSK.shape, jnp.float32)
    for (first, last, keys), kept_BHTS in zip(_spans(T, S, mask), kept, strict=True):
        q, grad = q_BHTK[:, :, first:last], grad_BHTK[:, :, first:last]
        k, v = k_BHSK[:, :, :keys], v_BHSK[:, :, :keys]
        scores_BHST = _product("bhsk,bhtk->bhst", k, q) * scale
        scores_BHST = _masked(scores_BHST, mask, slopes_H, first, last, keys, keys_first=True)
        weights_BHST = jnp.exp(scores_BHST - normaliser_BHT[:, :, None, first:last])
        kept_BHST = None if kept_BHTS is None else jnp.swapaxes(kept_BHTS, 2, 3)
        of_weights_BHST = _dropped(_product("bhsk,bhtk->bhst", v, grad), kept_BHST, dropout)
        of_scores_BHST = weights_BHST * (of_weights_BHST - common_BHT[:, :, None, first:last]) * scale
        used_BHST = _dropped(weights_BHST, kept_BHST, dropout).astype(dtype)
        of_scores_BHST = of_scores_BHST.astype(dtype)
        dq.append(_product("bhst,bhsk->bhtk", of_scores_BHST, k))
        behind = ((0, 0), (0, 0), (0, S - keys), (0, 0))
        dk_BHSK = dk_BHSK + jnp.pad(_product("bhst,bhtk->bhsk", of_scores_BHST, q), behind)
        dv_BHSK = dv_BHSK + jnp.pad(_product("bhst,bhtk->bhsk", used_BHST, grad), behind)
    grads = (jnp.concatenate(dq, axis=2), dk_BHSK, dv_BHSK)
    dq_BTHK, dk_BSHK, dv_BSHK = (jnp.swapaxes(x, 1, 2).astype(dtype) for x in grads)
    return dq_BTHK, dk_BSHK, dv_BSHK, None, None, None, None


_attention.defvjp(_forward, _backward)


def _spans(T: int, S: int, mask: Mask) -> list[tuple[int, int, int]]:
    """Of each block of queries, the first one, the one after the last, and how many keys it can see."""
    size = QUERY_BLOCK if T % QUERY_BLOCK == 0 else T
    return [(first, first + size, first + size if mask.causal else S) for first in range(0, T, size)]


def _product(formula: str, left: Array, right: Array) -> Array:
    """A float32 product."""
    product: Array = jnp.einsum(formula, left, right, preferred_element_type=jnp.float32)
    return product


def _masked(
    scores: Array,
    mask: Mask,
    slopes_H: Array | None,
    first: int,
    last: int,
    keys: int,
    *,
    keys_first: bool = False,
) -> Array:
    """Scores with ALiBi's bias, and -inf where a query may not look: [B, H, T, S], or [B, H, S, T] with
    `keys_first`.
    """
    allowed_BTS = mask.allowed(first, last, keys)
    distance_TS = first + jnp.arange(last - first)[:, None] - jnp.arange(keys)[None, :]
    bias_BHTS = alibi_bias(slopes_H, distance_TS[None])
    if keys_first:
        allowed_BTS = jnp.swapaxes(allowed_BTS, 1, 2)
        bias_BHTS = None if bias_BHTS is None else jnp.swapaxes(bias_BHTS, 2, 3)
    if bias_BHTS is not None:
        scores = scores + bias_BHTS
    return jnp.where(allowed_BTS[:, None], scores, -jnp.inf)


def _kept(shape: tuple[int, ...], dropout: float, key: Array | None, first: int) -> Array | None:
    """Which weights of a block dropout keeps, or None for all of them."""
    if key is None or dropout == 0:
        return None
    return drop(jnp.ones(shape), dropout, jax.random.fold_in(key, first)) > 0


def _dropped(x: Array, kept: Array | None, dropout: float) -> Array:
    return x if kept is None else jnp.where(kept, x / (1 - dropout), 0)
