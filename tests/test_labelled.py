"""Labelled texts: the columns are found, the split is a partition, and leaks and bad rows are named."""

from collections import Counter
from pathlib import Path

import pytest

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.text.labelled import (
    Labelled,
    Split,
    balanced,
    counts_of,
    divided,
    labels_of,
    leaks,
    read_labelled,
)

ROWS = [Labelled(f"text {n}", "spam" if n % 4 == 0 else "ham") for n in range(100)]
HERE = Path("rows.csv")


def written(folder: Path, content: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(content)
    return folder / name


@pytest.mark.parametrize(
    "content", ["message,id,category\nhi,1,a\nyo,2,b\n", "Category\tMessage\na\thi\nb\tyo\n"]
)
def test_columns_are_found_by_their_headings(tmp_path: Path, content: str) -> None:
    assert read_labelled(written(tmp_path, content)) == ([Labelled("hi", "a"), Labelled("yo", "b")], [])


@pytest.mark.parametrize("content", ["a\tone\nb\ttwo\na\tthree\n", "one\ta\ntwo\tb\nthree\ta\n"])
def test_of_two_columns_the_one_with_fewer_values_holds_the_labels(tmp_path: Path, content: str) -> None:
    rows, [told] = read_labelled(written(tmp_path, content))
    assert rows == [Labelled("one", "a"), Labelled("two", "b"), Labelled("three", "a")]
    assert "holds the labels" in told


def test_columns_may_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, '{"q": "hi", "text": "no", "y": 3}\n', "t.jsonl")
    assert read_labelled(path, text_column="q", label_column="y")[0] == [Labelled("hi", "3")]
    with pytest.raises(ConfigError, match=r"has the columns 'q', 'text', 'y'.*--data\.label-column"):
        read_labelled(path)


def test_rows_without_a_text_are_counted_and_rows_without_a_label_refused(tmp_path: Path) -> None:
    rows, [told] = read_labelled(written(tmp_path, "label,text\na,one\nb,  \n"))
    assert rows == [Labelled("one", "a")] and "1 rows without a text" in told
    with pytest.raises(DataError, match=r"line 2 has no label; line 4 has no label"):
        read_labelled(written(tmp_path, "label,text\n,one\na,two\n ,three\n"))


def test_one_label_alone_is_refused() -> None:
    assert labels_of(ROWS, HERE) == ("ham", "spam")
    with pytest.raises(DataError, match=r"all 3 texts have the label 'ham'"):
        labels_of([row for row in ROWS if row.label == "ham"][:3], HERE)


def test_balancing_keeps_as_many_of_each_as_the_rarest_has() -> None:
    kept = balanced(ROWS, 1)
    assert counts_of(kept) == "ham 25, spam 25" and len(set(kept)) == 50
    assert kept == sorted(kept, key=ROWS.index) and kept != balanced(ROWS, 2) and kept == balanced(ROWS, 1)


def test_a_split_holds_every_row_once() -> None:
    split = divided(ROWS, val=0.1, test=0.2, seed=3, path=HERE)
    assert [len(part) for part in split] == [70, 10, 20]
    assert Counter(row for part in split for row in part) == Counter(ROWS)
    assert split == divided(ROWS, val=0.1, test=0.2, seed=3, path=HERE)
    assert split != divided(ROWS, val=0.1, test=0.2, seed=4, path=HERE)
    assert [len(part) for part in divided(ROWS, val=0.3, test=0.0, seed=3, path=HERE)] == [70, 30, 0]


def test_parts_that_would_be_empty_and_labels_that_are_not_trained_are_named() -> None:
    with pytest.raises(DataError, match=r"no text is left for val"):
        divided(ROWS[:8], val=0.1, test=0.2, seed=0, path=HERE)
    rare = [*[Labelled(f"{n}", "a") for n in range(20)], *[Labelled(f"b{n}", f"b{n}") for n in range(20)]]
    with pytest.raises(DataError, match=r"no training text has the label b"):
        divided(rare, val=0.1, test=0.2, seed=0, path=HERE)


def test_a_leak_is_counted() -> None:
    one, two = Labelled("one", "a"), Labelled("two", "b")
    [told] = leaks(Split([one, two], [], [one, one, Labelled("three", "a")]))
    assert "2 of the 3 test texts are training texts too" in told
    assert leaks(Split([one], [two], [])) == []
