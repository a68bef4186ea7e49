"""The tokenizers: known ids, exactness on any text, files in and out."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.errors import DataError, MissingError
from jaxgpt.text import tokenizer as module
from jaxgpt.text.corpus import builtin_documents
from jaxgpt.text.tokenizer import END_OF_TEXT, GPT2_SHA256, TOKENIZER_FILE, Tokenizer, load_tokenizer

GPT2 = load_tokenizer("gpt2")
BYTES = load_tokenizer("bytes")
SPACES = st.text(st.sampled_from(" \n\t\xa0\u3000\x1c'a1.é"), max_size=30)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        (
            "Every effort moves you",
            [6109, 3626, 6100, 345],
        ),  # Raschka, Build a Large Language Model, chapter 4
        ("hello world", [31373, 995]),  # tiktoken's own documentation
        (
            "<|endoftext|>",
            [27, 91, 437, 1659, 5239, 91, 29],
        ),  # tiktoken's own documentation, disallowed_special=()
        ("", []),
    ],
)
def test_gpt2_gives_the_published_ids(text, ids):
    assert GPT2.encode(text) == ids
    assert GPT2.encode_array(text).tolist() == ids


def test_gpt2_has_50257_ids_the_last_is_the_end_of_text():
    assert (GPT2.name, GPT2.vocab, GPT2.end_of_text, GPT2.sha256) == ("gpt2", 50257, 50256, GPT2_SHA256)
    assert GPT2.decode([50256]) == END_OF_TEXT


def test_bytes_are_their_own_ids():
    assert (BYTES.name, BYTES.vocab, BYTES.end_of_text) == ("bytes", 257, 256)
    assert BYTES.encode("hé\n") == list("hé\n".encode())


@settings(deadline=None)
@given(st.text() | SPACES)
def test_any_text_comes_back_from_its_ids(text):
    for tokenizer in (GPT2, BYTES):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_array(text).tolist() == ids
        assert tokenizer.end_of_text not in ids


@pytest.mark.parametrize("unit", ["a", "^", "0", " ", "\n", " \n\t", "a ", "😀", "e\u0301", "\u3000"])
@pytest.mark.parametrize("tail", ["", "a", " a"])
def test_a_million_times_the_same_is_encoded_exactly(unit, tail):
    text = unit * (1_000_000 // len(unit.encode())) + tail
    assert GPT2.decode_bytes(GPT2.encode_array(text).tolist()) == text.encode()


@settings(deadline=None)
@given(SPACES, SPACES, st.integers(0, 12), st.sampled_from([" ", "\n", " \n", "\u3000\t"]))
def test_long_whitespace_is_split_as_gpt2s_pattern_splits_it(before, after, count, unit):
    text = before + unit * count + after
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LONG_SPACE", re.compile(f"[{module.WHITESPACE}]{{3,}}"))
        assert GPT2.encode(text) == GPT2.encoding.encode_ordinary(text)


def test_a_lone_surrogate_is_refused_not_replaced():
    with pytest.raises(DataError, match=r"character 2 .*U\+D800"):
        GPT2.encode("ab\ud800")


def test_a_batch_equals_its_texts_on_any_number_of_threads():
    texts = list(builtin_documents().values())[:8]
    for threads in (1, 3):
        assert GPT2.encode_batch(texts, threads) == [GPT2.encode(text) for text in texts]


def test_decoding_half_a_character_gives_the_replacement_character():
    ids = BYTES.encode("é")
    assert BYTES.decode(ids[:1]) == "\ufffd"
    assert BYTES.decode_bytes(ids[:1]) == b"\xc3"


@pytest.mark.parametrize("wrong", [-1, 50257])
def test_an_id_outside_the_vocabulary_is_named(wrong):
    with pytest.raises(DataError, match=rf"token id {wrong}: .* 0 to 50256"):
        GPT2.decode([0, wrong])


@pytest.mark.parametrize("spec", ["gpt2", "bytes"])
def test_a_saved_tokenizer_is_the_same_one(tmp_path, spec):
    saved = load_tokenizer(spec)
    saved.save(tmp_path / TOKENIZER_FILE)
    for place in (tmp_path, tmp_path / TOKENIZER_FILE):
        loaded = load_tokenizer(place)
        assert (loaded.name, loaded.sha256, loaded.ranks) == (spec, saved.sha256, saved.ranks)


def test_tokenizer_json_of_gpt2_gives_the_same_ranks(tmp_path):
    GPT2.save_json(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).ranks == GPT2.ranks


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data.update(normalizer={"type": "NFC"}), "normalizes"),
        (lambda data: data["pre_tokenizer"].update(add_prefix_space=True), "prefix space"),
        (lambda data: data["added_tokens"].append({"content": "<pad>", "id": 260}), "added tokens"),
        (lambda data: data["model"].update(type="Unigram"), "not plain BPE"),
        (lambda data: data["model"]["merges"].reverse(), "order of the ids"),
        (lambda data: data["model"]["merges"].pop(), "order of the ids"),
        (lambda data: data.pop("model"), "no byte-level BPE"),
        (lambda data: data["model"]["vocab"].update({"<|endoftext|>": 0}), "the id 0, not 258"),
        *[
            (lambda data, wrong=wrong: data["model"]["vocab"].update(ab=wrong), "that of 'ab'")
            for wrong in (None, True, 256.0, float("nan"), "256", [], ["x"], {}, [[]])
        ],
        (lambda data: data["model"]["vocab"].update(ab=10**4000), "order of the ids"),
    ],
)
def test_a_tokenizer_json_that_ranks_cannot_express_is_refused(tmp_path, change, why):
    letters = {bytes([byte]): byte for byte in range(256)}
    Tokenizer(letters | {b"ab": 256, b"abc": 257}).save_json(tmp_path / "tokenizer.json")
    data = json.loads((tmp_path / "tokenizer.json").read_bytes())
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=why):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_a_tokenizer_json_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match="it is no byte-level BPE"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_in_another_encoding_is_refused(tmp_path):
    load_tokenizer("bytes").save_json(tmp_path / "tokenizer.json")
    load_tokenizer(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-16")
    with pytest.raises(DataError, match="'utf-8' codec can't decode"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"YQ== 0\nnonsense\n", "line 2"),
        (b"YQ== 0\nYQ== 1\n", "line 2 repeats"),
        (b"YQ== 0\n", "255 single bytes"),
        (b"YQ== 5\n", "not 0 to 0"),
    ],
)
def test_a_bad_rank_file_is_refused_with_its_line(tmp_path, content, why):
    (tmp_path / "bad.tiktoken").write_bytes(content)
    with pytest.raises(DataError, match=why):
        load_tokenizer(tmp_path / "bad.tiktoken")


def test_a_missing_tokenizer_says_what_is_possible(tmp_path):
    for spec in ("gpt3", tmp_path):
        with pytest.raises(MissingError, match="neither gpt2, bytes"):
            load_tokenizer(spec)


def test_a_damaged_packaged_vocabulary_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "gpt2.tiktoken").write_bytes(module._GPT2_FILE.read_bytes().replace(b" 7\n", b" 8\n", 1))
    monkeypatch.setattr(module, "_GPT2_FILE", tmp_path / "gpt2.tiktoken")
    with pytest.raises(DataError, match="damaged"):
        load_tokenizer("gpt2")
