"""The reference gives PyTorch's numbers, obeys what GPT-2 obeys, and holds one matrix at a time."""

import dataclasses
import json
import math
import tracemalloc
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.evaluation.reference import ACTIVATIONS, ROWS, reference_logits, softmax
from jaxgpt.model import block
from jaxgpt.weights.formats.torch_zip import open_torch
from jaxgpt.weights.tensors import DTYPES, Tensor

GOLDEN = Path(__file__).parent / "golden"
HUGGING_FACE = ["plain", "sharded", "headless", "odd", "scaled", "untied", "bfloat16"]
# Logits of about 1.5, summed in another order than PyTorch's: 1.6e-15 is the most that was seen (11 layers).
EXACT = {"rtol": 0, "atol": 2e-14}
SMALL = GPTConfig(vocab=61, context=16, layers=2, heads=4, width=20, mlp_width=28)


def hugging_face(folder: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """A golden model, read without any of the project's readers."""
    stated = json.loads((folder / "config.json").read_text())
    config = GPTConfig(
        vocab=stated["vocab_size"],
        context=stated["n_positions"],
        layers=stated["n_layer"],
        heads=stated["n_head"],
        width=stated["n_embd"],
        mlp_width=stated["n_inner"],
        layer_norm_epsilon=stated["layer_norm_epsilon"],
        activation={"gelu_new": "gelu_tanh", "relu": "relu"}[stated["activation_function"]],
        tied_head=stated["tie_word_embeddings"],
        scale_attention=stated["scale_attn_weights"],
        scale_by_inverse_layer=stated["scale_attn_by_inverse_layer_idx"],
    )
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensors[name.removeprefix("transformer.")] = Tensor.of(file.get_tensor(name))
    return config, tensors


def nanogpt(folder: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """nanoGPT's own golden model: the exact GELU, matrices (out, in), no biases if it says so."""
    tree = open_torch(folder / "ckpt.pt")
    stated = tree["model_args"]
    config = GPTConfig(
        vocab=stated["vocab_size"],
        context=stated["block_size"],
        layers=stated["n_layer"],
        heads=stated["n_head"],
        width=stated["n_embd"],
        bias=stated["bias"],
        activation="gelu",
    )
    tensors = {}
    for name, tensor in tree["model"].items():
        name = name.removeprefix("_orig_mod.").removeprefix("transformer.")
        linear = ".c_" in name and name.endswith(".weight")
        tensors[name] = Tensor.of(tensor.read().T if linear else tensor.read())
    del tensors["lm_head.weight"]  # the token embedding again
    return config, tensors


def drawn(config: GPTConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random float32 tensors of this model, all of them away from 0 and 1; made anew at each reading."""
    D, F = config.width, config.mlp_size
    shapes = {"wte.weight": (config.vocab, D), "wpe.weight": (config.context, D), "ln_f.weight": (D,)}
    linear = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, F), "mlp.c_proj": (F, D)}
    for layer in range(config.layers):
        for part, shape in {"ln_1": (D,), "ln_2": (D,), **linear}.items():
            shapes[f"h.{layer}.{part}.weight"] = shape
    if config.bias:
        for name in [n for n in shapes if n.startswith(("h.", "ln_f."))]:
            if config.qkv_bias or not name.endswith("c_attn.weight"):
                shapes[name.removesuffix("weight") + "bias"] = shapes[name][-1:]
    if not config.tied_head:
        shapes["lm_head.weight"] = (config.vocab, D)

    def read(number: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([seed, number]).normal(0.3, 0.3, shape).astype(np.float32)

    return {
        name: Tensor(shape, DTYPES["float32"], lambda number=number, shape=shape: read(number, shape))
        for number, (name, shape) in enumerate(shapes.items())
    }


def ids(config: GPTConfig, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, config.vocab, length)


@pytest.mark.parametrize("name", [*HUGGING_FACE, "nanogpt", "nanogpt_compiled"])
def test_logits_are_pytorchs_to_the_last_bits_of_float64(name: str) -> None:
    config, tensors = (hugging_face if name in HUGGING_FACE else nanogpt)(GOLDEN / name)
    expected = np.load(GOLDEN / name / "expected.npz")
    for tokens_T, logits_TV in zip(expected["tokens"], expected["logits"], strict=True):
        found_TV = reference_logits(config, tensors, tokens_T)
        assert found_TV.dtype == logits_TV.dtype == np.float64
        np.testing.assert_allclose(found_TV, logits_TV, **EXACT)


def test_future_tokens_cannot_change_earlier_logits() -> None:
    tensors, tokens_T = drawn(SMALL), ids(SMALL, 16)
    whole_TV = reference_logits(SMALL, tensors, tokens_T)
    for length in (1, 7):
        other_T = np.concatenate([tokens_T[:length], (tokens_T[length:] + 1) % SMALL.vocab])
        other_TV = reference_logits(SMALL, tensors, other_T)
        np.testing.assert_array_equal(other_TV[:length], whole_TV[:length])
        assert np.all(np.abs(other_TV[length:] - whole_TV[length:]).max(axis=1) > 1e-3)
        np.testing.assert_allclose(
            reference_logits(SMALL, tensors, tokens_T[:length]), whole_TV[:length], atol=1e-12
        )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("missing", "count"), [("bias", 13), ("qkv_bias", 2)])
def test_no_biases_are_biases_of_zeros(tied: bool, missing: str, count: int) -> None:
    biased = dataclasses.replace(SMALL, tied_head=tied)
    without = dataclasses.replace(biased, **{missing: False})
    tensors = drawn(without)
    zeros = {
        n: Tensor.of(np.zeros(t.shape, np.float32)) for n, t in drawn(biased).items() if n not in tensors
    }
    assert len(zeros) == count and all(name.endswith(".bias") for name in zeros)
    tokens_T = ids(SMALL, 9)
    np.testing.assert_array_equal(
        reference_logits(biased, {**tensors, **zeros}, tokens_T), reference_logits(without, tensors, tokens_T)
    )


def test_an_attention_scale_can_be_moved_into_the_queries() -> None:
    """Dividing the scores of a layer by c is dividing its queries, weights and biases, by c."""
    tensors, tokens_T = drawn(SMALL), ids(SMALL, 16)

    def with_queries_by(divisors: list[float]) -> dict[str, Tensor]:
        changed = dict(tensors)
        for layer, divisor in enumerate(divisors):
            for kind in ("weight", "bias"):
                array = tensors[f"h.{layer}.attn.c_attn.{kind}"].read().astype(np.float64)
                array[..., : SMALL.width] /= divisor
                changed[f"h.{layer}.attn.c_attn.{kind}"] = Tensor.of(array)
        return changed

    root = math.sqrt(20 / 4)
    for scale, inverse, divisors in (
        (True, False, [root, root]),
        (False, True, [1.0, 2.0]),
        (True, True, [root, 2 * root]),
    ):
        config = dataclasses.replace(SMALL, scale_attention=scale, scale_by_inverse_layer=inverse)
        unscaled = dataclasses.replace(SMALL, scale_attention=False)
        moved_TV = reference_logits(unscaled, with_queries_by(divisors), tokens_T)
        found_TV = reference_logits(config, tensors, tokens_T)
        np.testing.assert_allclose(found_TV, moved_TV, rtol=1e-10, atol=1e-10)
        assert np.abs(found_TV - reference_logits(unscaled, tensors, tokens_T)).max() > 1e-3


def test_activations_equal_pytorchs() -> None:
    """torch.nn.functional of torch 2.13, float64."""
    x = np.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    expected = {
        "gelu": [
            -0.00404969409489031,
            -0.15865525393145702,
            -0.15426876936299344,
            0.0,
            0.34573123063700656,
            0.841344746068543,
            2.99595030590511,
        ],
        "gelu_tanh": [
            -0.0036373920817729943,
            -0.15880800939172324,
            -0.15428599017485606,
            0.0,
            0.34571400982514394,
            0.8411919906082768,
            2.996362607918227,
        ],
        "silu": [
            -0.14227761953270035,
            -0.2689414213699951,
            -0.1887703343990727,
            0.0,
            0.3112296656009273,
            0.7310585786300049,
            2.8577223804672998,
        ],
        "relu": [0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 3.0],
        "relu_squared": [0.0, 0.0, 0.0, 0.0, 0.25, 1.0, 9.0],
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(ACTIVATIONS[name](x), values, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_models_activations_are_these(name: str) -> None:
    x = np.linspace(-4, 4, 50)
    np.testing.assert_allclose(block.ACTIVATIONS[name](jnp.float32(x)), ACTIVATIONS[name](x), atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_right_far_out_and_nothing_overflows(name: str) -> None:
    largest = 1e12 if name == "relu_squared" else 1e6
    np.testing.assert_array_equal(ACTIVATIONS[name](np.array([-1e6, -0.0, 0.0, 1e6])), [0, 0, 0, largest])


def test_gelu_and_silu_keep_their_small_tails() -> None:
    # erfc(10 / sqrt 2) / 2 = 7.61985302416052e-24 (Abramowitz and Stegun, table 26.2)
    # exp(-30) = 9.357622968840175e-14
    np.testing.assert_allclose(
        ACTIVATIONS["gelu"](np.array([-10.0])), [-10 * 7.61985302416052e-24], rtol=1e-13
    )
    np.testing.assert_allclose(
        ACTIVATIONS["silu"](np.array([-30.0])), [-30 * 9.357622968840175e-14], rtol=1e-12
    )


def test_softmax_is_shares_of_any_scores() -> None:
    scores = np.array([[0, math.log(3), -np.inf], [1e4, 1e4 + math.log(3), -1e4], [-np.inf, -np.inf, -1e4]])
    np.testing.assert_allclose(softmax(scores), [[0.25, 0.75, 0], [0.25, 0.75, 0], [0, 0, 1]], rtol=1e-11)


def test_the_order_of_the_vocabulary_is_the_order_of_the_logits() -> None:
    config = dataclasses.replace(SMALL, vocab=2 * ROWS + 3, tied_head=False)
    tensors, tokens_T = drawn(config), ids(config, 3)
    backwards = {**tensors, "lm_head.weight": Tensor.of(tensors["lm_head.weight"].read()[::-1])}
    logits_TV = reference_logits(config, tensors, tokens_T)
    np.testing.assert_allclose(
        reference_logits(config, backwards, tokens_T), logits_TV[:, ::-1], rtol=0, atol=1e-11
    )
    assert len(np.unique(logits_TV[0])) == config.vocab


@pytest.mark.parametrize("tied", [True, False])
def test_each_tensor_is_read_once_and_a_tied_embedding_twice(tied: bool) -> None:
    config = dataclasses.replace(SMALL, tied_head=tied)
    reads: Counter[str] = Counter()

    def counted(name: str, tensor: Tensor) -> Tensor:
        def read() -> np.ndarray:
            reads[name] += 1
            return tensor.read()

        return dataclasses.replace(tensor, read=read)

    tensors = {name: counted(name, tensor) for name, tensor in drawn(config).items()}
    reference_logits(config, tensors, ids(config, 5))
    assert reads == dict.fromkeys(tensors, 1) | {"wte.weight": 1 + tied}


# A float32 matrix in float64 too is 3 times its size; of the vocabulary, a sixth of the rows are: 1.33 times.
@pytest.mark.parametrize(
    ("sizes", "times"), [({"vocab": 24_576}, 1.5), ({"mlp_width": 20_000}, 3.3)], ids=str
)
def test_one_matrix_is_held_at_a_time_and_the_vocabulary_in_parts(
    sizes: dict[str, int], times: float
) -> None:
    config = GPTConfig(**{"vocab": 8, "context": 4, "layers": 2, "heads": 2, "width": 64} | sizes)
    zeros = {
        n: dataclasses.replace(t, read=lambda t=t: np.zeros(t.shape, t.dtype))
        for n, t in drawn(config).items()
    }
    largest = 4 * config.width * max(config.vocab, config.mlp_size)  # bytes, as stored
    tracemalloc.start()
    try:
        reference_logits(config, zeros, np.array([0, 1]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < times * largest


@pytest.mark.parametrize(
    ("setting", "value", "known"),
    [
        ("position", "sinusoidal", "learned"),
        ("position", "rotary", "learned"),
        ("position", "alibi", "learned"),
        ("activation", "silu", "gelu_tanh, gelu, relu, relu_squared"),
        ("qk_norm", True, "False"),
    ],
)
def test_what_the_reference_has_no_formula_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str | bool, known: str
) -> None:
    monkeypatch.delitem(ACTIVATIONS, "silu")  # as if the model had learned one more than the reference
    config = dataclasses.replace(SMALL, width=24, **{setting: value})
    with pytest.raises(ConfigError, match=f"{setting} = {value!r}: the float64 reference knows {known};"):
        reference_logits(config, drawn(config), ids(config, 5))


@pytest.mark.parametrize(
    ("tokens_T", "why"),
    [
        ([0, 61], "it holds 0 to 61"),
        ([-1, 3], "it holds -1 to 3"),
        ([], r"float64\[0\]"),
        ([0.5], r"float64\[1\]"),
        ([True, False], r"bool\[2\]"),
        ([[1, 2]], r"int64\[1, 2\]"),
        ([1] * 17, r"int64\[17\]; give 1 to 16 integers"),
    ],
)
def test_what_is_no_sequence_of_ids_is_refused(tokens_T, why: str) -> None:
    with pytest.raises(DataError, match=why):
        reference_logits(SMALL, drawn(SMALL), np.array(tokens_T))


def test_tensors_of_another_model_are_refused_by_name() -> None:
    tensors, tokens_T = drawn(SMALL), ids(SMALL, 5)
    for name, tensor in tensors.items():
        fewer = {n: t for n, t in tensors.items() if n != name}
        with pytest.raises(DataError, match=f"{len(fewer)} tensors, where {len(tensors)} are meant"):
            reference_logits(SMALL, fewer, tokens_T)
        with pytest.raises(DataError, match=f"tensor {name}: it is missing"):
            reference_logits(SMALL, {**fewer, "other": tensor}, tokens_T)
        one = Tensor.of(np.ones((1,) * len(tensor.shape), np.float32))  # NumPy would stretch it
        with pytest.raises(DataError, match=rf"tensor {name}: it is \[1(, 1)?\], where \["):
            reference_logits(SMALL, {**tensors, name: one}, tokens_T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["wte.weight", "wpe.weight", "h.1.attn.c_attn.weight", "h.0.ln_2.bias"])
def test_numbers_that_are_not_finite_are_refused_by_name(name: str, dtype: str) -> None:
    tensors = drawn(SMALL)
    array = tensors[name].read().astype(DTYPES[dtype])
    array.reshape(-1)[0] = np.nan if "bias" in name else np.inf
    with pytest.raises(DataError, match=f"tensor {name}: a number in it is not finite"):
        reference_logits(SMALL, {**tensors, name: Tensor.of(array)}, np.array([0, 1]))
