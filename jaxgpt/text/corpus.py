"""Where text comes from: files and folders, standard input, the built-in corpus, named downloads.

A text is read in blocks, which are pieces of its documents in order; a large document is never read whole. A
`.jsonl` file holds one document a line, under the key "text". A `.bin` file holds GPT-2 tokens in llm.c's
layout, which are decoded to documents. Any other file is one document. All but `.bin` files may be compressed
as `.gz`. A pipe can be read only once, so it is kept in a file first.
"""

import gzip
import hashlib
import os
import shutil
import stat
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jaxgpt.display import Progress
from jaxgpt.errors import DataError, MissingError, unreadable, unwritable
from jaxgpt.files import file_sha256
from jaxgpt.text.download import DOWNLOADS, fetch
from jaxgpt.text.manifest import MANIFEST_FILE
from jaxgpt.text.text_files import BLOCK, Block, file_blocks
from jaxgpt.text.tokenizer import TOKENIZER_FILE

BUILTIN = "builtin"
WAIT = 10.0  # seconds until it is said that nobody writes to a pipe
POLL = 0.01  # seconds between two looks


@dataclass(frozen=True)
class Text:
    """One input. `path` is its file, or None for the built-in corpus."""

    name: str
    path: Path | None

    def blocks(self, passed_over: Counter[str] | None = None) -> Iterator[Block]:
        """Yield the documents in pieces.

        `passed_over` counts what was left out, by what it is called. Raises DataError that names the byte or
        line that is wrong, or says that the file is empty or no text, StorageError when reading fails.
        """
        empty = True
        try:
            for block in self._read(Counter() if passed_over is None else passed_over):
                empty = empty and not block.text
                yield block
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                "damaged gzip file", path=self.name, why=str(error), fix="copy it again"
            ) from error
        except OSError as error:
            raise unreadable(self.name, error) from error
        if empty:
            raise DataError("empty input", path=self.name, why="it holds no text", fix="leave it out")

    def digest(self) -> tuple[str, int]:
        """Return the sha256 and the number of bytes of the file, or of the built-in topics in order."""
        if self.path is not None:
            return file_sha256(self.path), self.path.stat().st_size
        content = "".join(builtin_documents().values()).encode()
        return hashlib.sha256(content).hexdigest(), len(content)

    def stamp(self) -> tuple[int, int]:
        """Return the file's size in bytes and the time of its last change in nanoseconds, or two zeros."""
        if self.path is None:
            return 0, 0
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def _read(self, passed_over: Counter[str]) -> Iterator[Block]:
        if self.path is None:
            return (Block(text, True) for text in builtin_documents().values())
        return file_blocks(self.path, self.name, passed_over)


def builtin_documents() -> Mapping[str, str]:
    """Return the built-in corpus as a table from topic to text, sorted by topic.

    It is the language reference that comes with every Python for `help()`, in the standard library's
    `pydoc_data.topics`: about half a megabyte of English. It needs no network, and it differs between
    versions of Python. Raises MissingError when this Python was installed without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise MissingError(
            "no built-in corpus", why="this Python has no pydoc_data.topics", fix="name a text file instead"
        ) from error
    return dict(sorted(topics.items()))


def open_texts(names: Sequence[str], *, spool: Path, progress: Progress | None = None) -> list[Text]:
    """Return the texts that the names mean.

    A name is `builtin`, a named download, which is fetched into the cache, `-` for standard input, a pipe, a
    file, or a folder. A folder means its files in sorted order, without hidden ones. Standard input and pipes
    are kept in the folder `spool`. Raises MissingError that lists every other name, DataError for a folder
    without files or with what `jaxgpt prepare` wrote, and what `fetch` raises.
    """
    missing = [name for name in names if not _known(name)]
    if missing:
        raise MissingError(
            f"no text {', '.join(missing)}",
            why=f"it is no file, no folder, and none of {', '.join(['-', BUILTIN, *DOWNLOADS])}",
            fix="name an existing file or folder, or one of these",
        )
    texts: list[Text] = []
    for name in names:
        path = Path(name)
        if name == BUILTIN:
            texts.append(Text(name, None))
        elif name == "-":
            texts.append(Text("-", _kept(sys.stdin.buffer, spool / f"{len(texts)}.txt")))
        elif name in DOWNLOADS:
            texts.append(Text(name, fetch(DOWNLOADS[name], progress=progress)))
        elif path.is_dir():
            texts.extend(_folder_texts(path))
        elif not path.is_file():
            texts.append(Text(name, _kept_pipe(path, spool / f"{len(texts)}{''.join(path.suffixes)}")))
        else:
            texts.append(Text(name, path))
    return texts


def _known(name: str) -> bool:
    return name in (BUILTIN, "-", *DOWNLOADS) or Path(name).exists()


def _folder_texts(folder: Path) -> list[Text]:
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise DataError("empty folder", path=folder, why="it holds no files", fix="leave it out")
    if (folder / TOKENIZER_FILE).exists() and next(folder.glob("train_*.bin*"), None):
        raise DataError(
            "not texts",
            path=folder,
            why="it holds tokens that `jaxgpt prepare` wrote",
            fix=f"give the texts; or run `jaxgpt prepare` again to its end, which writes {MANIFEST_FILE}",
        )
    return [Text(path.as_posix(), path) for path in files]


def _kept_pipe(pipe: Path, spool: Path) -> Path:
    """Keep what is read from a pipe or a terminal.

    Raises DataError for other devices, of which /dev/zero never ends, and MissingError where nobody writes.
    """
    try:
        with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not (stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) or file.isatty()):
                fix = "name a file, a folder or a pipe"
                raise DataError("not text", path=pipe, why="it is a device", fix=fix)
            begun = b"" if file.isatty() else _first_bytes(file.fileno(), pipe)
            os.set_blocking(file.fileno(), True)
            return _kept(file, spool, begun)
    except OSError as error:
        raise unreadable(pipe, error) from error


def _first_bytes(pipe: int, path: Path) -> bytes:
    """Read what is in a pipe, once somebody writes to it. To wait for nobody would never end."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        try:
            if found := os.read(pipe, BLOCK):
                return found
        except BlockingIOError:  # somebody has opened it, and has not written yet
            return b""
        time.sleep(POLL)
    raise MissingError(
        "nobody writes to the pipe",
        path=path,
        why=f"no program has opened it for writing in {WAIT:g} seconds",
        fix="start the program that writes to it first",
    )


def _kept(source: BinaryIO, spool: Path, begun: bytes = b"") -> Path:
    """Copy what can be read only once to the file `spool`, behind what was read already, and return that."""
    try:
        spool.parent.mkdir(parents=True, exist_ok=True)
        with spool.open("wb") as file:
            file.write(begun)
            shutil.copyfileobj(source, file)
    except OSError as error:
        raise unwritable(spool, error, "cannot keep what is read from a pipe") from error
    return spool
