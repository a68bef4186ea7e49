"""Text becomes token ids, and back: GPT-2's byte-pair encoding, bytes, or a vocabulary of one's own.

All three are one class over `tiktoken.Encoding`. It has a table of ranks, from the bytes of a token to its
id, in which lower ranks merge first; GPT-2's split pattern; and one special token, `<|endoftext|>`, whose id
follows the ranks. Only code adds the special token: in a text, the characters `<|endoftext|>` are ordinary
characters. Nothing here uses the network.
"""

import base64
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tiktoken

from jaxgpt.errors import DataError, MissingError, unreadable
from jaxgpt.files import write_atomically
from jaxgpt.text.tokenizer_json import (
    END_OF_TEXT,
    MERGES_FILE,
    VOCAB_FILE,
    format_json,
    parse_json,
    read_older_files,
)

TOKENIZER_FILE = "tokenizer.tiktoken"
JSON_FILE = "tokenizer.json"

# GPT-2's split pattern, in the equivalent and faster form of tiktoken (tiktoken_ext/openai_public.py,
# r50k_pat_str). A piece is either only whitespace, or at most one space followed by no whitespace.
SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

# The hash of the packaged ranks, which tiktoken_ext/openai_public.py states for r50k_base.tiktoken.
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
_GPT2_FILE = Path(__file__).with_name("gpt2.tiktoken")

# The characters that `\s` matches in tiktoken: Unicode's White_Space. Python's own `\s` matches four more.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# tiktoken's pattern overflows its stack on a long run of whitespace with text after it.
_LONG_SPACE = re.compile(f"[{WHITESPACE}]{{1000,}}")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Encodes and decodes with a table of ranks.

    `ranks` maps the bytes of each of n tokens to its id. `end_of_text` is the id n, and `vocab` is n + 1.
    `sha256` is the hash of the file that `save` writes, and `name` is `gpt2`, `bytes`, or made from the hash.
    """

    def __init__(self, ranks: Mapping[bytes, int], *, source: str | Path = "ranks") -> None:
        """Take the ranks; an error names `source` as their file.

        Raises DataError unless the ids are 0 to n - 1 without gaps and all 256 single bytes are tokens.
        """
        if problems := _rank_problems(ranks):
            raise DataError(
                "not a vocabulary", path=source, why="; ".join(problems), fix="use a file of tiktoken ranks"
            )
        self.ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
        self.end_of_text = len(ranks)
        self.vocab = len(ranks) + 1
        self.sha256 = hashlib.sha256(self._rank_lines()).hexdigest()
        self.name = _name(self.ranks, self.sha256)
        self.encoding = tiktoken.Encoding(
            self.name,
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=self.ranks,
            special_tokens={END_OF_TEXT: self.end_of_text},
        )

    def __repr__(self) -> str:
        """Return the name and the size of the vocabulary."""
        return f"Tokenizer({self.name}, vocab={self.vocab})"

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises DataError for a lone surrogate, which is not Unicode text."""
        _refuse_surrogates(text)
        return [token for part in _parts(text) for token in self.encoding.encode_ordinary(part)]

    def encode_array(self, text: str) -> np.ndarray:
        """Return the ids of a text as a uint32 array [tokens], without a Python integer for each."""
        _refuse_surrogates(text)
        parts = [self.encoding.encode_to_numpy(part, disallowed_special=()) for part in _parts(text)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint32), *parts])

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """Return the ids of each text, encoded on this many threads; None means one for each core."""
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of the ids; bytes that are not UTF-8 become U+FFFD.

        Raises what `decode_bytes` raises.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Return the bytes of the ids. Raises DataError that names the first id outside 0 to vocab - 1."""
        ids = [int(token) for token in ids]
        wrong = next((token for token in ids if not 0 <= token < self.vocab), None)
        if wrong is not None:
            raise DataError(
                f"token id {wrong}",
                why=f"the vocabulary {self.name} has ids 0 to {self.vocab - 1}",
                fix="decode with the tokenizer that made the ids",
            )
        return self.encoding.decode_bytes(ids)

    def save(self, path: str | Path) -> None:
        """Write the ranks in tiktoken's format, a line `base64(token) rank` for each, whole or not at all.

        Raises StorageError when writing fails.
        """
        write_atomically(Path(path), self._rank_lines())

    def save_json(self, path: str | Path) -> None:
        """Write Hugging Face's tokenizer.json, which encodes any text to the same ids.

        Raises DataError when the ranks are no byte-pair encoding, StorageError when writing fails.
        """
        write_atomically(Path(path), format_json(self.ranks))

    def _rank_lines(self) -> bytes:
        return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in self.ranks.items())


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """Return the tokenizer `gpt2`, `bytes`, or that of a file or folder.

    A file holds tiktoken ranks (`.tiktoken`), or it is a Hugging Face `tokenizer.json` with byte-level BPE of
    GPT-2's kind. A folder holds `tokenizer.tiktoken`, `tokenizer.json`, or `vocab.json` with `merges.txt`.
    Raises MissingError when there is none, DataError for other content, StorageError when reading fails.
    """
    if spec == "gpt2":
        return _load_gpt2()
    if spec == "bytes":
        return Tokenizer({bytes([byte]): byte for byte in range(256)})
    path = Path(spec)
    if path.is_dir():
        path = tokenizer_in(path) or path
    if path.is_dir() or not path.exists():
        raise MissingError(
            "no tokenizer",
            path=spec,
            why=f"it is neither gpt2, bytes, a file, nor a folder with {TOKENIZER_FILE}, {JSON_FILE}, or "
            f"{VOCAB_FILE} with {MERGES_FILE}",
            fix="name an existing tokenizer",
        )
    try:
        content = read_older_files(path.parent) if path.name == VOCAB_FILE else path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, "cannot read the tokenizer") from error
    parse = parse_json if path.suffix == ".json" else parse_ranks
    return Tokenizer(parse(content, path), source=path)


def tokenizer_in(folder: Path) -> Path | None:
    """Return the file in a folder that holds its tokenizer, or the first of several, or None."""
    names = [TOKENIZER_FILE, JSON_FILE] + [VOCAB_FILE] * (folder / MERGES_FILE).is_file()
    return next((folder / name for name in names if (folder / name).is_file()), None)


def parse_ranks(content: bytes, path: Path) -> dict[bytes, int]:
    """Return the ranks in a file of tiktoken's format. Raises DataError that names the first bad line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split(b" ")
            key, value = base64.b64decode(token, validate=True), int(rank)
        except ValueError as error:
            raise DataError(
                "not tiktoken ranks",
                path=path,
                why=f"line {number}: {error}",
                fix="use a file in which every line holds a token in base64 and its rank",
            ) from error
        if key in ranks:
            raise DataError(
                "not tiktoken ranks", path=path, why=f"line {number} repeats a token", fix="remove that line"
            )
        ranks[key] = value
    return ranks


