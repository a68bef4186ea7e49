"""Text becomes token ids, and back: what every tokenizer can do, and the kind that we train with.

GPT-2's byte-pair encoding, bytes, and a vocabulary of one's own are one class over `tiktoken.Encoding`. It
has a table of ranks, from the bytes of a token to its id, in which lower ranks merge first; GPT-2's split
pattern; and one special token, `<|endoftext|>`, whose id follows the ranks. Tokenizers of other people's
folders are in `foreign_tokenizer`. Only code adds special tokens: in a text, the characters `<|endoftext|>`
are ordinary characters. Nothing here uses the network.
"""

import abc
import base64
import functools
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tiktoken

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.files import write_atomically
from jaxgpt.text.tokenizer_json import END_OF_TEXT, format_json

TOKENIZER_FILE = "tokenizer.tiktoken"
BYTES = "bytes"  # the name of the tokenizer whose tokens are the single bytes

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


class Tokenizer(abc.ABC):
    """Encodes and decodes with a table of tokens, the bytes of each id.

    `vocab` is one more than the highest id. `end_of_text` is the id that ends a text, and `beginning` the one
    that begins it; they are None in a vocabulary without them. `special_tokens` has the names that chat
    templates use (bos_token, eos_token, ...) with their texts, and `special_ids` the text of each token that
    only code adds, with its id. `sha256` is the hash of all that decides the ids, and `name` is made from it.
    """

    name: str
    sha256: str
    vocab: int
    end_of_text: int | None
    beginning: int | None
    special_tokens: Mapping[str, str]
    special_ids: Mapping[str, int]

    def __repr__(self) -> str:
        """Return the kind, the name and the size of the vocabulary."""
        return f"{type(self).__name__}({self.name}, vocab={self.vocab})"

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises DataError for a lone surrogate, which is not Unicode text."""

    @abc.abstractmethod
    def save_in(self, folder: Path) -> None:
        """Write the files from which `load_tokenizer(folder)` gives this tokenizer.

        Raises StorageError when writing fails.
        """

    @abc.abstractmethod
    def _bytes(self, ids: list[int]) -> bytes:
        """Return the bytes of ids from 0 to vocab - 1."""

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a text: `end_of_text`, or none."""
        return frozenset(() if self.end_of_text is None else (self.end_of_text,))

    @property
    def used_ids(self) -> Collection[int]:
        """The ids that stand for a token: all from 0 to vocab - 1, unless there are gaps."""
        return range(self.vocab)

    @functools.cached_property
    def longest_token(self) -> int:
        """The most bytes of text that one id can stand for."""
        ordinary = set(range(self.vocab)) - set(self.special_ids.values())
        return max(len(self._bytes([token])) for token in ordinary)

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids from which a model continues a text. Before an empty text, that is the beginning.

        Raises what `encode` raises, and ConfigError for an empty text if the vocabulary has no beginning.
        """
        ids = self.encode(text)
        if not ids and self.beginning is None:
            raise ConfigError(
                "an empty prompt",
                why=f"the vocabulary {self.name} has no token that begins a text",
                fix="give the beginning of a text",
            )
        return ids or [self.beginning]  # type: ignore[list-item]

    def encode_array(self, text: str) -> np.ndarray:
        """Return the ids of a text as a uint32 array [tokens]."""
        return np.array(self.encode(text), np.uint32)

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
        return self._bytes(ids)


class RankTokenizer(Tokenizer):
    """Encodes and decodes with a table of ranks, as GPT-2 does.

    `ranks` maps the bytes of each of n tokens to its id. `end_of_text` is the id n, and `vocab` is n + 1.
    `sha256` is the hash of the file that `save` writes, and `name` is `gpt2`, `bytes`, or made from the hash.
    """

    end_of_text: int

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        *,
        source: str | Path = "ranks",
        special: Mapping[str, str] | None = None,
    ) -> None:
        """Take the ranks; an error names `source` as their file. `special` has further `special_tokens`.

        Raises DataError unless the ids are 0 to n - 1 without gaps and all 256 single bytes are tokens.
        """
        if problems := rank_problems(ranks):
            raise DataError(
                "not a vocabulary", path=source, why="; ".join(problems), fix="use a file of tiktoken ranks"
            )
        self.ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
        self.end_of_text = self.beginning = len(ranks)
        self.vocab = len(ranks) + 1
        self.special_tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT) | dict(
            special or {}
        )
        self.special_ids = {END_OF_TEXT: self.end_of_text}
        self.sha256 = hashlib.sha256(self._rank_lines()).hexdigest()
        self.name = _name(self.ranks, self.sha256)
        self.encoding = tiktoken.Encoding(
            self.name, pat_str=SPLIT_PATTERN, mergeable_ranks=self.ranks, special_tokens=self.special_ids
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises DataError for a lone surrogate, which is not Unicode text."""
        refuse_surrogates(text)
        if self.name == BYTES:  # nothing merges; and a letter repeated without end overflows tiktoken's stack
            return list(text.encode())
        return [token for part in _parts(text) for token in self.encoding.encode_ordinary(part)]

    def encode_array(self, text: str) -> np.ndarray:
        """Return the ids of a text as a uint32 array [tokens], without a Python integer for each."""
        refuse_surrogates(text)
        if self.name == BYTES:
            return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)
        parts = [self.encoding.encode_to_numpy(part, disallowed_special=()) for part in _parts(text)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint32), *parts])

    def _bytes(self, ids: list[int]) -> bytes:
        return self.encoding.decode_bytes(ids)

    def save_in(self, folder: Path) -> None:
        """Write the ranks into the folder. Raises StorageError when writing fails."""
        self.save(folder / TOKENIZER_FILE)

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


def gpt2_tokenizer() -> RankTokenizer:
    """Return GPT-2's tokenizer, from the packaged ranks. Raises DataError when they are damaged."""
    content = _GPT2_FILE.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != GPT2_SHA256:
        raise DataError(
            "the packaged vocabulary is damaged",
            path=_GPT2_FILE,
            why=f"sha256 is {found}, not {GPT2_SHA256}",
            fix="install jaxgpt again",
        )
    return RankTokenizer(parse_ranks(content, _GPT2_FILE), source=_GPT2_FILE)


def byte_tokenizer() -> RankTokenizer:
    """Return the tokenizer whose tokens are the single bytes."""
    return RankTokenizer({bytes([byte]): byte for byte in range(256)})


def _name(ranks: Mapping[bytes, int], sha256: str) -> str:
    if sha256 == GPT2_SHA256:
        return "gpt2"
    if len(ranks) == 256 and all(token[0] == rank for token, rank in ranks.items()):
        return BYTES
    return f"bpe-{sha256[:12]}"


def rank_problems(ranks: Mapping[bytes, int]) -> list[str]:
    """Return why these are no ranks of a RankTokenizer; the list is empty if they are."""
    problems = []
    if sorted(ranks.values()) != list(range(len(ranks))):
        problems.append(f"its {len(ranks)} ids are not 0 to {len(ranks) - 1}, each once")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        problems.append(f"{len(missing)} single bytes have no token, the first is 0x{missing[0]:02x}")
    if b"" in ranks:
        problems.append("a token is empty")
    return problems


def refuse_surrogates(text: str) -> None:
    """Raise DataError for a text with a lone surrogate, which is not Unicode text."""
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
