"""JSON bodies are read field by field, by name; a field that nobody asks for is refused.

An error names the field and the rule, and never repeats the value: bodies hold texts that must not be logged.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

D = TypeVar("D", int, None)
# An error repeats the name of an unknown field only if it looks like this.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_ID = re.compile(r"[0-9]{1,9}")


class ApiError(Exception):
    """An answer other than 200: its status, its message, and the field that is wrong (`param`)."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        *,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> dict[str, Any]:
        """Return the error in the shape of OpenAI's API."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises ApiError for anything else; NaN, Infinity and repeated keys are refused, too.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # also for bytes that are not UTF-8, and endless numbers
        raise ApiError(400, "the body is not valid JSON, or it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is repeated")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


class Fields:
    """The fields of one object, which are taken one by one. A field that is null counts as absent."""

    def __init__(self, values: dict[str, Any], within: str = "") -> None:
        self._left = {name: value for name, value in values.items() if value is not None}
        self._within = within

    def wrong(self, name: str, rule: str) -> ApiError:
        """Return the error for a field that breaks a rule."""
        name = self._within + name
        return ApiError(400, f"{name} must be {rule}", name)

    def has(self, name: str) -> bool:
        """Whether a field is there that nobody has taken."""
        return name in self._left

    def take(self, name: str) -> Any:
        """Return what the field holds, or None if it is absent."""
        return self._left.pop(name, None)

    def number(self, name: str, default: float, low: float, high: float, *, or_zero: bool = False) -> float:
        """Return a finite number from `low` to `high`. 0 is allowed, too, if `or_zero` says so."""
        value = self.take(name)
        if value is None:
            return default
        known = type(value) in (int, float) and (low <= value <= high or (or_zero and value == 0))
        if not known or not math.isfinite(value):
            raise self.wrong(name, f"a number from {low:g} to {high:g}{', or 0' if or_zero else ''}")
        return float(value)

    def integer(self, name: str, default: D, low: int, high: int) -> int | D:
        """Return a whole number from `low` to `high`."""
        value = self.take(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false; a flag that is absent is false."""
        value = self.take(name)
        if value is not None and type(value) is not bool:
            raise self.wrong(name, "true or false")
        return bool(value)

    def strings(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """Return the strings in a field: a string, or a list of at most `most` strings.

        None of them may be empty or longer than `longest` characters.
        """
        value = self.take(name)
        found = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(found, list) or len(found) > most:
            raise self.wrong(name, f"a string or a list of at most {most} strings")
        if not all(isinstance(text, str) and 0 < len(text) <= longest for text in found):
            raise self.wrong(name, f"strings of 1 to {longest} characters")
        return tuple(found)

    def ids(self, name: str, most: int, vocab: int) -> frozenset[int]:
        """Return the token ids in a list of at most `most`."""
        value = self.take(name)
        if value is None:
            return frozenset()
        if not isinstance(value, list) or len(value) > most:
            raise self.wrong(name, f"a list of at most {most} token ids")
        if not all(type(id) is int and 0 <= id < vocab for id in value):
            raise self.wrong(name, f"a list of token ids from 0 to {vocab - 1}")
        return frozenset(value)

    def biases(self, name: str, most: int, vocab: int) -> tuple[tuple[int, float], ...]:
        """Return the pairs of token id and bias in an object, whose keys are the ids."""
        value = self.take(name)
        if value is None:
            return ()
        if not isinstance(value, dict) or len(value) > most:
            raise self.wrong(name, f"an object of at most {most} token ids and numbers")
        if not all(_ID.fullmatch(id) and int(id) < vocab for id in value):
            raise self.wrong(name, f"an object whose keys are token ids from 0 to {vocab - 1}")
        if not all(type(bias) in (int, float) and -100 <= bias <= 100 for bias in value.values()):
            raise self.wrong(name, "an object whose values are numbers from -100 to 100")
        found = {int(id): float(bias) for id, bias in value.items()}
        return tuple(sorted(found.items()))

    def close(self, passed: Callable[[str, Any], bool] = lambda *_: False) -> None:
        """Raise ApiError if a field is left that nobody asked for, unless it may be `passed` over."""
        for name, value in self._left.items():
            if not passed(name, value):
                shown = self._within + name if _NAME.fullmatch(name) else None
                raise ApiError(
                    400, f"{shown or 'a field'} is not supported by this server", shown, code="unsupported"
                )
