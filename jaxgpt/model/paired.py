"""A fused attention kernel for TPUs whose heads stay side by side, as GPT-2's heads of 64 lie in a register.

A TPU's registers have 128 lanes. Kernels that take one head at a time, [B, H, T, 64], make it copy queries,
keys and values to half-empty registers and back. Here a block has all 128 lanes of [B, T, D], two heads of
64, and a product of one head has zeros in the lanes of the other: half of the unit's width is idle, as it is
with half-empty registers, and nothing is copied. A whole sequence lies in the chip's fast memory, so that a
softmax is made in one pass, and the backward pass is one kernel. Nothing is kept for it but the result and
the log of what softmax divides by.

It is Dao et al. 2022, "FlashAttention", section 3, without its blocks of keys.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxgpt.parallel import NOWHERE, Placement

LANES = 128  # of a register
QUERY_BLOCK = 256  # queries whose scores exist at one time
LONGEST = 1024  # positions: of longer sequences the fast memory does not hold what is needed
# Dimensions of a product: a b^T, and a^T b.
NT = ((1,), (1,)), ((), ())
TN = ((0,), (0,)), ((), ())


class _Settings(NamedTuple):
    """What the kernels are compiled for. See `paired`."""

    head_size: int
    scale: float
    causal: bool
    name: str
    interpret: bool


def suits(heads: int, head_size: int, length: int) -> bool:
    """Whether the kernel can take so many heads of this size, and sequences of this length."""
    fill = head_size <= LANES and LANES % head_size == 0 and heads * head_size % LANES == 0
    return fill and length % LANES == 0 and length <= LONGEST


def paired(
    q_BTHK: Array,
    k_BTHK: Array,
    v_BTHK: Array,
    *,
    scale: float,
    causal: bool,
    name: str,
    placement: Placement = NOWHERE,
    interpret: bool = False,
) -> Array:
    """Attention of heads that lie side by side. Each device has its own rows and heads.

    `name` is that of the result, for what the backward pass keeps (`jax.ad_checkpoint`). `interpret` runs the
    kernel on a CPU, for tests.
    """

    def each(q_BTHK: Array, k_BTHK: Array, v_BTHK: Array) -> Array:
        q_BTD, k_BTD, v_BTD = (x.reshape(*x.shape[:2], -1) for x in (q_BTHK, k_BTHK, v_BTHK))
        context_BTD: Array = _attention(q_BTD, k_BTD, v_BTD, settings)
        return context_BTD.reshape(q_BTHK.shape)

    settings = _Settings(q_BTHK.shape[-1], scale, causal, name, interpret)
    given = q_BTHK, k_BTHK, v_BTHK
    context_BTHK: Array = placement.on_each_device(each, ("heads",) * 3, "heads", given)(*given)
    return context_BTHK


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(q_BTD: Array, k_BTD: Array, v_BTD: Array, settings: _Settings) -> Array:
    """Attention [B, T, D]."""
    return _forward(q_BTD, k_BTD, v_BTD, settings)[0]


def _forward(
    q_BTD: Array, k_BTD: Array, v_BTD: Array, settings: _Settings
) -> tuple[Array, tuple[Array, ...]]:
    head_size, scale, causal, name, interpret = settings
    B, T, D = q_BTD.shape
    context_BTD, sums_BH1T = pl.pallas_call(
        functools.partial(_forward_kernel, head_size=head_size, scale=scale, causal=causal),
        out_shape=(
            jax.ShapeDtypeStruct(q_BTD.shape, q_BTD.dtype),
            jax.ShapeDtypeStruct((B, D // head_size, 1, T), jnp.float32),
        ),
        in_specs=[_lanes(T)] * 3,
        out_specs=(_lanes(T), _row(T, head_size)),
        name="paired_attention_forward",
        **_run(B, D, head_size, interpret),
    )(q_BTD, k_BTD, v_BTD)
    context_BTD, sums_BH1T = checkpoint_name(context_BTD, name), checkpoint_name(sums_BH1T, name)
    return context_BTD, (q_BTD, k_BTD, v_BTD, sums_BH1T)


def _backward(settings: _Settings, kept: tuple[Array, ...], grad_BTD: Array) -> tuple[Array, ...]:
    head_size, scale, causal, _, interpret = settings
    q_BTD, k_BTD, v_BTD, sums_BH1T = kept
    B, T, D = q_BTD.shape
    grads: tuple[Array, ...] = pl.pallas_call(
        functools.partial(_backward_kernel, head_size=head_size, scale=scale, causal=causal),
        out_shape=(jax.ShapeDtypeStruct(q_BTD.shape, q_BTD.dtype),) * 3,
        in_specs=[_lanes(T)] * 4 + [_row(T, head_size)],
        out_specs=(_lanes(T),) * 3,
        scratch_shapes=[pltpu.VMEM((T, LANES), jnp.float32)] * 2,
        name="paired_attention_backward",
        **_run(B, D, head_size, interpret),
    )(q_BTD, k_BTD, v_BTD, grad_BTD.astype(q_BTD.dtype), sums_BH1T)
    return grads


_attention.defvjp(_forward, _backward)


def _run(B: int, D: int, head_size: int, interpret: bool) -> dict[str, Any]:
    """How a kernel is run: for each row, for each group of lanes, for each head in it."""
    return {
        "grid": (B, D // LANES, LANES // head_size),
        "interpret": interpret,
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")  # the heads of a group share its blocks
        ),
    }


def _lanes(T: int) -> pl.BlockSpec:
    """A group of lanes of [B, T, D]."""
    return pl.BlockSpec((None, T, LANES), lambda b, group, _: (b, 0, group))


def _row(T: int, head_size: int) -> pl.BlockSpec:
    """A head's row of [B, H, 1, T]."""
    heads = LANES // head_size
    return pl.BlockSpec((None, None, 1, T), lambda b, group, head: (b, group * heads + head, 0, 0))


