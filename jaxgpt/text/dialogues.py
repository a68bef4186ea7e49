"""Dialogues: examples of how a question is to be answered, read from the layouts in which people keep them.

Each row of a JSON or JSONL file (`tables.read_records`) is a dialogue in one of these layouts:

    {"instruction": "...", "input": "...", "output": "..."}                         the book's and Alpaca's
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}   OpenAI's
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}     ShareGPT's

Other keys of a row are passed over. A CSV file with the columns instruction, input and output does as well.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from jaxgpt.errors import DataError
from jaxgpt.text.tables import read_records, refuse

FIELDS = ("instruction", "input", "output")
SPEAKERS = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
LAYOUTS = "instruction and output, or messages, or conversations"

T = TypeVar("T")


class Message(NamedTuple):
    """What somebody said."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    input: str = ""
    """What an instruction is to be done with, if that stands apart from it."""

    def said(self, joint: str) -> str:
        """The content and, if there is an input, behind the text `joint` the input."""
        return f"{self.content}{joint}{self.input}" if self.input else self.content


Dialogue = Sequence[Message]


class Divided(NamedTuple, Generic[T]):
    """Examples, such as dialogues, in three parts."""

    train: list[T]
    val: list[T]
    test: list[T]


def read_dialogues(path: Path) -> tuple[list[Dialogue], list[str]]:
    """Return the dialogues of a file, and sentences about what was noticed.

    A dialogue begins with at most one system message; then user and assistant take turns, and the assistant
    has the last word. Dialogues whose every answer is empty are left out, and counted. Raises what
    `tables.read_records` raises, and DataError that names every row which is no dialogue.
    """
    found: list[Dialogue] = []
    problems, empty = [], 0
    for line, values in read_records(path, FIELDS):
        try:
            dialogue = dialogue_of(values)
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            continue
        if any(message.content.strip() for message in dialogue if message.role == "assistant"):
            found.append(dialogue)
        else:
            empty += 1
    refuse(problems, path)
    if not found:
        raise DataError(
            "no dialogues", path=path, why="every answer in it is empty", fix="name a file with answers"
        )
    return found, [f"{path}: {empty:,} rows without an answer are left out"] * bool(empty)


def dialogue_of(row: Mapping[str, Any]) -> Dialogue:
    """Return the dialogue that a row holds. Raises ValueError that says why it holds none."""
    if "messages" in row:
        dialogue = messages_of(row, "messages")
    elif "conversations" in row:
        dialogue = messages_of(row, "conversations", "from", "value")
    elif "instruction" in row and "output" in row:
        (output,) = texts_of(row, ["output"])
        dialogue = [instruction_of(row), Message("assistant", output)]
    else:
        raise ValueError(f"it has the keys {', '.join(map(repr, row))}; {LAYOUTS} is needed")
    check_turns(dialogue)
    return dialogue


def instruction_of(row: Mapping[str, Any]) -> Message:
    """Return what a row of the book's layout asks. Raises ValueError that says why it asks nothing."""
    instruction, given = texts_of(row, FIELDS[:2])
    if not (instruction.strip() or given.strip()):
        raise ValueError("instruction is empty")
    return Message("user", instruction, given)


def texts_of(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the texts in some fields of a row; what is not there is empty. Raises ValueError for others."""
    if wrong := [name for name in names if not isinstance(row.get(name) or "", str)]:
        raise ValueError(f"{' and '.join(wrong)} must be text")
    return [row.get(name) or "" for name in names]


def row_of(dialogue: Dialogue) -> dict[str, Any]:
    """Return a row that holds a dialogue: in the book's layout if there is one task and one answer."""
    if [message.role for message in dialogue] == ["user", "assistant"]:
        user, assistant = dialogue
        return {"instruction": user.content, "input": user.input, "output": assistant.content}
    return {"messages": [{"role": each.role, "content": each.content} for each in dialogue]}


def messages_of(row: Mapping[str, Any], name: str, who: str = "role", what: str = "content") -> list[Message]:
    """Return the messages in a field of a row. Raises ValueError that names the first one that is none."""
    messages = row[name]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{name} must be a list of messages")
    dialogue = []
    for number, message in enumerate(messages, start=1):
        role, content = (message.get(key) if isinstance(message, dict) else None for key in (who, what))
        if role not in SPEAKERS:
            raise ValueError(
                f"message {number} of {name} has {who} = {role!r}, not one of {', '.join(SPEAKERS)}"
            )
        if not isinstance(content, str):
            raise ValueError(f"message {number} of {name} has no text in {what}")
        dialogue.append(Message(SPEAKERS[role], content))
    return dialogue


def check_turns(dialogue: Dialogue) -> None:
    """Raise ValueError unless user and assistant take turns, and the assistant has the last word."""
    turns = dialogue[1:] if dialogue[0].role == "system" else dialogue
    for number, message in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if message.role != expected:
            raise ValueError(f"{message.role} speaks where it is the turn of {expected}")
    if not turns or turns[-1].role != "assistant":
        raise ValueError("it ends without an answer")


def divided(
    examples: Sequence[T], *, val: float, test: float, seed: int | None, path: Path, what: str = "dialogues"
) -> Divided[T]:
    """Divide examples into training, test and validation parts, in this order, after shuffling them.

    `val` and `test` are shares of all. A seed of None keeps the order of the file, as the book does. Errors
    call the examples `what`. Raises DataError when a part that was asked for is empty.
    """
    count = len(examples)
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
    train_end = int(count * (1 - val - test) + 1e-9)
    test_end = train_end + int(count * test + 1e-9) if val else count
    ends = {"train": (0, train_end), "test": (train_end, test_end), "val": (test_end, count)}
    parts = {name: [examples[number] for number in order[slice(*span)]] for name, span in ends.items()}
    shares = {"train": 1.0, "val": val, "test": test}
    if lacking := [name for name, share in shares.items() if share and not parts[name]]:
        raise DataError(
            f"too few {what} to divide ({count:,})",
            path=path,
            why=f"none is left for {' and '.join(lacking)}",
            fix=f"give more {what}, or set --data.val-fraction or --data.test-fraction to a larger share",
        )
    return Divided(parts["train"], parts["val"], parts["test"])


def leaks(parts: Divided[Any], what: str = "dialogues") -> list[str]:
    """Sentences about training examples that stand again in a part on which the model is measured."""
    seen = {tuple(example) for example in parts.train}
    counts = {name: sum(tuple(each) in seen for each in getattr(parts, name)) for name in ("val", "test")}
    return [
        f"leak: {count:,} of the {len(getattr(parts, name)):,} {name} {what} are training {what} too, "
        "which makes the model look better than it is"
        for name, count in counts.items()
        if count
    ]
