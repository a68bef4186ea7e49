"""Training from Python: `train(recipe)` begins or resumes a run, and returns it when it is finished."""

import contextlib
import contextvars
import functools
import signal
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt import hosts
from jaxgpt.config import (
    ClassifyConfig,
    InstructConfig,
    PreferenceConfig,
    RunConfig,
    TrainConfig,
    load_recipe,
    stated_in,
    with_settings,
)
from jaxgpt.display import NotebookDisplay, Progress, TrainingDisplay, in_notebook, no_progress
from jaxgpt.finetuning.classify import classification
from jaxgpt.finetuning.instruct import instruction_tuning
from jaxgpt.finetuning.preference import preference_tuning
from jaxgpt.language_model import LanguageModel, load
from jaxgpt.log import METRICS_FILE, read_rows
from jaxgpt.pretraining import Tell, pretraining
from jaxgpt.training.resume import resumed_from
from jaxgpt.training.run import run
from jaxgpt.training.stop import Stop, stop_on_signal
from jaxgpt.training.task import Task


@dataclass(frozen=True)
class Run:
    """A training run: what it measured, and the model that it trained."""

    directory: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of its log. Each has `step` and what was measured then. Losses are in nats a token."""
        return read_rows(self.directory / METRICS_FILE)

    @functools.cached_property
    def model(self) -> LanguageModel:
        """The model of its newest checkpoint, with averaged weights where the run keeps an average.

        It is read when it is first asked for.
        """
        return load(self.directory)


def train(
    recipe: RunConfig | str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    handle_signals: bool = False,
    progress: bool = True,
    **more: Any,
) -> Run:
    """Train a model as a recipe says, or continue the run in its `out_dir` where it stopped.

    `recipe` is a RunConfig, a preset name such as `nano`, or a TOML file. `settings` changes some of it by
    dotted names, such as `{"model.layers": 6}`. Keywords do the same, such as `steps=200`. Some settings of a
    resumed run may change only when they are named here (`training.resume`).

    Where `init_from` names a model, its weights decide the architecture, and what a preset or a RunConfig
    says of it is replaced. What is named here or stated in a TOML file must not differ from it.

    Ctrl-C, or a notebook's stop button, saves the step that was reached and raises StoppedError. The same
    call again continues from there. With `handle_signals`, in the main thread, SIGTERM, SIGHUP and
    SIGUSR1 do the same. Otherwise no signal handler is installed.

    `progress` shows how training goes, in a terminal or in a notebook. Without it nothing is printed. Raises
    what `training.run.run` raises.
    """
    changed = {**(settings or {}), **more}
    if isinstance(recipe, RunConfig):
        recipe, in_file = with_settings(recipe, changed), frozenset[str]()
    else:
        recipe, in_file = load_recipe(str(recipe), changed), stated_in(str(recipe))
    if recipe.distributed:
        hosts.initialize()
    in_main_thread = threading.current_thread() is threading.main_thread()
    since = functools.partial(resumed_from, Path(recipe.out_dir))
    with hosts.one_error_ends_all(since), contextlib.ExitStack() as stack:
        work = functools.partial(_train, recipe, frozenset(changed), in_file, progress=progress)
        if not in_main_thread:  # Ctrl-C never arrives here
            work(Stop())
        elif handle_signals:
            work(stack.enter_context(stop_on_signal()))
        else:
            _interruptible(work)
    return Run(Path(recipe.out_dir))


def _train(
    recipe: RunConfig, named: frozenset[str], in_file: frozenset[str], stop: Stop, *, progress: bool
) -> None:
    stated = named | in_file
    if not progress or not hosts.is_first():
        config, task = task_for(recipe, tell=_say_nothing, stated=stated)
        run(config, task, stop=stop, tell=_say_nothing, named=named)
        return
    with contextlib.closing(NotebookDisplay() if in_notebook() else TrainingDisplay()) as shown:
        config, task = task_for(recipe, tell=shown.tell, stated=stated, progress=shown.progress)
        shown.steps = config.steps
        run(config, task, stop=stop, tell=shown.tell, sinks=[shown], named=named)


def task_for(
    recipe: RunConfig, *, tell: Tell, stated: Collection[str] = (), progress: Progress = no_progress
) -> tuple[RunConfig, Task]:
    """The task that a recipe describes, and the recipe with what its data and its model decide.

    Raises what the tasks raise: `pretraining.pretraining`, `finetuning.classify.classification`,
    `finetuning.instruct.instruction_tuning` and `finetuning.preference.preference_tuning`.
    """
    if isinstance(recipe, ClassifyConfig):
        return classification(recipe, tell=tell, stated=stated, progress=progress)
    if isinstance(recipe, InstructConfig):
        return instruction_tuning(recipe, tell=tell, stated=stated, progress=progress)
    if isinstance(recipe, PreferenceConfig):
        return preference_tuning(recipe, tell=tell, stated=stated, progress=progress)
    assert isinstance(recipe, TrainConfig), "these are all kinds of recipes"
    return pretraining(recipe, tell=tell, stated=stated, progress=progress)


def _say_nothing(text: str) -> None:
    """Take the place of a display where nothing is shown."""


def _interruptible(work: Callable[[Stop], None]) -> None:
    """Do the work in a thread of its own. Ctrl-C, which comes to the main thread only, asks it to stop.

    In the work itself, KeyboardInterrupt could be raised after a step has consumed the old state, but before
    its result has a name. There would be no state left to save. A second Ctrl-C does not wait for the work.
    """
    stop, pool = Stop(), ThreadPoolExecutor(1, "jaxgpt.train")
    try:
        ended = pool.submit(contextvars.copy_context().run, work, stop)
        with contextlib.suppress(KeyboardInterrupt):
            return ended.result()
        stop.ask(signal.SIGINT)
        ended.result()
    finally:
        pool.shutdown(wait=False)
