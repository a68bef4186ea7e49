"""Dialogues as batches: encoded in a template, answers scored, a row each or packed several to a row."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxgpt.inference.templates import Template
from jaxgpt.text.batch import Batch, Origin
from jaxgpt.text.dialogues import Dialogue, Message
from jaxgpt.text.examples import Example, first_fit, padded, side_by_side
from jaxgpt.text.order import shuffled
from jaxgpt.text.tokenizer import Tokenizer

SHORTEST = 16  # the smallest length that rows are padded to, in tokens


class Encoded(NamedTuple):
    """Dialogues as examples to train on or to measure."""

    examples: list[Example]
    cut: int
    """How many were longer than the context. Their ends are left out."""
    left_out: int
    """How many have no answer within the context. They are not among the examples."""


def encode(
    dialogues: Sequence[Dialogue],
    template: Template,
    tokenizer: Tokenizer,
    *,
    context: int,
    answers_only: bool,
) -> Encoded:
    """Write dialogues in a template, as ids. Each is cut to `context` tokens and the next one.

    With `answers_only`, what the assistant says is scored, with the tokens that end it; otherwise all is.
    """
    examples, cut, left_out = [], 0, 0
    for dialogue in dialogues:
        found = _written(dialogue, template, tokenizer)
        longest = max(len(ids) for ids, _ in found)
        fitting = [
            (ids[: context + 1], [(begin, min(end, context + 1)) for begin, end in spans if begin <= context])
            for ids, spans in found
        ]
        kept = [_example(ids, spans, answers_only=answers_only) for ids, spans in fitting if spans]
        examples += kept
        left_out += not kept
        cut += bool(kept) and longest > context + 1
    return Encoded(examples, cut, left_out)


def _example(ids: list[int], spans: list[tuple[int, int]], *, answers_only: bool) -> Example:
    """The example in which these spans are scored, or all."""
    if not answers_only:
        return Example(ids, 1)
    gaps = [(end, begin) for (_, end), (begin, _) in itertools.pairwise([*spans, (len(ids), 0)])]
    return Example(ids, spans[0][0], [(begin, end) for begin, end in gaps if begin < end])


def _written(
    dialogue: Dialogue, template: Template, tokenizer: Tokenizer
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """The ids of a dialogue, and where the answers stand among them.

    The model reads each answer behind the ids that it will be asked with. Where these do not begin with the
    ids so far, because the template writes earlier messages in another way, a text of its own begins.
    """
    messages = spoken(dialogue, template)
    texts: list[tuple[list[int], list[tuple[int, int]]]] = []
    for place, (role, content) in enumerate(messages):
        if role == "assistant":
            prompt = template.ids(messages[:place])
            answer = template.answer_ids(messages[:place], content)
            if place == len(messages) - 1:
                answer = ended(answer, tokenizer)
            spans: list[tuple[int, int]] = []
            if texts and prompt[: len(texts[-1][0])] == texts[-1][0]:
                _, spans = texts.pop()
            ids = prompt + answer
            texts.append((ids, [*spans, (len(prompt), len(ids))]))
    return texts


def spoken(messages: Sequence[Message], template: Template) -> list[tuple[str, str]]:
    """The messages as a template takes them: who speaks, and what is said."""
    return [(each.role, each.said(template.joint)) for each in messages]


def ended(answer: list[int], tokenizer: Tokenizer) -> list[int]:
    """The ids of a last answer, with the end of text behind them unless the template has written an end."""
    if tokenizer.end_of_text is None or set(tokenizer.special_ids.values()).intersection(answer):
        return answer
    return [*answer, tokenizer.end_of_text]


class DialogueRows:
    """Rows of examples: one in each, or as many as fit if they are packed."""

    def __init__(self, examples: Sequence[Example], *, context: int, pack: bool, seed: int = 0) -> None:
        """Decide which examples share a row. `seed` shuffles them before they are packed."""
        self._examples, self._context, self._pack = examples, context, pack
        if pack:
            order = np.random.default_rng(seed).permutation(len(examples)).tolist()
            groups = first_fit([examples[number].length for number in order], context)
            self._groups = [[order[place] for place in group] for group in groups]
        else:
            self._groups = [[number] for number in range(len(examples))]

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def tokens(self) -> int:
        """The number of tokens that are read in all rows together, without padding."""
        return sum(example.length for example in self._examples)

    @property
    def fingerprint(self) -> str:
        """A hash of the rows."""
        told = [self._groups, [[list(ids), start, gaps] for ids, start, gaps in self._examples]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def batch(self, numbers: Sequence[int], start: int, stop: int) -> Batch:
        """Rows `start` to `stop` - 1 of the batch of the rows with these numbers. -1 stands for an empty row.

        Packed rows are as long as the context. Others are padded to a power of two, so that few shapes are
        compiled.
        """
        groups = [self._groups[number] if number >= 0 else [] for number in numbers]
        rows = [[self._examples[number] for number in group] for group in groups]
        if self._pack:
            return side_by_side(rows[start:stop], self._context)
        length = row_length((row[0].length for row in rows if row), self._context)
        present = [row[0] for row in rows[start:stop] if row]
        return padded(present, length, rows=stop - start)

    def origin(self, number: int) -> Origin:
        """Which examples a row holds. The training examples are counted from 1."""
        group = self._groups[number]
        examples = [place + 1 for place in group]
        return Origin({"examples": examples}, [list(self._examples[place].ids) for place in group])


def row_length(lengths: Iterable[int], context: int) -> int:
    """The length to which examples of these lengths are padded together: a power of two, or the context."""
    longest = max([SHORTEST, *lengths])
    return min(1 << (longest - 1).bit_length(), context)


class Rows(Protocol):
    """Examples that become the rows of batches."""

    def __len__(self) -> int:
        """The number of rows."""

    def batch(self, numbers: Sequence[int], start: int, stop: int, /) -> Any:
        """Rows `start` to `stop` - 1 of the batch of the rows with these numbers. -1 is an empty row."""

    def origin(self, number: int, /) -> Origin:
        """Which examples a row holds."""


class TrainingRows:
    """The endless, shuffled sequence of batches. Every epoch has each row once, in an order of its own."""

    def __init__(self, rows: Rows, *, sequences: int, seed: int) -> None:
        """Take the rows. A batch has `sequences` of them."""
        self._rows, self._sequences, self._seed = rows, sequences, seed

    def rows(self, step: int, start: int, stop: int) -> Any:
        """Rows `start` to `stop` - 1 of the batch of a step, which is counted from 0."""
        return self._rows.batch(self._numbers(step), start, stop)

    def origins(self, step: int) -> list[Origin]:
        """Which examples each row of the batch of a step holds."""
        return [self._rows.origin(number) for number in self._numbers(step)]

    def _numbers(self, step: int) -> list[int]:
        places = range(step * self._sequences, (step + 1) * self._sequences)
        return shuffled(places, len(self._rows), self._seed)


class OrderedRows:
    """All rows once, in order. The last batch is filled up with empty rows."""

    def __init__(self, rows: Rows, *, sequences: int) -> None:
        """Take the rows. A batch has `sequences` of them."""
        self._rows, self.sequences = rows, sequences

    def __len__(self) -> int:
        return -(-len(self._rows) // self.sequences)

    def rows(self, number: int, start: int, stop: int) -> Any:
        """Rows `start` to `stop` - 1 of this batch."""
        places = range(number * self.sequences, (number + 1) * self.sequences)
        return self._rows.batch([place if place < len(self._rows) else -1 for place in places], start, stop)
