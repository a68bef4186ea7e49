"""Weights of every format give the logits of their makers and come back byte for byte from every format."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxgpt
from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.weights.convert import FORMATS, with_dtype, with_vocab, write_model
from jaxgpt.weights.names import places
from jaxgpt.weights.open import open_model
from jaxgpt.weights.tensors import DTYPES, StoredModel, Tensor

GOLDEN = Path(__file__).parent / "golden"
# (folder, epsilon to be stated) -> logits computed in float64 by the library that made it
MADE_ELSEWHERE = [
    "plain",
    "sharded",
    "headless",
    "odd",
    "scaled",
    "untied",
    "bfloat16",
    "bin",
    "nanogpt",
    "nanogpt_compiled",
    "openai_tf/plain",
    "openai_tf/odd",
]


def open_golden(name: str) -> StoredModel:
    return open_model(GOLDEN / name, layer_norm_epsilon=1e-3 if name == "openai_tf/odd" else None)


def bits(tensor: Tensor) -> tuple:
    return tensor.shape, str(tensor.dtype), tensor.read().tobytes()


@pytest.mark.parametrize("name", MADE_ELSEWHERE)
@pytest.mark.filterwarnings("ignore:hparams.json has no layer_norm_epsilon")
def test_logits_equal_the_makers(name: str) -> None:
    lm = jaxgpt.load(GOLDEN / name, layer_norm_epsilon=1e-3 if name == "openai_tf/odd" else None)
    expected = np.load(GOLDEN / name / "expected.npz")
    np.testing.assert_allclose(lm.logits(expected["tokens"]), expected["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", MADE_ELSEWHERE)
def test_every_format_gives_back_what_it_was_given(tmp_path: Path, name: str, to: str) -> None:
    model = open_golden(name)
    try:
        written = write_model(model, tmp_path / "out", to)
    except ConfigError:
        if name not in ("odd", "scaled", "untied", "openai_tf/odd") or to not in ("llmc", "nanogpt"):
            raise
        assert not list(tmp_path.iterdir())
        return
    back = open_model(tmp_path / "out")
    given, meant, found = ({n: bits(t) for n, t in m.tensors.items()} for m in (model, written, back))
    assert found == meant and given.items() <= found.items()
    exact = dataclasses.replace(written.config, activation="gelu_tanh") if to == "llmc" else written.config
    assert dataclasses.replace(back.config, mlp_width=exact.mlp_width, dropout=exact.dropout) == exact
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ({"layers": 1, "heads": 1, "context": 7}, "float32"),
        ({"layers": 11, "vocab": 50304}, "bfloat16"),  # h.10 sorts before h.2
        ({"layers": 2, "context": 1, "vocab": 1}, "float16"),
        ({"layers": 1, "heads": 1, "mlp_width": 5, "layer_norm_epsilon": 1e-3}, "float16"),
    ],
)
def test_odd_shapes_come_back(tmp_path: Path, shape: dict, dtype: str, to: str) -> None:
    config = GPTConfig(**{"vocab": 61, "context": 16, "heads": 2, "width": 4} | shape)
    rng = np.random.default_rng(0)
    tensors = {
        place.name: Tensor.of(rng.normal(size=place.shape).astype(DTYPES[dtype])) for place in places(config)
    }
    model = StoredModel(config, tensors)
    if (to in ("nanogpt", "llmc") and config.mlp_width) or (to, dtype) == ("llmc", "float16"):
        with pytest.raises(ConfigError, match=f"{to} cannot say"):
            write_model(model, tmp_path / "out", to)
        return
    write_model(model, tmp_path / "out", to)
    back = open_model(tmp_path / "out")
    assert back.config.differences(config) == {}
    assert {name: bits(tensor) for name, tensor in back.tensors.items()} == {
        n: bits(t) for n, t in tensors.items()
    }


@pytest.mark.parametrize(("name", "to"), [("model.pt", "nanogpt"), ("model.bin", "llmc")])
def test_a_format_of_one_file_may_be_that_file(tmp_path: Path, name: str, to: str) -> None:
    write_model(open_golden("plain"), tmp_path / name, to)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert bits(open_model(tmp_path / name).tensors["h.1.mlp.c_fc.weight"]) == bits(
        open_golden("plain").tensors["h.1.mlp.c_fc.weight"]
    )


def test_biases_a_format_must_have_are_zeros_and_said_to_be(tmp_path: Path) -> None:
    model = open_golden("nanogpt_compiled")
    written = write_model(model, tmp_path / "out", "huggingface")
    added = written.tensors.keys() - model.tensors.keys()
    assert len(added) == 6 * model.config.layers + 1 and not any(
        written.tensors[name].read().any() for name in added
    )
    assert written.notes == (f"{len(added)} biases of zeros added: huggingface has no models without them",)
    assert jaxgpt.load(tmp_path / "out").config.bias


@pytest.mark.parametrize("to", ["huggingface", "nanogpt", "llmc"])
def test_only_biases_of_queries_keys_and_values_are_added_where_only_these_are_missing(
    tmp_path: Path, to: str
) -> None:
    whole = open_golden("plain")
    kept = {name: t for name, t in whole.tensors.items() if not name.endswith("c_attn.bias")}
    config = dataclasses.replace(whole.config, qkv_bias=False)
    model = dataclasses.replace(whole, config=config, tensors=kept)
    written = write_model(model, tmp_path / "out", to)
    assert f"2 biases of zeros added: {to} has no models without them" in written.notes
    assert not written.tensors["h.1.attn.c_attn.bias"].read().any()
    assert all(bits(written.tensors[name]) == bits(tensor) for name, tensor in kept.items())
    run = write_model(model, tmp_path / "run", "jaxgpt")
    assert not run.notes and not open_model(tmp_path / "run").config.qkv_bias


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("odd", "llmc", r"layer_norm_epsilon = 0\.001, not 1e-05, mlp_size = 28, not 80"),
        ("untied", "nanogpt", "tied_head = False, not True"),
        ("scaled", "llmc", "activation = 'relu', not 'gelu_tanh', scale_by_inverse_layer = True, not False"),
    ],
)
def test_what_a_format_cannot_say_is_refused_by_name(tmp_path: Path, name: str, to: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{to} cannot say what this model is: {said}"):
        write_model(open_golden(name), tmp_path / "out", to)


def test_llmc_has_no_float16(tmp_path: Path) -> None:
    half = with_dtype(open_golden("plain"), "float16")
    with pytest.raises(ConfigError, match="dtype = float16, not float32 or bfloat16"):
        write_model(half, tmp_path / "out", "llmc")
    write_model(half, tmp_path / "out", "nanogpt")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(jaxgpt.load(tmp_path / "out").params)} == {"float16"}


def test_stored_dtypes_are_kept_and_a_cast_rounds_to_the_nearest(tmp_path: Path) -> None:
    assert {leaf.dtype.name for leaf in jax.tree.leaves(jaxgpt.load(GOLDEN / "bfloat16").params)} == {
        "bfloat16"
    }
    model = open_golden("plain")
    cast = with_dtype(model, "bfloat16")
    exact, rounded = (m.tensors["wpe.weight"].read().astype(np.float64) for m in (model, cast))
    assert np.abs(exact - rounded).max() > 0 and np.all(np.abs(exact - rounded) <= 2**-8 * np.abs(exact))
    assert cast.notes == ("cast from float32 to bfloat16",) and cast.dtype == "bfloat16"
    assert with_dtype(cast, "bfloat16").notes == cast.notes


def test_a_number_too_large_for_the_cast_is_refused_by_name() -> None:
    model = open_golden("plain")
    huge = Tensor.of(np.full(model.tensors["wpe.weight"].shape, 1e5, np.float32))
    model = with_dtype(dataclasses.replace(model, tensors={**model.tensors, "wpe.weight": huge}), "float16")
    with pytest.raises(DataError, match=r"wpe\.weight as float16: a number is too large"):
        model.tensors["wpe.weight"].read()


@pytest.mark.parametrize("name", ["plain", "untied"])
def test_padding_the_vocabulary_adds_zeros_and_cutting_gives_it_back(name: str) -> None:
    model = open_golden(name)
    longer = with_vocab(model, 64)
    heads = ["wte.weight"] + ["lm_head.weight"] * (name == "untied")
    for head in heads:
        array = longer.tensors[head].read()
        assert array.shape == (64, 20) and not array[61:].any()
        assert bits(with_vocab(longer, 61).tensors[head]) == bits(model.tensors[head])
    assert longer.config.vocab == 64 and longer.notes == ("vocabulary: 3 rows of zeros added",)
    assert with_vocab(longer, 61).notes[1] == "vocabulary: the last 3 rows left out"


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused() -> None:
    model = dataclasses.replace(with_vocab(open_golden("plain"), 300), tokenizer=load_tokenizer("bytes"))
    with pytest.raises(ConfigError, match="vocab = 256: the tokenizer has 257 ids"):
        with_vocab(model, 256)


@pytest.mark.parametrize("there", ["file", "folder"])
def test_nothing_that_is_there_is_overwritten(tmp_path: Path, there: str) -> None:
    place = tmp_path / "out"
    if there == "folder":
        place.mkdir()
    kept = place / "kept" if there == "folder" else place
    kept.write_text("mine")
    with pytest.raises(ConfigError, match="something is there already"):
        write_model(open_golden("plain"), place, "huggingface")
    assert kept.read_text() == "mine"


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    model = open_golden("plain")

    def fail() -> np.ndarray:
        raise DataError("a tensor", why="it is damaged", fix="fetch it again")

    broken = dataclasses.replace(model.tensors["ln_f.bias"], read=fail)
    for to in FORMATS:
        with pytest.raises(DataError, match="it is damaged"):
            write_model(
                dataclasses.replace(model, tensors={**model.tensors, "ln_f.bias": broken}), tmp_path / "o", to
            )
        assert not list(tmp_path.iterdir())


def test_a_number_too_large_for_the_cast_is_refused_beside_an_infinite_one() -> None:
    model = open_golden("plain")
    array = np.zeros(model.tensors["wpe.weight"].shape, np.float32)
    array[0, 0] = np.inf  # was so before: casting keeps it
    infinite = {**model.tensors, "wpe.weight": Tensor.of(array)}
    cast = with_dtype(dataclasses.replace(model, tensors=infinite), "float16").tensors["wpe.weight"]
    assert np.isinf(cast.read()).sum() == 1
    array[1, 1] = 1e5
    with pytest.raises(DataError, match=r"wpe\.weight as float16: a number is too large"):
        cast.read()


def test_several_dtypes_are_refused_until_they_are_cast(tmp_path: Path) -> None:
    model = open_golden("plain")
    half = with_dtype(model, "float16").tensors["ln_f.bias"]
    mixed = dataclasses.replace(model, tensors={**model.tensors, "ln_f.bias": half})
    with pytest.raises(DataError, match="they are float16, float32; cast them"):
        write_model(mixed, tmp_path / "out", "huggingface")
    assert write_model(with_dtype(mixed, "float32"), tmp_path / "out", "huggingface").dtype == "float32"


def test_a_tokenizer_of_ones_own_travels_with_the_weights(tmp_path: Path) -> None:
    own = load_tokenizer("bytes")
    model = dataclasses.replace(with_vocab(open_golden("plain"), 257), tokenizer=own)
    for to in FORMATS:
        write_model(model, tmp_path / to, to)
        found = open_model(tmp_path / to).tokenizer
        assert found is not None and found.sha256 == own.sha256


def test_a_saved_language_model_is_the_same_one(tmp_path: Path) -> None:
    lm = jaxgpt.load(GOLDEN / "bfloat16")
    for to in ("huggingface", "jaxgpt"):
        lm.save(tmp_path / to, format=to)
        back = jaxgpt.load(tmp_path / to)
        jax.tree.map(np.testing.assert_array_equal, back.params, lm.params)
        assert jax.tree.leaves(back.params)[0].dtype == "bfloat16"


def test_converted_weights_are_a_start_and_no_run(tmp_path: Path) -> None:
    from jaxgpt.training.resume import find_run

    write_model(open_golden("plain"), tmp_path / "out", "jaxgpt")
    with pytest.raises(
        ConfigError,
        match=r"they were converted, not trained here; begin a new run with them: --from .* --out-dir",
    ):
        find_run(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model"]["vocab"] == 61


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", ["older_added", "roberta"])
def test_another_kind_of_tokenizer_goes_along_byte_for_byte(tmp_path: Path, name: str, to: str) -> None:
    given = GOLDEN / "tokenizers" / name
    config = GPTConfig(vocab=340, context=16, layers=1, heads=1, width=4)
    tensors = {place.name: Tensor.of(np.ones(place.shape, np.float32)) for place in places(config)}
    write_model(StoredModel(config, tensors, load_tokenizer(given)), tmp_path / to, to)
    write_model(open_model(tmp_path / to), tmp_path / "back", "huggingface")
    for path in given.iterdir():
        if path.name not in ("config.json", "expected.json"):
            assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"] in (2, 330)
