"""The files of a tokenizer in a Hugging Face folder, read as the one tokenizer.json that they stand for.

Folders of all times are understood: tokenizer.json or, before it, vocab.json with merges.txt; and beside
them added_tokens.json, special_tokens_map.json and tokenizer_config.json. They are merged as transformers
merges them (transformers, tokenization_utils_base.py, _from_pretrained).
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.errors import DataError
from jaxgpt.text.tokenizer_json import END_OF_TEXT

JSON_FILE = "tokenizer.json"
VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"  # what there was before tokenizer.json
ADDED_FILE, SPECIAL_FILE = "added_tokens.json", "special_tokens_map.json"
SETTINGS_FILE = "tokenizer_config.json"
BESIDE = (ADDED_FILE, SPECIAL_FILE, SETTINGS_FILE)
LARGEST_ID = 1 << 31
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


class TokenizerFiles(NamedTuple):
    """What the files of one tokenizer say."""

    data: dict[str, Any]
    """The content of the tokenizer.json that they stand for."""
    special: dict[str, str]
    """The texts of bos_token, eos_token and the like."""
    files: dict[str, bytes]
    """The files themselves, by their names."""


def read_files(path: Path) -> TokenizerFiles:
    """Return what a tokenizer.json says, or a vocab.json with merges.txt, together with the files beside it.

    A file of another name stands for itself alone. Raises DataError when one of them is not what its name
    says, OSError when one cannot be read.
    """
    folder = path.parent
    if path.name not in (JSON_FILE, VOCAB_FILE):
        files = {JSON_FILE: path.read_bytes()}
    else:
        names = [name for name in (JSON_FILE, VOCAB_FILE, MERGES_FILE, *BESIDE) if (folder / name).is_file()]
        files = {name: (folder / name).read_bytes() for name in names}
    return parse_files(files, path)


def parse_files(files: Mapping[str, bytes], path: Path) -> TokenizerFiles:
    """Return what files say, which are given by their names. Errors name `path`. Raises DataError."""
    try:
        data = _table(files, JSON_FILE) or _from_older(files)
        settings, special = _table(files, SETTINGS_FILE), _table(files, SPECIAL_FILE)
        stated = settings if "added_tokens_decoder" in settings else settings | special
        named = {key: text for key, text in _named(stated) if text}
        specials = {*named.values(), *_texts(stated.get("additional_special_tokens"))}
        specials |= {END_OF_TEXT, *_texts(stated.get("extra_special_tokens"))}
        _add_tokens(data, settings.get("added_tokens_decoder", {}), _table(files, ADDED_FILE), specials)
        if "add_prefix_space" in settings:
            _set_prefix_space(data.get("pre_tokenizer"), bool(settings["add_prefix_space"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            "not a tokenizer's files",
            path=path,
            why=f"{type(error).__name__}: {str(error)[:200]}",
            fix="copy the tokenizer's files again",
        ) from error
    return TokenizerFiles(data, named, dict(files))


def _table(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Return the table in a JSON file, which is empty when there is no such file. Raises ValueError."""
    table = json.loads(str(files[name], "utf-8")) if name in files else {}
    if not isinstance(table, dict):
        raise ValueError(f"{name} holds no table")
    return table


def _from_older(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the content of the tokenizer.json that a vocab.json and a merges.txt stand for."""
    lines = str(files[MERGES_FILE], "utf-8").split("\n")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    merges = [line.removesuffix("\r") for line in lines if line.strip() and not line.startswith("#version")]
    model = {"type": "BPE", "vocab": _table(files, VOCAB_FILE), "merges": merges}
    return {"added_tokens": [], "pre_tokenizer": level, "decoder": level, "model": model}


def _named(settings: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield the named special tokens, such as bos_token, with their texts."""
    for key, value in settings.items():
        if key.endswith("_token"):
            yield key, next(iter(_texts([value])), None)


def _texts(tokens: Any) -> list[str]:
    """Return the texts of a list of tokens, of which each is a text or a table with its content."""
    items = tokens.values() if isinstance(tokens, dict) else tokens or []
    found = [item.get("content") if isinstance(item, dict) else item for item in items]
    return [text for text in found if isinstance(text, str)]


def _add_tokens(
    data: dict[str, Any], numbered: Mapping[str, Any], older: Mapping[str, Any], specials: Collection[str]
) -> None:
    """Complete the added tokens of a tokenizer.json by those that stand elsewhere, in order of their ids.

    `numbered` has the tokens by their ids, `older` the ids by the tokens. A text in `specials` is an added
    token if the vocabulary has it.
    """
    vocab = data["model"]["vocab"]
    entries = [*data.get("added_tokens", ()), *({**token, "id": int(id)} for id, token in numbered.items())]
    tables = [(older, True), (vocab if isinstance(vocab, dict) else {}, False)]
    entries += [
        {"content": text, "id": id, "special": text in specials, "normalized": text not in specials}
        for table, all_of_it in tables
        for text, id in table.items()
        if all_of_it or text in specials
    ]
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        text, id = entry["content"], entry["id"]
        if not isinstance(text, str) or not text or type(id) is not int or not 0 <= id < LARGEST_ID:
            raise ValueError(f"an added token is {str(text)[:80]!r} with the id {str(id)[:80]}")
        kept = {key: bool(entry.get(key, default)) for key, default in _FLAGS.items()}
        found.setdefault(text, {"id": id, "content": text, **kept})
    data["added_tokens"] = sorted(found.values(), key=lambda entry: entry["id"])


def _set_prefix_space(step: Any, value: bool) -> None:
    """Set whether a pre-tokenizer, or each part of it, puts a space before a text."""
    if isinstance(step, dict) and step.get("type") == "Sequence":
        for part in step["pretokenizers"]:
            _set_prefix_space(part, value)
    elif isinstance(step, dict) and step.get("type") == "ByteLevel":
        step["add_prefix_space"] = value
