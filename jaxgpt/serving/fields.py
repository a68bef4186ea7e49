"""JSON bodies against a closed grammar: every field is asked for by name, and one that nobody asked for is refused.

An error names the field and the rule, never what stood there: bodies hold texts that belong in no log.
"""

import json
import math
import re
from collections.abc import Collection
from typing import Any

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")  # what may be repeated as the name of a field


class ApiError(Exception):
    """An answer other than 200: its status, what the message says, and the field that is wrong."""

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
        """The error in OpenAI's shape."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; ApiError for anything else, NaN, Infinity and repeated keys included."""
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant
        )
    except (
        ValueError,
        RecursionError,
    ) as error:  # also: bytes that are not UTF-8, numbers of thousands of digits
        raise ApiError(400, "the body is not valid JSON, or too deep") from error
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
    """The fields of one object, taken one by one. null is the same as absent."""

    def __init__(self, values: dict[str, Any], within: str = "") -> None:
        self._left = {name: value for name, value in values.items() if value is not None}
        self._within = within

    def wrong(self, name: str, rule: str) -> ApiError:
        """The error of a field that breaks a rule."""
        name = self._within + name
        return ApiError(400, f"{name} must be {rule}", name)

    def take(self, name: str) -> Any:
        """Whatever the field holds; None where it is absent."""
        return self._left.pop(name, None)

    def number(self, name: str, default: float, low: float, high: float, *, or_zero: bool = False) -> float:
        """A finite number from low to high, or 0 where that is said."""
        value = self.take(name)
        if value is None:
            return default
        known = type(value) in (int, float) and (low <= value <= high or (or_zero and value == 0))
        if not known or not math.isfinite(value):
            raise self.wrong(name, f"a number from {low:g} to {high:g}{', or 0' if or_zero else ''}")
        return float(value)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """A whole number from low to high."""
        value = self.take(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high}")
        return value

    def count(self, name: str, default: int, low: int, high: int) -> int:
        """An `integer` that has a default."""
        value = self.integer(name, default, low, high)
        assert value is not None
        return value

    def flag(self, name: str) -> bool:
        """true or false; false where absent."""
        value = self.take(name)
        if value is not None and type(value) is not bool:
            raise self.wrong(name, "true or false")
        return bool(value)

    def strings(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A string or a list of up to `most`, none of them empty or longer than so many characters."""
        value = self.take(name)
        found = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(found, list) or len(found) > most:
            raise self.wrong(name, f"a string or a list of at most {most}")
        if not all(isinstance(text, str) and 0 < len(text) <= longest for text in found):
            raise self.wrong(name, f"strings of 1 to {longest} characters")
        return tuple(found)

    def close(self, ignored: Collection[str] = ()) -> None:
        """ApiError where a field is left that nobody asked for, unless it is among those without effect."""
        for name in self._left:
            if name not in ignored:
                shown = self._within + name if _NAME.fullmatch(name) else None
                raise ApiError(
                    400, f"{shown or 'a field'} is not supported by this server", shown, code="unsupported"
                )
