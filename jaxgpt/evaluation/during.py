"""What else a language model is measured on while it trains: tasks that models are compared by, a text."""

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxgpt import hosts
from jaxgpt.config import EvaluationConfig, GPTConfig, LanguageConfig
from jaxgpt.config.measured import TEXT
from jaxgpt.display import Progress
from jaxgpt.errors import ConfigError, MissingError
from jaxgpt.evaluation.data import is_text, open_text, open_validation
from jaxgpt.evaluation.figures import SLOTS, Figure, text_figures
from jaxgpt.evaluation.harness import Requests, figure_names, harness_figures
from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.evaluation.tasks.sources import check_limit, find_files
from jaxgpt.evaluation.tasks.table import LM_EVAL, chosen, open_tasks, parted
from jaxgpt.evaluation.tasks.task import figures_of
from jaxgpt.evaluation.validation import Between
from jaxgpt.evaluation.windows import check_stride
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.served import Served
from jaxgpt.model.gpt import Params
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.training.loop import Event
from jaxgpt.training.state import TrainState


class Measurement(NamedTuple):
    """Something that a model is measured on. Its documents are in memory."""

    figures: tuple[str, ...]
    """The names of what is measured, as the log has them."""
    of: Callable[[Served, Between], list[Figure]]
    """The figures of a model. The function is called between batches."""


def opened(recipe: LanguageConfig, tokenizer: Tokenizer, progress: Progress) -> list[Measurement]:
    """What a recipe asks for, opened and checked before anything is compiled.

    Raises MissingError where a task's file or the text is not there, DataError where it is damaged, and
    ConfigError for tasks, strides and limits that are impossible, for lm-eval's tasks in several processes
    or without the harness, and where `best_metric` is none of the figures.
    """
    asked, config = recipe.evaluation, recipe.model
    check_stride(asked.stride, config.context)
    check_limit(asked.limit)
    ours, theirs = parted(asked.tasks)
    if theirs and jax.process_count() > 1:  # its engine runs on one host
        name = f"{LM_EVAL}{theirs[0]}"
        raise ConfigError(
            f"evaluation.tasks = {name}",
            why="one process measures tasks of lm-evaluation-harness, and this training has several",
            fix=f"leave it out, and measure a checkpoint: jaxgpt evaluate RUN@STEP --tasks {name}",
        )
    try:
        found = _tasks(asked, ours, config, tokenizer, progress)
        if theirs:
            found.append(_harness(asked, theirs, tokenizer))
        if asked.data is not None:
            found.append(_text(asked, Path(asked.data), config, tokenizer))
    except MissingError as error:  # worded for the flags of `jaxgpt evaluate`
        raise MissingError.worded(re.sub(r"--data\b", "--evaluation.data", str(error))) from error
    names = [name for each in found for name in each.figures]
    if ":" in recipe.best_metric and recipe.best_metric not in names:
        near = difflib.get_close_matches(recipe.best_metric, names, n=1)
        raise ConfigError(
            f"best_metric = {recipe.best_metric}",
            why=f"what is measured is {', '.join(names)}",
            fix=f"did you mean {near[0]}?" if near else "name one of these",
        )
    return found


def events_of(
    recipe: LanguageConfig,
    measurements: list[Measurement],
    show: Progress,
    plain: Callable[[Params], Params] = lambda params: params,
) -> list[Event]:
    """An event for each measurement, of the model as it stands, without dropout.

    `plain` makes of a state's parameters those of the plain model, where they are others. `show` is told how
    far it is, and may raise an exception to stop early.
    """
    config = dataclasses.replace(recipe.model, dropout=0.0)

    def event(measurement: Measurement) -> Event:
        name, *also = measurement.figures
        between = functools.partial(show, name.partition("/")[0])

        def run(state: TrainState) -> dict[str, Any]:
            figures = measurement.of(Served.of(config, plain(state.params)), between)
            return {figure.name: figure.value for figure in figures}

        return Event(name, recipe.measured_every, run, also=tuple(also))

    return [event(measurement) for measurement in measurements]


def _tasks(
    asked: EvaluationConfig, names: list[str], config: GPTConfig, tokenizer: Tokenizer, progress: Progress
) -> list[Measurement]:
    folder = None if asked.data_dir is None else Path(asked.data_dir)
    sources = [task.source for task, _ in chosen(names)]
    hosts.decide(lambda: find_files(sources, folder, progress))  # one process downloads what is missing

    def measure(
        served: Served, between: Between, *, task: Any, protocol: str, documents: Any
    ) -> list[Figure]:
        scorer = Scorer(served, tokenizer, asked.stride, asked.limit, between)
        return figures_of(task, protocol, scorer, documents, config)

    return [
        Measurement(
            tuple(
                f"{each.task.name}:{each.protocol}/{name}"
                for name in each.task.protocols[each.protocol].figures
            ),
            functools.partial(measure, task=each.task, protocol=each.protocol, documents=each.documents),
        )
        for each in open_tasks(names, folder, progress)
    ]


def _harness(asked: EvaluationConfig, names: list[str], tokenizer: Tokenizer) -> Measurement:
    """Tasks of lm-evaluation-harness, as `jaxgpt evaluate --tasks lm-eval:NAME` measures them."""
    folder = None if asked.data_dir is None else Path(asked.data_dir)

    def measure(served: Served, between: Between) -> list[Figure]:
        scorer = Scorer(served, tokenizer, show=between)
        requests = Requests(scorer, Engine(served, slots=SLOTS, ends=tokenizer.ends))
        return harness_figures(requests, names, folder=folder, limit=asked.limit)

    return Measurement(figure_names(names, folder), measure)


def _text(asked: EvaluationConfig, path: Path, config: GPTConfig, tokenizer: Tokenizer) -> Measurement:
    """Loss, perplexity and bits per byte and word of a text, as `jaxgpt evaluate --data` measures them."""
    text = open_text(path, tokenizer) if is_text(path) else open_validation(path, tokenizer, config)
    prefix = f"{TEXT}:{asked.protocol}/"

    def measure(served: Served, between: Between) -> list[Figure]:
        figures = text_figures(served, text, stride=asked.stride, protocol=asked.protocol, show=between)
        return [figure._replace(name=prefix + figure.name.removeprefix("val_")) for figure in figures]

    more = ("bits_per_byte", "bits_per_word") if asked.protocol == "tokens" else ()
    return Measurement(tuple(f"{prefix}{name}" for name in ("loss", "perplexity", *more)), measure)
