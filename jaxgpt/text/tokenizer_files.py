"""The tokenizer of a name, a file or a folder."""

from pathlib import Path

from jaxgpt.errors import ConfigError, MissingError, unreadable
from jaxgpt.text.characters import CharacterTokenizer, parse_characters
from jaxgpt.text.foreign_tokenizer import ForeignTokenizer
from jaxgpt.text.special_tokens import is_grown
from jaxgpt.text.tokenizer import (
    TOKENIZER_FILE,
    RankTokenizer,
    Tokenizer,
    byte_tokenizer,
    gpt2_tokenizer,
    parse_ranks,
    rank_problems,
)
from jaxgpt.text.tokenizer_folder import (
    ADDED_FILE,
    JSON_FILE,
    MERGES_FILE,
    SPECIAL_FILE,
    VOCAB_FILE,
    read_files,
)
from jaxgpt.text.tokenizer_json import parse_json


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """Return the tokenizer `gpt2`, `bytes`, or that of a file or folder.

    A file holds tiktoken ranks (`.tiktoken`), or it is a Hugging Face `tokenizer.json` with byte-level BPE or
    with single characters. A folder holds `tokenizer.tiktoken`, `tokenizer.json`, or `vocab.json` with
    `merges.txt`. Raises MissingError when there is none, DataError for other content, StorageError when
    reading fails.
    """
    if spec == "gpt2":
        return gpt2_tokenizer()
    if spec == "bytes":
        return byte_tokenizer()
    path = Path(spec)
    if path.is_dir():
        path = tokenizer_in(path) or path
    if not path.is_file():
        raise MissingError(
            "no tokenizer",
            path=spec,
            why=f"it is neither gpt2, bytes, a file, nor a folder with {TOKENIZER_FILE}, {JSON_FILE}, or "
            f"{VOCAB_FILE} with {MERGES_FILE}",
            fix="name an existing tokenizer",
        )
    try:
        if path.suffix != ".json":
            return RankTokenizer(parse_ranks(path.read_bytes(), path), source=path)
        given = read_files(path)
    except OSError as error:
        raise unreadable(path, error, "cannot read the tokenizer") from error
    if characters := parse_characters(given.data):
        return CharacterTokenizer(characters, path)
    ranks = parse_json(given.data)
    if ranks is None or rank_problems(ranks):
        return ForeignTokenizer(given, path)
    return RankTokenizer(ranks, source=path, special=given.special)


def load_preparing(spec: str | Path) -> Tokenizer:
    """Return a tokenizer that text for training can be prepared with.

    Raises what `load_tokenizer` raises, and ConfigError for a tokenizer that is not of GPT-2's kind, apart
    from special tokens.
    """
    tokenizer = load_tokenizer(spec)
    if not (isinstance(tokenizer, RankTokenizer) or is_grown(tokenizer)):
        raise ConfigError(
            f"cannot train with the tokenizer {spec}",
            why="it is unlike GPT-2's: only tiktoken ranks, and a tokenizer.json of GPT-2's kind whose "
            "added tokens are <|endoftext|> and special ones, can prepare text for training",
            fix="use gpt2, bytes, or a vocabulary from `jaxgpt tokenizer`",
        )
    return tokenizer


def tokenizer_in(folder: Path) -> Path | None:
    """Return the file in a folder that holds its tokenizer, or the first of several, or None."""
    names = [TOKENIZER_FILE, JSON_FILE] + [VOCAB_FILE] * (folder / MERGES_FILE).is_file()
    return next((folder / name for name in names if (folder / name).is_file()), None)


def vocabulary_files(folder: Path) -> list[str]:
    """Return the names of the files in a folder that say which text each id stands for."""
    names = (TOKENIZER_FILE, JSON_FILE, VOCAB_FILE, MERGES_FILE, ADDED_FILE, SPECIAL_FILE)
    return [name for name in names if (folder / name).is_file()]
