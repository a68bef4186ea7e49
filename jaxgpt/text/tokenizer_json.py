"""Hugging Face's tokenizer.json for byte-level BPE of GPT-2's kind, made from ranks and read back to ranks.

Ranks allow more merges than a list of merges does: any two neighbours whose bytes together are a token may
merge. A vocabulary means the same in both forms if the ranks below each token's own split it into the two
parts that its merge joins.
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from jaxgpt.errors import DataError

END_OF_TEXT = "<|endoftext|>"
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


def parse_json(data: Mapping[str, Any]) -> dict[bytes, int] | None:
    """Return the ranks that encode any text to the same ids as the content of a tokenizer.json.

    There are none, and the result is None, unless it is byte-level BPE without prefix space, normalizer or
    dropout; without an added token but `<|endoftext|>`, which has the last id; and with the merges in the
    order of the ids that they make, each being the one that makes its token.
    """
    try:
        bytes_of = {character: byte for byte, character in byte_characters().items()}
        vocab = {token: rank for token, rank in data["model"]["vocab"].items() if token != END_OF_TEXT}
        if not _is_plain(data) or any(type(rank) is not int for rank in vocab.values()):
            return None
        ranks = {bytes(bytes_of[character] for character in token): rank for token, rank in vocab.items()}
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in data["model"]["merges"]]
        joined = [[bytes(bytes_of[character] for character in part) for part in merge] for merge in merges]
        ordered = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
        return ranks if joined == [split_token(token, ranks) for token in ordered] else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_plain(data: Mapping[str, Any]) -> bool:
    """Return whether all but the vocabulary and the merges is as in GPT-2's own tokenizer.json."""
    model, before = data["model"], data["pre_tokenizer"]
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    count = len(model["vocab"].keys() - added.keys())
    return bool(
        model.get("type", "BPE") == "BPE"
        and all(model.get(key) in (None, False, "", END_OF_TEXT) for key in _UNUSED)
        and before["type"] == "ByteLevel"
        and not before["add_prefix_space"]
        and before.get("use_regex", True)
        and not data.get("normalizer")
        and added == {END_OF_TEXT: count}
        and model["vocab"].get(END_OF_TEXT, count) == count
    )
