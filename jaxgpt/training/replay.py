"""A step of a run is trained again: its batch, the loss of each prediction, and the gradients, to the bit.

The batch of a step is a pure function of the data, the seed and the step. So the step needs nothing but the
parameters before it. These come from the nearest checkpoint before the step, and the steps between are
trained again in memory. Without such a checkpoint, training begins at the start. Nothing is written.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgpt.config import EvaluationConfig, LanguageConfig, RunConfig, read_config, with_settings
from jaxgpt.config.recipe import NO_METRIC
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.log import DIVERGED, METRICS_FILE, read_rows
from jaxgpt.parallel import path_of
from jaxgpt.text.shown import Shown
from jaxgpt.training.divergence import why_no_update
from jaxgpt.training.resume import find_run
from jaxgpt.training.run import Tell, open_data
from jaxgpt.training.run_directory import SETTINGS_FILE
from jaxgpt.training.setup import Setup, set_up
from jaxgpt.training.state import (
    StepPrograms,
    TrainState,
    compile_step,
    gradients,
    pass_by,
    prediction_losses,
)
from jaxgpt.training.stop import Stop
from jaxgpt.training.task import Task
from jaxgpt.weights.checkpoint import CHECKPOINTS, finished_steps

IN_LOG = ("loss", "grad_norm", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What was found of a step."""

    step: int
    recipe: RunConfig
    """The settings that were in force at that step."""
    begun_at: int
    """The step of the checkpoint from which it was reached, or 0 for the start."""
    skipped: bool
    """Whether the run passed this step by without an update (`skip_steps`)."""
    diverged: str | None
    """Why the step made no update by itself; None where it made one, or was passed by."""
    metrics: dict[str, float]
    """The loss, the norm of the gradient and the learning rate of the step."""
    logged: dict[str, float]
    """The same as the run's log has them; empty where it has no row of this step."""
    equal: list[int]
    """The steps that were trained again and whose rows of the log came out to the bit."""
    different: list[int]
    """The steps that were trained again and came out otherwise than the log has them."""
    norms: dict[str, np.ndarray]
    """The norm of the gradient of each parameter that trains: one number, or one for each layer [N]."""
    first_layer: int
    """The number of the first of these layers."""
    texts: list[Shown]
    """The texts of the batch."""


def replay(folder: Path, number: int, task_for: Callable[[RunConfig], Task], tell: Tell) -> Replayed:
    """Train step `number` of the run in a directory again. Steps are counted from 1.

    `task_for` makes the task of the settings that were in force at a step. Raises ConfigError for a step that
    the run does not have and for data that is no longer what it was; and what `find_run` raises.
    """
    last = read_config(folder).steps
    if not 1 <= number <= last:
        raise ConfigError(
            f"--step {number}", why=f"the run has the steps 1 to {last}", fix="name one of these"
        )
    begun_at = max((step for step in finished_steps(folder / CHECKPOINTS) if step < number), default=0)
    tell(f"beginning at {f'checkpoint {begun_at}' if begun_at else 'the start of the run'}")
    if between := number - 1 - begun_at:
        tell(f"training {between:,} steps again to reach step {number:,}; nothing is written")
    rows = read_rows(folder / METRICS_FILE)
    logged = {row["step"]: row for row in rows if "loss" in row}
    left_out = {row["step"]: row[DIVERGED] for row in rows if DIVERGED in row}
    walk = _Walk(folder, task_for, tell, begun_at)
    same: dict[int, bool] = {}
    for step in range(begun_at + 1, number + 1):
        walk.settle(step)
        if step == number:
            norms, texts = walk.gradient_norms(step), walk.texts(step)
        metrics = walk.train(step)
        diverged = why_no_update(metrics)
        if step in left_out:
            same[step] = diverged == left_out[step]
        elif step in logged and metrics:
            same[step] = not diverged and all(metrics[name] == logged[step][name] for name in IN_LOG)
    return Replayed(
        step=number,
        recipe=walk.recipe,
        begun_at=begun_at,
        skipped=walk.recipe.skips(number),
        diverged=diverged,
        metrics=metrics,
        logged={name: logged[number][name] for name in IN_LOG} if number in logged else {},
        equal=[step for step, equal in same.items() if equal],
        different=[step for step, equal in same.items() if not equal],
        norms=norms,
        first_layer=walk.first_layer,
        texts=texts,
    )