def _load_gpt2() -> Tokenizer:
    content = _GPT2_FILE.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != GPT2_SHA256:
        raise DataError(
            "the packaged vocabulary is damaged",
            path=_GPT2_FILE,
            why=f"sha256 is {found}, not {GPT2_SHA256}",
            fix="install jaxgpt again",
        )
    return Tokenizer(parse_ranks(content, _GPT2_FILE), source=_GPT2_FILE)


def _name(ranks: Mapping[bytes, int], sha256: str) -> str:
    if sha256 == GPT2_SHA256:
        return "gpt2"
    if len(ranks) == 256 and all(token[0] == rank for token, rank in ranks.items()):
        return "bytes"
    return f"bpe-{sha256[:12]}"


def _rank_problems(ranks: Mapping[bytes, int]) -> list[str]:
    problems = []
    if sorted(ranks.values()) != list(range(len(ranks))):
        problems.append(f"its {len(ranks)} ids are not 0 to {len(ranks) - 1}, each once")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        problems.append(f"{len(missing)} single bytes have no token, the first is 0x{missing[0]:02x}")
    if b"" in ranks:
        problems.append("a token is empty")
    return problems


def _refuse_surrogates(text: str) -> None:
    if not text.isascii() and (found := _SURROGATE.search(text)):
        raise DataError(
            "not Unicode text",
            why=f"character {found.start()} is the lone surrogate U+{ord(found.group()):04X}",
            fix="decode the text with the encoding it was written in",
        )


def _parts(text: str) -> Iterator[str]:
    """Yield the text in parts that encode to the same ids; a long run of whitespace is a part by itself.

    In GPT-2's pattern, a run of whitespace with text after it is one piece without its last character, which
    belongs to the piece that follows.
    """
    start = 0
    for run in _LONG_SPACE.finditer(text):
        border = run.end() if run.end() == len(text) else run.end() - 1
        yield text[start : run.start()]
        yield text[run.start() : border]
        start = border
    yield text[start:]
