"""manifest.json: what a prepared folder holds and from what it was made."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jaxgpt.errors import DataError, MissingError
from jaxgpt.files import write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "val")
DTYPES = ("uint16", "uint32")
FORMAT = 1
T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One token file of a split: its name in the folder, its number of tokens, the sha256 of the file."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split: its documents, whole or in part, its tokens with `<|endoftext|>`, its shards in order."""

    documents: int
    tokens: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input: its name as given, the sha256 and number of its bytes, and the number of its documents."""

    name: str
    sha256: str
    bytes: int
    documents: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared folder holds and from what it was made."""

    tokenizer: str
    tokenizer_sha256: str
    vocab: int
    end_of_text: int
    dtype: str
    val_fraction: float
    shard_tokens: int
    splits: Mapping[str, Split]
    sources: tuple[Source, ...]
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """The sha256 of all that determines the tokens: tokenizer, dtype, and every shard's hash in order."""
        shards = {name: [shard.sha256 for shard in self.splits[name].shards] for name in SPLITS}
        content = [self.format, self.tokenizer_sha256, self.vocab, self.dtype, shards]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write manifest.json into the folder, whole or not at all.

        Raises StorageError when writing fails.
        """
        content = json.dumps(asdict(self), indent=2) + "\n"  # in ASCII: a file's name need not be UTF-8
        write_atomically(Path(folder) / MANIFEST_FILE, content.encode())

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read manifest.json from the folder.

        Raises MissingError when there is none, DataError that names what is wrong in it.
        """
        path = Path(folder) / MANIFEST_FILE
        try:
            data = json.loads(path.read_bytes())
            if isinstance(data, dict) and data.get("format") != FORMAT:
                raise ValueError(
                    f"its format is {data.get('format')}, and this version of jaxgpt reads {FORMAT}"
                )
            return decode_manifest(data)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingError(
                "no prepared data",
                path=folder,
                why=f"there is no {MANIFEST_FILE}",
                fix="run `jaxgpt prepare` first",
            ) from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                "not a manifest", path=path, why=str(error)[:500], fix="prepare the data again"
            ) from error


def token_dtype(vocab: int) -> str:
    """Return the name of the smallest dtype for tokens that holds ids below `vocab`."""
    return "uint16" if vocab <= 1 << 16 else "uint32"


def decode_manifest(data: Any) -> Manifest:
    """Return the manifest that parsed JSON holds.

    Raises ValueError, TypeError or AttributeError for a missing, unknown or wrongly typed entry.
    """
    values = dict(_entries(Manifest, data))
    values["splits"] = {name: _decode_split(split) for name, split in values["splits"].items()}
    values["sources"] = tuple(_flat(Source, source) for source in values["sources"])
    if set(values["splits"]) != set(SPLITS):
        raise ValueError(f"its splits are {sorted(values['splits'])}, not {sorted(SPLITS)}")
    if values["dtype"] not in DTYPES:
        raise ValueError(f"dtype is {values['dtype']!r}, not one of {sorted(DTYPES)}")
    manifest = _flat(Manifest, values)
    if problems := _problems(manifest):
        raise ValueError("; ".join(problems))
    return manifest


def _problems(manifest: Manifest) -> list[str]:
    """What cannot be so in a manifest whose entries all have the right types."""
    problems = []
    if manifest.dtype != token_dtype(manifest.vocab):
        problems.append(
            f"dtype is {manifest.dtype}, but {manifest.vocab} ids need {token_dtype(manifest.vocab)}"
        )
    if not 0 <= manifest.end_of_text < manifest.vocab:
        problems.append(f"end_of_text is {manifest.end_of_text}, and the vocabulary has {manifest.vocab} ids")
    if not 0 <= manifest.val_fraction < 1:
        problems.append(f"val_fraction is {manifest.val_fraction}, not from 0 to 1")
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    for name, count in Counter(shard.file for shard in shards).items():
        if count > 1:
            problems.append(f"the file {name!r} is there {count} times")
        if name != Path(name).name or name in ("", "..") or "\0" in name:
            problems.append(f"the file {name!r} is not a name in the folder")
    if any(shard.tokens < 0 for shard in shards) or manifest.shard_tokens < 1:
        problems.append("a number of tokens is less than it can be")
    return problems


def _decode_split(data: Any) -> Split:
    shards = tuple(_flat(Shard, shard) for shard in _entries(Split, data)["shards"])
    split = _flat(Split, {**data, "shards": shards})
    if split.tokens != sum(shard.tokens for shard in shards):
        raise ValueError(f"a split has {split.tokens} tokens, but its shards do not add up to that")
    return split


def _entries(kind: type[T], data: Any) -> Mapping[str, Any]:
    names = {field.name for field in fields(kind)}
    if not isinstance(data, Mapping) or set(data) != names:
        found = sorted(data) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"expected the entries {sorted(names)}, found {found}")
    return data


def _flat(kind: type[T], data: Any) -> T:
    entries = _entries(kind, data)
    for field in fields(kind):
        value = entries[field.name]
        if field.type in (int, str, float) and type(value) is not field.type:
            raise ValueError(f"{field.name} is {value!r}, not {getattr(field.type, '__name__', field.type)}")
    return kind(**entries)
