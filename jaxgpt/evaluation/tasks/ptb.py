"""Penn Treebank (M. Marcus et al. 1993) in T. Mikolov's preparation: lower case, rare words as <unk>."""

import dataclasses
import math

from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.evaluation.tasks.sources import PTB, refuse, text_of
from jaxgpt.evaluation.tasks.task import Measured, Protocol, Published, Task


def read(content: bytes) -> str:
    """The text of `ptb.test.txt`."""
    text = text_of(content, PTB.file)
    refuse([], text.split(), PTB.file)
    return text


def detokenized(text: str) -> str:
    """The text with the spaces that an author would have written, 1 for a number, ? for an unknown word."""
    text = text.replace(" 's", "'s").replace("s ' ", "s' ").replace(" n't", "n't")
    text = text.replace(" \n ", "\n").replace("\\/", "/")
    while " N " in text:  # neighbours share a space, so that one pass is not enough
        text = text.replace(" N ", " 1 ")
    return text.replace("$ 1", "$1").replace("# 1", "#1").replace("<unk>", "?")


def _paper(scorer: Scorer, text: str) -> list[Measured]:
    """Nats over the de-tokenized text, for each word of the text as it was."""
    lines = text.split("\n")[: scorer.limit]
    words = sum(len(line.split()) for line in lines)
    ids = [scorer.beginning, *scorer.tokenizer.encode(detokenized("\n".join(lines)))]
    losses, _ = dataclasses.replace(scorer, limit=None).stream(ids)
    _, error = losses.per(losses.tokens_W)
    value = math.exp(losses.nats / words)
    return [
        Measured("word_perplexity", value, value * error * losses.tokens / words, "of a word of the original")
    ]


TASK = Task(
    "ptb",
    PTB,
    read,
    {
        "paper": Protocol(
            "the whole de-tokenized text in {windows}, line ends are no words; \u00b1 is the standard error "
            "over windows",
            _paper,
            ("word_perplexity",),
            {
                "word_perplexity": Published(
                    {"124M": 65.85, "355M": 47.33, "774M": 40.31, "1558M": 35.76},
                    "Radford et al. 2019, table 3; no public reproduction is known",
                )
            },
        )
    },
)
