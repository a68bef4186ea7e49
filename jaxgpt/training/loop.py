"""The training loop: it runs the steps, keeps the time, and writes the log.

It knows nothing about models, evaluation or sampling. What else happens every so many steps is an `Event`: a
function of the state that returns what it measured.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxgpt.errors import StoppedError
from jaxgpt.log import DIVERGED, Best
from jaxgpt.training.divergence import Divergences, refuse_non_finite, refuse_non_finite_arrays, why_no_update
from jaxgpt.training.metrics import Sink
from jaxgpt.training.state import TrainState
from jaxgpt.training.stop import Stop, StopRequested


@dataclass(frozen=True)
class Event:
    """A measurement: `run(state)` before the first step, at every `every`-th step and after the last step.

    What it returns has at least the entry `name`.
    """

    name: str
    every: int
    run: Callable[[TrainState], dict[str, Any]]
    also: tuple[str, ...] = ()
    """What else it measures."""

    def measures(self, name: str) -> bool:
        """Whether it measures something of that name."""
        return name in (self.name, *self.also)

    def due(self, number: int, last: int) -> bool:
        """Whether to run when `number` steps are done and `last` is the number of the last step."""
        return number % self.every == 0 or number == last


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Everything that training needs besides the state. Steps are counted from 1."""

    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
    """`step(state, batch)` returns the next state, and what the step measured."""
    compiling: Callable[[], float] = lambda: 0.0
    """For how many seconds `step` has compiled programs so far."""
    batch_at: Callable[[int], Any]
    """`batch_at(number)` is the global batch of a step. Here alone the steps are counted from 0."""
    skips: Callable[[int], bool] = lambda _: False
    """Whether a step makes no update."""
    pass_by: Callable[[TrainState], TrainState] = lambda state: state
    """The state after a step that makes no update."""
    divergences: Divergences = field(default_factory=Divergences)
    """The steps that made no update because they would do harm."""
    steps: int
    tokens_per_step: int
    log_every: int
    sinks: Sequence[Sink]
    events: Sequence[Event]
    best: Best
    """The best of what the events have measured so far. The step of a new one is saved. When there was none
    for long enough, the training ends."""
    save: Callable[[TrainState, int], None]
    save_every: int
    stop: Stop


class _Clock:
    """Measures tokens per second between rows of the log, without compilation, events and saving."""

    def __init__(self, loop: Loop) -> None:
        self._loop, self._steps, self._since, self._until = loop, 0, math.nan, math.nan

    def now(self) -> float:
        """The time in seconds, which stands still while a step is compiled."""
        return time.perf_counter() - self._loop.compiling()

    def restart(self, since: float | None = None) -> None:
        """Begin to measure anew, from now on or since an earlier moment."""
        self._steps, self._since = 0, self.now() if since is None else since

    def tick(self, moment: float) -> None:
        """Count a step that has finished at this moment. The first one only starts the clock."""
        if math.isnan(self._since):
            self.restart(moment)
        else:
            self._steps, self._until = self._steps + 1, moment

    def rate(self) -> dict[str, float]:
        """The speed since the last row, and a new beginning. Empty where no step was timed.

        A step that was computed at once may seem to end before the one that was waited for. Then both count
        for the next row.
        """
        steps, seconds = self._steps, self._until - self._since
        if not (steps and seconds > 0):
            return {}
        self._steps, self._since = 0, self._until
        return {"tokens_per_second": steps * self._loop.tokens_per_step / seconds}


def train(state: TrainState, loop: Loop, *, start: int, measured: Callable[[int, str], bool]) -> TrainState:
    """Train up to the last step, or until `loop.best` is exhausted, when `start` steps are done already.

    The metrics of a step are read after the next step was launched, so the device never waits for the log.
    `measured(step, name)` says whether the log of a resumed run already holds what an event measured there.

    Raises DivergedError when the loss, the gradient or what an event measured is not finite, and when
    `loop.divergences` has one too many. Nothing of that step is saved then. Raises StoppedError when a signal
    came, after the state is saved.
    """
    clock = _Clock(loop)
    pending: tuple[int, dict[str, Any], float | None] | None = None

    def report() -> None:
        nonlocal pending
        if pending is None:
            return
        (number, metrics, finished), pending = pending, None
        row = {name: float(value) for name, value in metrics.items()}
        why = why_no_update(row)
        if why is None:
            refuse_non_finite(number, row)
        else:
            loop.divergences.see(number, why)
        clock.tick(clock.now() if finished is None else finished)
        if why is not None:
            _write(loop, number, {"skipped": 1, DIVERGED: why})
        elif number % loop.log_every == 0 or number in (1, loop.steps):
            _write(loop, number, row | clock.rate())

    last = start if loop.best.exhausted else loop.steps
    due = [event for event in loop.events if event.due(start, last) and not measured(start, event.name)]
    stopped = _run_events(loop, state, start, due)
    for number in range(start + 1, loop.steps + 1):
        if stopped or loop.best.exhausted:
            break
        if loop.skips(number):
            state = loop.pass_by(state)
            report()
            _write(loop, number, {"skipped": 1})
        else:
            state, metrics = loop.step(state, loop.batch_at(number - 1))
            launched = number, metrics, clock.now() if _is_computed(metrics) else None
            report()
            pending = launched
        events = [event for event in loop.events if event.due(number, loop.steps)]
        saving = number % loop.save_every == 0 or number == loop.steps
        stopped = loop.stop.agreed()
        if events or saving or stopped:
            report()
            if not stopped:
                stopped = _run_events(loop, state, number, events)
            if not stopped and loop.best.exhausted:  # this has become the last step
                rest = [event for event in loop.events if event not in events]
                stopped = _run_events(loop, state, number, rest)
            if saving or stopped or loop.best.exhausted or loop.best.step == number:
                loop.save(state, number)
            clock.restart()
        start = number
    if stopped:
        raise stopped_error(loop.stop, f"at step {start}")
    return state


def _is_computed(metrics: dict[str, Any]) -> bool:
    """Whether a step was computed before it returned, as a small one is on a CPU."""
    arrays: list[Any] = [value for value in metrics.values() if isinstance(value, jax.Array)]
    return bool(arrays) and all(array.is_ready() for array in arrays)


def stopped_error(stop: Stop, where: str) -> StoppedError:
    """The error that a run ends with when it was asked to stop."""
    name = stop.signal.name if stop.signal else "a signal"
    return StoppedError(f"stopped {where}", why=f"{name} came", fix="run the same command again to go on")


def _run_events(loop: Loop, state: TrainState, number: int, events: Sequence[Event]) -> bool:
    """Run events and log what they measure. The result is True when a signal interrupted them."""
    for event in events:
        try:
            measured = event.run(state)
        except StopRequested:
            return True
        except Exception:
            if jax.process_count() == 1:  # with parameters that are not finite, anything may fail
                refuse_non_finite_arrays(number, state)
            raise
        numbers = {name: float(value) for name, value in measured.items() if not isinstance(value, str)}
        refuse_non_finite(number, numbers)
        _write(loop, number, measured)
        loop.best.see(number, measured)
    return False


def _write(loop: Loop, number: int, row: dict[str, Any]) -> None:
    for sink in loop.sinks:
        sink.write(number, row)
