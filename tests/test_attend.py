"""Every implementation of attention computes what the plain one does, and the platform chooses among them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from placements import OnGpu, OnTpu

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.model import blockwise
from jaxgpt.model import paired as kernel
from jaxgpt.model.attend import attend, attend_cached, cudnn, implementation_for, plain, splash
from jaxgpt.model.attention import causal_mask, scaled_dot_product_attention
from jaxgpt.model.blockwise import blocks
from jaxgpt.model.dropout import drop
from jaxgpt.model.gpt import Params, define
from jaxgpt.model.mask import Mask
from jaxgpt.parallel import NOWHERE, Placement, mesh_of

B, H, K = 2, 4, 3
MASKS = {
    "causal": Mask(),
    "everything": Mask(causal=False),
    "window": Mask(window=3),
    "both sides": Mask(causal=False, window=2),
}
OTHER_KEYS = Mask(
    causal=False,
    segments_BT=np.ones((B, 8), bool),
    key_segments_BS=np.arange(10)[None, :] < np.array([[10], [7]]),
)


def qkv(T: int, heads: int = H, head_size: int = K, dtype: str = "float32") -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(2), 3)
    return [jax.random.normal(key, (B, T, heads, head_size), dtype) for key in keys]


def packed(T: int) -> jax.Array:
    """Segments of unequal length, another cut in each row."""
    return jnp.stack([jnp.arange(T) // (T // 3), jnp.arange(T) // (T // 2)])


def by_loops(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, allowed: Callable[[int, int, int], bool]
) -> np.ndarray:
    """Attention in float64, a query at a time, from its definition."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen = [s for s in range(q.shape[1]) if allowed(b, t, s)]
        scores = np.array([q[b, t, h] @ k[b, s, h] for s in seen])
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ v[b, seen, h] / weights.sum()
    return out


