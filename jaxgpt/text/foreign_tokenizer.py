"""Tokenizers of other people's folders: byte-level BPE of any kind, used through the `tokenizers` library.

They may have further added tokens, special tokens at the beginning, a normalizer, or a space that is put
before each text. The special tokens are ordinary characters in a text, as everywhere here. Added tokens
that are not special are found in a text, as transformers finds them.
"""

import functools
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library

from jaxgpt.errors import DataError
from jaxgpt.files import write_atomically
from jaxgpt.text.tokenizer import Tokenizer, refuse_surrogates
from jaxgpt.text.tokenizer_folder import LARGEST_ID, TokenizerFiles
from jaxgpt.text.tokenizer_json import END_OF_TEXT, byte_characters

LONGEST_TEXT = 1 << 40  # a normalizer may shorten a text to any length


class ForeignTokenizer(Tokenizer):
    """Encodes with the `tokenizers` library, and decodes with a table of the bytes of each id.

    An id in a gap of the vocabulary stands for no bytes. `added_ids` has the text of each added token with
    its id. `given` is what the folder's files say, and `files` are these files, which are copied as they are
    wherever the tokenizer goes.
    """

    def __init__(self, given: TokenizerFiles, path: Path, *, rows: int | None = None) -> None:
        """Take what the files in `path` say; added tokens whose id is `rows` or more are left out.

        Raises DataError for any other kind of tokenizer, such as sentencepiece or WordPiece.
        """
        self.given, self._path = given, path
        data, self.files = given.data, given.files
        self.special_tokens = given.special
        self.sha256 = hashlib.sha256(json.dumps([data, given.special], sort_keys=True).encode()).hexdigest()
        self.name = f"bpe-{self.sha256[:12]}"
        if why := _unlike_bytes(data):
            raise self._refused(why)
        added = [token for token in data["added_tokens"] if rows is None or token["id"] < rows]
        ids: dict[str, int] = data["model"]["vocab"] | {token["content"]: token["id"] for token in added}
        self._library = self._built(data, added, ids)
        self._normalizes = bool(data.get("normalizer"))
        self._bytes_of = _table(ids, {token["content"] for token in added})
        self.vocab = max(self._bytes_of) + 1
        self.added_ids = {token["content"]: token["id"] for token in added}
        self.special_ids = {token["content"]: token["id"] for token in added if token["special"]}
        self.end_of_text = ids.get(given.special.get("eos_token", END_OF_TEXT))
        self.beginning = ids.get(given.special.get("bos_token", END_OF_TEXT), self.end_of_text)

    def _built(self, data: dict[str, Any], added: list[dict[str, Any]], ids: dict[str, int]) -> Library:
        model = data["model"] | {"vocab": ids, "dropout": None}  # the library numbers added tokens by itself
        parts = {"post_processor": None, "truncation": None, "padding": None, "normalizer": None}
        text = json.dumps(parts | data | {"version": "1.0", "added_tokens": added, "model": model})
        try:
            library = Library.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise self._refused(str(error)[:200]) from error
        if moved := [
            token["content"] for token in added if library.token_to_id(token["content"]) != token["id"]
        ]:
            raise self._refused(f"the library gives {moved[0][:80]!r} another id")
        library.no_truncation()
        library.encode_special_tokens = True
        return library

    def _refused(self, why: str) -> DataError:
        return DataError(
            "not byte-level BPE", path=self._path, why=why, fix="use a model with a tokenizer of that kind"
        )

    def within(self, rows: int) -> "ForeignTokenizer":
        """Return the tokenizer without the added tokens that a model of so many rows has no row for."""
        return ForeignTokenizer(self.given, self._path, rows=rows)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises DataError for a lone surrogate, which is not Unicode text."""
        refuse_surrogates(text)
        return self._library.encode(text, add_special_tokens=False).ids

    def _bytes(self, ids: list[int]) -> bytes:
        return b"".join(self._bytes_of.get(id, b"") for id in ids)

    @property
    def used_ids(self) -> Collection[int]:
        """The ids that stand for a token."""
        return self._bytes_of.keys()

    @functools.cached_property
    def longest_token(self) -> int:
        """The most bytes of text that one id can stand for."""
        return LONGEST_TEXT if self._normalizes else max(map(len, self._bytes_of.values()))

    def save_in(self, folder: Path) -> None:
        """Write the files as they were given. Raises StorageError when writing fails."""
        for name, content in self.files.items():
            write_atomically(folder / name, content)


def _unlike_bytes(data: dict[str, Any]) -> str | None:
    """Return why the content of a tokenizer.json is no byte-level BPE, or None if it is."""
    try:
        model, vocab = data["model"], data["model"]["vocab"]
        kinds = [
            *_kinds(data.get("pre_tokenizer"), "pretokenizers"),
            *_kinds(data.get("normalizer"), "normalizers"),
        ]
        if model.get("type", "BPE") != "BPE" or "merges" not in model:
            return f"its model is {str(model.get('type', 'a table of tokens'))[:80]}"
        if "ByteLevel" not in kinds or model.get("byte_fallback"):
            return "its tokens are characters, not bytes"
        if wrong := [id for id in vocab.values() if type(id) is not int or not 0 <= id < LARGEST_ID]:
            return f"{len(wrong)} ids are no numbers from 0 up, and the first of them is {str(wrong[0])[:80]}"
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None if vocab else "its vocabulary is empty"


def _kinds(step: Any, parts: str) -> Iterator[str]:
    """Yield the types of a step of the tokenizer and of the steps in it."""
    if step:
        yield step["type"]
        for part in step.get(parts, ()):
            yield from _kinds(part, parts)


def _table(ids: dict[str, int], added: set[str]) -> dict[int, bytes]:
    """Return the bytes of each id. A token outside the alphabet of bytes stands for its own characters."""
    byte_of = {character: byte for byte, character in byte_characters().items()}

    def content(token: str) -> bytes:
        if token in added or any(character not in byte_of for character in token):
            return token.encode("utf-8", "replace")
        return bytes(byte_of[character] for character in token)

    return {id: content(token) for token, id in ids.items()}
