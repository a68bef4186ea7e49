"""Dialogues: three layouts, every damaged row named, and how they are divided."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxgpt.errors import DataError
from jaxgpt.text.dialogues import Message, dialogue_of, divided, leaks, read_dialogues

PATH = Path("dialogues.json")


def written(folder: Path, rows: list[Any], name: str = "dialogues.json") -> Path:
    path = folder / name
    lines = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(lines, encoding="utf-8")
    return path


def task(number: int) -> list[Message]:
    return [Message("user", f"task {number}"), Message("assistant", f"answer {number}")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3", "id": 7},
            [("user", "Add.", "1, 2"), ("assistant", "3", "")],
        ),
        ({"instruction": "Hi", "output": "Yo"}, [("user", "Hi", ""), ("assistant", "Yo", "")]),
        (
            {
                "messages": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": "U"},
                    {"role": "assistant", "content": "A"},
                ]
            },
            [("system", "S", ""), ("user", "U", ""), ("assistant", "A", "")],
        ),
        (
            {"conversations": [{"from": "human", "value": "U"}, {"from": "gpt", "value": "A"}]},
            [("user", "U", ""), ("assistant", "A", "")],
        ),
    ],
    ids=["book", "without input", "openai", "sharegpt"],
)
def test_layouts(row: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    assert [tuple(message) for message in dialogue_of(row)] == expected


@pytest.mark.parametrize("name", ["dialogues.json", "dialogues.jsonl"])
def test_every_damaged_row_is_named(tmp_path: Path, name: str) -> None:
    user, answer = {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}
    rows = [
        {"instruction": "Hi", "output": "Yo"},
        {"question": "Hi"},
        {"instruction": " ", "output": "Yo"},
        {"instruction": "Hi", "output": 3},
        {"messages": []},
        {"messages": [user]},
        {"messages": [user, user, answer]},
        {"messages": [{"role": "tool", "content": "U"}, answer]},
        {"messages": [{"role": "user", "content": None}, answer]},
        {"messages": [{"role": "system", "content": "S"}]},
    ]
    with pytest.raises(DataError) as caught:
        read_dialogues(written(tmp_path, rows, name))
    said = str(caught.value)
    for expected in (
        "line 2: it has the keys 'question'; instruction and output, or messages, or conversations is needed",
        "line 3: instruction is empty",
        "line 4: output must be text",
        "line 5: messages must be a list of messages",
        "line 6: it ends without an answer",
        "line 7: user speaks where it is the turn of assistant",
        "line 8: message 1 of messages has role = 'tool', not one of system, human, user, gpt, assistant",
        "line 9: message 1 of messages has no text in content",
        "line 10: it ends without an answer",
    ):
        assert expected in said
    assert "line 1:" not in said


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"instruction": "Hi", "output": "Yo"}, {"instruction": "Hi", "output": " "}]
    path = written(tmp_path, rows)
    assert read_dialogues(path) == (
        [dialogue_of(rows[0])],
        [f"{path}: 1 rows without an answer are left out"],
    )
    with pytest.raises(DataError, match="every answer in it is empty"):
        read_dialogues(written(tmp_path, rows[1:]))


def test_a_table_of_separated_values_does_as_well(tmp_path: Path) -> None:
    path = tmp_path / "tasks.csv"
    path.write_text('instruction,input,output\n"Add, please.",1 2,3\n', encoding="utf-8")
    (dialogue,), _ = read_dialogues(path)
    assert dialogue == [Message("user", "Add, please.", "1 2"), Message("assistant", "3")]


def test_the_order_of_the_file_is_the_book_s_split() -> None:
    """The book: 1,100 entries, the first 935 to train, the next 110 to test, the last 55 to validate."""
    rows = [task(number) for number in range(1100)]
    parts = divided(rows, val=0.05, test=0.1, seed=None, path=PATH)
    assert (parts.train, parts.test, parts.val) == (rows[:935], rows[935:1045], rows[1045:])


def test_shuffled_parts_hold_every_dialogue_once_and_depend_on_the_seed() -> None:
    rows = [task(number) for number in range(40)]
    parts = divided(rows, val=0.1, test=0.2, seed=3, path=PATH)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (28, 4, 8)
    assert sorted(map(str, parts.train + parts.val + parts.test)) == sorted(map(str, rows))
    assert parts == divided(rows, val=0.1, test=0.2, seed=3, path=PATH)
    assert parts != divided(rows, val=0.1, test=0.2, seed=4, path=PATH)
    with pytest.raises(DataError, match="none is left for test"):
        divided(rows[:4], val=0.1, test=0.2, seed=3, path=PATH)


def test_a_dialogue_that_is_trained_on_and_tested_on_is_a_leak() -> None:
    rows = [*(task(number) for number in range(8)), task(0), task(9)]
    parts = divided(rows, val=0, test=0.2, seed=None, path=PATH)
    (told,) = leaks(parts)
    assert told.startswith("leak: 1 of the 2 test dialogues are training dialogues too")
