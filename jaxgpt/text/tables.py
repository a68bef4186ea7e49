"""Tables that people keep their examples in: CSV with any delimiter, TSV, JSON and JSONL. No example is cast.

Each row is a Record: the line where it stands, for errors, and its values by the names of their columns.
"""

import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.errors import DataError, MissingError, unreadable

DELIMITERS = "\t,;|"
MOST_SHOWN = 10  # problems that an error spells out


class Record(NamedTuple):
    """A row of a table."""

    line: int
    """Where it begins, counted from 1. In a file that is one JSON list, it is the number of the item."""
    values: dict[str, Any]


def read_records(path: Path, headings: Collection[str]) -> list[Record]:
    """Return the rows of a file that ends in `.json`, `.jsonl`, or otherwise holds separated values.

    The first line of separated values names the columns if one of its cells is among `headings`, whatever its
    case. Otherwise the columns are called `column 1`, `column 2` and so on. Blank lines are passed over.
    Raises MissingError when there is no such file, StorageError when it cannot be read, and DataError that
    names every damaged row.
    """
    if not path.is_file():
        raise MissingError(
            "no table", path=path, why="there is no such file", fix="name a CSV, TSV, JSON or JSONL file"
        )
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "not a table of texts", path=path, why=f"it is not UTF-8: {error}", fix="save it as UTF-8"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    problems: list[str] = []
    if path.suffix.lower() in (".json", ".jsonl"):
        records = list(_objects(content, path, problems))
    else:
        records = list(_separated(content, headings, problems))
    refuse(problems, path)
    if not records:
        raise DataError("an empty table", path=path, why="it has no rows", fix="name a file with examples")
    return records


def refuse(problems: list[str], path: Path) -> None:
    """Raise DataError that names the problems of a table's rows, if there are any."""
    if problems:
        more = [f"and {len(problems) - MOST_SHOWN:,} more"] * (len(problems) > MOST_SHOWN)
        raise DataError(
            "rows are damaged",
            path=path,
            why="; ".join([*problems[:MOST_SHOWN], *more]),
            fix="correct these rows, or delete them",
        )


def _objects(content: str, path: Path, problems: list[str]) -> Iterator[Record]:
    """The objects of JSONL, or of one JSON list."""
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(
                "not JSON", path=path, why=str(error)[:200], fix="write one list of objects"
            ) from error
        numbered = list(enumerate(found if isinstance(found, list) else [found], start=1))
    else:
        numbered = []
        for line, text in enumerate(content.split("\n"), start=1):
            if text.strip():
                try:
                    numbered.append((line, json.loads(text)))
                except (ValueError, RecursionError) as error:
                    problems.append(f"line {line}: {str(error)[:80]}")
    for line, value in numbered:
        if isinstance(value, dict):
            yield Record(line, value)
        else:
            problems.append(f"line {line} is no JSON object")


def _separated(content: str, headings: Collection[str], problems: list[str]) -> Iterator[Record]:
    """The rows of separated values, quoted as the csv module reads it."""
    rows = _rows(content, _delimiter(content))
    first = next(rows, None)
    if first is None:
        return
    line, cells = first
    if {cell.strip().lower() for cell in cells} & {heading.lower() for heading in headings}:
        names = [cell.strip() for cell in cells]
    else:
        names = [f"column {number}" for number in range(1, len(cells) + 1)]
        yield Record(line, dict(zip(names, cells, strict=True)))
    try:
        for line, cells in rows:
            if len(cells) == len(names):
                yield Record(line, dict(zip(names, cells, strict=True)))
            else:
                problems.append(f"line {line} has {len(cells)} values, not {len(names)}")
    except csv.Error as error:
        problems.append(f"after line {line}: {error}")


def _delimiter(content: str) -> str:
    """The delimiter that gives the most of the first rows as many values as the first, at least two."""

    def fitting(delimiter: str) -> int:
        try:
            counts = [len(cells) for _, (_, cells) in zip(range(50), _rows(content, delimiter), strict=False)]
        except csv.Error:
            return 0
        return counts.count(counts[0]) if counts and counts[0] > 1 else 0

    return max(DELIMITERS, key=fitting)


def _rows(content: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line where it begins."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
    line = 1
    for cells in reader:
        if cells:
            yield line, cells
        line = reader.line_num + 1
