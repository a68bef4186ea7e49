"""What a task is: where its documents come from, its protocols, and what was published for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.evaluation.figures import Figure
from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.evaluation.tasks.sources import Source

SIZES = {(12, 768): "124M", (24, 1024): "355M", (36, 1280): "774M", (48, 1600): "1558M"}
"""GPT-2's sizes, by layers and width."""
UNREPRODUCED = "no public reproduction is known"


class Measured(NamedTuple):
    """A figure of a protocol, before it is compared with what was published."""

    name: str
    value: float
    standard_error: float
    measure: str


class Published(NamedTuple):
    """What was published of a figure: its values by GPT-2's sizes, where, and what others found."""

    values: Mapping[str, float]
    source: str


class Protocol(NamedTuple):
    """One way to measure a task."""

    says: str
    """What is scored and how, in words; `{windows}` stands for the windows and their stride."""
    measure: Callable[[Scorer, Any], list[Measured]]
    """The figures of the documents."""
    figures: tuple[str, ...]
    """The names of these figures."""
    published: Mapping[str, Published] = {}
    """By the names of the figures."""
    stride: int | None = None
    """Tokens from one window to the next where nothing else is asked for; None means the whole context."""


class Task(NamedTuple):
    """A task by name: the files it needs, how documents are read from their contents, its protocols."""

    name: str
    source: Source
    read: Callable[[bytes], Any]
    protocols: Mapping[str, Protocol]


def figures_of(task: Task, protocol: str, scorer: Scorer, documents: Any, config: GPTConfig) -> list[Figure]:
    """Measure a task by one of its protocols, and set what was published for GPT-2 of that size beside it."""
    way = task.protocols[protocol]
    scorer = scorer.with_stride(way.stride)
    size = SIZES.get((config.layers, config.width))
    title = f"{task.name}:{protocol}, {way.says.format(windows=scorer.windows)}"
    if scorer.limit is not None:
        title += f"; only the first {scorer.limit:,}"
    figures = []
    for found in way.measure(scorer, documents):
        known = way.published.get(found.name)
        figures.append(
            Figure(
                f"{task.name}:{protocol}/{found.name}",
                found.value,
                found.measure,
                title,
                found.standard_error,
                known.values.get(size) if known and size else None,
                known.source if known else "",
            )
        )
    return figures


def accuracy(name: str, right: Sequence[bool], measure: str) -> Measured:
    """The share that is right, with the standard error over the items."""
    right_N = np.array(right, float)
    return Measured(name, float(right_N.mean()), _error(right_N), measure)


def perplexity(name: str, logprobs: Sequence[float], measure: str) -> Measured:
    """exp of the mean negative log-probability of an item, with the standard error over the items."""
    nats_N = -np.array(logprobs)
    value = math.exp(nats_N.mean())
    return Measured(name, value, value * _error(nats_N), measure)


def _error(values_N: np.ndarray) -> float:
    return float(values_N.std(ddof=1) / math.sqrt(len(values_N))) if len(values_N) > 1 else math.nan
