"""Labelled texts: a table with a text and a label in each row becomes training, validation and test texts."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.text.tables import Record, read_records, refuse

TEXTS = ("text", "message", "sentence", "content", "review", "sms")  # what a column of texts is called
LABELS = ("label", "class", "category", "target", "sentiment")


class Labelled(NamedTuple):
    """A text and its label."""

    text: str
    label: str


class Split(NamedTuple):
    """Labelled texts, divided."""

    train: list[Labelled]
    val: list[Labelled]
    test: list[Labelled]


def read_labelled(
    path: Path, *, text_column: str | None = None, label_column: str | None = None
) -> tuple[list[Labelled], list[str]]:
    """Return the labelled texts of a table, and sentences about what was noticed.

    Columns that are not named are found by their headings. Of two columns without headings, the one with
    fewer different values holds the labels. Rows without a text are left out, and counted. Raises what
    `tables.read_records` raises, ConfigError when the columns cannot be told apart, and DataError that names
    every row without a label.
    """
    named = [name for name in (text_column, label_column) if name]
    records = read_records(path, [*TEXTS, *LABELS, *named])
    text_column, label_column, notes = _columns(records, text_column, label_column, path)
    found, empty, problems = [], 0, []
    for line, values in records:
        text, label = (values.get(column) for column in (text_column, label_column))
        if label is None or not str(label).strip():
            problems.append(f"line {line} has no label")
        elif text is None or not str(text).strip():
            empty += 1
        else:
            found.append(Labelled(str(text), str(label).strip()))
    refuse(problems, path)
    if empty:
        notes.append(f"{path}: {empty:,} rows without a text are left out")
    return found, notes


def _columns(
    records: Sequence[Record], text: str | None, label: str | None, path: Path
) -> tuple[str, str, list[str]]:
    """The names of the two columns, and a sentence about them if they were guessed."""
    names = list(dict.fromkeys(name for record in records for name in record.values))
    lower = {name.lower(): name for name in reversed(names)}
    text = text or next((lower[name] for name in TEXTS if name in lower), None)
    label = label or next((lower[name] for name in LABELS if name in lower), None)
    notes = []
    if text is None and label is None and len(names) == 2:
        kinds = [len({str(record.values.get(name)) for record in records}) for name in names]
        label, text = names if kinds[0] <= kinds[1] else names[::-1]
        notes.append(f"{path}: {label} holds the labels and {text} the texts")
    if text not in names or label not in names or text == label:
        shown = ", ".join(repr(name) for name in names[:20])
        raise ConfigError(
            f"columns text = {text!r}, label = {label!r}",
            why=f"{path} has the columns {shown}",
            fix="name the two with --data.text-column and --data.label-column",
        )
    return text, label, notes


def labels_of(rows: Sequence[Labelled], path: Path) -> tuple[str, ...]:
    """Return the different labels in alphabetical order. Raises DataError when there are fewer than two."""
    labels = tuple(sorted({row.label for row in rows}))
    if len(labels) < 2:
        raise DataError(
            "nothing to tell apart",
            path=path,
            why=f"all {len(rows):,} texts have the label {labels[0]!r}" if labels else "it has no texts",
            fix="give texts of at least two labels",
        )
    return labels


def balanced(rows: Sequence[Labelled], seed: int) -> list[Labelled]:
    """Return as many texts of each label as the rarest label has, drawn at random, in their old order."""
    numbers: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault(row.label, []).append(number)
    least, draw = min(map(len, numbers.values())), np.random.default_rng(seed)
    kept = [draw.choice(numbers[label], least, replace=False) for label in sorted(numbers)]
    return [rows[number] for number in np.sort(np.concatenate(kept))]


def divided(rows: Sequence[Labelled], *, val: float, test: float, seed: int, path: Path) -> Split:
    """Shuffle the rows and divide them. `val` and `test` are shares of all rows.

    Raises DataError when the training part lacks a label, or when a part that was asked for is empty.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    train_end = int(len(rows) * (1 - val - test) + 1e-9)
    val_end = train_end + int(len(rows) * val + 1e-9) if test else len(rows)
    parts = np.split(order, [train_end, val_end])
    split = Split(*([rows[number] for number in part] for part in parts))
    empty = [name for name, share in (("val", val), ("test", test)) if share and not getattr(split, name)]
    lacking = {row.label for row in rows} - {row.label for row in split.train}
    if empty or lacking:
        what = [f"no text is left for {' and '.join(empty)}"] * bool(empty)
        what += [f"no training text has the label {', '.join(sorted(lacking))}"] * bool(lacking)
        raise DataError(
            f"too few labelled texts to divide ({len(rows):,})",
            path=path,
            why="; ".join(what),
            fix="give more texts, or set --data.val-fraction or --data.test-fraction to a larger share",
        )
    return split


def leaks(split: Split) -> list[str]:
    """Sentences about training texts that stand again in a part on which the model is measured."""
    seen = {row.text for row in split.train}
    counts = {name: sum(row.text in seen for row in getattr(split, name)) for name in ("val", "test")}
    return [
        f"leak: {count:,} of the {len(getattr(split, name)):,} {name} texts are training texts too, which "
        "makes the model look better than it is"
        for name, count in counts.items()
        if count
    ]


def counts_of(rows: Sequence[Labelled]) -> str:
    """How many texts each label has, in words: `ham 4,825, spam 747`."""
    counts = Counter(row.label for row in rows)
    return ", ".join(f"{label} {counts[label]:,}" for label in sorted(counts))
