"""Recipes are written as TOML, which `load_recipe` reads back. Imports no JAX."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from jaxgpt.config.checks import field_types
from jaxgpt.config.pretraining import TrainConfig


def recipe_text(recipe: TrainConfig, comment: str) -> str:
    """The recipe as a TOML file, with a comment at the top. Settings at their defaults are left out."""
    head = [f"# {line}".rstrip() for line in comment.splitlines()]
    return "\n".join([*head, *_lines(TrainConfig, dataclasses.asdict(recipe), "")]) + "\n"


def _lines(kind: Any, values: Mapping[str, Any], section: str) -> Iterator[str]:
    """The lines of a table: its own entries, and behind them the tables inside it."""
    inner = {name: each for name, each in field_types(kind).items() if dataclasses.is_dataclass(each)}
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    changed = [n for n, value in values.items() if n not in inner and value != defaults[n]]
    if changed and section:
        yield from ("", f"[{section}]")
    yield from (f"{name} = {_value(values[name])}" for name in changed)
    for name, each in inner.items():
        yield from _lines(each, values[name], f"{section}.{name}".lstrip("."))


def _value(value: Any) -> str:
    """A value as TOML spells it. JSON spells strings, lists, numbers and truth in the same way."""
    return repr(value) if isinstance(value, float) else json.dumps(value).replace("\x7f", r"\u007f")
