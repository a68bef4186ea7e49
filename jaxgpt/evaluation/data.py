"""What a model is scored on: the validation split of a prepared folder, or any text as it is."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, MissingError
from jaxgpt.text.corpus import Text, open_texts
from jaxgpt.text.manifest import MANIFEST_FILE
from jaxgpt.text.prepared import check_prepared
from jaxgpt.text.shards import TokenStream, open_split
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer

RUN_DATA = "data"  # where a run directory keeps the tokens it prepared itself


class ScoredText(NamedTuple):
    """Tokens to score a model on, the tokenizer that made them, and what they are of in words."""

    tokens: TokenStream
    tokenizer: Tokenizer
    name: str


def is_text(given: Path) -> bool:
    """Whether `--data` names a text, and not a folder; `-` is standard input.

    Raises MissingError where there is neither.
    """
    if not (given.exists() or str(given) == "-"):
        raise MissingError(
            "--data",
            path=given,
            why="there is no such file or folder",
            fix="name a text, a folder that `jaxgpt prepare` made, or a run directory that has one",
        )
    return not given.is_dir()


def open_text(given: Path, tokenizer: Tokenizer) -> ScoredText:
    """A text, tokenized by the model's own tokenizer. Nothing is put before it or after it.

    Between the documents of a file of several stands the end of a text, where the vocabulary has one. Raises
    what reading a text raises (`Text.blocks`).
    """
    with tempfile.TemporaryDirectory() as spool:  # keeps a pipe, which can be read only once
        [text] = open_texts([str(given)], spool=Path(spool))
        parts = [tokenizer.encode_array(document) for document in _documents(text)]
    between = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    joined = [part for ids in parts for part in (np.array(between, np.uint32), ids)][1:]
    return ScoredText(TokenStream.of(np.concatenate(joined)), tokenizer, f"all of {given}")


def open_validation(given: Path, own: Tokenizer | None, config: GPTConfig) -> ScoredText:
    """The validation split of a prepared folder, or of the one inside a run directory.

    `own` is the model's tokenizer. Raises ConfigError where the tokens are another tokenizer's, and what
    `open_split` raises.
    """
    inside = given / RUN_DATA
    folder = inside if not (given / MANIFEST_FILE).is_file() and (inside / MANIFEST_FILE).is_file() else given
    of_data = load_tokenizer(folder)
    check_prepared(folder, of_data, splits=["val"])
    tokens = open_split(folder, "val")
    # Without a tokenizer of the model, the numbers of ids must agree.
    same = of_data.vocab == config.vocab if own is None else of_data.sha256 == own.sha256
    if not same:
        has = f"{own.name} of {own.vocab}" if own else f"one of {config.vocab}"
        raise ConfigError(
            f"--data {folder}",
            why=f"its tokens are {of_data.name}'s, of {of_data.vocab} ids; the model's tokenizer is {has}",
            fix="prepare the text with the model's tokenizer (jaxgpt prepare --tokenizer), or give --data "
            "the text itself",
        )
    return ScoredText(tokens, of_data, "validation split")


def _documents(text: Text) -> Iterator[str]:
    document = ""
    for block in text.blocks():
        document += block.text
        if block.ends:
            yield document
            document = ""
    if document:
        yield document
