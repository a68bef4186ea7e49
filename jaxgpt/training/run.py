"""One training run of any task, from locking its directory to saving its last state.

It prints nothing and handles no signals. It passes messages to `tell` and measurements to the sinks, and it
ends early when `stop` asks for that.
"""

import contextlib
import functools
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from jaxgpt import hosts
from jaxgpt.config import RunConfig, flat
from jaxgpt.display import waiting
from jaxgpt.errors import ConfigError
from jaxgpt.parallel import check_batch, place_rows
from jaxgpt.training.devices import device_facts
from jaxgpt.training.initial import initial_state
from jaxgpt.training.loop import Loop, stopped_error, train
from jaxgpt.training.metrics import (
    METRICS_FILE,
    MetricsLog,
    Sink,
    TensorBoardSink,
    check_tensorboard,
    read_rows,
)
from jaxgpt.training.optim import adamw, learning_rate
from jaxgpt.training.resume import Found, accepted, find_run
from jaxgpt.training.run_directory import DATA, locked, restore_state, save_state, write_settings
from jaxgpt.training.starts import recorded
from jaxgpt.training.state import StepPrograms, abstract_state, compile_step, train_step
from jaxgpt.training.stop import Stop, StopRequested
from jaxgpt.training.task import Task, TrainingData
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints

Tell = Callable[[str], None]
# These may differ between hosts, because what they point to is compared instead.
PATHS = ("out_dir", "init_from", "data.path")


def run(
    recipe: RunConfig,
    task: Task,
    *,
    stop: Stop,
    tell: Tell,
    sinks: Sequence[Sink] = (),
    named: Collection[str] = (),
) -> None:
    """Train the task in the recipe's `out_dir`. If it holds a run already, continue where that run stopped.

    `sinks` receive every measurement, as the run's own log does. `named` are the settings that were asked for
    by name, since a resume may change some settings only by name (`training.resume`). Nothing is written
    before all settings are accepted.

    Raises ConfigError where the directory holds another run, MissingError where its checkpoints are missing,
    BusyError while another process trains there, DivergedError when a loss is not finite, and StorageError
    when something cannot be written. Raises StoppedError after saving when `stop` asked the run to end.
    """
    folder = Path(recipe.out_dir)
    check_batch(recipe.batch, task.mesh)
    if recipe.tensorboard:
        check_tensorboard()
    hosts.check_same("their settings", {n: value for n, value in flat(recipe).items() if n not in PATHS})
    with locked(folder):
        found = hosts.decide(lambda: find_run(folder))
        if found:
            recipe = accepted(found, recipe, named, folder)
        data = _open_data(task, recipe, stop, found)
        if found and found.step == recipe.steps and found.measured >= {event.name for event in data.events}:
            tell(f"{folder} has done its {found.step} steps; ask for more with --steps")
        else:
            _train(recipe, task, data, found, stop=stop, tell=tell, sinks=sinks)
        if hosts.is_first():
            task.report(folder)


def _open_data(task: Task, recipe: RunConfig, stop: Stop, found: Found | None) -> TrainingData:
    """The task's data. Raises ConfigError where the run that was found trained on other data."""
    folder = Path(recipe.out_dir)
    own = folder / DATA
    was_there = own.exists()
    with _before_the_first_step(stop):
        data = task.open_data(own, stop)
    hosts.check_same("the data", {"fingerprint": data.fingerprint})
    if found and found.fingerprint != data.fingerprint:
        if not was_there and hosts.is_first():  # a refusal leaves the directory as it was
            shutil.rmtree(own, ignore_errors=True)
        before, now = found.recipe.data.path, recipe.data.path
        what = f"{before} then, {now} now" if before != now else f"what {now} holds has changed since"
        raise ConfigError(
            "another run is here",
            path=folder,
            why=f"it has trained on other tokens (data.path: {what})",
            fix="give the run the data that it began with, or name another --out-dir",
        )
    return data


@contextlib.contextmanager
def _before_the_first_step(stop: Stop) -> Iterator[None]:
    """Where the run is asked to end in this block, it raises StoppedError."""
    try:
        yield
    except StopRequested:
        raise stopped_error(stop, "before the first step") from None


def _train(
    recipe: RunConfig,
    task: Task,
    data: TrainingData,
    found: Found | None,
    *,
    stop: Stop,
    tell: Tell,
    sinks: Sequence[Sink],
) -> None:
    folder, mesh, start, since = Path(recipe.out_dir), task.mesh, found.step if found else 0, perf_counter()
    schedule = learning_rate(recipe.optim, recipe.steps)
    optimizer = adamw(recipe.optim, schedule)

    def batch_at(step: int) -> Any:
        return place_rows(functools.partial(data.rows, step), recipe.sequences, mesh)

    if found:
        tell(f"going on from step {start} of {folder}")
        with waiting(f"reading checkpoint {start}", tell):
            target = abstract_state(task.model, optimizer, mesh, task.chosen)
            state = restore_state(folder, start, target)
    else:
        state = initial_state(recipe, task, optimizer, tell)
        with _before_the_first_step(stop):
            data.begin(state)
    step = functools.partial(
        train_step, loss=task.loss, optimizer=optimizer, schedule=schedule, accumulate=recipe.accumulate
    )
    programs = StepPrograms(compile_step(step, state, mesh))
    with waiting("compiling the training step", tell):
        programs.of(state, batch_at(start))
    write_settings(folder, recipe, task.tokenizer, found, tell, task.files)  # until here nothing was changed
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            stack.enter_context(recorded(folder, start, since))
        checkpoints = stack.enter_context(Checkpoints(folder / CHECKPOINTS, keep=recipe.keep_checkpoints))
        own = [stack.enter_context(contextlib.closing(sink)) for sink in _sinks(recipe, folder, start)]
        if own:
            facts = device_facts(mesh, recipe.model, read_rows(folder / METRICS_FILE))
            if facts := facts | (data.facts() if found is None else {}):
                own[0].write(start, facts)
        loop = Loop(
            step=programs,
            batch_at=batch_at,
            steps=recipe.steps,
            tokens_per_step=task.tokens_per_step,
            log_every=recipe.log_every,
            sinks=[*own, *sinks] if hosts.is_first() else [],
            stop=stop,
            save_every=recipe.checkpoint_every,
            events=data.events,
            save=functools.partial(save_state, checkpoints, data.fingerprint),
        )
        train(state, loop, start=start, measured=lambda _, name: found is not None and name in found.measured)
        with waiting("saving", tell):
            checkpoints.wait()


def _sinks(recipe: RunConfig, folder: Path, start: int) -> list[Sink]:
    """The run's own sinks, its log first. Only the first process has any."""
    if not hosts.is_first():
        return []
    sinks: list[Sink] = [MetricsLog(folder / METRICS_FILE)]
    if recipe.tensorboard:
        sinks.append(TensorBoardSink(folder / "tensorboard", resumed_at=start))
    return sinks
