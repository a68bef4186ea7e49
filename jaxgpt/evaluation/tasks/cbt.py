"""The Children's Book Test (F. Hill et al. 2015): which of ten words a sentence lacks, after twenty others.

CBT-CN asks for common nouns, CBT-NE for named entities; GPT-2 was scored on the 2,000 validation questions.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.evaluation.tasks.sources import CBT_CN, CBT_NE, Source, refuse, text_of
from jaxgpt.evaluation.tasks.task import Measured, Protocol, Published, Task, accuracy

BLANK = "XXXXX"
SENTENCES = 20
_PAPER = "Radford et al. 2019, table 3"


class Question(NamedTuple):
    """The sentences before, the one with the blank, and which of the words fills it."""

    sentences: tuple[str, ...]
    query: str
    words: tuple[str, ...]
    label: int


def read(content: bytes, file: str = CBT_CN.file) -> list[Question]:
    """The questions of a file of 21 numbered lines for each; the last has the answer and the choices too."""
    questions, problems = [], []
    sentences: list[str] = []
    for number, line in enumerate(text_of(content, file).split("\n"), start=1):
        if not line.strip():
            continue
        place, _, text = line.strip().partition(" ")
        if place != str(SENTENCES + 1):
            sentences.append(text)
            continue
        query, *more = text.split("\t")
        words = tuple(more[-1].split("|")) if more else ()
        if len(sentences) != SENTENCES or query.count(BLANK) != 1 or len(more) < 2 or more[0] not in words:
            problems.append(
                f"line {number}: no question of {SENTENCES} sentences, a blank, an answer and words"
            )
        else:
            questions.append(Question(tuple(sentences), query, words, words.index(more[0])))
        sentences = []
    refuse(problems, questions, file)
    return questions


def detokenized(text: str) -> str:
    """A text of Stanford's tokenizer with the spaces and quotes that an author would have written."""
    text = re.sub(r"`` ?", '"', text)
    text = re.sub(r" ?''", '"', text)
    text = re.sub(r"(?<![^ ])` ", "'", text)
    text = text.replace("-LRB- ", "(").replace(" -RRB-", ")")
    text = re.sub(r" (n't|'(?:s|m|d|re|ve|ll)\b)", r"\1", text, flags=re.IGNORECASE)
    text = re.sub(r" '(?= |$)", "'", text)
    return re.sub(r" ([,.;:!?])(?=[ \"')]|$)", r"\1", text)


def _paper(scorer: Scorer, questions: Sequence[Question]) -> list[Measured]:
    """Each word and the rest of its sentence after all before it, cut at the beginning to the context."""
    questions, pairs = questions[: scorer.limit], []
    for question in questions:
        before, after = detokenized(" ".join((*question.sentences, question.query))).split(BLANK)
        pairs += [scorer.pair(before, f"{word}{after}") for word in question.words]
    found, right = iter(scorer.continuations(pairs)), []
    for question in questions:
        logprobs = [next(found).logprob for _ in question.words]
        right.append(int(np.argmax(logprobs)) == question.label)
    return [accuracy("accuracy", right, "most probable word with the rest of its sentence")]


def _task(name: str, source: Source, published: tuple[float, float, float, float], others: str) -> Task:
    values = dict(zip(("124M", "355M", "774M", "1558M"), published, strict=True))
    says = f"{_PAPER}; transformers issue 13761 has {others} (124M)"
    protocol = Protocol(
        "word and rest of the sentence after the full de-tokenized context; "
        "\u00b1 is the standard error over questions",
        _paper,
        ("accuracy",),
        {"accuracy": Published(values, says)},
    )
    return Task(name, source, lambda content: read(content, source.file), {"paper": protocol})


CN = _task("cbt-cn", CBT_CN, (0.8765, 0.9235, 0.9345, 0.9330), "0.8435")
NE = _task("cbt-ne", CBT_NE, (0.834, 0.871, 0.880, 0.8905), "0.7365")
