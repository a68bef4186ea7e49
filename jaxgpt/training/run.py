"""One training run of any task, from locking its directory to saving its last state.

It prints nothing and handles no signals. It passes messages to `tell` and measurements to the sinks, and it
ends early when `stop` asks for that.
"""

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from time import perf_counter

import jax

from jaxgpt import hosts
from jaxgpt.config import RunConfig, flat
from jaxgpt.display import waiting
from jaxgpt.errors import ConfigError, DivergedError
from jaxgpt.log import DIVERGED, METRICS_FILE, TRAINED, Best, read_rows
from jaxgpt.parallel import check_batch
from jaxgpt.training.devices import device_facts
from jaxgpt.training.divergence import Divergences, Recorder, passed_over
from jaxgpt.training.loop import Loop, stopped_error, train
from jaxgpt.training.metrics import MetricsLog, Sink, TensorBoardSink, check_tensorboard
from jaxgpt.training.resume import Found, accepted, find_run, recipe_in
from jaxgpt.training.run_directory import DATA, locked, save_state, write_settings
from jaxgpt.training.setup import Setup, set_up
from jaxgpt.training.starts import changed_environment, read_starts, recorded
from jaxgpt.training.state import StepPrograms, TrainState, compile_step, pass_by
from jaxgpt.training.stop import Stop, StopRequested
from jaxgpt.training.task import Task, TrainingData
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints, latest_step, set_aside, tidy
from jaxgpt.weights.damage import DamagedError, named_here, paths_of

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

    It goes on from the newest checkpoint that is sound. A damaged one is set aside, and `tell` hears of it.
    After a divergence it goes back to that checkpoint by itself where `recipe.on_divergence` is `rewind`.

    `sinks` receive every measurement, as the run's own log does. `named` are the settings that were asked for
    by name, since a resume may change some settings only by name (`training.resume`). Nothing is written
    before all settings are accepted.

    Raises ConfigError where the directory holds another run, MissingError where its checkpoints are missing,
    DamagedError where all of them are damaged, BusyError while another process trains there, DivergedError
    when a loss or a parameter is not finite, and StorageError when something cannot be written. Raises
    StoppedError after saving when `stop` asked the run to end.
    """
    folder = Path(recipe.out_dir)
    check_batch(recipe.batch, task.mesh)
    if recipe.tensorboard:
        check_tensorboard()
    hosts.check_same("their settings", {n: value for n, value in flat(recipe).items() if n not in PATHS})
    with locked(folder):
        damaged: list[DamagedError] = []
        after = ""
        while True:
            try:
                return _go_on(
                    recipe, task, damaged, stop=stop, tell=tell, sinks=sinks, named=named, after=after
                )
            except DamagedError as error:
                _pass_over(error, damaged, folder / CHECKPOINTS, tell)
            except DivergedError as error:
                recipe, after = _gone_back(error, recipe, folder, tell), str(error).partition(";")[0]
                named = {*named, "skip_steps"}


def _go_on(
    recipe: RunConfig,
    task: Task,
    damaged: Sequence[DamagedError],
    *,
    stop: Stop,
    tell: Tell,
    sinks: Sequence[Sink],
    named: Collection[str],
    after: str,
) -> None:
    """Begin the run, or continue it from its newest checkpoint that is not known to be damaged.

    `after` is the divergence after which it has gone back there.
    """
    folder = Path(recipe.out_dir)
    with named_here(folder / CHECKPOINTS):
        found = hosts.decide(lambda: find_run(folder, paths_of(damaged)))
    if found:
        recipe = accepted(found, recipe, named, folder)
    data = open_data(task, recipe, stop, found)
    best = hosts.decide(lambda: _best_so_far(folder, recipe, found))
    step, names = found.step if found else 0, {event.name for event in data.events}
    if recipe.patience and not any(event.measures(recipe.best_metric) for event in data.events):
        why, fix = "there is nothing to evaluate on", "leave out --patience, or raise --data.val-fraction"
        raise ConfigError(f"patience = {recipe.patience}", why=why, fix=fix)
    measured = found is not None and found.measured >= names
    if found and found.step == recipe.steps and measured:
        hosts.decide(lambda: tidy(folder / CHECKPOINTS))  # it may have been killed after its last save
        tell(f"{folder} has done its {found.step} steps; ask for more with --steps")
    elif not (found and best.exhausted and measured):
        step = _train(
            recipe, task, data, found, best, damaged, stop=stop, tell=tell, sinks=sinks, after=after
        )
    if step < recipe.steps:
        tell(_ended_early(step, best))
    if hosts.is_first():
        task.report(folder)


def _pass_over(error: DamagedError, damaged: list[DamagedError], saved: Path, tell: Tell) -> None:
    """Count the checkpoint of an error among the damaged ones.

    Several processes do so together: each checkpoint of the run is read by all of them, and what one finds is
    raised on all. Raises the error where it is not of this run, or where no older checkpoint is left.
    """
    if error.checkpoint is None or error.checkpoint.parent != saved.absolute():
        raise error
    paths = {*paths_of(damaged), error.checkpoint}
    left = hosts.decide(lambda: latest_step(saved, paths))
    if left is None:
        raise damaged[0] if damaged else error
    damaged.append(error)
    tell(f"warning: {str(error).rpartition(';')[0]}; trying the one before it, of step {left}")


def _gone_back(error: DivergedError, recipe: RunConfig, folder: Path, tell: Tell) -> RunConfig:
    """The recipe with which the run goes back to its newest checkpoint and passes over what diverged.

    Raises the error where the recipe does not ask for that, or the run has gone back often enough.
    """

    def decided() -> tuple[int, RunConfig]:
        if recipe.on_divergence != "rewind" or read_starts(folder).rewound >= recipe.divergence_limit:
            raise error
        since = latest_step(folder / CHECKPOINTS) or 0
        begun = recipe_in(folder) or recipe
        return since, dataclasses.replace(recipe, skip_steps=passed_over(begun, error, since).skip_steps)

    since, changed = hosts.decide(decided)
    what, back = str(error).partition(";")[0], f"step {since}" if since else "the start"
    tell(f"warning: {what}; going back to {back}, and passing over the steps {changed.skip_steps}")
    return changed


def open_data(task: Task, recipe: RunConfig, stop: Stop, found: Found | None) -> TrainingData:
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


def _best_so_far(folder: Path, recipe: RunConfig, found: Found | None) -> Best:
    """The best of what the run has measured up to the step where it continues."""
    step = found.step if found else 0
    rows = [row for row in read_rows(folder / METRICS_FILE) if row["step"] <= step]
    return Best.of(rows, recipe.best_metric, recipe.patience)


def _ended_early(step: int, best: Best) -> str:
    return (
        f"ended early, after {step:,} steps: the best is {best}, and {best.since} evaluations since then "
        "were no better; to go on, give a larger --patience, or 0 for no early end"
    )


def _train(
    recipe: RunConfig,
    task: Task,
    data: TrainingData,
    found: Found | None,
    best: Best,
    damaged: Sequence[DamagedError],
    *,
    stop: Stop,
    tell: Tell,
    sinks: Sequence[Sink],
    after: str,
) -> int:
    """Train. Returns the number of steps that are done at the end."""
    folder, mesh, start, since = Path(recipe.out_dir), task.mesh, found.step if found else 0, perf_counter()
    stop.nothing_to_save = True
    setup = set_up(recipe, task, data)
    state = _first_state(setup, data, found, damaged, stop, tell)
    moving, fixed = (sum(leaf.size for leaf in jax.tree.leaves(t)) for t in (state.trainable, state.frozen))
    if base := setup.base_of(state):
        tell(f"{moving:,} parameters train, and {fixed:,} stay as they are in {base.name}")
    programs = StepPrograms(compile_step(setup.step, state, mesh))
    with waiting("compiling the training step", tell):
        programs.of(state, setup.batch_at(start))
    stop.nothing_to_save = False
    write_settings(folder, recipe, task.tokenizer, found, tell, task.files)  # until here nothing was changed
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            stack.enter_context(recorded(folder, start, since, after))
        checkpoints = stack.enter_context(
            Checkpoints(folder / CHECKPOINTS, keep=recipe.keep_checkpoints, best=lambda: best.step)
        )
        own = [stack.enter_context(contextlib.closing(sink)) for sink in _sinks(recipe, folder, start)]
        if own:
            facts = device_facts(mesh, recipe.model, read_rows(folder / METRICS_FILE))
            if fixed and found is None:
                facts |= {TRAINED: moving}
            if facts := facts | (data.facts() if found is None else {}):
                own[0].write(start, facts)
        recorder = Recorder(folder, data.origins, task.tokenizer)
        loop = Loop(
            step=programs,
            compiling=programs.compiling,
            batch_at=setup.batch_at,
            skips=recipe.skips,
            pass_by=pass_by,
            divergences=_divergences(recipe, start, recorder),
            steps=recipe.steps,
            tokens_per_step=task.tokens_per_step,
            log_every=recipe.log_every,
            sinks=[*own, *sinks] if hosts.is_first() else [],
            stop=stop,
            save_every=recipe.checkpoint_every,
            events=data.events,
            best=best,
            save=functools.partial(save_state, checkpoints, data.fingerprint, base=base),
        )
        with recorder.around(ends=recipe.on_divergence != "rewind"):
            state = train(state, loop, start=start, measured=functools.partial(_measured, found))
        with waiting("saving", tell):
            checkpoints.wait()
    return int(state.step)


def _first_state(
    setup: Setup,
    data: TrainingData,
    found: Found | None,
    damaged: Sequence[DamagedError],
    stop: Stop,
    tell: Tell,
) -> TrainState:
    """The state that the run begins or goes on with."""
    recipe, folder = setup.recipe, Path(setup.recipe.out_dir)
    if found:
        tell(f"going on from step {found.step} of {folder}")
        if before := changed_environment(folder):
            tell(f"its numbers may differ in the last digits from here on: it has run with {before}")
        with waiting(f"reading checkpoint {found.step}", tell):
            state = setup.restored(folder, found.step)
        for path in paths_of(damaged):
            aside = hosts.decide(functools.partial(set_aside, path))
            tell(f"the damaged checkpoint is kept as {aside}; delete it when you do not need it")
    else:
        state = setup.initial(recipe, tell)
        with _before_the_first_step(stop):
            data.begin(state)
    return state


def _divergences(recipe: RunConfig, start: int, recorder: Recorder) -> Divergences:
    """The steps up to `start` that made no update because they diverged, and how many there may be."""

    def count() -> int:
        rows = read_rows(recorder.folder / METRICS_FILE)
        return sum(DIVERGED in row for row in rows if row["step"] <= start)

    limit = recipe.divergence_limit if recipe.on_divergence == "skip" else 0
    return Divergences(limit=limit, count=hosts.decide(count), write_down=recorder.write_down)


def _measured(found: Found | None, _: int, name: str) -> bool:
    """Whether the log of a resumed run holds a measurement of the step where it continues."""
    return found is not None and name in found.measured


def _sinks(recipe: RunConfig, folder: Path, start: int) -> list[Sink]:
    """The run's own sinks, its log first. Only the first process has any."""
    if not hosts.is_first():
        return []
    sinks: list[Sink] = [MetricsLog(folder / METRICS_FILE)]
    if recipe.tensorboard:
        sinks.append(TensorBoardSink(folder / "tensorboard", resumed_at=start))
    return sinks
