"""Training a vocabulary: both exports give the ids that the tokenizers library gives."""

import re
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.text.bpe import train
from jaxgpt.text.corpus import builtin_documents
from jaxgpt.text.tokenizer import END_OF_TEXT, RankTokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.text.tokenizer_json import split_token
from jaxgpt.verbs.tokenizer import TokenizerArgs, run

TOPICS = list(builtin_documents().values())
SOME_TEXT = st.text() | st.text(st.sampled_from(" \n\t\xa0'abcdelnorstz09.,"), max_size=60)


@pytest.fixture(scope="module")
def trained():
    return train(iter(TOPICS[:40]), 1000)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The same vocabulary through each file, and through the tokenizers library itself."""
    folder = tmp_path_factory.mktemp("bpe")
    trained.save(folder / "own.tiktoken")
    trained.save_json(folder / "own.json")
    library = tokenizers.Tokenizer.from_file(str(folder / "own.json"))
    return load_tokenizer(folder / "own.tiktoken"), load_tokenizer(folder / "own.json"), library


def test_the_vocabulary_counts_bytes_merges_and_the_end_of_text(trained):
    assert (trained.vocab, trained.end_of_text, len(trained.ranks)) == (1000, 999, 999)
    assert trained.name.startswith("bpe-")


def test_both_exports_and_the_library_give_equal_ids_on_real_text(trained, exported):
    ranks, json_file, library = exported
    for text in TOPICS[40:60]:
        ids = trained.encode(text)
        assert ids == ranks.encode(text) == json_file.encode(text) == library.encode(text).ids
        assert len(ids) < 0.7 * len(text.encode())


@settings(deadline=None)
@given(text=SOME_TEXT)
def test_both_exports_and_the_library_give_equal_ids_on_any_text(exported, text):
    ranks, json_file, library = exported
    assert ranks.encode(text) == json_file.encode(text) == library.encode(text).ids
    assert library.decode(library.encode(text).ids) == text


def test_the_library_knows_the_end_of_text_by_the_same_id(trained, exported):
    assert exported[2].token_to_id(END_OF_TEXT) == trained.end_of_text
    assert exported[2].get_vocab_size() == trained.vocab


def test_the_first_merge_is_the_most_frequent_pair():
    tokenizer = train(iter(["ab" * 50 + " cd"]), 258)
    assert list(tokenizer.ranks)[256:] == [b"ab"]


def test_training_twice_gives_the_same_vocabulary(trained):
    assert train(iter(TOPICS[:40]), 1000).sha256 == trained.sha256


def test_training_learns_from_whitespace_cut_texts_what_it_learns_from_whole_ones():
    words = "the cat and the hat and the bat"
    whole, cut = train(iter([words]), 270), train(iter(["the cat and", " the hat", " and the bat"]), 270)
    assert whole.ranks == cut.ranks


def test_every_merge_joins_what_the_lower_ranks_make_of_its_token(trained):
    assert all(len(split_token(token, trained.ranks)) == 2 for token in trained.ranks if len(token) > 1)


def test_ranks_that_no_merges_make_have_no_tokenizer_json(tmp_path):
    odd = RankTokenizer({bytes([byte]): byte for byte in range(256)} | {b"abc": 256})
    with pytest.raises(DataError, match="no merge of two others"):
        odd.save_json(tmp_path / "odd.json")


def test_too_little_text_says_how_large_a_vocabulary_it_gives():
    with pytest.raises(DataError, match="ask for 258"):
        train(iter(["ab"]), 1000)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ConfigError, match="at least 257"):
        train(iter(["ab"]), 256)


@pytest.mark.parametrize("name", ["own.tiktoken", "own.json"])
def test_the_verb_writes_the_kind_of_file_its_name_says(tmp_path, capsys, name):
    run(TokenizerArgs(texts=("builtin",), vocab=300, out=tmp_path / name))
    assert load_tokenizer(tmp_path / name).vocab == 300
    captured = capsys.readouterr()
    assert captured.out == "" and f"--tokenizer {tmp_path / name}" in captured.err


def test_the_verb_overwrites_nothing(tmp_path):
    (tmp_path / "own.json").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        run(TokenizerArgs(texts=("builtin",), vocab=300, out=tmp_path / "own.json"))
    assert (tmp_path / "own.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("texts", "name", "said"),
    [((), "a.json", "no TEXT was given; name"), (("builtin",), "a.txt", "ends in .tiktoken or .json")],
)
def test_the_verb_says_which_argument_is_wrong(
    texts: tuple[str, ...], name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        run(TokenizerArgs(texts=texts, vocab=300, out=tmp_path / name))
    assert not (tmp_path / name).exists()
