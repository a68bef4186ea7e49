"""Preferences: pairs of answers to the same question, of which one is better than the other.

Each row of a JSON or JSONL file (`tables.read_records`) is a pair in one of these layouts:

    {"instruction": "...", "input": "...", "chosen": "...", "rejected": "..."}       the book's
    {"prompt": "...", "chosen": "...", "rejected": "..."}                            Hugging Face's, of texts
    {"prompt": [MESSAGE...], "chosen": [MESSAGE], "rejected": [MESSAGE]}             of OpenAI's messages
    {"chosen": [MESSAGE...], "rejected": [MESSAGE...]}                               whole conversations

Whole conversations have the same messages except for the last one. Other keys of a row, such as the book's
`output`, are passed over. A CSV file with columns of these names does as well.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.errors import DataError
from jaxgpt.text.dialogues import Dialogue, Message, check_turns, instruction_of, messages_of, texts_of
from jaxgpt.text.tables import read_records, refuse

ANSWERS = ("chosen", "rejected")
FIELDS = ("instruction", "input", "prompt", *ANSWERS)
LAYOUTS = "chosen and rejected, with instruction or prompt, or as lists of messages"


class Pair(NamedTuple):
    """Two answers to the same question."""

    prompt: tuple[Message, ...]
    """What is said up to the answer."""
    chosen: str
    """The better answer."""
    rejected: str
    """The worse answer."""

    @property
    def dialogue(self) -> Dialogue:
        """The question with the better answer."""
        return [*self.prompt, Message("assistant", self.chosen)]


def read_pairs(path: Path) -> tuple[list[Pair], list[str]]:
    """Return the pairs of a file, and sentences about what was noticed.

    Pairs with an empty answer, and pairs whose answers are the same but for white space around them, are left
    out and counted. Raises what `tables.read_records` raises, and DataError that names every row which is no
    pair, or says that no pair is left.
    """
    found: list[Pair] = []
    problems, empty, same = [], 0, 0
    for line, values in read_records(path, FIELDS):
        try:
            pair = pair_of(values)
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            continue
        chosen, rejected = pair.chosen.strip(), pair.rejected.strip()
        empty += not (chosen and rejected)
        same += chosen == rejected != ""
        if chosen and rejected and chosen != rejected:
            found.append(pair)
    refuse(problems, path)
    notes = [
        f"{path}: {count:,} pairs are left out, because {why}"
        for count, why in ((empty, "an answer is empty"), (same, "their two answers are the same"))
        if count
    ]
    if not found:
        raise DataError(
            "no preferences",
            path=path,
            why="in every row an answer is empty, or both are the same",
            fix="name a file with pairs of different answers",
        )
    return found, notes


def pair_of(row: Mapping[str, Any]) -> Pair:
    """Return the pair that a row holds. Raises ValueError that says why it holds none."""
    if missing := [name for name in ANSWERS if name not in row]:
        keys = ", ".join(map(repr, row))
        raise ValueError(f"it has no {' and no '.join(missing)}, but the keys {keys}; {LAYOUTS} is needed")
    if not isinstance(row["chosen"], list):
        chosen, rejected = texts_of(row, ANSWERS)
        return _checked(_prompt_of(row), chosen, rejected)
    (*before, better), (*other, worse) = (messages_of(row, name) for name in ANSWERS)
    if before != other or better.role != worse.role:
        raise ValueError("chosen and rejected are not the same up to the last answer")
    if better.role != "assistant":
        raise ValueError("chosen and rejected end without an answer")
    return _checked(before or _prompt_of(row), better.content, worse.content)


def _prompt_of(row: Mapping[str, Any]) -> list[Message]:
    """What the answers of a row are answers to."""
    if "instruction" in row:
        return [instruction_of(row)]
    if isinstance(row.get("prompt"), list):
        return messages_of(row, "prompt")
    if "prompt" not in row:
        raise ValueError("it has no instruction and no prompt, which the answers are answers to")
    (said,) = texts_of(row, ["prompt"])
    if not said.strip():
        raise ValueError("prompt is empty")
    return [Message("user", said)]


def _checked(prompt: list[Message], chosen: str, rejected: str) -> Pair:
    pair = Pair(tuple(prompt), chosen, rejected)
    check_turns(pair.dialogue)
    return pair
