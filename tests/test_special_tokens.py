"""A vocabulary grows: texts keep their ids, new tokens get the next ones, and their rows are the mean."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import exit_code
from small_runs import saved_model

import jaxgpt
from jaxgpt.config import load_recipe
from jaxgpt.errors import ConfigError
from jaxgpt.log import read_rows
from jaxgpt.runs import task_for
from jaxgpt.text.bpe import train
from jaxgpt.text.characters import CharacterTokenizer
from jaxgpt.text.manifest import Manifest
from jaxgpt.text.shards import open_split
from jaxgpt.text.special_tokens import with_special_tokens
from jaxgpt.text.tokenizer import Tokenizer, byte_tokenizer, gpt2_tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.stop import Stop

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
MARKERS = ["<|user|>", "<|assistant|>", "[ENDE]"]
TEXT = "It's a truth,  universally<|user|> acknowledged\n\n\u00e9\u4f60\U0001f600 <|endoftext|>[ENDE] 1234"


def own() -> Tokenizer:
    return train(iter(["the cat and the hat and the bat, universally acknowledged"]), 270)


KINDS = {"gpt2": gpt2_tokenizer, "bytes": byte_tokenizer, "own": own} | {
    name: lambda name=name: load_tokenizer(GOLDEN / name)
    for name in ("added", "older_added", "special_first")
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_keep_their_ids_and_only_code_adds_the_new_ones(kind: str, tmp_path: Path) -> None:
    before = KINDS[kind]()
    grown = with_special_tokens(before, MARKERS)
    grown.save_in(tmp_path)
    for after in (grown, load_tokenizer(tmp_path)):
        assert after.sha256 == grown.sha256 != before.sha256
        assert after.vocab == before.vocab + 3
        assert [after.special_ids[text] for text in MARKERS] == [*range(before.vocab, after.vocab)]
        assert after.special_ids.items() >= before.special_ids.items()
        assert (after.end_of_text, after.beginning) == (before.end_of_text, before.beginning)
        assert dict(after.special_tokens).items() >= dict(before.special_tokens).items()
        assert after.encode(TEXT) == before.encode(TEXT)
        assert after.decode([*range(before.vocab, after.vocab)]) == "".join(MARKERS)
        assert set(after.used_ids) - set(before.used_ids) == {*range(before.vocab, after.vocab)}
    again = with_special_tokens(grown, ["<|system|>"])
    assert again.special_ids["<|system|>"] == grown.vocab and again.special_ids["[ENDE]"] == grown.vocab - 1


def test_the_tokenizers_library_reads_the_same(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    grown = with_special_tokens(own(), MARKERS)
    grown.save_in(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = library.encode("<|user|>the cat<|assistant|>").ids
    assert ids == [270, *grown.encode("the cat"), 271]
    assert library.get_vocab_size() == grown.vocab


def test_a_gap_in_the_ids_stays_one_and_the_library_gives_the_same_ids(tmp_path: Path) -> None:
    with_special_tokens(own(), ["<x>"]).save_in(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("270", "275"), encoding="utf-8")
    gap = load_tokenizer(tmp_path)
    assert gap.vocab == 276 and set(range(276)) - set(gap.used_ids) == {*range(270, 275)}
    grown = with_special_tokens(gap, ["<y>"])
    grown.save_in(tmp_path)
    assert grown.special_ids["<y>"] == 276
    library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    assert library.token_to_id("<y>") == 276 and library.encode("a<y>").ids[-1] == 276


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        (["<|endoftext|>"], "<|endoftext|> exists already"),
        (["<a>", "<b>", "<a>"], "<a> is named twice"),
        ([""], "'' does not look like a special token"),
        (["hello"], "'hello' does not look"),
        (["<a b>"], "'<a b>' does not look"),
        ([], "none is named"),
    ],
)
def test_what_cannot_be_added_is_named(tokens: list[str], why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        with_special_tokens(byte_tokenizer(), tokens)
    assert why in str(refused.value)


def test_a_vocabulary_of_characters_and_an_added_token_that_is_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="single characters"):
        with_special_tokens(CharacterTokenizer({"a": 0}), ["<a>"])
    with pytest.raises(ConfigError, match=r"\[NAME\] exists already"):
        with_special_tokens(load_tokenizer(GOLDEN / "added"), ["[NAME]"])


def saved(path: Path, tokenizer: Tokenizer, **settings: int | bool) -> Path:
    return saved_model(path, tokenizer, width=16, **settings)


def rows_of(path: Path, name: str) -> np.ndarray:
    lm = jaxgpt.load(path)
    return np.asarray(lm.params[name]["embedding"])[: lm.config.vocab]


def extend(model: Path, out: Path, *tokens: str, code: int = 0) -> None:
    assert exit_code("tokenizer", "--extend", model, *tokens, "--out", out) == code


@pytest.mark.slow
def test_a_grown_model_is_the_old_one_with_mean_rows_and_goes_everywhere(tmp_path: Path) -> None:
    """It has five rows to spare behind the tokenizer's, of which three get used; they count for no mean."""
    base = saved(tmp_path / "base", byte_tokenizer(), vocab=262)
    grown, converted, run = tmp_path / "grown", tmp_path / "converted", tmp_path / "run"
    extend(base, grown, *MARKERS)
    old, new = rows_of(base, "wte"), rows_of(grown, "wte")
    assert old.shape == new.shape == (262, 16)
    np.testing.assert_array_equal(
        np.delete(new, range(257, 260), axis=0), np.delete(old, range(257, 260), axis=0)
    )
    np.testing.assert_allclose(new[257:260], np.tile(old[:257].mean(axis=0), (3, 1)), rtol=1e-6, atol=1e-9)
    tokens_BT = jnp.array([[*b"It is a truth"]])
    np.testing.assert_array_equal(
        jaxgpt.load(grown).logits(tokens_BT)[..., :257], jaxgpt.load(base).logits(tokens_BT)[..., :257]
    )
    assert exit_code("generate", grown, "ab", "--max-new-tokens", "3", "--temperature", "0") == 0
    assert exit_code("convert", grown, converted) == 0
    assert jaxgpt.load(converted).tokenizer.special_ids["[ENDE]"] == 259
    data, template = tmp_path / "data.jsonl", tmp_path / "markers.jinja"
    data.write_text('{"instruction": "Hi", "output": "Ho"}\n' * 8)
    template.write_text(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% if m.role == 'assistant' %}[ENDE]"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    given = [
        "--data.path",
        data,
        "--template",
        template,
        "--out-dir",
        run,
        "--steps",
        "1",
        "--eval-every",
        "0",
    ]
    short = ["--data.val-fraction", "0", "--data.test-fraction", "0", "--optim.weight-decay", "0"]
    assert exit_code("finetune", "instruct", "--from", grown, *given, *short) == 0
    assert len(read_rows(run / "metrics.jsonl")) > 0
    assert f"tokens ({jaxgpt.load(run).tokenizer.name}) |" in (run / "report.md").read_text()
    assert jaxgpt.load(run).tokenizer.special_ids["<|user|>"] == 257
    assert (rows_of(run, "wte")[257:260] != new[257:260]).any(axis=1).all()  # all three are read or predicted


