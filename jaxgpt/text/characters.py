"""A vocabulary of characters, each of which is one token: that of nanoGPT's smallest data sets.

It is stored as a tokenizer.json without merges and without a pre-tokenizer, which the `tokenizers` library,
and with it transformers, reads as the same vocabulary.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgpt.errors import DataError
from jaxgpt.files import write_atomically
from jaxgpt.text.tokenizer import Tokenizer, refuse_surrogates
from jaxgpt.text.tokenizer_folder import JSON_FILE, SETTINGS_FILE


class CharacterTokenizer(Tokenizer):
    """Encodes each character to its id. No token begins or ends a text, and none is special."""

    def __init__(self, ids: Mapping[str, int], path: str | Path = "characters") -> None:
        """Take the id of each character; an error names `path` as their file.

        Raises DataError unless the ids are 0 to n - 1, each once, and the tokens single characters.
        """
        if why := character_problem(ids):
            raise DataError(
                "not a vocabulary of characters", path=path, why=why, fix="give each id to one character"
            )
        self._ids = dict(sorted(ids.items(), key=lambda item: item[1]))
        self._characters = list(self._ids)
        self.vocab = len(ids)
        self.sha256 = hashlib.sha256("".join(self._characters).encode()).hexdigest()
        self.name = f"characters-{self.sha256[:12]}"
        self.end_of_text = self.beginning = None
        self.special_tokens, self.special_ids = {}, {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises DataError for a character that has none."""
        refuse_surrogates(text)
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise DataError(
                f"the character {error.args[0]!r}",
                why=f"it is none of the {self.vocab} characters of the model's vocabulary",
                fix="leave it out of the text, or use a model with another tokenizer",
            ) from None

    def _bytes(self, ids: list[int]) -> bytes:
        return "".join(self._characters[id] for id in ids).encode()

    @functools.cached_property
    def longest_token(self) -> int:
        """The most bytes of text that one id can stand for."""
        return max(len(character.encode()) for character in self._characters)

    def save_in(self, folder: Path) -> None:
        """Write tokenizer.json, and for transformers that it is to be taken as it is. Raises StorageError."""
        parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"))
        model = {"type": "BPE", "vocab": self._ids, "merges": []}
        table: dict[str, Any] = {
            "version": "1.0",
            "added_tokens": [],
            **parts,
            "decoder": {"type": "Fuse"},
            "model": model,
        }
        write_atomically(folder / JSON_FILE, json.dumps(table, ensure_ascii=False).encode())
        write_atomically(folder / SETTINGS_FILE, b'{"tokenizer_class": "PreTrainedTokenizerFast"}\n')


def character_problem(ids: Mapping[Any, Any]) -> str | None:
    """Return why a table is no vocabulary of characters, or None if it is one."""
    if odd := [str(token)[:20] for token in ids if not (isinstance(token, str) and len(token) == 1)]:
        return f"{odd[0]!r} is no single character"
    if odd := [token for token in ids if "\ud800" <= token <= "\udfff"]:
        return "a surrogate is no character"
    numbers = [id for id in ids.values() if type(id) is int]
    if not ids or len(numbers) < len(ids) or sorted(numbers) != [*range(len(ids))]:
        return f"its {len(ids)} ids are not 0 to {len(ids) - 1}, each once"
    return None


def parse_characters(data: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the ids of characters in the content of a tokenizer.json, or None if it is of another kind."""
    model, others = data.get("model"), ("normalizer", "pre_tokenizer", "added_tokens")
    if not isinstance(model, dict) or model.get("merges") != [] or any(data.get(part) for part in others):
        return None
    ids = model.get("vocab")
    return ids if isinstance(ids, dict) and character_problem(ids) is None else None
