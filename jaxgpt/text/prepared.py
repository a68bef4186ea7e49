"""A prepared folder is what its manifest states, to the bit, and is checked before it is used.

To read all tokens takes a second for each gigabyte or so. Therefore the folder keeps a file that says which
shards were found sound; it counts for a shard as long as neither its size nor its time of change differs.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.display import Progress, no_progress
from jaxgpt.errors import DataError, StorageError, unreadable
from jaxgpt.files import file_sha256, write_atomically
from jaxgpt.text.manifest import MANIFEST_FILE, SPLITS, Manifest, Shard
from jaxgpt.text.shards import TokenStream
from jaxgpt.text.tokenizer import Tokenizer

SOUND_FILE = ".sound.json"


def check_prepared(
    folder: Path, tokenizer: Tokenizer, *, splits: Sequence[str] = SPLITS, progress: Progress = no_progress
) -> None:
    """Check the tokens of these splits, and that `tokenizer`, which lies beside them, has made them.

    `progress` hears how many bytes are read. Raises DataError that names every file whose content is not what
    the manifest states, or that holds an id outside the vocabulary; MissingError where all that is wrong is
    missing files; StorageError where a file cannot be read.
    """
    manifest = Manifest.load(folder)
    shards = [shard for split in splits for shard in manifest.splits[split].shards]
    paths = [folder / shard.file for shard in shards]
    TokenStream(paths, expected=shards)  # raises for every missing file and every wrong size
    problems = []
    if (tokenizer.sha256, tokenizer.vocab) != (manifest.tokenizer_sha256, manifest.vocab):
        problems.append(
            f"its tokens are {manifest.tokenizer}'s, of {manifest.vocab} ids, but the tokenizer beside them "
            f"is {tokenizer.name}, of {tokenizer.vocab}"
        )
    try:
        problems += _unsound(folder, shards, manifest.vocab, progress)
    except OSError as error:
        raise unreadable(folder, error, "cannot read the tokens") from error
    if problems:
        raise DataError(
            "the data are damaged",
            path=folder,
            why="; ".join(problems),
            fix="copy them again, or delete the folder and run `jaxgpt prepare`",
        )


def _unsound(folder: Path, shards: Sequence[Shard], vocab: int, progress: Progress) -> list[str]:
    """What is wrong with the contents of shards, of which each has the size that it should have."""
    known = _known(folder)
    stamps = {shard.file: _stamp(folder / shard.file, shard, vocab) for shard in shards}
    unknown = [shard for shard in shards if known.get(shard.file) != stamps[shard.file]]
    total, done, problems = sum((folder / shard.file).stat().st_size for shard in unknown), 0, []
    for shard in unknown:
        progress("checking the tokens", done, total)
        path = folder / shard.file
        if file_sha256(path) != shard.sha256:
            problems.append(f"{shard.file} has changed: its sha256 is not the one in {MANIFEST_FILE}")
        elif problem := _outside(path, vocab):
            problems.append(problem)
        done += path.stat().st_size
    if unknown and not problems:
        progress("checking the tokens", total, total)
        with contextlib.suppress(StorageError):  # a folder that cannot be written is checked at each start
            write_atomically(folder / SOUND_FILE, json.dumps(known | stamps, indent=1).encode())
    return problems


def _outside(path: Path, vocab: int) -> str | None:
    """Which id of a shard is outside the vocabulary, the first one, if any is."""
    stream = TokenStream([path])
    found = stream.first_at_least(vocab)
    if found is None:
        return None
    wrong = stream.read(found, found + 1)[0]
    return f"{path.name}: token {found} is {wrong}, but the vocabulary has {vocab} ids"


def _stamp(path: Path, shard: Shard, vocab: int) -> list[int | str]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, shard.sha256, vocab]


def _known(folder: Path) -> dict[str, list[int | str]]:
    """The stamps of the shards that were found sound. A damaged file knows none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if isinstance(found := json.loads((folder / SOUND_FILE).read_bytes()), dict):
            return found
    return {}