def test_text_for_training_is_prepared_with_a_vocabulary_that_has_grown(tmp_path: Path) -> None:
    """A run that begins with the grown model trains and evaluates on it."""
    grown, prepared, text = tmp_path / "grown", {}, "It is a truth,<|user|> universally. " * 40
    extend(saved(tmp_path / "base", byte_tokenizer()), grown, *MARKERS)
    (tmp_path / "text.txt").write_text(text)
    for name in ("bytes", str(grown), str(grown / "tokenizer.json")):
        out = tmp_path / f"data-{len(prepared)}"
        assert exit_code("prepare", tmp_path / "text.txt", "--out", out, "--tokenizer", name) == 0
        prepared[out] = open_split(out, "train").read(0, 1000).tolist()
    first, *others = prepared.values()
    assert others == [first, first] and first == [*text.encode()[:1000]]
    assert [Manifest.load(out).vocab for out in prepared] == [257, 260, 260]
    tokenizer = load_tokenizer(out)
    assert tokenizer.special_ids["[ENDE]"] == 259
    settings = {"init_from": str(grown), "data.path": str(out), "out_dir": str(tmp_path / "run")}
    recipe, task = task_for(load_recipe("nano", settings), tell=lambda _: None)
    assert recipe.model.vocab == 260 and task.tokenizer.sha256 == tokenizer.sha256
    assert {*task.open_data(tmp_path / "own", Stop()).rows(0, 0, 1).inputs_BT.flat} <= {*text.encode()}
    assert jaxgpt.evaluate(grown, data=out)["val_loss"].value < 7


@pytest.mark.slow
def test_an_untied_head_grows_too_and_keeps_its_dtype(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", own(), tied_head=False)
    half, grown = tmp_path / "half", tmp_path / "grown"
    assert exit_code("convert", base, half, "--to", "jaxgpt", "--dtype", "bfloat16") == 0
    extend(half, grown, "<a>", "<b>")
    for name in ("wte", "lm_head"):
        old, new = rows_of(half, name), rows_of(grown, name)
        assert new.shape == (272, 16) and new.dtype == old.dtype
        np.testing.assert_array_equal(new[:270], old)
        mean = old.astype(np.float64).mean(axis=0).astype(old.dtype)
        np.testing.assert_array_equal(new[270:], np.stack([mean, mean]))


def test_wrong_tokens_and_places_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = saved(tmp_path / "base", byte_tokenizer()), tmp_path / "out"
    extend(base, out, "<|endoftext|>", "word", code=2)
    said = capsys.readouterr().err
    assert "<|endoftext|> exists already" in said and "'word' does not look" in said
    extend(base, out, "<a>", "--vocab", "300", code=2)
    extend(base, base, "<a>", code=2)
    extend(tmp_path / "none", out, "<a>", code=66)
    assert exit_code("tokenizer", "builtin", "--out", tmp_path / "a.json") == 2
    assert "--vocab N" in capsys.readouterr().err
    assert not out.exists()
    for name in ("tokenizer.tiktoken", "tokenizer.json", "vocab.json"):
        (base / name).unlink(missing_ok=True)
    extend(base, out, "<a>", code=2)
    assert "no tokenizer" in capsys.readouterr().err
    assert json.loads((base / "config.json").read_text())
