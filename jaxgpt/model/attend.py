"""The attention that the model runs: one call, and the implementations that can answer it.

    plain     one product over all positions; the reference that the others are tested against
    blocks    the queries in blocks, each against the keys that it can see; plain XLA, so it runs everywhere
    cudnn     NVIDIA's fused kernel, in 16-bit types
    paired    a fused kernel for TPUs, in 16 bits, for short texts and heads that fill a register side by side
    splash    the fused Pallas kernel for TPUs that JAX ships, for everything else

`implementation_for` picks one. The platform is an argument that comes from the mesh, never the default
backend of the process: a program for a TPU can be compiled on a CPU, and is then the program that the TPU
will run.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt.model.blockwise import CONTEXT, blocks
from jaxgpt.model.mask import Mask
from jaxgpt.model.positions import alibi_bias
from jaxgpt.parallel import NOWHERE, Placement

PRODUCT = "product"  # the results of a block's linear layers, by the same
# Sizes of a block of the splash kernel. The first that divides the sequence is taken; a TPU has no memory for
# larger ones.
SPLASH_BLOCKS = (1024, 512, 256, 128)
CUDNN_LARGEST_HEAD = 128


def implementation_for(
    placement: Placement,
    mask: Mask,
    *,
    dtype: str,
    heads: int,
    head_size: int,
    length: int,
    only_xla: bool = False,
) -> str:
    """The name of the implementation that answers a call of `attend`.

    `length` is the number of positions. `only_xla` says that the call needs what no fused kernel does
    here: dropout of the weights, ALiBi's slopes, or keys of another sequence.
    """
    sixteen_bits = dtype in ("bfloat16", "float16")
    if placement.platform == "tpu" and not only_xla and length % SPLASH_BLOCKS[-1] == 0:
        from jaxgpt.model.paired import suits  # Pallas takes a third of a second to import

        own = placement.part("heads", (1, length, heads, head_size))[2]
        plainly = mask.segments_BT is None and mask.window is None
        return "paired" if dtype == "bfloat16" and plainly and suits(own, head_size, length) else "splash"
    fits_cudnn = sixteen_bits and head_size % 8 == 0 and head_size <= CUDNN_LARGEST_HEAD
    if placement.platform in ("gpu", "cuda") and fits_cudnn and not only_xla and mask.segments_BT is None:
        return "cudnn"
    return "blocks"


def attend(
    q_BTHK: Array,
    k_BTHK: Array,
    v_BTHK: Array,
    mask: Mask,
    *,
    scale: float | Array,
    slopes_H: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
    placement: Placement = NOWHERE,
) -> Array:
    """Multi-head attention [B, T, H, K] over a whole text: softmax(scale * q k^T) v, under a mask.

    The keys and values may be those of another sequence, [B, S, H, K], if the mask has its segments.
    `slopes_H` adds ALiBi's -slope * distance to the scores. `key` turns dropout of the attention weights on.
    Source: Vaswani et al. 2017, equation 1 and section 3.2.2.
    """
    key = key if dropout > 0 else None
    name = implementation_for(
        placement,
        mask,
        dtype=str(q_BTHK.dtype),
        heads=q_BTHK.shape[2],
        head_size=q_BTHK.shape[-1],
        length=q_BTHK.shape[1],
        only_xla=slopes_H is not None or key is not None or mask.key_segments_BS is not None,
    )
    if name == "blocks":
        return blocks(q_BTHK, k_BTHK, v_BTHK, mask, scale=scale, slopes_H=slopes_H, dropout=dropout, key=key)
    inside = scale if name == "paired" and isinstance(scale, float) else None
    if inside is None:  # most kernels take a scale of 1 only, and this one takes constants
        q_BTHK = q_BTHK * jnp.asarray(scale, q_BTHK.dtype)
    if name == "cudnn":
        return cudnn(q_BTHK, k_BTHK, v_BTHK, mask)
    if name == "paired":
        from jaxgpt.model.paired import paired

        heads = q_BTHK, k_BTHK, v_BTHK
        scale = 1.0 if inside is None else inside
        return paired(*heads, scale=scale, causal=mask.causal, name=CONTEXT, placement=placement)
    return splash(q_BTHK, k_BTHK, v_BTHK, mask, placement=placement)


def plain(q_BTHK: Array, k_BTHK: Array, v_BTHK: Array, mask: Mask, *, scale: float | Array) -> Array:
    """Attention by one product over all positions."""
    allowed_BTS = mask.allowed(0, q_BTHK.shape[1], k_BTHK.shape[1])
    weights_BHTS = _weights(q_BTHK, k_BTHK, allowed_BTS, scale=scale, bias_BHTS=None)
    return jnp.einsum("bhts,bshk->bthk", weights_BHTS.astype(v_BTHK.dtype), v_BTHK)


def plain_weights(
    q_BTHK: Array, k_BTHK: Array, mask: Mask, *, scale: float | Array, slopes_H: Array | None = None
) -> Array:
    """How much each query looks at each key in `plain`, float32 [B, H, T, T]; a row adds up to 1."""
    T = q_BTHK.shape[1]
    distance_TT = jnp.arange(T)[:, None] - jnp.arange(T)[None, :]
    bias_BHTT = alibi_bias(slopes_H, distance_TT[None])
    return _weights(q_BTHK, k_BTHK, mask.allowed(0, T, T), scale=scale, bias_BHTS=bias_BHTT)


def cudnn(q_BTHK: Array, k_BTHK: Array, v_BTHK: Array, mask: Mask) -> Array:
    """Attention by cuDNN's fused kernel; the queries are scaled already."""
    assert mask.segments_BT is None, "segments take another implementation"
    window = None if mask.window is None else (mask.window - 1, 0 if mask.causal else q_BTHK.shape[1])
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BTHK,
        v_BTHK,
        scale=1.0,
        is_causal=mask.causal,
        local_window_size=window,
        implementation="cudnn",
    )


