"""Texts become a folder of token files. The work is streamed, runs in parallel, and can be resumed.

The bytes of the files do not depend on the number of workers.

`<|endoftext|>` follows every document. So the model learns to end a text, generation stops there, and every
document but the first of a split begins after one. (llm.c puts it before each document. As one sequence, the
two differ only at the ends.) Several documents are divided whole between training and validation. A single
document is cut, and its last part is for validation; its training part has no `<|endoftext|>` at the end,
because the document goes on.
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from jaxgpt.config.checks import require
from jaxgpt.display import Progress
from jaxgpt.errors import BusyError, ConfigError, DataError, unwritable
from jaxgpt.files import write_atomically
from jaxgpt.text.corpus import open_texts
from jaxgpt.text.documents import Meter, Plan, cut_blocks, group_blocks, scan
from jaxgpt.text.manifest import MANIFEST_FILE, Manifest, Split, token_dtype
from jaxgpt.text.shards import ShardWriter
from jaxgpt.text.text_files import Block
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_files import load_preparing

JOURNAL_FILE = "progress.jsonl"
LOCK_FILE = ".lock"
SPOOL = ".spool"  # the folder in which standard input and pipes are kept while they are needed
FEW = 1000  # tokens of a split with which its loss says little
BATCH = 1 << 18  # characters tokenized at a time by one worker
JOURNAL_EVERY = 64  # batches between two points from which an interrupted run can go on


def prepare(
    texts: Sequence[str],
    out: str | Path,
    *,
    tokenizer: str = "gpt2",
    val_fraction: float = 0.1,
    shard_tokens: int = 100_000_000,
    workers: int | None = None,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Tokenize the texts (see `open_texts`) into the folder `out` and return its manifest.

    `val_fraction` of the text, at least 0 and less than 1, is for validation. Every shard but the last of a
    split has `shard_tokens` tokens. `workers` threads tokenize; None means one for each core. Memory does not
    grow with the texts, only with the longest line of JSON and the longest run of text without whitespace.

    `skip_unreadable` passes over texts that are damaged, empty or no text. `tell` hears what was passed over,
    and what a person should know of the splits.

    An interrupted run goes on where it stopped. A finished folder of the same texts and settings is kept.

    Raises ConfigError for impossible settings and for a folder that holds anything else, BusyError while
    another process writes there, DataError for texts that are empty or not UTF-8, MissingError for texts that
    are not there, StorageError when reading or writing fails.
    """
    folder, workers = Path(out), (os.cpu_count() or 1) if workers is None else workers
    _check_settings(texts, folder, val_fraction, shard_tokens, workers)
    coder = load_preparing(tokenizer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / LOCK_FILE, timeout=0):
            _refuse_foreign(folder)
            try:
                opened = open_texts(texts, spool=folder / SPOOL, progress=progress)
                plan = scan(opened, val_fraction, progress, tell=tell, skip_unreadable=skip_unreadable)
                goal = _goal(plan, coder, val_fraction, shard_tokens)
                made = _Work(plan, folder, coder, goal, workers, progress).manifest()
            finally:
                shutil.rmtree(folder / SPOOL, ignore_errors=True)
    except filelock.Timeout as error:
        raise BusyError(
            "folder in use",
            path=folder,
            why="another process is preparing it",
            fix="wait for that process, or choose another folder",
        ) from error
    except OSError as error:
        raise unwritable(folder, error, "cannot prepare the folder") from error
    for split in made.splits:
        if 0 < (count := made.splits[split].tokens) < FEW:
            tell(f"the split {split} has only {count:,} tokens, so that its loss says little; give more text")
    return made


