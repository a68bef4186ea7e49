"""`load`: golden folders give the logits transformers gave; what is no model is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt
from jaxgpt.config import GPTConfig, MeshConfig, TrainConfig, save_config
from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.inference.beam import beam_search
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
from jaxgpt.inference.speculative import SpeculativeDecoder
from jaxgpt.language_model import LanguageModel
from jaxgpt.model.gpt import define
from jaxgpt.parallel import mesh_of, shardings
from jaxgpt.text.tokenizer import TOKENIZER_FILE, RankTokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints

GOLDEN = Path(__file__).parent / "golden"
BYTES = RankTokenizer({bytes([byte]): byte for byte in range(256)})


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A copy of the golden folder, of 61 ids, without a tokenizer."""
    return Path(shutil.copytree(GOLDEN / "plain", tmp_path / "plain"))


@pytest.fixture
def with_tokenizer(tmp_path: Path) -> Path:
    """A Hugging Face folder of 257 ids with a tokenizer of bytes: the golden weights with more rows of
    embedding.
    """
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(GOLDEN / "plain", tmp_path / "bytes"))
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wte.weight"] = np.resize(tensors["transformer.wte.weight"], (257, 20))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | {"vocab_size": 257}
    (folder / "config.json").write_text(json.dumps(settings))
    BYTES.save_json(folder / "tokenizer.json")
    return folder


def test_a_model_without_a_tokenizer_computes_and_says_what_text_would_need(plain: Path) -> None:
    lm = jaxgpt.load(plain)
    assert lm.logits(np.zeros((1, 3), int)).shape == (1, 3, 61)
    with pytest.raises(DataError, match=r"its 61 ids are not GPT-2's; put its tokenizer\.json"):
        lm.generate(["a"])


def test_a_tokenizer_larger_than_the_model_is_refused_by_its_name(plain: Path) -> None:
    BYTES.save_json(plain / "tokenizer.json")
    with pytest.raises(DataError, match="tokenizer bytes has 257 ids, the model 61"):
        jaxgpt.load(plain)


