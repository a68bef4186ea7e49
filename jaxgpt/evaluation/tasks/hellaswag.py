"""HellaSwag (R. Zellers et al. 2019): which of four endings a passage has. 10,042 validation items."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.evaluation.tasks.scorer import Continued, Pair, Scorer
from jaxgpt.evaluation.tasks.sources import HELLASWAG, json_lines
from jaxgpt.evaluation.tasks.task import Measured, Protocol, Published, Task, accuracy


class Item(NamedTuple):
    """A passage, its four endings, and which of them is right."""

    activity: str
    first: str
    second: str
    """The beginning of the sentence that the endings end."""
    whole: str
    endings: tuple[str, ...]
    label: int


def read(content: bytes) -> list[Item]:
    """The items of `hellaswag_val.jsonl`."""

    def item(row: Any) -> Item:
        endings, label = tuple(row["endings"]), int(row["label"])
        texts = (row["activity_label"], row["ctx_a"], row["ctx_b"], row["ctx"])
        if not all(isinstance(text, str) for text in (*texts, *endings)):
            raise ValueError("its texts must be strings")
        if not 0 <= label < len(endings):
            raise ValueError(f"label {label} of {len(endings)} endings")
        return Item(*texts, endings, label)

    return json_lines(content, item, HELLASWAG.file)


def cleaned(text: str) -> str:
    """A text without the marks of WikiHow, as lm-evaluation-harness cleans it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def query_of(item: Item) -> str:
    """What the endings follow by the protocol `harness`."""
    return cleaned(f"{item.activity}: {item.first} {item.second.capitalize()}")


def _harness(scorer: Scorer, items: Sequence[Item]) -> list[Measured]:
    items, pairs, characters = items[: scorer.limit], [], []
    for item in items:
        query = query_of(item)
        for ending in map(cleaned, item.endings):
            pairs.append(scorer.pair(query, f" {ending}"))
            characters.append(len(ending))
    return _chosen(items, scorer.continuations(pairs), characters, "character")


def _llmc(scorer: Scorer, items: Sequence[Item]) -> list[Measured]:
    items, encode = items[: scorer.limit], scorer.tokenizer.encode
    pairs: list[Pair] = [
        (encode(item.whole), encode(f" {ending}")) for item in items for ending in item.endings
    ]
    return _chosen(items, scorer.continuations(pairs), [len(after) for _, after in pairs], "token")


def _chosen(
    items: Sequence[Item], found: Sequence[Continued], sizes: Sequence[int], unit: str
) -> list[Measured]:
    """How often the most probable ending is the right one, by its sum and by its mean over units."""
    whole, mean, begin = [], [], 0
    for item in items:
        end = begin + len(item.endings)
        logprobs = np.array([each.logprob for each in found[begin:end]])
        whole.append(int(logprobs.argmax()) == item.label)
        mean.append(int((logprobs / np.array(sizes[begin:end], float)).argmax()) == item.label)
        begin = end
    return [
        accuracy("accuracy", whole, "most probable ending"),
        accuracy("accuracy_norm", mean, f"most probable ending for each {unit} of it"),
    ]


_FIGURES = ("accuracy", "accuracy_norm")
TASK = Task(
    "hellaswag",
    HELLASWAG,
    read,
    {
        "harness": Protocol(
            "activity, passage and ending cleaned, as lm-evaluation-harness; "
            "\u00b1 is the standard error over items",
            _harness,
            _FIGURES,
            {
                "accuracy": Published({"124M": 0.2892, "1558M": 0.4004}, "llm.c, dev/data/hellaswag.py"),
                "accuracy_norm": Published({"124M": 0.3114, "1558M": 0.5089}, "llm.c, dev/data/hellaswag.py"),
            },
        ),
        "llm.c": Protocol(
            "the passage and each ending as they are, tokenized apart, as llm.c; "
            "\u00b1 is the standard error over items",
            _llmc,
            _FIGURES,
            {
                "accuracy": Published({"124M": 0.2859, "1558M": 0.3842}, "llm.c, dev/data/hellaswag.py"),
                "accuracy_norm": Published({"124M": 0.2955, "1558M": 0.4893}, "llm.c, dev/data/hellaswag.py"),
            },
        ),
    },
)
