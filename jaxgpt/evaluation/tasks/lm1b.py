"""The One Billion Word Benchmark (C. Chelba et al. 2013): sentences of news, each by itself."""

import math
import re
from collections.abc import Sequence

import numpy as np

from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.evaluation.tasks.sources import LM1B, refuse, text_of
from jaxgpt.evaluation.tasks.task import Measured, Protocol, Published, Task


def read(content: bytes) -> list[str]:
    """The sentences of a file of held-out ones, one a line."""
    sentences = [line.strip() for line in text_of(content, LM1B.file).split("\n") if line.strip()]
    refuse([], sentences, LM1B.file)
    return sentences


def detokenized(text: str) -> str:
    """A sentence with the spaces that an author would have written."""
    text = re.sub(r"(https?) : / / ", r"\1://", text)
    text = re.sub(r" '(\w+)", r"'\1", text)
    text = re.sub(r" (\w+) \.( |$)", r" \1.\2", text)
    for mark in "?!":
        text = re.sub(rf" \{mark}( |$)", rf"{mark}\1", text)
    for mark in ",:;":
        text = text.replace(f" {mark} ", f"{mark} ")
    text = text.replace(" / ", "/")
    text = re.sub(r'" ([^"]+) "', r'"\1"', text)
    text = re.sub(r"' ([^']+) '", r"'\1'", text)
    text = re.sub(r"\( ([^()]+) \)", r"(\1)", text)
    text = re.sub(r"\[ ([^\[\]]+) \]", r"[\1]", text)
    return re.sub(r"([$\N{POUND SIGN}]) ", r"\1", text)


def _paper(scorer: Scorer, sentences: Sequence[str]) -> list[Measured]:
    """Nats over de-tokenized sentences, for each word of the sentences as they were."""
    sentences = sentences[: scorer.limit]
    losses = scorer.documents([detokenized(sentence) for sentence in sentences], full_last=True)
    nats, error = losses.per(np.array([len(sentence.split()) for sentence in sentences]))
    return [Measured("word_perplexity", math.exp(nats), math.exp(nats) * error, "of a word of the original")]


TASK = Task(
    "1bw",
    LM1B,
    read,
    {
        "paper": Protocol(
            "each de-tokenized sentence alone in {windows}; \u00b1 is the standard error over sentences",
            _paper,
            ("word_perplexity",),
            {
                "word_perplexity": Published(
                    {"124M": 75.20, "355M": 55.72, "774M": 44.575, "1558M": 42.16},
                    "Radford et al. 2019, table 3; transformers issue 13761 has 45.88 (124M)",
                )
            },
        )
    },
)