class _Walk:
    """A run's state that goes on step by step, with the settings that were in force at each step."""

    def __init__(
        self, folder: Path, task_for: Callable[[RunConfig], Task], tell: Tell, begun_at: int
    ) -> None:
        self._folder, self._task_for, self._tell, self._at = folder, task_for, tell, begun_at
        self._found = find_run(folder)
        self._settings: RunConfig | None = None
        self._state: TrainState | None = None

    def settle(self, step: int) -> None:
        """Make ready for a step: with its settings, if they are others than those of the step before."""
        settings = settings_at(self._folder, step)
        if settings == self._settings:
            return
        self._settings = settings
        self.recipe = settings = _without_measurements(
            with_settings(settings, {"out_dir": str(self._folder)})
        )
        self._task = self._task_for(settings)
        data = open_data(self._task, settings, Stop(), self._found)
        self._setup: Setup = set_up(settings, self._task, data)
        if self._state is None:
            at = self._at
            self._state = (
                self._setup.restored(self._folder, at) if at else self._setup.initial(settings, self._tell)
            )
        self._state = self._setup.fitted(self._state)
        self._programs = StepPrograms(compile_step(self._setup.step, self._state, self._task.mesh))

    @property
    def first_layer(self) -> int:
        """The first layer of the blocks that trains."""
        return self._task.chosen.layers[0] if self._task.chosen.layers else 0

    def train(self, step: int) -> dict[str, float]:
        """Train a step, or pass it by as the run did. Returns what it measured."""
        assert self._state is not None, "settled"
        if self.recipe.skips(step):
            self._state = pass_by(self._state)
            return {}
        self._state, metrics = self._programs(self._state, self._setup.batch_at(step - 1))
        return {name: float(value) for name, value in metrics.items()}

    def gradient_norms(self, step: int) -> dict[str, np.ndarray]:
        """The norms of the gradients of a step, by the paths of the parameters."""
        of = functools.partial(gradients, loss=self._task.loss, accumulate=self.recipe.accumulate)

        def norms(state: TrainState, batch: Any) -> dict[str, Array]:
            leaves = jax.tree_util.tree_leaves_with_path(of(state, batch)[0])
            return {path_of(place): _norm(path_of(place), leaf) for place, leaf in leaves}

        found: Mapping[str, Array] = jax.jit(norms)(self._state, self._setup.batch_at(step - 1))
        return {path: np.asarray(norm) for path, norm in found.items()}

    def texts(self, step: int) -> list[Shown]:
        """The texts of a step's batch, or none where the task has no such thing."""
        details = self._task.details
        if details is None:
            return []
        of = functools.partial(prediction_losses, losses=details.losses, accumulate=self.recipe.accumulate)
        batch = self._setup.batch_at(step - 1)
        losses = np.asarray(jax.jit(of)(self._state, batch))
        return details.texts(jax.tree.map(np.asarray, batch), losses)


def settings_at(folder: Path, number: int) -> RunConfig:
    """The settings with which a run has trained a step, or would train it now.

    config.json has the latest ones, and each line of settings.jsonl says what was changed after which step.
    Raises DataError where that file is damaged.
    """
    settings, path = read_config(folder), folder / SETTINGS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in map(json.loads, reversed(lines)):
            if line["step"] < number:
                break
            old = {name: before for name, (before, _) in line["changed"].items()}
            settings = with_settings(settings, old)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as error:
        why, fix = f"{type(error).__name__}: {error}", "put back the file that the run wrote"
        raise DataError("the history of settings is damaged", path=path, why=why, fix=fix) from error
    return settings


def _without_measurements(settings: RunConfig) -> RunConfig:
    """The settings of a run that measures nothing else, since a step needs no files of tasks."""
    if not isinstance(settings, LanguageConfig):
        return settings
    return dataclasses.replace(settings, evaluation=EvaluationConfig(), best_metric=NO_METRIC, patience=0)


def _norm(path: str, gradient: Array) -> Array:
    """The norm of a gradient; of the blocks, whose first axis is the layer, that of each layer."""
    axes = tuple(range(1, gradient.ndim)) if path.startswith("h/") else None
    return jnp.sqrt(jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=axes))
