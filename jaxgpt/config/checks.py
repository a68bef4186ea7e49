"""The checks of every settings dataclass when it is made: each field's type and each number's range."""

import dataclasses
import math
import types
import typing
from typing import Any, Literal

from jaxgpt.errors import ConfigError


def check_types(settings: Any) -> None:
    """Raise ConfigError, which lists every problem, unless each field holds what its annotation says.

    Python itself does not check annotations. Without this, a misspelt `position="Rotary"` would silently
    build a model without positions. A number must be finite as well, and a whole one fit into 64 bits.
    """
    kinds = field_types(type(settings))
    values = {name: getattr(settings, name) for name in kinds}
    wrong = [f"{n} = {v!r} is not {spelled(kinds[n])}" for n, v in values.items() if not fits(v, kinds[n])]
    wrong += [f"{n} is not finite, or too large" for n, v in values.items() if _beyond(v)]
    if wrong:
        kind = type(settings).__name__
        raise ConfigError(
            f"{kind} cannot be made",
            why="; ".join(wrong),
            fix="give values of those types, and finite numbers",
        )


def _beyond(value: object) -> bool:
    """Whether it is infinite, not a number, or a whole number that does not fit into 64 bits."""
    if isinstance(value, int):
        return abs(value) >= 1 << 63
    return isinstance(value, float) and not math.isfinite(value)


def field_types(kind: Any) -> dict[str, Any]:
    """Return the type of each field of a settings dataclass, by its name."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def fits(value: object, kind: Any) -> bool:
    """Return whether a value is of an annotated type.

    A whole number passes for a float. True and False do not pass for numbers.
    """
    if typing.get_origin(kind) is Literal:
        return any(value == option and type(value) is type(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is types.UnionType:
        return any(fits(value, option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:  # of any length, of one type
        return isinstance(value, tuple | list) and all(fits(v, typing.get_args(kind)[0]) for v in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is types.NoneType:
        return value is None
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def spelled(kind: Any) -> str:
    """Return an annotated type in words, for an error."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return getattr(kind, "__name__", str(kind))


def require(holds: bool, name: str, value: object, rule: str, *, fix: str | None = None) -> None:
    """Raise ConfigError unless a setting obeys its rule.

    `fix` is the advice; without it, the advice is to give a number that obeys the rule.
    """
    if not holds:
        advice = fix or f"give a number that is {rule}"
        raise ConfigError(f"{name} = {value!r}", why=f"it must be {rule}", fix=advice)


def require_positive(config: object, *names: str) -> None:
    """Raise ConfigError unless these fields are greater than 0."""
    for name in names:
        require(getattr(config, name) > 0, name, getattr(config, name), "greater than 0")


def require_fraction(config: object, *names: str) -> None:
    """Raise ConfigError unless these fields are at least 0 and less than 1."""
    for name in names:
        require(0 <= getattr(config, name) < 1, name, getattr(config, name), "at least 0 and less than 1")
