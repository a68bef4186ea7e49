"""Tables are read as they were written, and every damaged row is named."""

from pathlib import Path

import pytest

from jaxgpt.errors import DataError, MissingError
from jaxgpt.text.tables import MOST_SHOWN, Record, read_records


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_the_delimiter_and_the_headings_are_found(tmp_path: Path, delimiter: str) -> None:
    lines = [["Label", "text"], ["a", "one"], ["b", "two"]]
    path = written(tmp_path, "t.csv", "\n".join(delimiter.join(line) for line in lines) + "\n")
    expected = [Record(2, {"Label": "a", "text": "one"}), Record(3, {"Label": "b", "text": "two"})]
    assert read_records(path, ["label"]) == expected
    unnamed = read_records(path, ["other"])
    assert unnamed[0] == Record(1, {"column 1": "Label", "column 2": "text"}) and len(unnamed) == 3


def test_quoted_values_hold_delimiters_and_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", '\ufefflabel,text\n"x","a, ""b""\nc"\n\ny,d\n')
    assert read_records(path, ["text"]) == [
        Record(2, {"label": "x", "text": 'a, "b"\nc'}),
        Record(5, {"label": "y", "text": "d"}),
    ]


def test_a_delimiter_that_texts_contain_too_is_not_taken_for_another(tmp_path: Path) -> None:
    path = written(tmp_path, "t.tsv", "a\tone, two, three\nb\tfour; five\nc\tsix\n")
    assert [record.values["column 2"] for record in read_records(path, [])] == [
        "one, two, three",
        "four; five",
        "six",
    ]


@pytest.mark.parametrize(
    ("name", "content"), [("t.jsonl", '{"a": 1}\n\n{"a": 2}\n'), ("t.json", '[{"a": 1}, {"a": 2}]')]
)
def test_json_objects_are_rows(tmp_path: Path, name: str, content: str) -> None:
    records = read_records(written(tmp_path, name, content), [])
    assert [record.values for record in records] == [{"a": 1}, {"a": 2}]
    assert [record.line for record in records] == ([1, 3] if name == "t.jsonl" else [1, 2])


def test_every_damaged_row_is_named(tmp_path: Path) -> None:
    lines = ["a,b", *["1,2,3"] * (MOST_SHOWN + 2)]
    with pytest.raises(DataError) as caught:
        read_records(written(tmp_path, "t.csv", "\n".join(lines)), ["a"])
    assert "line 2 has 3 values, not 2" in str(caught.value) and "and 2 more" in str(caught.value)
    with pytest.raises(DataError, match=r"line 1: .*; line 3 is no JSON object"):
        read_records(written(tmp_path, "t.jsonl", '{"a"\n{"a": 1}\n[1]\n'), [])


@pytest.mark.parametrize("content", ["", "\n\n", "[]", b"\xff\xfe\x00a"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(DataError):
        read_records(written(tmp_path, "t.json" if content == "[]" else "t.csv", content), [])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nowhere"):
        read_records(tmp_path / "nowhere.csv", [])