def test_a_loaded_folder_gives_the_logits_transformers_gives(plain: Path) -> None:
    lm, expected = jaxgpt.load(plain), np.load(plain / "expected.npz")
    logits_BTV = lm.logits(expected["tokens"])
    assert logits_BTV.shape == (*expected["tokens"].shape, 61) and logits_BTV.dtype == jnp.float32
    np.testing.assert_allclose(logits_BTV, expected["logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(lm.logits(expected["tokens"].astype(np.int64)), logits_BTV)


@pytest.mark.slow
def test_generated_text_is_decoded_token_by_token(with_tokenizer: Path) -> None:
    lm = jaxgpt.load(str(with_tokenizer))
    assert lm.tokenizer.name == "bytes" and lm.config.vocab == 257
    tokens = lm.tokenizer.encode("ab")
    for _ in range(5):
        tokens.append(int(lm.logits(np.array([tokens]))[0, -1].argmax()))
    expected = lm.tokenizer.decode(tokens[2:])
    assert lm.generate(["ab"], max_new_tokens=5, temperature=0) == [expected]
    texts = lm.generate(["ab", "", "ab"], max_new_tokens=5, seed=2**40)
    assert texts[::2] == [lm.generate("ab", max_new_tokens=5, seed=seed) for seed in (2**40, 2**40 + 2)]
    assert texts[0] != texts[2]
    assert lm.generate(["ab"], max_new_tokens=0) == [""] and lm.generate([]) == []


def test_a_string_is_one_prompt_and_one_stop(lm: LanguageModel) -> None:
    text = lm.generate("hello", max_new_tokens=20, temperature=0)
    assert lm.generate(["hello"], max_new_tokens=20, temperature=0) == [text]
    assert (
        lm.generate("hello", max_new_tokens=20, temperature=0, stop=text[8:10])
        == text[: text.index(text[8:10])]
    )


@pytest.mark.parametrize("wrong", [[[1, 2]], 5, [None], b"hello", np.array([1, 2])])
def test_what_is_no_text_is_no_prompt(lm: LanguageModel, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"a prompt is a text; pass a string or a list of strings"):
        lm.generate(wrong)


def test_without_a_seed_texts_differ_and_the_seed_is_logged(
    lm: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 20, "temperature": 3, "top_k": 0}
    with caplog.at_level("INFO", logger="jaxgpt"):
        one, other = (lm.generate("ab", **settings) for _ in range(2))
    seeds = [int(line.removeprefix("seed ")) for line in caplog.messages]
    assert one != other and [lm.generate("ab", seed=seed, **settings) for seed in seeds] == [one, other]


@pytest.mark.parametrize("wrong", [[1, 2], [[1.0]], [[True]], "ab", [[1], [2, 3]], [[[1]]], None])
def test_what_are_no_ids_in_two_dimensions_is_said(small: LanguageModel, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"whole numbers in two dimensions, \[texts, tokens\], not "):
        small.logits(wrong)


def test_an_empty_prompt_starts_after_the_end_of_a_text(with_tokenizer: Path) -> None:
    lm = jaxgpt.load(with_tokenizer)
    first = int(lm.logits(np.array([[256]]))[0, -1].argmax())
    assert lm.generate([""], max_new_tokens=1, temperature=0) == [lm.tokenizer.decode([first])]


@pytest.fixture(scope="module")
def larger() -> LanguageModel:
    """A model with 43 ids more than its tokenizer has, as nanoGPT's 50,304 are more than GPT-2's 50,257."""
    config = GPTConfig(vocab=300, context=64, layers=1, heads=1, width=4, vocab_multiple=25)
    return LanguageModel(config, jax.jit(define(config).init)(jax.random.key(0)), BYTES)


def test_ids_without_text_are_never_drawn(larger: LanguageModel) -> None:
    settings: list[dict[str, Any]] = [{"temperature": 100.0}, {"temperature": 100.0, "top_k": 280}]
    for each in settings:  # all but uniform: one in seven would be without text
        drawn = list(larger.stream("ab", max_new_tokens=200, sampling=Sampling(**each), seed=0))
        assert len(set(drawn)) > 20 and max(drawn) < 257
        assert larger.generate(["ab"], max_new_tokens=200, seed=0, **each)[0]
    assert larger.logits(np.array([[299]])).shape == (1, 1, 300)


def test_log_probabilities_leave_out_ids_without_text(larger: LanguageModel) -> None:
    logits_V = larger.logits(np.array([[97]]))[0, 0]
    scored = larger.engine().score([97, 98])[1]
    assert scored.logprob == pytest.approx(float(logits_V[98] - jax.nn.logsumexp(logits_V[:257])), abs=1e-5)


@pytest.mark.slow
def test_a_model_is_laid_out_for_serving_once(larger: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs it, and with however many slots, has the same arrays."""
    lm = LanguageModel(larger.config, larger.params, BYTES)
    layouts: list[Served] = []
    real = Served.of
    monkeypatch.setattr(
        Served, "of", lambda *args, **more: layouts.append(real(*args, **more)) or layouts[-1]
    )
    ran: list[Served] = []
    build = Engine.__init__
    monkeypatch.setattr(
        Engine, "__init__", lambda self, served, **more: ran.append(served) or build(self, served, **more)
    )
    for prompts in (["a"], ["a", "b", "c"]) * 3:
        lm.generate(prompts, max_new_tokens=2)
    list(lm.stream("a", max_new_tokens=2))
    for prompt in ([97], [98, 99]):
        beam_search(lm.served, prompt, beams=2, max_new_tokens=2)
    list(SpeculativeDecoder(lm.served, lm.served).stream([97], max_new_tokens=2))
    lm.engine().score([97, 98])
    assert len(layouts) == 1 and len(ran) == 8
    kernels = {id(served.params["h"][0]["mlp"]["c_fc"]["kernel"]) for served in [*layouts, *ran, lm.served]}
    assert len(kernels) == 1


@pytest.fixture(scope="module")
def small() -> LanguageModel:
    config = GPTConfig(vocab=257, context=8, layers=1, heads=1, width=4)
    return LanguageModel(config, jax.jit(define(config).init)(jax.random.key(0)), BYTES)


def test_what_a_person_looks_at_fits_a_screen(small: LanguageModel, tmp_path: Path) -> None:
    for shown in (small, jaxgpt.load_recipe("gpt2"), jaxgpt.Run(tmp_path)):
        assert len(repr(shown)) < 24 * 80
    assert "layers=1" in repr(small) and "Tokenizer(bytes, vocab=257)" in repr(small)


@pytest.mark.parametrize("wrong", [-1, 257, 300])  # 300 is a row of the padded embedding
def test_ids_outside_the_vocabulary_are_refused(small: LanguageModel, wrong: int) -> None:
    with pytest.raises(DataError, match=f"token id {wrong}: the vocabulary has 257 ids"):
        small.logits(np.array([[0, wrong]]))


def test_more_tokens_than_the_context_are_refused(small: LanguageModel) -> None:
    assert small.logits(np.zeros((2, 8), int)).shape == (2, 8, 257)
    with pytest.raises(ConfigError, match="9 tokens: the context is 8"):
        small.logits(np.zeros((2, 9), int))


def test_what_is_no_model_is_a_missing_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        MissingError, match=r"no model '.*nothing': it is neither a file or folder here nor one of"
    ):
        jaxgpt.load(tmp_path / "nothing")
    with pytest.raises(MissingError, match=r"no model .*empty\): it is no run directory and has neither"):
        jaxgpt.load(tmp_path / "empty")


def test_parameters_go_straight_to_their_place_on_a_mesh(plain: Path) -> None:
    mesh = mesh_of(MeshConfig(data=2, fsdp=2, tensor=2))
    on_mesh, alone = jaxgpt.load(plain, mesh=mesh), jaxgpt.load(plain)
    assert (
        len(on_mesh.params["h"]["mlp"]["c_fc"]["kernel"].addressable_shards[0].data.ravel()) * 4
        == 2 * 20 * 80
    )
    jax.tree.map(np.testing.assert_array_equal, on_mesh.params, alone.params)
    jax.tree.map(
        lambda leaf, place: leaf.sharding == place or pytest.fail(str(leaf)),
        on_mesh.params,
        shardings(alone.params, mesh),
    )


def test_a_run_without_a_checkpoint_is_a_missing_input(tmp_path: Path, small: LanguageModel) -> None:
    save_config(TrainConfig(model=small.config), tmp_path)
    (tmp_path / CHECKPOINTS).mkdir()
    with pytest.raises(MissingError, match=r"no checkpoint .*the run saved none yet"):
        jaxgpt.load(tmp_path)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_is_loaded_from_its_latest_checkpoint_averaged_if_it_keeps_an_average(
    tmp_path: Path, small: LanguageModel, ema_decay: float
) -> None:
    """In float32 and without dropout, however it was trained."""
    train = TrainConfig(
        model=jaxgpt.GPTConfig(**vars(small.config) | {"dropout": 0.5, "compute_dtype": "bfloat16"})
    )
    train = TrainConfig(
        **vars(train) | {"optim": type(train.optim)(ema_decay=ema_decay), "mesh": MeshConfig(data=1)}
    )
    save_config(train, tmp_path)
    BYTES.save(tmp_path / TOKENIZER_FILE)
    average = jax.tree.map(lambda leaf: leaf + 1, small.params)
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        checkpoints.save(9, {"params": average, "average": small.params}, {})
        checkpoints.save(10, {"params": small.params, "average": average}, {})
    lm = jaxgpt.load(tmp_path)
    expected = average if ema_decay else small.params
    jax.tree.map(np.testing.assert_array_equal, lm.params, expected)
    assert lm.config == small.config and lm.tokenizer.sha256 == load_tokenizer("bytes").sha256