def encode_blocks(blocks: Iterable[Block], tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids of the blocks as uint32 [tokens], with `<|endoftext|>` after each document."""
    parts = []
    for text, ends in blocks:
        parts.append(tokenizer.encode_array(text))
        if ends:
            parts.append(np.array([tokenizer.end_of_text], np.uint32))
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Work:
    """All that writing a folder needs; `goal` is the manifest that it will have, with empty splits."""

    plan: Plan
    folder: Path
    tokenizer: Tokenizer
    goal: Manifest
    workers: int
    progress: Progress | None

    def manifest(self) -> Manifest:
        """Return the manifest that is there, or write the splits, the tokenizer, and last a new manifest."""
        if (self.folder / MANIFEST_FILE).exists():
            made = Manifest.load(self.folder)
            _refuse_other(self.folder, _inputs(made), _inputs(self.goal))
        else:
            journal = Journal(self.folder, _inputs(self.goal))
            meter = Meter("tokenizing", self.plan.characters, self.progress)
            val, train = (self.write(split, journal, meter) for split in ("val", "train"))
            self.plan.check_unchanged()
            self.tokenizer.save_in(self.folder)
            made = replace(self.goal, splits={"train": train, "val": val})
            made.save(self.folder)
        (self.folder / JOURNAL_FILE).unlink(missing_ok=True)
        return made

    def write(self, split: str, journal: "Journal", meter: Meter) -> Split:
        """Write the shards of a split, from the point that the journal states."""
        count, tokens = journal.position(split)
        batches = group_blocks(cut_blocks(self.plan.split_blocks(split), BATCH), BATCH)
        for batch in islice(batches, count):
            meter.add(batch)
        size = self.goal.shard_tokens
        with ShardWriter(self.folder, split, self.goal.dtype, shard_tokens=size, tokens=tokens) as writer:
            for batch, ids in self.encode(batches):
                writer.append(ids)
                meter.add(batch)
                count += 1
                if count % JOURNAL_EVERY == 0:
                    writer.flush()
                    journal.write(split, count, writer.tokens)
            writer.flush()
            journal.write(split, count, writer.tokens)
            shards = writer.finish()
        return Split(documents=self.plan.split_documents(split), tokens=writer.tokens, shards=shards)

    def encode(self, batches: Iterable[list[Block]]) -> Iterator[tuple[list[Block], np.ndarray]]:
        """Yield each batch and its ids in order, encoded on threads: tiktoken releases Python's lock."""
        pending: deque[tuple[list[Block], Future[np.ndarray]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            for batch in batches:
                pending.append((batch, pool.submit(encode_blocks, batch, self.tokenizer)))
                if len(pending) > 2 * self.workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            for first, future in pending:
                yield first, future.result()


class Journal:
    """The file that says how far an unfinished folder is.

    Its first line holds the inputs, and each other line [split, batches done, tokens written].
    """

    def __init__(self, folder: Path, inputs: dict[str, Any]) -> None:
        """Open the journal of a folder, or begin one.

        Raises ConfigError when it is one of other inputs, DataError when it is damaged.
        """
        self.path = folder / JOURNAL_FILE
        self._positions: dict[str, tuple[int, int]] = {}
        if not self.path.exists():
            write_atomically(self.path, json.dumps(inputs).encode() + b"\n")
            return
        try:
            first, *lines = self.path.read_bytes().splitlines(keepends=True)
            _refuse_other(folder, dict(json.loads(first)), inputs)
            for line in lines:
                if line.endswith(b"\n"):  # the last line may be cut off
                    split, batches, tokens = json.loads(line)
                    self._positions[split] = batches, tokens
        except (ValueError, TypeError, RecursionError) as error:
            why = f"the record of what is done is damaged: {error}"
            raise DataError(
                "cannot resume", path=self.path, why=why, fix="delete the folder and start again"
            ) from error
        write_atomically(
            self.path, first + b"".join(_line(split, *at) for split, at in self._positions.items())
        )

    def position(self, split: str) -> tuple[int, int]:
        """Return how many batches of the split are done and how many tokens they made."""
        return self._positions.get(split, (0, 0))

    def write(self, split: str, batches: int, tokens: int) -> None:
        """Record that the tokens of so many batches are on the disk."""
        with self.path.open("ab") as file:
            file.write(_line(split, batches, tokens))
            file.flush()
            os.fsync(file.fileno())


def _line(split: str, batches: int, tokens: int) -> bytes:
    return json.dumps([split, batches, tokens]).encode() + b"\n"


def _goal(plan: Plan, tokenizer: Tokenizer, val_fraction: float, shard_tokens: int) -> Manifest:
    empty = Split(documents=0, tokens=0, shards=())
    end: Any = tokenizer.end_of_text  # tokenizers of GPT-2's kind have one
    return Manifest(
        tokenizer=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        vocab=tokenizer.vocab,
        end_of_text=end,
        dtype=token_dtype(tokenizer.vocab),
        val_fraction=float(val_fraction),
        shard_tokens=shard_tokens,
        splits={"train": empty, "val": empty},
        sources=plan.sources,
    )


def _inputs(manifest: Manifest) -> dict[str, Any]:
    """Return what must be the same to go on with a folder: the texts, under any names, and the settings."""
    sources = [{**asdict(source), "name": None} for source in manifest.sources]
    names = ("tokenizer", "tokenizer_sha256", "val_fraction", "shard_tokens")
    return {"texts": sources, "batch size": BATCH} | {name: getattr(manifest, name) for name in names}


def _check_settings(
    texts: Sequence[str], folder: Path, val_fraction: float, shard_tokens: int, workers: int
) -> None:
    if not texts:
        fix = "name a file, a folder, a corpus such as builtin, or - for standard input"
        raise ConfigError("no TEXT", why="nothing was named that could be prepared", fix=fix)
    require(0 <= val_fraction < 1, "--val-fraction", val_fraction, "at least 0 and less than 1")
    require(0 < shard_tokens < 1 << 31, "--shard-tokens", shard_tokens, f"from 1 to {(1 << 31) - 1}")
    require(workers > 0, "--workers", workers, "greater than 0")
    folders = [text for text in texts if Path(text).is_dir()]
    if inside := [text for text in folders if folder.resolve().is_relative_to(Path(text).resolve())]:
        raise ConfigError(
            "cannot prepare into this folder",
            path=folder,
            why=f"it is inside the input {inside[0]}",
            fix="choose a folder outside it",
        )


class OtherDataError(ConfigError):
    """The folder was prepared from other texts, or in another way (exit code 2)."""


def _refuse_other(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if differing := [name for name in wanted if found.get(name) != wanted[name]]:
        raise OtherDataError(
            "the folder holds other data",
            path=folder,
            why=f"it was made with other {', '.join(differing)}",
            fix="choose another folder, or delete this one",
        )


def _refuse_foreign(folder: Path) -> None:
    if (folder / MANIFEST_FILE).exists() or (folder / JOURNAL_FILE).exists():
        return
    ours = {LOCK_FILE, SPOOL, JOURNAL_FILE + ".part"}
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in ours):
        why = f"it holds {', '.join(foreign[:5])} and is no prepared folder"
        raise ConfigError("the folder is not empty", path=folder, why=why, fix="choose another folder")
