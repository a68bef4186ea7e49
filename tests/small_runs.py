"""Small models and texts that several files of tests train on, and how they read the logs of their runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxgpt.config import GPTConfig
from jaxgpt.language_model import LanguageModel
from jaxgpt.log import read_rows, series
from jaxgpt.model.gpt import define
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer

TABLES = "\n".join(f"{a} times {b} is {a * b}." for a in range(20) for b in range(20))
SPEED = {"tokens_per_second", "matmul_flops"}  # what differs from run to run


def saved_model(path: Path, tokenizer: Tokenizer | None = None, *, scale: float = 1, **settings: Any) -> Path:
    """A random model with one layer and 64 tokens of context, in a folder; of bytes unless said otherwise."""
    tokenizer = tokenizer or load_tokenizer("bytes")
    small: dict[str, Any] = {"vocab": tokenizer.vocab, "context": 64, "layers": 1, "heads": 2, "width": 32}
    config = GPTConfig(**small | settings)
    params = jax.jit(define(config).init)(jax.random.key(3))
    LanguageModel(config, jax.tree.map(lambda leaf: leaf * scale, params), tokenizer).save(path)
    return path


def table_of(path: Path, texts: Iterable[tuple[str, str]]) -> Path:
    """A CSV file of texts with their labels."""
    path.write_text("label,text\n" + "".join(f"{label},{text}\n" for text, label in texts))
    return path


def logged(run: Path, name: str = "loss") -> dict[int, Any]:
    """What a run has logged of one measurement, by step."""
    return dict(series(read_rows(run / "metrics.jsonl"), name))


def without_speed(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a log, but for what differs from run to run."""
    return [{name: value for name, value in row.items() if name not in SPEED} for row in rows]
