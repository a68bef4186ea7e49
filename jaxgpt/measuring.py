"""How good a model is, for people: `evaluate(MODEL, data=...)` gives figures, each with its protocol."""

import functools
from pathlib import Path

from jaxgpt.display import Progress, no_progress
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.data import is_text, open_text, open_validation
from jaxgpt.evaluation.figures import Figure, TextProtocol, text_figures
from jaxgpt.inference.served import Served
from jaxgpt.language_model import LanguageModel, load


def evaluate(
    model: str | Path | LanguageModel,
    *,
    data: str | Path | None = None,
    stride: int | None = None,
    protocol: TextProtocol = "tokens",
    batch: int = 2,
    int8: bool = False,
    show: Progress = no_progress,
) -> dict[str, Figure]:
    """The figures of a model by their names: how well it predicts a text.

    `model` names one, or is one that `load` returned. The rest is explained at `data_figures`. Raises
    ConfigError when there is nothing to score on, and what `load` and `data_figures` raise.
    """
    if data is None:
        raise ConfigError("nothing to score on", why="no data were given", fix="pass data=, such as a text")
    is_text(Path(data))  # what is missing is told of before a model is read
    lm = model if isinstance(model, LanguageModel) else load(model)
    figures = data_figures(lm, data, stride=stride, protocol=protocol, batch=batch, int8=int8, show=show)
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
        rounded=Served.of(lm.text_config, lm.params, int8=True) if int8 else None,
        left_out=lm.config.vocab - lm.text_config.vocab,
        show=functools.partial(show, "scoring"),
    )
