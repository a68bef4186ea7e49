"""Any task of EleutherAI's lm-evaluation-harness (`pip install 'jaxgpt[eval]'`), answered by a model of ours.

The harness asks three things of a model: how probable a continuation is, how probable a whole text is, and
what comes next. `Requests` answers them with the scorer and the engine; `harness_figures` has the harness run
its tasks on that, and takes its figures. `figure_names` tells beforehand which figures these will be.
"""

import importlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.figures import Figure
from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.inference.requests import Decoder, Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.texts import texts_of

MOST_NEW = 256  # the harness's own default of max_gen_toks
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
"""The settings of generation that are understood."""


@dataclass(frozen=True)
class Requests:
    """The harness's three requests, answered by a model."""

    scorer: Scorer
    decoder: Decoder

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """The log-probability of each continuation after its text, and whether greedy decoding writes it."""
        found = self.scorer.continuations([self.scorer.pair(*pair) for pair in pairs])
        return [(each.logprob, each.greedy) for each in found]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each text, read alone and in windows of the whole context."""
        return [-float(nats) for nats in self.scorer.documents(texts, full_last=True).nats_W]

    def generate(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What follows each text, up to one of its stop strings; its beginning is cut to make room.

        Raises ConfigError for settings that are not understood, and for an answer longer than the context.
        """
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, (_, settings) in enumerate(asked):
            groups.setdefault(_stops(settings), []).append(number)
        answers = [""] * len(asked)
        for stops, numbers in groups.items():
            requests = [self._request(*asked[number]) for number in numbers]
            texts = texts_of(self.decoder, requests, self.scorer.tokenizer, stops)
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = text
        return answers

    def _request(self, text: str, settings: Mapping[str, Any]) -> Request:
        if unknown := sorted(set(settings) - KNOWN):
            raise ConfigError(
                f"the task's settings {', '.join(unknown)}",
                why=f"of a task's generation_kwargs, {', '.join(sorted(KNOWN))} are understood",
                fix="choose a task without them",
            )
        new = int(settings.get("max_gen_toks", MOST_NEW))
        room = self.scorer.context - new
        if room < 1:
            raise ConfigError(
                f"max_gen_toks = {new}",
                why=f"the model's context is {self.scorer.context} tokens",
                fix="choose a task with shorter answers, or a model with a larger context",
            )
        sampled = settings.get("do_sample", float(settings.get("temperature", 0)) > 0)
        sampling = Sampling(
            temperature=float(settings.get("temperature", 1)) if sampled else 0,
            top_k=int(settings.get("top_k", 0)),
            top_p=float(settings.get("top_p", 1)),
        )
        ids = self.scorer.tokenizer.prompt_ids(text)[-room:]
        return Request(prompt=tuple(ids), max_new_tokens=new, sampling=sampling, slide=False)


def harness_figures(
    requests: Requests, tasks: Sequence[str], *, folder: Path | None = None, limit: int | None = None
) -> list[Figure]:
    """The figures of the harness's tasks, as it computes them; `folder` has tasks of one's own (YAML).

    Its standard errors are over the task's items. Raises ConfigError when the harness is not installed or
    has no such task.
    """
    return _run(requests, tasks, folder, limit)


def figure_names(tasks: Sequence[str], folder: Path | None = None) -> tuple[str, ...]:
    """The names of the figures that `harness_figures` will give, found by a rehearsal without a model.

    The harness runs the first item of each task, so the data that it needs are there afterwards. Raises what
    `harness_figures` raises.
    """
    return tuple(figure.name for figure in _run(_NoModel(), tasks, folder, limit=1))


class _NoModel:
    """Answers the harness's requests where it does not matter how."""

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        return [(-1.0, False)] * len(pairs)

    def rolling(self, texts: Sequence[str]) -> list[float]:
        return [-1.0] * len(texts)

    def generate(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        return [""] * len(asked)


def _run(
    requests: Requests | _NoModel, tasks: Sequence[str], folder: Path | None, limit: int | None
) -> list[Figure]:
    harness = _harness()
    manager = harness.tasks.TaskManager(include_path=None if folder is None else str(folder))
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise ConfigError(
            f"no lm-eval task {unknown[0]}",
            why="lm-evaluation-harness does not know it",
            fix="see `lm_eval ls tasks`, or put its YAML file into --data-dir",
        )
    # Its pools for bootstrapping fork this process, in which JAX has threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    found = harness.simple_evaluate(
        model=_model(requests), tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False
    )
    version = importlib.metadata.version("lm_eval")
    return [
        figure
        for task, results in found["results"].items()
        for figure in _figures(task, results, found.get("n-shot", {}).get(task, 0), version, limit)
    ]


def check_installed() -> None:
    """Raise ConfigError when lm-evaluation-harness is not installed."""
    _harness()


def _harness() -> Any:
    try:
        importlib.import_module("lm_eval.evaluator")
        importlib.import_module("lm_eval.tasks")
        return importlib.import_module("lm_eval")
    except ImportError as error:
        raise ConfigError(
            "lm-eval's tasks",
            why=f"lm-evaluation-harness cannot be imported: {error}",
            fix="pip install 'jaxgpt[eval]'",
        ) from error


def _model(requests: Requests | _NoModel) -> Any:
    """The model as the harness takes it. Its base class exists only where the harness is installed."""
    base: Any = importlib.import_module("lm_eval.api.model").LM

    class Model(base):  # type: ignore[misc]
        """Hands the arguments of the harness's requests on."""

        def loglikelihood(self, asked: Any) -> list[tuple[float, bool]]:
            return requests.loglikelihood([each.args for each in asked])

        def loglikelihood_rolling(self, asked: Any) -> list[float]:
            return requests.rolling([each.args[0] for each in asked])

        def generate_until(self, asked: Any) -> list[str]:
            return requests.generate([each.args for each in asked])

    return Model()


def _stops(settings: Mapping[str, Any]) -> tuple[str, ...]:
    until = settings.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


def _figures(
    task: str, results: Mapping[str, Any], shots: int, version: str, limit: int | None
) -> list[Figure]:
    """A figure for each of the harness's metrics: `acc,none` is called `acc`, since `none` is no filter."""
    protocol = f"lm-eval:{task}, lm-evaluation-harness {version}, {shots} shots"
    protocol += f"; only the first {limit:,}" if limit is not None else ""
    protocol += "; \u00b1 is its standard error over items"
    figures = []
    for key, value in results.items():
        metric, _, rule = key.partition(",")
        if not rule or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = results.get(f"{metric}_stderr,{rule}")
        name = metric if rule == "none" else f"{metric},{rule}"
        figures.append(
            Figure(
                f"lm-eval:{task}/{name}",
                float(value),
                f"{metric} of lm-eval",
                protocol,
                float(error) if isinstance(error, int | float) else None,
            )
        )
    return figures
