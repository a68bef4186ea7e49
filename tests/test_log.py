"""The best of what a log holds, and when a run has waited for a better value long enough."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.log import Best

NAN, INF = math.nan, math.inf


def rows_of(name: str, *values: float) -> list[dict[str, float]]:
    """Rows of the steps 0, 1, 2, ..., with rows of something else between them."""
    return [
        row
        for step, value in enumerate(values)
        for row in ({"step": step, "x": 1}, {"step": step, name: value})
    ]


@pytest.mark.parametrize(
    ("name", "values", "step", "since"),
    [
        ("val_loss", [9, 3, 2, 4], 2, 1),
        ("val_loss", [1, 3, 2, 4], 2, 1),  # no checkpoint is kept of what was there before the first step
        ("val_loss", [9, 2, 2, 2], 1, 2),  # of equal values the first
        ("val_loss", [9, NAN, 5, NAN], 2, 1),
        ("val_loss", [9, 5, -INF, NAN], 1, 2),
        ("val_accuracy", [0.9, 0.1, 0.4, 0.3], 2, 1),
        *((f"text:tokens/{name}", [9, 5, 3, 4], 2, 1) for name in ("loss", "perplexity", "bits_per_byte")),
        ("lambada:paper/accuracy", [0, 5, 3, 4], 1, 2),
        ("val_accuracy", [0.9, INF, 0.1, 0.2], 3, 0),
        ("val_loss", [9], None, 0),
        ("val_loss", [9, NAN], None, 1),
    ],
)
def test_the_best_is_the_lowest_loss_or_the_highest_of_anything_else(
    name: str, values: list[float], step: int | None, since: int
) -> None:
    best = Best.of(rows_of(name, *values), name)
    assert (best.step, best.since) == (step, since)
    assert best.step is None or best.value == values[best.step]
    assert Best.of(rows_of("y", *values), name).step is None


@pytest.mark.parametrize(("patience", "ended"), [(0, None), (1, 3), (2, 6), (3, 7), (4, None)])
def test_patience_counts_measurements_in_a_row_that_are_not_better(patience: int, ended: int | None) -> None:
    values = [9, 5, 4, 4.5, 3, 3, 3.5, 8]
    exhausted = [
        n
        for n in range(len(values))
        if Best.of(rows_of("val_loss", *values[: n + 1]), "val_loss", patience).exhausted
    ]
    assert min(exhausted, default=None) == ended


@given(st.lists(st.floats(allow_nan=True), max_size=12), st.integers(0, 12))
def test_a_log_that_is_read_in_two_parts_gives_the_same(values: list[float], cut: int) -> None:
    rows = rows_of("val_loss", *values)
    best = Best.of(rows[:cut], "val_loss", 2)
    for row in rows[cut:]:
        best.see(row["step"], row)  # type: ignore[arg-type]
    whole = Best.of(rows, "val_loss", 2)
    assert (best.step, best.since, best.exhausted) == (whole.step, whole.since, whole.exhausted)