def _of_head(shape: tuple[int, int], head_size: int) -> Array:
    """True in the lanes of the head that the kernel is at."""
    first = pl.program_id(2) * head_size
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return (lane >= first) & (lane < first + head_size)


def _blocks(T: int, causal: bool) -> list[tuple[int, int, int]]:
    """For each block of queries: its first one, the one behind its last, and how many keys all of it sees."""
    size = QUERY_BLOCK if T % QUERY_BLOCK == 0 else LANES
    return [(first, first + size, first if causal else T) for first in range(0, T, size)]


def _forward_kernel(
    q_TL: Any,
    k_TL: Any,
    v_TL: Any,
    context_TL: Any,
    sums_1T: Any,
    *,
    head_size: int,
    scale: float,
    causal: bool,
) -> None:
    T = q_TL.shape[0]
    for first, last, seen in _blocks(T, causal):
        mine = _of_head((last - first, LANES), head_size)
        q_QL = jnp.where(mine, _scaled(q_TL[first:last, :], scale), 0)
        parts = [(slice(0, seen), False)] * (seen > 0) + [(slice(first, last), True)] * causal
        scores = [_scores(q_QL, k_TL[keys, :], 0 if diagonal else None) for keys, diagonal in parts]
        largest_Q1 = functools.reduce(jnp.maximum, (jnp.max(s_QS, axis=1, keepdims=True) for s_QS in scores))
        weights = [jnp.exp(s_QS - largest_Q1) for s_QS in scores]
        total_Q1 = sum(jnp.sum(p_QS, axis=1, keepdims=True) for p_QS in weights)
        products = (
            jnp.dot(p_QS.astype(v_TL.dtype), v_TL[keys, :], preferred_element_type=jnp.float32)
            for p_QS, (keys, _) in zip(weights, parts, strict=True)
        )
        context_QL = (functools.reduce(jnp.add, products) / total_Q1).astype(context_TL.dtype)
        context_TL[first:last, :] = jnp.where(mine, context_QL, context_TL[first:last, :])
        sums_QL = jnp.broadcast_to(largest_Q1 + jnp.log(total_Q1), (last - first, LANES))
        sums_1T[:, first:last] = sums_QL.T[:1]


def _backward_kernel(
    q_TL: Any,
    k_TL: Any,
    v_TL: Any,
    grad_TL: Any,
    sums_1T: Any,
    dq_TL: Any,
    dk_TL: Any,
    dv_TL: Any,
    k_sum_TL: Any,
    v_sum_TL: Any,
    *,
    head_size: int,
    scale: float,
    causal: bool,
) -> None:
    """Scores with their keys first, [S, Q]: three of the four products then need nothing turned."""
    T = q_TL.shape[0]
    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    k_sum_TL[...], v_sum_TL[...] = jnp.zeros((T, LANES)), jnp.zeros((T, LANES))
    for first, last, seen in _blocks(T, causal):
        mine = _of_head((last - first, LANES), head_size)
        q_QL = jnp.where(mine, _scaled(q_TL[first:last, :], scale), 0)
        grad_QL = jnp.where(mine, grad_TL[first:last, :], 0)
        parts = [(slice(0, seen), False)] * (seen > 0) + [(slice(first, last), True)] * causal
        weights, slopes = [], []
        for keys, diagonal in parts:
            s_SQ = _scores(k_TL[keys, :], q_QL, 1 if diagonal else None)
            weights.append(jnp.exp(s_SQ - sums_1T[:, first:last]))
            slopes.append(_scores(v_TL[keys, :], grad_QL, None))
        mean_1Q = sum(
            jnp.sum(p * slope, axis=0, keepdims=True) for p, slope in zip(weights, slopes, strict=True)
        )
        dq_QL = jnp.zeros((last - first, LANES))
        for (keys, _), p_SQ, slope_SQ in zip(parts, weights, slopes, strict=True):
            ds_SQ = (p_SQ * (slope_SQ - mean_1Q)).astype(q_TL.dtype)
            v_sum_TL[keys, :] += product(p_SQ.astype(q_TL.dtype), grad_QL)
            k_sum_TL[keys, :] += product(ds_SQ, q_QL)
            dq_QL += jax.lax.dot_general(ds_SQ, k_TL[keys, :], TN, preferred_element_type=jnp.float32)
        dq_TL[first:last, :] = jnp.where(mine, (scale * dq_QL).astype(dq_TL.dtype), dq_TL[first:last, :])
    mine = _of_head((T, LANES), head_size)
    dk_TL[...] = jnp.where(mine, k_sum_TL[...].astype(dk_TL.dtype), dk_TL[...])
    dv_TL[...] = jnp.where(mine, v_sum_TL[...].astype(dv_TL.dtype), dv_TL[...])


def _scaled(q_QL: Array, scale: float) -> Array:
    """The queries times the scale: they are fewer than the scores."""
    return (scale * q_QL.astype(jnp.float32)).astype(q_QL.dtype)


def _scores(a_AL: Array, b_BL: Array, queries: int | None) -> Array:
    """float32 a b^T; where `queries` names their axis, -inf where a key stands behind the query."""
    scores_AB = jax.lax.dot_general(a_AL, b_BL, NT, preferred_element_type=jnp.float32)
    if queries is None:
        return scores_AB
    at_query, at_key = (
        jax.lax.broadcasted_iota(jnp.int32, scores_AB.shape, axis) for axis in (queries, 1 - queries)
    )
    return jnp.where(at_query >= at_key, scores_AB, -jnp.inf)
