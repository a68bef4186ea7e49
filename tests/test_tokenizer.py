"""The tokenizers: known ids, exactness on any text, files in and out."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.text import tokenizer as module
from jaxgpt.text.corpus import builtin_documents
from jaxgpt.text.tokenizer import END_OF_TEXT, GPT2_SHA256, TOKENIZER_FILE
from jaxgpt.text.tokenizer_files import load_tokenizer

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


def test_bytes_are_encoded_without_tiktoken_which_a_long_repetition_ends():
    ids = BYTES.encode_array("ä" * 30_000_000)
    assert ids.dtype == np.uint32 and len(ids) == 60_000_000 and ids[:2].tolist() == [*"ä".encode()]
    assert BYTES.encode("zä") == BYTES.encoding.encode_ordinary("zä")


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


def test_a_damaged_packaged_vocabulary_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "gpt2.tiktoken").write_bytes(module._GPT2_FILE.read_bytes().replace(b" 7\n", b" 8\n", 1))
    monkeypatch.setattr(module, "_GPT2_FILE", tmp_path / "gpt2.tiktoken")
    with pytest.raises(DataError, match="damaged"):
        load_tokenizer("gpt2")


def test_an_empty_prompt_begins_a_text_where_the_vocabulary_can(monkeypatch):
    assert BYTES.prompt_ids("a") == [97]
    assert BYTES.prompt_ids("") == [256]
    monkeypatch.setattr(BYTES, "beginning", None)
    assert BYTES.prompt_ids("a") == [97]
    with pytest.raises(ConfigError, match="an empty prompt: the vocabulary bytes has no token that begins"):
        BYTES.prompt_ids("")


def test_the_longest_token_is_one_that_a_text_can_hold():
    assert BYTES.longest_token == 1  # not <|endoftext|>, which is no text's
    assert GPT2.longest_token == max(map(len, GPT2.ranks))
