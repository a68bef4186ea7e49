"""Hugging Face's tokenizer.json for byte-level BPE of GPT-2's kind, made from ranks and read back to ranks.

Ranks allow more merges than a list of merges does: any two neighbours whose bytes together are a token may
merge. A vocabulary means the same in both forms if the ranks below each token's own split it into the two
parts that its merge joins.
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from jaxgpt.errors import DataError

END_OF_TEXT = "<|endoftext|>"
VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"  # what there was before tokenizer.json
_UNUSED = (
    "dropout",
    "byte_fallback",
    "ignore_merges",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "unk_token",
)


def byte_characters() -> dict[int, str]:
    """Return the printable character that stands for each byte in GPT-2's files.

    Latin-1's printable characters stand for themselves. U+0100 and the characters after it stand for the
    other bytes, in order. Source: openai/gpt-2, src/encoder.py, bytes_to_unicode.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def split_token(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Return the parts into which the ranks below its own split a token.

    They are two if a merge makes the token.
    """
    parts, limit = [bytes([byte]) for byte in token], ranks[token]
    while len(parts) > 1:
        pairs = [ranks.get(left + right, limit) for left, right in pairwise(parts)]
        best = min(pairs)
        if best >= limit:
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def format_json(ranks: Mapping[bytes, int]) -> bytes:
    """Return the content of tokenizer.json for ranks in order of their ids.

    Raises DataError if a token is not made by a merge.
    """
    names = byte_characters()
    text = {token: "".join(names[byte] for byte in token) for token in ranks}
    splits = [split_token(token, ranks) for token in ranks if len(token) > 1]
    if odd := [b"".join(parts) for parts in splits if len(parts) != 2]:
        why = f"{len(odd)} tokens are no merge of two others, and the first of them is {odd[0]!r}"
        raise DataError("not a byte-pair vocabulary", why=why, fix="save it as tiktoken ranks instead")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {text[token]: rank for token, rank in ranks.items()} | {END_OF_TEXT: len(ranks)},
        "merges": [f"{text[left]} {text[right]}" for left, right in splits],
    }
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(ranks), "content": END_OF_TEXT, **flags}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": model,
    }
    return json.dumps(data, ensure_ascii=False, indent=1).encode()


def read_older_files(folder: Path) -> bytes:
    """Return the content of the tokenizer.json that a folder's vocab.json and merges.txt stand for.

    Tokens in an added_tokens.json and the prefix space of a tokenizer_config.json are part of it. Raises
    DataError when the files hold something else, OSError when they cannot be read.
    """
    try:
        vocab = json.loads((folder / VOCAB_FILE).read_text(encoding="utf-8"))
        added = _table(folder / "added_tokens.json") | (
            {END_OF_TEXT: vocab[END_OF_TEXT]} if END_OF_TEXT in vocab else {}
        )
        lines = (folder / MERGES_FILE).read_text(encoding="utf-8").split("\n")
        merges = [line for line in lines[lines[0].startswith("#version") :] if line]
        level = {
            "type": "ByteLevel",
            "add_prefix_space": _table(folder / "tokenizer_config.json").get("add_prefix_space", False),
        }
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            "not GPT-2's kind of tokenizer",
            path=folder / VOCAB_FILE,
            why=f"{type(error).__name__}: {str(error)[:200]}",
            fix="copy the tokenizer's files again",
        ) from error
    return json.dumps(
        {
            "added_tokens": [{"id": id, "content": content} for content, id in added.items()],
            "pre_tokenizer": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        }
    ).encode()


def _table(path: Path) -> dict[str, Any]:
    """Return the table in a JSON file, which is empty when there is no such file. Raises ValueError."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(table, dict):
        raise ValueError(f"{path.name} holds no table")
    return table


def parse_json(content: bytes, path: Path) -> dict[bytes, int]:
    """Return the ranks in a tokenizer.json.

    Raises DataError unless tiktoken encodes any text with them to the same ids. For that, the file must hold
    byte-level BPE without prefix space, normalizer or dropout; no added token but `<|endoftext|>`, with the
    last id; and the merges in the order of the ids that they make, each being the one that makes its token.
    """
    try:
        data = json.loads(str(content, "utf-8"))  # given bytes, it would guess the encoding
        problems = _json_problems(data)
        bytes_of = {character: byte for byte, character in byte_characters().items()}
        vocab = {token: rank for token, rank in data["model"]["vocab"].items() if token != END_OF_TEXT}
        if odd := [token for token, rank in vocab.items() if type(rank) is not int]:
            raise ValueError(
                f"{len(odd)} ids are no integers, and the first of them is that of {odd[0][:80]!r}"
            )
        ranks = {bytes(bytes_of[character] for character in token): rank for token, rank in vocab.items()}
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in data["model"]["merges"]]
        joined = [[bytes(bytes_of[character] for character in part) for part in merge] for merge in merges]
        ordered = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
        if joined != [split_token(token, ranks) for token in ordered]:
            problems.append("its merges are not in the order of the ids they make")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problems = [f"it is no byte-level BPE ({type(error).__name__}: {str(error)[:200]})"]
    if problems:
        raise DataError(
            "not GPT-2's kind of tokenizer",
            path=path,
            why="; ".join(problems),
            fix="use a tokenizer with byte-level BPE, as GPT-2's",
        )
    return ranks


def _json_problems(data: Mapping[str, Any]) -> list[str]:
    model, before = data["model"], data["pre_tokenizer"]
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    count = len(model["vocab"].keys() - added.keys())
    problems = []
    special = [key for key in _UNUSED if model.get(key) not in (None, False, "", END_OF_TEXT)]
    if model.get("type", "BPE") != "BPE" or special:
        problems.append("its model is not plain BPE")
    if before["type"] != "ByteLevel" or before["add_prefix_space"] or not before.get("use_regex", True):
        problems.append("its pre-tokenizer is not ByteLevel without prefix space")
    if data.get("normalizer"):
        problems.append("it normalizes the text")
    if added != {END_OF_TEXT: count}:
        problems.append(f"its added tokens are {str(added)[:200]}, not only {END_OF_TEXT} with id {count}")
    if (inside := model["vocab"].get(END_OF_TEXT, count)) != count:
        problems.append(f"its vocabulary gives {END_OF_TEXT} the id {str(inside)[:80]}, not {count}")
    return problems
