"""The files beside a vocabulary are part of the tokenizer, in folders of all times."""

import json
import shutil
from pathlib import Path

import pytest

from jaxgpt.errors import DataError
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.text.tokenizer_folder import read_files

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"


def folder_with(tmp_path: Path, name: str, **files: object) -> Path:
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


def test_tokens_stand_in_any_of_four_files(tmp_path: Path) -> None:
    """tokenizer.json goes first, then added_tokens_decoder, then added_tokens.json, then the vocabulary."""
    decoder = {"331": {"content": "<never>"}, "336": {"content": "<numbered>", "special": True}}
    folder = folder_with(
        tmp_path,
        "added",
        tokenizer_config={"added_tokens_decoder": decoder, "eos_token": {"content": "<numbered>"}},
        added_tokens={"<older>": 337, "<numbered>": 999},
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.added_ids == {
        "<|endoftext|>": 330,
        "<pad>": 331,
        "<never>": 331,
        "<sep>": 332,
        "[NAME]": 333,
        "new word": 334,
        "<numbered>": 336,
        "<older>": 337,
    }
    assert tokenizer.end_of_text == 336 and "<older>" not in tokenizer.special_ids


def test_named_tokens_of_older_folders_are_special(tmp_path: Path) -> None:
    special = {"eos_token": "<end>", "additional_special_tokens": ["<turn>", {"content": "!"}]}
    folder = folder_with(
        tmp_path,
        "older",
        special_tokens_map=special,
        added_tokens={"<end>": 331, "<turn>": 332, "<mine>": 333},
    )
    tokenizer = load_tokenizer(folder)
    exclamation = json.loads((folder / "vocab.json").read_text())["!"]
    special_ids = {"<|endoftext|>": 330, "<end>": 331, "<turn>": 332, "!": exclamation}
    assert dict(tokenizer.special_ids) == special_ids
    assert tokenizer.end_of_text == 331 and tokenizer.special_tokens == {"eos_token": "<end>"}
    assert tokenizer.encode("<mine>") == [333]


@pytest.mark.parametrize("name", ["older", "added", "prefix_space", "digits"])
@pytest.mark.parametrize("stated", [True, False])
def test_the_settings_decide_on_the_prefix_space(tmp_path: Path, name: str, stated: bool) -> None:
    tokenizer = load_tokenizer(folder_with(tmp_path, name, tokenizer_config={"add_prefix_space": stated}))
    assert tokenizer.decode(tokenizer.encode("x")) == " x" * stated + "x" * (not stated)


def test_a_file_of_another_name_stands_for_itself(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "added", added_tokens={"<older>": 337})
    (folder / "tokenizer.json").rename(folder / "mine.json")
    assert "<older>" not in load_tokenizer(folder / "mine.json").added_ids
    assert list(read_files(folder / "mine.json").files) == ["tokenizer.json"]


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": ["x"]},
        {"added_tokens": {"x": "y"}},
        {"tokenizer_config": {"added_tokens_decoder": {"one": {"content": "x"}}}},
        {"tokenizer_config": {"added_tokens_decoder": {"1": "x"}}},
        {"tokenizer_config": {"added_tokens_decoder": [1]}},
        {"special_tokens_map": 5},
        {"tokenizer": {"model": {"vocab": {}}, "added_tokens": [5]}},
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path: Path, files: dict) -> None:
    with pytest.raises(DataError, match=r"not a tokenizer's files .*tokenizer\.json"):
        read_files(folder_with(tmp_path, "added", **files) / "tokenizer.json")