def splash(
    q_BTHK: Array, k_BTHK: Array, v_BTHK: Array, mask: Mask, *, placement: Placement, interpret: bool = False
) -> Array:
    """Attention by JAX's splash kernel; the queries are scaled already. `interpret` runs it on a CPU, for
    tests.

    The compiler cannot split a kernel over devices, so each device runs it on its own rows and heads.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    segments_BT = mask.segments_BT

    def each(q_BTHK: Array, k_BTHK: Array, v_BTHK: Array, segments_BT: Array | None = None) -> Array:
        kernel = _splash_kernel(mask.causal, mask.window, q_BTHK.shape[1], q_BTHK.shape[2], interpret)
        q_BHTK, k_BHTK, v_BHTK = (jnp.swapaxes(x, 1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
        if segments_BT is None:
            context_BHTK = jax.vmap(kernel)(q_BHTK, k_BHTK, v_BHTK)
        else:
            ids = SegmentIds(segments_BT, segments_BT)
            context_BHTK = jax.vmap(kernel)(q_BHTK, k_BHTK, v_BHTK, ids)
        return jnp.swapaxes(context_BHTK, 1, 2).astype(v_BTHK.dtype)

    arrays = {"heads": (q_BTHK, k_BTHK, v_BTHK)} | ({} if segments_BT is None else {"tokens": (segments_BT,)})
    names = [name for name, group in arrays.items() for _ in group]
    given = [x for group in arrays.values() for x in group]
    context_BTHK: Array = placement.on_each_device(each, names, "heads", given)(*given)
    return context_BTHK


def _splash_kernel(
    causal: bool, window: int | None, T: int, heads: int, interpret: bool
) -> Callable[..., Array]:
    """The kernel for one row of the batch, [H, T, K] each."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    mask: splash_attention_mask.Mask
    if window is not None:
        mask = splash_attention_mask.LocalMask((T, T), (window - 1, 0 if causal else None), 0)
    elif causal:
        mask = splash_attention_mask.CausalMask((T, T))
    else:
        mask = splash_attention_mask.FullMask((T, T))
    size = next(size for size in SPLASH_BLOCKS if T % size == 0)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    kernel: Callable[..., Array] = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=CONTEXT,
        interpret=interpret,
    )
    return kernel


def attend_cached(
    q_BTHK: Array,
    k_BHSK: Array,
    v_BHSK: Array,
    start_B: Array,
    *,
    scale: float | Array,
    slopes_H: Array | None = None,
) -> Array:
    """Attention [B, T, H, K] of the newest T positions over a preallocated cache of S, as decoding runs it.

    Query t of row b stands at position start_B[b] + t and sees the keys up to there. The products have the
    cache on the left and leave its axes first, because XLA on CPU copies it for a single row otherwise.
    """
    at_BT = start_B[:, None] + jnp.arange(q_BTHK.shape[1])[None, :]
    distance_BTS = at_BT[:, :, None] - jnp.arange(k_BHSK.shape[2])[None, None, :]
    scores_BHST = jnp.einsum("bhsk,bthk->bhst", k_BHSK, q_BTHK, preferred_element_type=jnp.float32)
    scores_BHTS = jnp.swapaxes(scores_BHST, 2, 3) * scale
    if (bias_BHTS := alibi_bias(slopes_H, distance_BTS)) is not None:
        scores_BHTS = scores_BHTS + bias_BHTS
    weights_BHTS = jax.nn.softmax(jnp.where((distance_BTS >= 0)[:, None], scores_BHTS, -jnp.inf), axis=-1)
    context_BHKT = jnp.einsum("bhsk,bhts->bhkt", v_BHSK, weights_BHTS.astype(v_BHSK.dtype))
    return jnp.moveaxis(context_BHKT, 3, 1)


def _weights(
    q_BTHK: Array, k_BSHK: Array, allowed_BTS: Array, *, scale: float | Array, bias_BHTS: Array | None
) -> Array:
    scores_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=jnp.float32) * scale
    if bias_BHTS is not None:
        scores_BHTS = scores_BHTS + bias_BHTS
    return jax.nn.softmax(jnp.where(allowed_BTS[:, None], scores_BHTS, -jnp.inf), axis=-1)
