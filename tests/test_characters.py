"""nanoGPT's characters: read from meta.pkl without unpickling it, and a tokenizer like any other."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.malicious import SYSTEM, whole
from tokenizers import Tokenizer as Library

import jaxgpt
from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.text.characters import CharacterTokenizer
from jaxgpt.text.tokenizer_files import load_preparing, load_tokenizer
from jaxgpt.weights.convert import FORMATS, write_model
from jaxgpt.weights.formats.nanogpt import open_meta
from jaxgpt.weights.names import places
from jaxgpt.weights.open import open_model
from jaxgpt.weights.tensors import StoredModel, Tensor

TEXT = "\n !$&',-.3:;?ABCxyz\u00e9\U0001f600"
IDS = {character: id for id, character in enumerate(sorted(set(TEXT)))}
META = {"vocab_size": len(IDS), "itos": {id: character for character, id in IDS.items()}, "stoi": IDS}


def meta(folder: Path, content: Any = META, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    """A meta.pkl as the data sets' prepare.py writes it: with pickle.dump."""
    (folder / "meta.pkl").write_bytes(pickle.dumps(content, protocol))
    return folder / "meta.pkl"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_meta_of_any_protocol_gives_its_characters(tmp_path: Path, protocol: int) -> None:
    tokenizer = open_meta(meta(tmp_path, protocol=protocol))
    assert tokenizer.vocab == len(IDS) and tokenizer.longest_token == 4
    ids = tokenizer.encode("zyx\u00e9\n\U0001f600")
    assert ids == [IDS[character] for character in "zyx\u00e9\n\U0001f600"]
    assert tokenizer.decode(ids) == "zyx\u00e9\n\U0001f600"
    with pytest.raises(DataError, match=f"the character 'Z': it is none of the {len(IDS)} characters"):
        tokenizer.encode("xZ")
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode("\ud800")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([], "holds no tables"),
        ({"stoi": IDS}, "holds no tables"),
        ({"stoi": IDS, "itos": list(IDS)}, "holds no tables"),
        (META | {"itos": META["itos"] | {0: "?"}}, "do not agree"),
        ({"stoi": {"a": 0, "b": 2}, "itos": {0: "a", 2: "b"}}, "its 2 ids are not 0 to 1, each once"),
        ({"stoi": {"a": 0, "bc": 1}, "itos": {0: "a", 1: "bc"}}, "'bc' is no single character"),
        ({"stoi": {0: 0}, "itos": {0: 0}}, "'0' is no single character"),
        ({"stoi": {"a": True}, "itos": {}}, "ids are not 0 to 0"),
        ({"stoi": {}, "itos": {}}, "ids are not 0 to"),
        ({"stoi": {"a": []}, "itos": {}}, "ids are not 0 to 0"),
    ],
)
def test_another_table_is_refused(tmp_path: Path, content: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        open_meta(meta(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (whole(SYSTEM), r"asks for os\.system"),
        (pickle.dumps(Path("x"), 4), "STACK_GLOBAL"),
        (pickle.dumps(META)[:-20], "cut short"),
        (pickle.dumps(META) + b"x", "holds no tables"),
        (b"\x80\x06}.", "protocol 2 to 5"),
        (b"{}", "protocol 2 to 5"),
    ],
)
def test_nothing_in_a_meta_is_executed(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(DataError, match=why):
        open_meta(tmp_path / "meta.pkl")


def small() -> StoredModel:
    config = GPTConfig(vocab=len(IDS), context=16, layers=1, heads=1, width=4, activation="gelu")
    tensors = {place.name: Tensor.of(np.ones(place.shape, np.float32)) for place in places(config)}
    return StoredModel(config, tensors)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """nanoGPT's ckpt.pt with its meta.pkl."""
    write_model(small(), tmp_path / "out", "nanogpt")
    meta(tmp_path / "out")
    return tmp_path / "out"


def test_a_model_beside_its_meta_writes_its_characters(folder: Path) -> None:
    lm = jaxgpt.load(folder)
    assert jaxgpt.load(folder / "ckpt.pt").tokenizer.sha256 == lm.tokenizer.sha256
    written = lm.generate("xyz", max_new_tokens=8, seed=0)
    assert len(written) == 8 and set(written) <= set(IDS)
    with pytest.raises(ConfigError, match="no token that begins a text"):
        lm.generate("")


@pytest.mark.parametrize("to", FORMATS)
def test_the_characters_go_along_with_conversions(folder: Path, tmp_path: Path, to: str) -> None:
    given = open_model(folder)
    assert given.tokenizer is not None and given.tokenizer.name.startswith("characters-")
    if to == "llmc":
        given = small_gelu(given)
    write_model(given, tmp_path / to, to)
    found = open_model(tmp_path / to).tokenizer
    assert found is not None and found.sha256 == given.tokenizer.sha256


def small_gelu(model: StoredModel) -> StoredModel:
    return dataclasses.replace(model, config=dataclasses.replace(model.config, activation="gelu_tanh"))


def test_the_tokenizers_library_reads_what_is_written_as_the_same_characters(tmp_path: Path) -> None:
    own = CharacterTokenizer(IDS)
    own.save_in(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    text = "zyx \u00e9\n\n  \U0001f600?"
    assert library.encode(text).ids == own.encode(text) and library.decode(own.encode(text)) == text
    found = load_tokenizer(tmp_path)
    assert isinstance(found, CharacterTokenizer) and found.sha256 == own.sha256
    with pytest.raises(ConfigError, match="unlike GPT-2's"):
        load_preparing(tmp_path)
    table = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    table["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table), "utf-8")
    assert not isinstance(load_tokenizer(tmp_path), CharacterTokenizer)


def test_a_meta_that_cannot_be_read_leaves_the_model_without_a_tokenizer_and_is_said(folder: Path) -> None:
    (folder / "meta.pkl").write_bytes(whole(SYSTEM))
    model = open_model(folder)
    assert model.tokenizer is None
    (note,) = model.notes
    assert (
        note.startswith("the model is used without a tokenizer, because we cannot read its own")
        and "os.sys" in note
    )
    shutil.copy(Path(__file__).parent / "golden/tokenizers/older/vocab.json", folder)
    shutil.copy(Path(__file__).parent / "golden/tokenizers/older/merges.txt", folder)
    with pytest.raises(DataError, match="another model's tokenizer"):  # the folder's own goes before it
        open_model(folder)
