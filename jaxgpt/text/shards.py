"""Token files in the layout of llm.c's data, written one after another and read as one long sequence.

A shard is a header of 256 int32 numbers (magic, version, number of tokens, zeros) and then the tokens,
little-endian. Tokens are uint16, as in llm.c's GPT-2 files, or uint32, as in its Llama 3 files, if the
vocabulary is larger. Source: karpathy/llm.c, dev/data/data_common.py. A prepared folder holds
train_000000.bin, ..., val_000000.bin, ..., the tokenizer, and manifest.json, which is written last.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxgpt.errors import DataError, JaxgptError, MissingError
from jaxgpt.files import file_sha256
from jaxgpt.text.manifest import Manifest, Shard

HEADER_BYTES = 1024
LAYOUTS = {"uint16": (20240520, 1), "uint32": (20240801, 7)}


def shard_header(dtype: str, tokens: int) -> bytes:
    """Return the header, 1024 bytes, of a shard of this dtype with so many tokens."""
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = *LAYOUTS[dtype], tokens
    return header.tobytes()


class ShardWriter:
    """Writes the tokens of one split into shards of `shard_tokens` tokens; the last shard may be shorter.

    A shard is named `NAME.bin.part` until it is full and flushed to the disk. As a context manager, the
    writer closes its file on an error.
    """

    def __init__(self, folder: Path, split: str, dtype: str, *, shard_tokens: int, tokens: int = 0) -> None:
        """Begin, or keep the first `tokens` tokens of an earlier writer and drop what it wrote after them.

        Raises DataError when these tokens are not all there.
        """
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.tokens = tokens
        self._file: BinaryIO | None = None
        self._keep_first(tokens)

    def __enter__(self) -> "ShardWriter":
        """Return the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file of an unfinished shard."""
        if self._file is not None:
            self._file.close()

    def path(self, index: int) -> Path:
        """Return the path of the shard with this index."""
        return self.folder / f"{self.split}_{index:06d}.bin"

    def append(self, ids: np.ndarray) -> None:
        """Add ids [tokens] of any integer type."""
        while len(ids):
            room = self.shard_tokens - self.tokens % self.shard_tokens
            if self._file is None:
                self._file = self._part(self.tokens // self.shard_tokens).open("wb")
                self._file.write(shard_header(self.dtype, 0))
            piece, ids = ids[:room], ids[room:]
            self._file.write(piece.astype(np.dtype(self.dtype).newbyteorder("<")).tobytes())
            self.tokens += len(piece)
            if self.tokens % self.shard_tokens == 0:
                self._close(self._file)

    def flush(self) -> None:
        """Wait until every token so far is on the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> tuple[Shard, ...]:
        """Close the last shard and return all shards that were written."""
        if self._file is not None:
            self._close(self._file)
        count = -(-self.tokens // self.shard_tokens)
        sizes = [min(self.shard_tokens, self.tokens - i * self.shard_tokens) for i in range(count)]
        return tuple(
            Shard(file=self.path(i).name, tokens=size, sha256=file_sha256(self.path(i)))
            for i, size in enumerate(sizes)
        )

    def _part(self, index: int) -> Path:
        return self.path(index).with_suffix(".bin.part")

    def _bytes(self, tokens: int) -> int:
        return HEADER_BYTES + tokens * np.dtype(self.dtype).itemsize

    def _close(self, file: BinaryIO) -> None:
        """Write the header of the open shard, and give the shard its final name."""
        index, extra = divmod(self.tokens - 1, self.shard_tokens)
        file.seek(0)
        file.write(shard_header(self.dtype, extra + 1))
        self.flush()
        file.close()
        self._file = None
        self._part(index).replace(self.path(index))

    def _keep_first(self, tokens: int) -> None:
        full, extra = divmod(tokens, self.shard_tokens)
        for path in sorted(self.folder.glob(f"{self.split}_*.bin*")):
            if path.name > self.path(full).name + ".part" or (
                path.name >= self.path(full).name and not extra
            ):
                path.unlink()
        if extra and self.path(full).exists():
            self.path(full).replace(self._part(full))
        kept = {self.path(i): self._bytes(self.shard_tokens) for i in range(full)}
        lost = [path.name for path, size in kept.items() if not path.is_file() or path.stat().st_size != size]
        if extra:
            part = self._part(full)
            if not part.is_file() or part.stat().st_size < self._bytes(extra):
                lost.append(part.name)
            else:
                self._file = part.open("r+b")
                self._file.truncate(self._bytes(extra))
                self._file.seek(0, os.SEEK_END)
        if lost:
            why = f"{', '.join(lost)} changed since it was written"
            raise DataError(
                "cannot resume", path=self.folder, why=why, fix="delete the folder and start again"
            )


class TokenStream:
    """All tokens of a list of shards as one sequence, memory-mapped."""

    def __init__(self, paths: Sequence[str | Path], *, expected: Sequence[Shard] | None = None) -> None:
        """Open the files at `paths`, which have the layout above, of either dtype, as llm.c's own have.

        `expected` is what a manifest states of each file, if there is one. Raises DataError, or MissingError
        when all that is wrong is missing files, with every problem of every file.
        """
        problems: list[JaxgptError] = []
        self._parts: list[np.ndarray] = []
        self._names = [Path(path).name for path in paths]
        for i, path in enumerate(paths):
            try:
                self._parts.append(_map_shard(Path(path), expected[i].tokens if expected else None))
            except JaxgptError as error:
                problems.append(error)
        if problems:
            kind = (
                MissingError if all(isinstance(problem, MissingError) for problem in problems) else DataError
            )
            raise kind(
                f"cannot use {len(problems)} of {len(paths)} token files",
                why="; ".join(str(problem) for problem in problems),
                fix="prepare or copy the data again",
            )
        self._starts = [0, *accumulate(len(part) for part in self._parts)]

    @classmethod
    def of(cls, ids: np.ndarray) -> "TokenStream":
        """Return a stream of ids [tokens] that are in memory."""
        stream = cls([])
        stream._parts, stream._starts, stream._names = [ids], [0, len(ids)], ["memory"]
        return stream

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens `start` to `stop` - 1 as int32 [stop - start], across shards.

        Raises IndexError outside the stream.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of a stream of {len(self)}")
        tokens = np.empty(stop - start, np.int32)
        at = start
        while at < stop:
            index = bisect_right(self._starts, at) - 1
            end = min(stop, self._starts[index + 1])
            tokens[at - start : end - start] = self._parts[index][
                at - self._starts[index] : end - self._starts[index]
            ]
            at = end
        return tokens

    def first_at_least(self, token: int) -> int | None:
        """Return where the first id stands that is `token` or more; None where all are less."""
        for start, part in zip(self._starts, self._parts, strict=False):
            if part.size and int(part.max()) >= token:
                return start + int(np.argmax(part >= token))
        return None

    def place(self, token: int) -> tuple[str, int]:
        """Return the name of the file that holds a token, and the token's number in it, from 0."""
        index = bisect_right(self._starts, token) - 1
        return self._names[index], token - self._starts[index]


def open_split(folder: str | Path, split: str) -> TokenStream:
    """Return the split `train` or `val` of a prepared folder.

    Raises MissingError when the manifest or only shards are missing, DataError when a header, size or count
    of a shard is not as the manifest states.
    """
    shards = Manifest.load(folder).splits[split].shards
    return TokenStream([Path(folder) / shard.file for shard in shards], expected=shards)


def _map_shard(path: Path, expected: int | None) -> np.ndarray:
    if not path.is_file():
        raise MissingError("no token file", path=path, why="it does not exist", fix="run `jaxgpt prepare`")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = np.frombuffer(file.read(HEADER_BYTES), "<i4").tolist() if size >= HEADER_BYTES else []
    name = next((name for name, start in LAYOUTS.items() if tuple(header[:2]) == start), None)
    if name is None:
        raise DataError(
            "not a token file",
            path=path,
            why=f"it begins with {header[:2]}, not with llm.c's header",
            fix="name a .bin file of tokens, or run `jaxgpt prepare`",
        )
    count, dtype = header[2], np.dtype(name).newbyteorder("<")
    if count < 0 or size != HEADER_BYTES + count * dtype.itemsize:
        why = f"it has {size} bytes, but its header states {count} tokens of {name}"
        raise DataError("wrong size", path=path, why=why, fix="copy it again")
    if expected is not None and count != expected:
        why = f"it has {count} tokens, but the manifest states {expected}"
        raise DataError("wrong number of tokens", path=path, why=why, fix="copy it again")
    return np.memmap(path, dtype, "r", HEADER_BYTES, (count,)) if count else np.empty(0, dtype)
