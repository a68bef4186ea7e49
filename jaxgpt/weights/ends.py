"""Which token ids end a text that a model writes, as the files beside its weights state it.

transformers ends a text at the ids in generation_config.json and, before there was such a file, at those in
config.json. Where neither names any, the tokenizer's own end is the end.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxgpt.config import CONFIG_FILE
from jaxgpt.errors import DataError

GENERATION_FILE = "generation_config.json"
KEYS = ("eos_token_id", "eos_token_ids")  # the second is that of transformers 2


def ends_in(folder: Path, vocab: int) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the ids that end a text, for a model of `vocab` ids, and notes.

    There are none where the files state none. Ids that the model does not have are left out, and a note names
    them. Raises DataError for what are no ids, OSError when a file cannot be read.
    """
    for name in (GENERATION_FILE, CONFIG_FILE):
        if stated := _stated(folder / name):
            odd = sorted(id for id in stated if not 0 <= id < vocab)
            told = f"{name}: no text ends at {', '.join(map(str, odd[:10]))}, as the model has {vocab} ids"
            return frozenset(stated) - set(odd), (told,) if odd else ()
    return frozenset(), ()


def _stated(path: Path) -> set[int]:
    if not path.is_file():
        return set()
    try:
        table = json.loads(path.read_bytes().decode("utf-8"))
        found = [table[key] for key in KEYS if table.get(key) is not None]
        ids = [id for value in found[:1] for id in (value if isinstance(value, list) else [value])]
        if odd := [id for id in ids if type(id) is not int]:
            raise ValueError(f"the end of a text is {str(odd[0])[:80]!r}, which is no token id")
    except (ValueError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        fix = "correct it, or fetch it again"
        raise DataError(f"not a model's {path.name}", path=path, why=why, fix=fix) from error
    return set(ids)


def as_stated(ends: Iterable[int]) -> int | list[int] | None:
    """Return ids as Hugging Face's files state them: one number, or a list of several."""
    found = sorted(ends)
    return found if len(found) > 1 else found[0] if found else None


def generation_file(settings: dict[str, Any]) -> dict[str, bytes]:
    """Return generation_config.json, by its name."""
    return {GENERATION_FILE: (json.dumps(settings, indent=2) + "\n").encode()}
