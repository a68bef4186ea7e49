"""Preferences: four layouts, every damaged row named, and pairs that teach nothing left out and counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxgpt.errors import DataError
from jaxgpt.text.dialogues import Message, divided, leaks
from jaxgpt.text.preferences import Pair, pair_of, read_pairs

ASKED = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
PAIR = Pair((Message("user", "Hi"),), "Hello!", "What?")


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_the_books_layout_has_an_instruction_with_its_input() -> None:
    row = {"instruction": "Add", "input": "1", "output": "2", "chosen": "It is 2.", "rejected": "2, fool."}
    assert pair_of(row) == Pair((Message("user", "Add", "1"),), "It is 2.", "2, fool.")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"prompt": [ASKED], "chosen": [said("Hello!")], "rejected": [said("What?")]},
        {"prompt": "Hi", "chosen": [said("Hello!")], "rejected": [said("What?")]},
        {"chosen": [ASKED, said("Hello!")], "rejected": [ASKED, said("What?")], "score": 9},
        {"prompt": "again", "chosen": [ASKED, said("Hello!")], "rejected": [ASKED, said("What?")]},
    ],
    ids=["texts", "messages", "text-and-messages", "conversations", "conversations-with-prompt"],
)
def test_the_layouts_of_hugging_face_hold_the_same_pair(row: dict[str, Any]) -> None:
    assert pair_of(row) == PAIR
    assert [message.role for message in pair_of(row).dialogue] == ["user", "assistant"]


def test_a_conversation_may_have_a_system_message_and_several_turns() -> None:
    turns = [SYSTEM, ASKED, said("Hello!"), ASKED]
    pair = pair_of({"chosen": [*turns, said("Yes?")], "rejected": [*turns, said("No.")]})
    assert [message.role for message in pair.prompt] == ["system", "user", "assistant", "user"]
    assert (pair.chosen, pair.rejected) == ("Yes?", "No.")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Hi", "chosen": "Hello!"}, "it has no rejected, but the keys 'prompt', 'chosen'"),
        ({"prompt": "Hi"}, "no chosen and no rejected"),
        ({"chosen": "Hello!", "rejected": "What?"}, "no instruction and no prompt"),
        ({"prompt": " ", "chosen": "Hello!", "rejected": "What?"}, "prompt is empty"),
        ({"instruction": "", "chosen": "a", "rejected": "b"}, "instruction is empty"),
        ({"prompt": "Hi", "chosen": 1, "rejected": "What?"}, "chosen must be text"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt must be text"),
        ({"prompt": "Hi", "chosen": "Hello!", "rejected": [said("b")]}, "rejected must be text"),
        ({"prompt": "Hi", "chosen": [said("a")], "rejected": "b"}, "rejected must be a list of messages"),
        ({"chosen": [ASKED, said("a")], "rejected": [SYSTEM, said("b")]}, "not the same up to the last"),
        ({"chosen": [ASKED, ASKED], "rejected": [ASKED, ASKED]}, "end without an answer"),
        ({"chosen": [ASKED, said("a")], "rejected": [ASKED, ASKED]}, "not the same up to the last"),
        ({"prompt": [said("x")], "chosen": [said("a")], "rejected": [said("b")]}, "assistant speaks"),
        ({"chosen": [{"role": "robot", "content": ""}], "rejected": []}, "role = 'robot'"),
    ],
)
def test_what_is_no_pair_is_refused_with_the_reason(row: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        pair_of(row)


def written(tmp_path: Path, rows: list[Any]) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_pairs_that_teach_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    rows = [row, row | {"rejected": " Hello!\n"}, row | {"chosen": ""}, row | {"rejected": " "}]
    pairs, notes = read_pairs(written(tmp_path, rows))
    assert pairs == [PAIR]
    empty, same = notes
    assert "2 pairs are left out, because an answer is empty" in empty
    assert "1 pairs are left out, because their two answers are the same" in same
    with pytest.raises(DataError, match="no preferences"):
        read_pairs(written(tmp_path, rows[1:]))


def test_every_damaged_row_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "chosen": "a", "rejected": "b"}, {"prompt": "Hi"}, {"chosen": "a"}]
    with pytest.raises(DataError, match=r"line 2: .*line 3: ") as found:
        read_pairs(written(tmp_path, rows))
    assert found.value.exit_code == 65


def test_a_csv_file_holds_pairs_too(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('prompt,chosen,rejected\nHi,Hello!,What?\n"A, b","a, b",c\n', encoding="utf-8")
    assert read_pairs(path)[0] == [PAIR, Pair((Message("user", "A, b"),), "a, b", "c")]


def test_pairs_are_divided_as_dialogues_are_and_leaks_are_told() -> None:
    pairs = [PAIR._replace(chosen=str(number)) for number in range(20)]
    parts = divided(pairs, val=0.05, test=0.1, seed=None, path=Path("p"), what="pairs")
    assert (parts.train, parts.test, parts.val) == (pairs[:17], pairs[17:19], pairs[19:])
    assert leaks(parts, "pairs") == []
    (told,) = leaks(parts._replace(val=[pairs[0], pairs[19]]), "pairs")
    assert "1 of the 2 val pairs are training pairs too" in told
    with pytest.raises(DataError, match="too few pairs"):
        divided(pairs[:2], val=0.05, test=0.1, seed=None, path=Path("p"), what="pairs")
