"""A model's answers to questions whose right answers are known: how they are made, kept and read again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.inference.requests import Decoder, Request
from jaxgpt.inference.templates import Template
from jaxgpt.inference.texts import pieces_of
from jaxgpt.text.dialogues import FIELDS, Dialogue, dialogue_of, row_of
from jaxgpt.text.tables import read_records, refuse
from jaxgpt.text.tokenizer import Tokenizer

KEY = "model_response"  # the book's name for what a model answered


class Answered(NamedTuple):
    """A question, its right answer, and what a model answered."""

    question: str
    expected: str
    given: str


def questions_of(dialogues: Sequence[Dialogue], template: Template) -> list[tuple[int, ...]]:
    """The ids that ask each dialogue's last question, after all that was said before it."""
    said = ([(each.role, each.said(template.joint)) for each in dialogue[:-1]] for dialogue in dialogues)
    return [tuple(template.ids(messages)) for messages in said]


def answers_of(
    decoder: Decoder,
    requests: Sequence[Request],
    tokenizer: Tokenizer,
    template: Template,
    stop: Sequence[str] = (),
    done: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """The answers, without white space around them. `done` is told how many have ended."""
    texts, ended = [""] * len(requests), 0
    for piece in pieces_of(decoder, requests, tokenizer, (*template.stop, *stop)):
        texts[piece.place] += piece.text
        if piece.new is not None and piece.new.finish:
            ended += 1
            done(ended)
    return [text.strip() for text in texts]


def answer_rows(dialogues: Sequence[Dialogue], answers: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a file of answers: each dialogue's own row, and the model's answer."""
    return [row_of(dialogue) | {KEY: text} for dialogue, text in zip(dialogues, answers, strict=True)]


def read_answers(path: Path, key: str = KEY) -> list[Answered]:
    """Read a file of answers, in which each row is a dialogue with the model's answer under `key`.

    Raises what `tables.read_records` raises, and DataError that names every row which is not so.
    """
    found, problems = [], []
    for line, row in read_records(path, (*FIELDS, key)):
        try:
            dialogue = dialogue_of(row)
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            continue
        if not isinstance(row.get(key), str):
            problems.append(f"line {line} has no text under {key!r}")
            continue
        question = "\n\n".join(each.said("\n") for each in dialogue[:-1])
        found.append(Answered(question, dialogue[-1].content, row[key]))
    refuse(problems, path)
    return found