def test_masks_mean_what_they_say() -> None:
    q, k, v = qkv(9)
    segments_BT = packed(9)
    rules: dict[str, tuple[Mask, Callable[[int, int, int], bool]]] = {
        "causal": (Mask(), lambda b, t, s: s <= t),
        "everything": (Mask(causal=False), lambda b, t, s: True),
        "window": (Mask(window=3), lambda b, t, s: t - 3 < s <= t),
        "segments": (
            Mask(segments_BT=segments_BT),
            lambda b, t, s: s <= t and bool(segments_BT[b, t] == segments_BT[b, s]),
        ),
    }
    for name, (mask, allowed) in rules.items():
        found = plain(q, k, v, mask, scale=1.0)
        np.testing.assert_allclose(found, by_loops(q, k, v, allowed), rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_reference_is_the_ladders_attention() -> None:
    q, k, v = qkv(12)
    heads_first = [jnp.moveaxis(x, 1, 2) for x in (q, k, v)]
    expected = scaled_dot_product_attention(*heads_first, mask_TS=causal_mask(12), scale=0.3)[0]
    found = plain(q, k, v, Mask(), scale=0.3)
    np.testing.assert_allclose(jnp.moveaxis(found, 1, 2), expected, rtol=1e-5, atol=1e-6)


def assert_agree(
    one: Callable[..., jax.Array], other: Callable[..., jax.Array], arrays: list[jax.Array], tolerance: float
) -> None:
    """Values and all three gradients of two functions of q, k and v."""
    weights = jax.random.normal(jax.random.key(9), arrays[0].shape)

    def summed(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda *given: jnp.sum(f(*given).astype(jnp.float32) * weights)

    np.testing.assert_allclose(
        one(*arrays).astype(jnp.float32), other(*arrays).astype(jnp.float32), rtol=0, atol=tolerance
    )
    grads, others = (jax.jit(jax.grad(summed(f), (0, 1, 2)))(*arrays) for f in (one, other))
    for grad, expected in zip(grads, others, strict=True):
        np.testing.assert_allclose(
            grad.astype(jnp.float32), expected.astype(jnp.float32), rtol=0, atol=10 * tolerance
        )


@pytest.mark.parametrize("segments", [False, True], ids=["one text", "packed"])
@pytest.mark.parametrize("name", MASKS)
def test_blocks_are_the_reference(name: str, segments: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks of four queries, and gradients."""
    monkeypatch.setattr(blockwise, "QUERY_BLOCK", 4)
    mask = Mask(
        causal=MASKS[name].causal, window=MASKS[name].window, segments_BT=packed(12) if segments else None
    )
    assert_agree(
        lambda q, k, v: blocks(q, k, v, mask, scale=0.3),
        lambda q, k, v: plain(q, k, v, mask, scale=0.3),
        qkv(12),
        1e-6,
    )


@pytest.mark.parametrize("mask", [Mask(), OTHER_KEYS], ids=["causal", "other keys"])
def test_slopes_and_dropout_have_the_gradients_that_jax_derives(
    mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "QUERY_BLOCK", 4)
    key, slopes_1H11 = jax.random.key(5), jnp.array([0.5, 0.25, 0.1, 0.0])[None, :, None, None]
    keys = 8 if mask.causal else 10
    q, k, v = qkv(8)[0], *qkv(keys)[1:]

    def reference(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        distance_11TS = (jnp.arange(8)[:, None] - jnp.arange(keys)[None, :])[None, None]
        scores_BHTS = 0.3 * jnp.einsum("bthk,bshk->bhts", q, k) - slopes_1H11 * distance_11TS
        scores_BHTS = jnp.where(mask.allowed(0, 8, keys)[:, None], scores_BHTS, -jnp.inf)
        weights_BHTS, halves = jax.nn.softmax(scores_BHTS, axis=-1), []
        for first in (0, 4):
            seen = first + 4 if mask.causal else keys
            half = weights_BHTS[:, :, first : first + 4, :seen]
            half = drop(half, 0.4, jax.random.fold_in(key, first))
            halves.append(jnp.einsum("bhts,bshk->bthk", half, v[:, :seen]))
        return jnp.concatenate(halves, axis=1)

    def found(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return blocks(q, k, v, mask, scale=0.3, slopes_H=slopes_1H11[0, :, 0, 0], dropout=0.4, key=key)

    assert_agree(found, reference, [q, k, v], 1e-6)


def test_blocks_keep_no_weights_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "QUERY_BLOCK", 32)
    arrays = qkv(128)
    for mask in (Mask(), Mask(causal=False)):
        _, backward = jax.vjp(lambda q, k, v, mask=mask: blocks(q, k, v, mask, scale=0.3), *arrays)
        kept = sum(leaf.size for leaf in jax.tree.leaves(backward))
        assert kept < 6 * arrays[0].size < B * H * 32 * 128


def test_blocks_keep_keys_and_values_once_on_a_cpu() -> None:
    """What each block of queries sees of them is cut out anew for the gradient."""

    def layers(x: jax.Array) -> jax.Array:
        for _ in range(8):
            x = x + blocks(x, 2 * x, 3 * x, Mask(), scale=0.3)
        return jnp.sum(x)

    x = jnp.ones((1, 512, 2, 32))
    used = jax.jit(jax.grad(layers)).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert used < 8 * 9 * x.nbytes  # else nearly 12 arrays for each of the layers


def test_slopes_lower_scores_by_distance_also_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "QUERY_BLOCK", 2)
    q, k, v = qkv(8)
    slopes_H = jnp.array([0.5, 0.25, 0.1, 0.0])
    out = attend(q * 0, k, v, Mask(), scale=1.0, slopes_H=slopes_H)
    for head, slope in enumerate(slopes_H):
        for t in (0, 3, 7):
            weights = np.exp(-slope * np.arange(t, -1, -1))
            expected = np.einsum("s,bsk->bk", weights / weights.sum(), v[:, : t + 1, head])
            np.testing.assert_allclose(out[:, t, head], expected, rtol=1e-5, atol=1e-6)


def test_dropout_drops_weights_independently_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """All values are 1, so an output is the sum of a query's kept weights, scaled up. Its average is 1."""
    monkeypatch.setattr(blockwise, "QUERY_BLOCK", 32)
    q, k, v = qkv(128, heads=8)
    sums = attend(q * 0, k, jnp.ones_like(v), Mask(), scale=1.0, dropout=0.5, key=jax.random.key(1))[..., 0]
    late = np.asarray(sums)[:, 64:]  # queries with many weights each
    assert abs(late.mean() - 1) < 0.02 and late.std() > 0.03
    everyone = attend(
        q * 0, k, jnp.ones_like(v), Mask(causal=False), scale=1.0, dropout=0.5, key=jax.random.key(1)
    )
    first, *others = np.split(np.asarray(everyone)[..., 0], 4, axis=1)  # all blocks have equally many weights
    assert all(np.mean(first == other) < 0.2 for other in others)
    again = attend(q * 0, k, jnp.ones_like(v), Mask(), scale=1.0, dropout=0.5, key=jax.random.key(1))[..., 0]
    np.testing.assert_array_equal(sums, again)
    np.testing.assert_allclose(
        attend(q * 0, k, jnp.ones_like(v), Mask(), scale=1.0, dropout=0.5), 1, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in [*MASKS, "packed"]]
    + [("causal", "bfloat16")]
    + [
        pytest.param(name, "bfloat16", marks=pytest.mark.exhaustive)
        for name in [*MASKS, "packed"]
        if name != "causal"
    ],
)
def test_the_splash_kernel_is_the_reference(name: str, dtype: str) -> None:
    """The kernel's own code, interpreted on the CPU, with its gradients; heads of 64 as GPT-2 has."""
    mask = Mask(segments_BT=packed(384)) if name == "packed" else MASKS[name]
    assert_agree(
        lambda q, k, v: splash(q, k, v, mask, placement=NOWHERE, interpret=True),
        lambda q, k, v: plain(q, k, v, mask, scale=1.0),
        [x[:1] * s for x, s in zip(qkv(384, 1, 64, dtype), (0.125, 1, 1), strict=True)]
        if name != "packed"
        else [x * s for x, s in zip(qkv(384, 1, 64, dtype), (0.125, 1, 1), strict=True)],
        2e-5 if dtype == "float32" else 3e-2,
    )


@pytest.mark.parametrize(
    ("name", "dtype", "head_size"),
    [
        ("causal", "float32", 64),
        pytest.param("causal", "bfloat16", 32, marks=pytest.mark.slow),
        pytest.param("everything", "float32", 64, marks=pytest.mark.slow),
        pytest.param("causal", "bfloat16", 128, marks=pytest.mark.slow),
    ],
)
def test_the_kernel_of_heads_side_by_side_is_the_reference(
    name: str, dtype: str, head_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own code, interpreted on the CPU, with its gradients: two blocks of queries, two groups of
    lanes.
    """
    monkeypatch.setattr(kernel, "QUERY_BLOCK", 128)
    mask, scale = MASKS[name], head_size**-0.5
    q, k, v = qkv(256, 256 // head_size, head_size, dtype)
    assert_agree(
        jax.jit(
            lambda *heads: kernel.paired(
                *heads, scale=scale, causal=mask.causal, name="context", interpret=True
            )
        ),
        lambda q, k, v: plain(q, k, v, mask, scale=scale),
        [x[:1] for x in (q, k, v)],
        2e-6 if dtype == "float32" else 3e-2,
    )


@pytest.mark.parametrize("scale", [0.25, jnp.float32(0.25)], ids=["constant", "array"])
def test_queries_for_the_kernel_of_heads_side_by_side_are_scaled_once(
    scale: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside of it where the scale is a constant, else before it."""
    monkeypatch.setattr(kernel, "paired", functools.partial(kernel.paired, interpret=True))
    heads = [x[:1] for x in qkv(128, 2, 64, "bfloat16")]
    found = attend(*heads, Mask(), scale=scale, placement=OnTpu())
    np.testing.assert_allclose(
        found.astype(float), plain(*heads, Mask(), scale=0.25).astype(float), rtol=0, atol=2e-2
    )


@pytest.mark.parametrize("name", ["causal", "packed"])
def test_on_a_mesh_every_device_runs_splash_on_its_own_rows_and_heads(name: str) -> None:
    mesh = mesh_of(MeshConfig(data=2, fsdp=1, tensor=2), jax.devices()[:4])
    q, k, v = qkv(128, 2, 64)
    mask = Mask(segments_BT=packed(128)) if name == "packed" else MASKS[name]
    run = jax.jit(lambda q, k, v: splash(q, k, v, mask, placement=Placement(mesh), interpret=True))
    np.testing.assert_allclose(run(q, k, v), plain(q, k, v, mask, scale=1.0), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("placement", "changes", "chosen"),
    [
        (OnTpu(), {}, "paired"),
        (OnTpu(), {"heads": 25}, "splash"),
        (OnTpu(), {"head_size": 96}, "splash"),
        (OnTpu(), {"length": 2048}, "splash"),
        (OnTpu(), {"mask": Mask(window=3)}, "splash"),
        (OnTpu(mesh_of(MeshConfig(data=2, tensor=4), jax.devices()[:8])), {}, "splash"),
        (OnTpu(), {"dtype": "float32"}, "splash"),
        (OnTpu(), {"mask": Mask(segments_BT=packed(6))}, "splash"),
        (OnTpu(), {"length": 100}, "blocks"),
        (OnTpu(), {"only_xla": True}, "blocks"),
        (OnGpu(), {}, "cudnn"),
        (OnGpu(), {"dtype": "float32"}, "blocks"),
        (OnGpu(), {"head_size": 60}, "blocks"),
        (OnGpu(), {"head_size": 256}, "blocks"),
        (OnGpu(), {"mask": Mask(segments_BT=packed(6))}, "blocks"),
        (OnGpu(), {"only_xla": True}, "blocks"),
        (NOWHERE, {}, "blocks"),
        (Placement(mesh_of(MeshConfig(data=1), jax.devices()[:1])), {}, "blocks"),
    ],
)
def test_the_platform_of_the_mesh_chooses(placement: Placement, changes: dict, chosen: str) -> None:
    call = {"mask": Mask(), "dtype": "bfloat16", "heads": 12, "head_size": 64, "length": 1024} | changes
    assert implementation_for(placement, call.pop("mask"), **call) == chosen


@pytest.fixture
def gpt() -> tuple[GPTConfig, Params, jax.ShapeDtypeStruct]:
    """Two layers with heads of 64, for texts of 256 tokens."""
    config = GPTConfig(vocab=64, context=256, layers=2, heads=2, width=128, compute_dtype="bfloat16")
    return (
        config,
        jax.eval_shape(define(config).init, jax.random.key(0)),
        jax.ShapeDtypeStruct((4, 256), "int32"),
    )


def test_a_model_for_a_tpu_mesh_calls_a_kernel(gpt: tuple) -> None:
    """In the program lowered for a TPU, the blocks call the kernel, and no T x T scores are left. Where a
    device has one head of 64 alone, that is splash.
    """
    config, params, tokens = gpt
    mesh = mesh_of(MeshConfig(data=2, tensor=2), jax.devices()[:4])
    for placement, called in ((OnTpu(), "paired_attention_forward"), (OnTpu(mesh), "splash_mha")):
        model = define(config, unrolled=True, placement=placement)
        text = jax.jit(model.apply).trace(params, tokens).lower(lowering_platforms=("tpu",)).as_text()
        assert "@tpu_custom_call" in text and called in text
        assert "x128x256xf32" not in text and "x256x256xf32" not in text
    text = jax.jit(define(config, unrolled=True).apply).lower(params, tokens).as_text()
    assert "tpu_custom_call" not in text and "x128x256xf32" in text


def test_a_model_for_a_gpu_calls_the_cudnn_kernel(gpt: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program lowered for CUDA calls the kernel.

    Lowering asks which version of cuDNN is installed. The test answers for it, so none is needed.
    """
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(
        fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda capability: False
    )
    config, params, tokens = gpt
    model = define(config, unrolled=True, placement=OnGpu())
    text = jax.jit(model.apply).trace(params, tokens).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__cudnn$fmhaSoftmax") == config.layers and "x256x256xf32" not in text
    windowed = jax.jit(lambda *heads: cudnn(*heads, Mask(window=5)))
    text = (
        windowed.trace(*qkv(128, head_size=64, dtype="bfloat16"))
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    assert "sliding_window_length\\22: 5," in text
    with pytest.raises(AssertionError, match="segments"):
        cudnn(*qkv(8, dtype="bfloat16"), Mask(segments_BT=packed(8)))


def test_a_start_places_queries_among_more_keys() -> None:
    q, k, v = qkv(8)
    full = plain(q, k, v, Mask(), scale=0.3)
    cached = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    both = jnp.stack([q[0, 5:7], q[1, 3:5]])
    tail = attend_cached(both, *cached, jnp.array([5, 3]), scale=0.3)
    np.testing.assert_allclose(tail, jnp.stack([full[0, 5:7], full[1, 3:5]]), rtol=1e-5, atol=1e-6)


def test_dropped_weights_keep_their_mean_and_need_a_key() -> None:
    x = jnp.ones((200, 200))
    assert drop(x, 0.4, None) is x
    dropped = np.asarray(drop(x, 0.4, jax.random.key(0)))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.6)}
    assert abs((dropped == 0).mean() - 0.4) < 0.01
