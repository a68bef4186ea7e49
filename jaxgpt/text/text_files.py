"""What a file of text holds, in blocks: plain text, lines of JSON, or tokens in llm.c's layout.

All but files of tokens may be compressed as `.gz`. Text must be UTF-8, and nothing is repaired. Lines of JSON
that hold no text are passed over and counted.
"""

import codecs
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.errors import DataError
from jaxgpt.text.shards import TokenStream
from jaxgpt.text.tokenizer import gpt2_tokenizer

BLOCK = 1 << 20  # bytes read at a time
HEAD = 8192  # bytes at the beginning of a file that tell whether it is text
# How files that are no text begin. Any other file with a zero byte at its beginning is none either.
SIGNATURES = {
    b"%PDF-": "a PDF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF87a": "a GIF picture",
    b"GIF89a": "a GIF picture",
    b"PK\x03\x04": "a zip archive, as EPUB and Word documents are",
    b"\x1f\x8b": "compressed with gzip, though its name does not end in .gz",
}


class Block(NamedTuple):
    """A piece of a document; `ends` is True for the last piece."""

    text: str
    ends: bool


def file_blocks(path: Path, name: str, passed_over: Counter[str]) -> Iterator[Block]:
    """Yield the documents of a file in pieces.

    `passed_over` counts what was left out, by what it is called. Raises DataError that names the byte or line
    that is wrong, or says what the file is instead of text.
    """
    suffixes = path.suffixes
    if suffixes[-1:] == [".bin"]:
        yield from _token_blocks(path)
        return
    packed = suffixes[-1:] == [".gz"]
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        _refuse_binary(file.peek(HEAD)[:HEAD], name)
        if (suffixes[-2:-1] if packed else suffixes[-1:]) == [".jsonl"]:
            yield from _line_blocks(file, name, passed_over)
        else:
            yield from _text_blocks(file, name)


def _refuse_binary(head: bytes, name: str) -> None:
    kind = next((kind for start, kind in SIGNATURES.items() if head.startswith(start)), None)
    utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # refused as what it is: not UTF-8
    if kind is None and b"\0" in head and not utf16:
        kind = f"a binary file: the byte at offset {head.index(0)} is zero"
    if kind:
        fix = "leave it out, or bring its text as UTF-8"
        raise DataError("not text", path=name, why=f"it is {kind}", fix=fix)


def _text_blocks(file: BufferedReader | gzip.GzipFile, name: str) -> Iterator[Block]:
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


def _line_blocks(
    file: BufferedReader | gzip.GzipFile, name: str, passed_over: Counter[str]
) -> Iterator[Block]:
    offset = 0
    for number, line in enumerate(file, start=1):
        content = line
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            content = line.removeprefix(codecs.BOM_UTF8)
            passed_over["byte order mark"] += 1
        if not content.strip():
            passed_over["blank line"] += 1
        else:
            try:
                text = json.loads(content.decode())["text"]
                text.encode()  # refuses lone surrogates
            except UnicodeDecodeError as error:
                raise _not_utf8(name, offset + len(line) - len(content) + error.start) from error
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                why = f'line {number} is not a JSON object with a "text": {error!r}'
                raise DataError(
                    "not JSON lines of text", path=name, why=why, fix="correct or remove the line"
                ) from error
            if text:
                yield Block(text, True)
            else:
                passed_over["empty text"] += 1
        offset += len(line)


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
