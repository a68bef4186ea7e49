"""Tokenizers unlike GPT-2's give the ids that transformers gives, and go wherever the weights go."""

import json
import shutil
from pathlib import Path

import pytest

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference.text_stream import TextStream
from jaxgpt.text.foreign_tokenizer import ForeignTokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
# name -> ids of the end and the beginning of a text, as transformers states them
READ = {
    "older": (330, 330),
    "older_added": (330, 330),
    "added": (330, 330),
    "special_first": (1, 0),
    "prefix_space": (330, 330),
    "roberta": (2, 0),
    "normalizer": (0, 0),
    "digits": (0, 0),
}


@pytest.mark.parametrize("name", READ)
def test_ids_are_those_of_transformers(name: str) -> None:
    tokenizer = load_tokenizer(GOLDEN / name)
    expected = json.loads((GOLDEN / name / "expected.json").read_text("utf-8"))
    assert len(expected["texts"]) == 120
    assert [tokenizer.encode(text) for text in expected["texts"]] == expected["ids"]
    assert tokenizer.encode_array(expected["texts"][-1]).tolist() == expected["ids"][-1]
    assert (tokenizer.end_of_text, tokenizer.beginning) == READ[name]


@pytest.mark.parametrize("name", sorted(READ.keys() - {"normalizer", "prefix_space"}))
def test_any_text_comes_back_whole_or_token_by_token(name: str) -> None:
    tokenizer = load_tokenizer(GOLDEN / name)
    for text in json.loads((GOLDEN / name / "expected.json").read_text("utf-8"))["texts"]:
        ids, stream = tokenizer.encode(text), TextStream(tokenizer)
        assert tokenizer.decode(ids) == text
        assert "".join(map(stream.push, ids)) + stream.finish() == text


@pytest.mark.parametrize("name", READ)
def test_special_tokens_in_a_text_are_ordinary_characters(name: str) -> None:
    tokenizer = load_tokenizer(GOLDEN / name)
    assert tokenizer.special_ids
    for text, id in tokenizer.special_ids.items():
        ids = tokenizer.encode(f"a{text} b")
        assert id not in ids and tokenizer.decode(ids).lstrip() == f"a{text} b"
        assert tokenizer.decode([id]) == text


def test_added_tokens_that_are_not_special_are_found_in_a_text() -> None:
    tokenizer = load_tokenizer(GOLDEN / "added")
    assert tokenizer.added_ids["[NAME]"] in tokenizer.encode("a[NAME]b")
    assert tokenizer.encode("renew words") == [
        *tokenizer.encode("renew"),
        *tokenizer.encode(" words"),
    ]  # "new word" stands for itself only between spaces


def test_added_tokens_without_a_row_in_the_model_are_left_out() -> None:
    tokenizer = load_tokenizer(GOLDEN / "added")
    assert tokenizer.vocab == 335
    fewer = tokenizer.within(333)
    assert fewer.vocab == 333 and fewer.sha256 == tokenizer.sha256
    assert fewer.encode("a[NAME]") == fewer.encode("a[") + fewer.encode("NAME]")
    with pytest.raises(DataError, match=r"token id 334: .* 0 to 332"):
        fewer.decode([334])


def test_ids_in_gaps_are_kept_and_stand_for_nothing(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "older_added", tmp_path / "gaps")
    (folder / "added_tokens.json").write_text('{"[NAME]": 340, "n\u00e9": 342}', encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab == 343 and tokenizer.encode("[NAME]") == [340]
    assert tokenizer.decode([335, 340, 341, 342]) == "[NAME]n\u00e9"


def test_the_files_are_carried_as_they_are(tmp_path: Path) -> None:
    for name in READ:
        (tmp_path / name).mkdir()
        tokenizer = load_tokenizer(GOLDEN / name)
        tokenizer.save_in(tmp_path / name)
        written = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        given = {path.name: path.read_bytes() for path in (GOLDEN / name).iterdir()}
        assert written == {name: given[name] for name in given.keys() - {"config.json", "expected.json"}}
        assert load_tokenizer(tmp_path / name).sha256 == tokenizer.sha256


def test_a_vocabulary_without_an_end_of_text_says_so_for_an_empty_prompt(tmp_path: Path) -> None:
    data = json.loads((GOLDEN / "digits" / "tokenizer.json").read_text("utf-8"))
    vocab = data["model"]["vocab"]
    vocab["<eod>"] = vocab.pop("<|endoftext|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(data | {"added_tokens": []}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.end_of_text, tokenizer.beginning) == (None, None)
    assert tokenizer.prompt_ids("a") == tokenizer.encode("a")
    with pytest.raises(ConfigError, match="an empty prompt"):
        tokenizer.prompt_ids("")


def test_a_normalizer_may_shorten_a_text_to_any_length() -> None:
    texts = load_tokenizer(GOLDEN / "normalizer"), load_tokenizer(GOLDEN / "digits")
    assert isinstance(texts[0], ForeignTokenizer)
    assert texts[0].longest_token > 1 << 30 and texts[1].longest_token < 30


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(DataError, match=r"U\+D800"):
        load_tokenizer(GOLDEN / "added").encode("a\ud800")
