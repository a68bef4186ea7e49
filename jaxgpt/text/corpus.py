"""Where text comes from: files and folders, standard input, the built-in corpus, named downloads.

A text is read in blocks, which are pieces of its documents in order; a large document is never read whole. A
`.jsonl` file holds one document a line, under the key "text". A `.bin` file holds GPT-2 tokens in llm.c's
layout, which are decoded to documents. Any other file is one document. All but `.bin` files may be compressed
as `.gz`. Text must be UTF-8, and nothing is repaired.
"""

import codecs
import gzip
import hashlib
import json
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.errors import DataError, MissingError, unreadable, unwritable
from jaxgpt.files import file_sha256
from jaxgpt.text.download import DOWNLOADS, Progress, fetch
from jaxgpt.text.shards import TokenStream
from jaxgpt.text.tokenizer import gpt2_tokenizer

BUILTIN = "builtin"
BLOCK = 1 << 20  # bytes read at a time


class Block(NamedTuple):
    """A piece of a document; `ends` is True for the last piece."""

    text: str
    ends: bool


@dataclass(frozen=True)
class Text:
    """One input. `path` is its file, or None for the built-in corpus."""

    name: str
    path: Path | None

    def blocks(self) -> Iterator[Block]:
        """Yield the documents in pieces.

        Raises DataError that names the byte or line that is wrong or says that the text is empty,
        StorageError when reading fails.
        """
        empty = True
        try:
            for block in self._read():
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

    def _read(self) -> Iterator[Block]:
        if self.path is None:
            yield from (Block(text, True) for text in builtin_documents().values())
            return
        suffixes = self.path.suffixes
        if suffixes[-1:] == [".bin"]:
            yield from _token_blocks(self.path)
            return
        packed = suffixes[-1:] == [".gz"]
        with gzip.open(self.path, "rb") if packed else self.path.open("rb") as file:
            lines = (suffixes[-2:-1] if packed else suffixes[-1:]) == [".jsonl"]
            yield from _line_blocks(file, self.name) if lines else _text_blocks(file, self.name)


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

    A name is `builtin`, a named download, which is fetched into the cache, `-` for standard input, which is
    kept in the file `spool`, a file, or a folder. A folder means its files in sorted order, without hidden
    ones. Raises MissingError that lists every other name, DataError for a folder without files, and what
    `fetch` raises.
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
            texts.append(Text("-", _spool_stdin(spool)))
        elif name in DOWNLOADS:
            texts.append(Text(name, fetch(DOWNLOADS[name], progress=progress)))
        elif path.is_dir():
            texts.extend(_folder_texts(path))
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
    return [Text(path.as_posix(), path) for path in files]


def _spool_stdin(spool: Path) -> Path:
    try:
        with spool.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as error:
        raise unwritable(spool, error, "cannot keep standard input") from error
    return spool


def _text_blocks(file: BufferedIOBase, name: str) -> Iterator[Block]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, more = 0, True
    while more:
        raw = file.read(BLOCK)
        more = bool(raw)
        try:
            text = decoder.decode(raw, not more)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, offset + len(raw) - len(error.object) + error.start) from error
        offset += len(raw)
        yield Block(text, not more)


def _line_blocks(file: BufferedIOBase, name: str) -> Iterator[Block]:
    offset = 0
    for number, line in enumerate(file, start=1):
        try:
            text = json.loads(line.decode())["text"]
            text.encode()  # refuses lone surrogates
            if not text:
                raise ValueError('its "text" is empty')
        except UnicodeDecodeError as error:
            raise _not_utf8(name, offset + error.start) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f'line {number} is not a JSON object with a "text": {error!r}'
            raise DataError(
                "not JSON lines of text", path=name, why=why, fix="correct or remove the line"
            ) from error
        offset += len(line)
        yield Block(text, True)


def _token_blocks(path: Path) -> Iterator[Block]:
    """Yield the documents of a file of GPT-2 tokens.

    `<|endoftext|>` stands before each document in llm.c's files and after each in ours. A file may begin or
    end inside a document, even inside a character; what is left of that character becomes U+FFFD.
    """
    tokenizer, stream = gpt2_tokenizer(), TokenStream([path])
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    begun = False
    for start in range(0, len(stream), BLOCK):
        ids = stream.read(start, min(start + BLOCK, len(stream)))
        borders = [-1, *np.flatnonzero(ids == tokenizer.end_of_text).tolist(), len(ids)]
        for before, end in pairwise(borders):
            begun = begun or end > before + 1
            if begun:
                ends = end < len(ids)
                yield Block(decoder.decode(tokenizer.decode_bytes(ids[before + 1 : end]), ends), ends)
                begun = not ends
    if begun:
        yield Block(decoder.decode(b"", True), True)


def _not_utf8(name: str, offset: int) -> DataError:
    return DataError(
        "not UTF-8", path=name, why=f"the byte at offset {offset} is invalid", fix="convert it to UTF-8"
    )
