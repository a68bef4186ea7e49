"""The log of a run, metrics.jsonl, as it is read: its rows, its series, and the best of what was measured.

A row is one JSON object on one line. It holds `step`, and whatever was measured at that step. Imports no JAX.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.errors import DataError

METRICS_FILE = "metrics.jsonl"
TRAINED = "trained_parameters"  # of a run that trains a part of its model
DIVERGED = "diverged"  # why a step made no update, as a text
LOWER = ("loss", "perplexity", "bits_per_byte", "bits_per_word")  # how the names end of what should be low


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, in order; none when there is no file.

    What follows the last newline is left out, because it is a write that was interrupted. Raises DataError
    when any other line is not a row.
    """
    rows = []
    complete = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(complete, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            why = f"line {number} is not a JSON object with a whole number `step`"
            raise DataError("metrics are damaged", path=path, why=why, fix=f"remove line {number}") from None
        rows.append(row)
    return rows


def series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, Any]]:
    """The values of one measurement, each with its step."""
    return [(row["step"], row[key]) for row in rows if key in row]


def latest(rows: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The last value of a measurement, or None."""
    return next((row[key] for row in reversed(rows) if key in row), None)


@dataclass
class Best:
    """The best value of a measurement so far, and whether it is time to wait no longer for a better one.

    A loss, a perplexity or a number of bits is best where it is lowest, and anything else where it is
    highest. Of equal values the first is the best. What was measured before the first step does not count,
    because no checkpoint is kept of it.
    """

    name: str
    """The measurement, such as `val_loss`."""
    patience: int = 0
    """After how many measurements in a row that are not better `exhausted` holds. 0 means never."""
    step: int | None = None
    """The step at which the best value was measured; None where there is none yet."""
    value: float = math.nan
    since: int = 0
    """How many measurements have not been better since then."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], name: str, patience: int = 0) -> "Best":
        """The best value in a log."""
        best = cls(name, patience)
        for row in rows:
            best.see(row["step"], row)
        return best

    def see(self, step: int, row: Mapping[str, Any]) -> None:
        """Take note of what was measured at a step. A value that is not finite is never the best."""
        if step == 0 or self.name not in row:
            return
        value, sign = float(row[self.name]), 1 if self.name.endswith(LOWER) else -1
        better = self.step is None or sign * value < sign * self.value
        if better and math.isfinite(value):
            self.step, self.value, self.since = step, value, 0
        else:
            self.since += 1

    @property
    def exhausted(self) -> bool:
        """Whether the run has waited for a better value as long as it may."""
        return 0 < self.patience <= self.since

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4f} at step {self.step:,}" if self.step else f"no {self.name} yet"
