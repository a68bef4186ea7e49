"""A name, a file or a folder gives its tokenizer: ranks where they can express it, else the library."""

import json
from pathlib import Path

import pytest

from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.text.foreign_tokenizer import ForeignTokenizer
from jaxgpt.text.tokenizer import RankTokenizer
from jaxgpt.text.tokenizer_files import load_preparing, load_tokenizer

GPT2 = load_tokenizer("gpt2")
GOLDEN = Path(__file__).parent / "golden" / "tokenizers"


@pytest.fixture
def letters(tmp_path):
    """A folder with the tokenizer.json of the bytes and two merges, all of it as in GPT-2's."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abc": 257}
    RankTokenizer(ranks).save_json(tmp_path / "tokenizer.json")
    return tmp_path


def changed(folder, change):
    data = json.loads((folder / "tokenizer.json").read_bytes())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def test_tokenizer_json_of_gpt2_gives_the_same_ranks(tmp_path):
    GPT2.save_json(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).ranks == GPT2.ranks


@pytest.mark.parametrize(
    ("change", "ids"),
    [
        (lambda data: data.update(normalizer={"type": "Lowercase"}), [257]),
        (lambda data: data["pre_tokenizer"].update(add_prefix_space=True), [32, 65, 66, 67]),
        (lambda data: data["added_tokens"].append({"content": "BC", "id": 400}), [65, 400]),
        (lambda data: data["model"]["merges"].pop(), [65, 66, 67]),
        (lambda data: data["model"]["vocab"].update({"<|endoftext|>": 300}), [65, 66, 67]),
        (lambda data: data["model"]["vocab"].pop("B"), [65, 67]),
    ],
)
def test_what_ranks_cannot_express_is_used_as_it_is(letters, change, ids):
    assert isinstance(load_tokenizer(letters), RankTokenizer)
    tokenizer = load_tokenizer(changed(letters, change))
    assert isinstance(tokenizer, ForeignTokenizer)
    assert tokenizer.encode("ABC") == ids
    with pytest.raises(ConfigError, match=r"cannot train with the tokenizer .* use gpt2, bytes, or"):
        load_preparing(letters)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data["model"].update(type="Unigram"), "its model is Unigram"),
        (lambda data: data["pre_tokenizer"].update(type="Whitespace"), "its tokens are characters"),
        (lambda data: data.update(pre_tokenizer=None), "its tokens are characters"),
        (lambda data: data["model"].update(merges=[["a", "nothing"]]), "nothing"),
        (lambda data: data.update(normalizer={"type": "Unheard"}), "did not match any variant"),
        (lambda data: data.pop("model"), "KeyError"),
        (lambda data: data["added_tokens"].append({"content": "x", "id": -1}), "'x' with the id -1"),
        (lambda data: data["added_tokens"].append({"content": 5, "id": 1}), "'5' with the id 1"),
        *[
            (lambda data, wrong=wrong: data["model"]["vocab"].update(ab=wrong), "no numbers from 0 up")
            for wrong in (None, True, 256.0, float("nan"), "256", [], ["x"], {}, [[]], -1, 2**31, 10**4000)
        ],
    ],
)
def test_what_is_no_byte_level_bpe_is_refused(letters, change, why):
    with pytest.raises(DataError, match=why) as caught:
        load_tokenizer(changed(letters, change))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_tokenizers_of_other_kinds_are_named(kind):
    with pytest.raises(DataError, match=rf"(?i)not byte-level BPE .*: its model is {kind}"):
        load_tokenizer(GOLDEN / kind)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_tokenizer_json_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match="not a tokenizer's files"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_in_another_encoding_is_refused(tmp_path):
    load_tokenizer("bytes").save_json(tmp_path / "tokenizer.json")
    load_tokenizer(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-16")
    with pytest.raises(DataError, match="'utf-8' codec can't decode"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_says_what_is_possible(tmp_path):
    for spec in ("gpt3", tmp_path):
        with pytest.raises(MissingError, match="neither gpt2, bytes"):
            load_tokenizer(spec)
