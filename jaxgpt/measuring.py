"""How good a model is, for people: `evaluate(MODEL, data=..., tasks=...)` gives figures."""

import functools
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.display import Progress, no_progress
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.data import is_text, open_text, open_validation
from jaxgpt.evaluation.figures import SLOTS, Figure, TextProtocol, text_figures
from jaxgpt.evaluation.harness import Requests, check_installed, harness_figures
from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.evaluation.tasks.sources import check_limit
from jaxgpt.evaluation.tasks.table import Asked, open_tasks, parted
from jaxgpt.evaluation.tasks.task import figures_of
from jaxgpt.evaluation.windows import check_stride
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.served import Served
from jaxgpt.language_model import LanguageModel, load
from jaxgpt.weights.adapted import loaded_already


def evaluate(
    model: str | Path | LanguageModel,
    *,
    adapter: str | Path | None = None,
    data: str | Path | None = None,
    tasks: Sequence[str] = (),
    data_dir: str | Path | None = None,
    limit: int | None = None,
    stride: int | None = None,
    protocol: TextProtocol = "tokens",
    batch: int = 2,
    int8: bool = False,
    show: Progress = no_progress,
) -> dict[str, Figure]:
    """The figures of a model by their names: how well it predicts a text, and how it does at tasks.

    `model` names one, or is one that `load` returned; `adapter` is for one that is named, and is explained at
    `load`. `tasks` has names such as `lambada:harness`, or
    `lm-eval:NAME` for a task of lm-evaluation-harness. The rest is explained at `data_figures`,
    `task_figures` and `lm_eval_figures`. Raises ConfigError when there is nothing to score on and for
    an adapter of a model that is loaded already, and what `load` and these three raise.
    """
    if data is None and not tasks:
        raise ConfigError(
            "nothing to score on",
            why="neither data nor tasks were given",
            fix='pass data=, such as a text, or tasks=["lambada"]',
        )
    if isinstance(model, LanguageModel) and adapter is not None:
        raise loaded_already(adapter)
    if data is not None:
        is_text(Path(data))  # what is missing is told of before a model is read
    ours, theirs = parted(tasks)
    folder = None if data_dir is None else Path(data_dir)
    asked = open_tasks(ours, folder, show)
    if theirs:
        check_installed()
    lm = model if isinstance(model, LanguageModel) else load(model, adapter=adapter)
    figures: list[Figure] = []
    if data is not None:
        figures += data_figures(lm, data, stride=stride, protocol=protocol, batch=batch, int8=int8, show=show)
    figures += task_figures(lm, asked, stride=stride, limit=limit, int8=int8, show=show)
    figures += lm_eval_figures(lm, theirs, folder=folder, limit=limit, int8=int8)
    return {figure.name: figure for figure in figures}


def data_figures(
    lm: LanguageModel,
    data: str | Path,
    *,
    stride: int | None = None,
    protocol: TextProtocol = "tokens",
    batch: int = 2,
    int8: bool = False,
    show: Progress = no_progress,
) -> list[Figure]:
    """How well a model predicts a text, a prepared folder, or a run directory that has one.

    Of a folder, the validation split is scored. Each window begins `stride` tokens after the one before it,
    or side by side without one; every token but the first is scored once. `protocol` is how losses are
    averaged: over `tokens`, or as the `book` does, over the means of batches of `batch` windows. `int8`
    measures the model with rounded weights too. Raises MissingError when there are no such data, and what
    the readers of texts and `text_figures` raise.
    """
    path = Path(data)
    scored = (
        open_text(path, lm.tokenizer)
        if is_text(path)
        else open_validation(path, lm.given_tokenizer, lm.text_config)
    )
    return text_figures(
        lm.served,
        scored,
        stride=stride,
        protocol=protocol,
        batch=batch,
        rounded=_served(lm, int8) if int8 else None,
        left_out=lm.config.vocab - lm.text_config.vocab,
        show=functools.partial(show, "scoring"),
    )


def task_figures(
    lm: LanguageModel,
    asked: Sequence[Asked],
    *,
    stride: int | None = None,
    limit: int | None = None,
    int8: bool = False,
    show: Progress = no_progress,
) -> list[Figure]:
    """How a model does at tasks that `open_tasks` opened, each by its protocol.

    `stride` replaces a protocol's own where it reads a long text in windows. `limit` scores only so many
    items, or windows of a long text. Raises ConfigError for a stride or limit that is impossible, DataError
    for a model without a tokenizer.
    """
    if not asked:
        return []
    check_stride(stride, lm.config.context)
    check_limit(limit)
    served = _served(lm, int8)
    figures = []
    for each in asked:
        told = functools.partial(show, f"{each.task.name}:{each.protocol}")
        scorer = Scorer(served, lm.tokenizer, stride, limit, told)
        figures += figures_of(each.task, each.protocol, scorer, each.documents, lm.config)
    return figures


def lm_eval_figures(
    lm: LanguageModel,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    int8: bool = False,
) -> list[Figure]:
    """How a model does at tasks of lm-evaluation-harness, as that computes it, of the first `limit` items.

    `folder` has tasks of one's own, as the harness's YAML files. Raises what `harness_figures` raises,
    DataError for a model without a tokenizer.
    """
    if not tasks:
        return []
    check_limit(limit)
    served = _served(lm, int8)
    requests = Requests(Scorer(served, lm.tokenizer), Engine(served, slots=SLOTS, ends=lm.ends))
    return harness_figures(requests, tasks, folder=folder, limit=limit)


def _served(lm: LanguageModel, int8: bool) -> Served:
    return Served.of(lm.text_config, lm.params, int8=True) if int8 else lm.served
