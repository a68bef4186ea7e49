"""The training loop: it owns the clock and the log, and knows no model, no evaluation and no sampling.

What happens every so many steps is an `Event`: a function of the state that returns what it measured.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxgpt.errors import DivergedError, StoppedError
from jaxgpt.training.metrics import Sink
from jaxgpt.training.state import TrainState
from jaxgpt.training.stop import Stop, StopRequested


@dataclass(frozen=True)
class Event:
    """`run(state)` before the first step, every `every` steps and after the last. It measures at least `name`."""

    name: str
    every: int
    run: Callable[[TrainState], dict[str, Any]]

    def due(self, number: int, last: int) -> bool:
        return number % self.every == 0 or number == last


@dataclass(frozen=True, kw_only=True)
class Loop:
    """All that training needs besides the state. Steps are counted from 1; `step` makes a new state of a batch."""

    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
    batch_at: Callable[[int], Any]
    """The global batch of a step, counted from 0."""
    steps: int
    tokens_per_step: int
    log_every: int
    sinks: Sequence[Sink]
    events: Sequence[Event]
    save: Callable[[TrainState, int], None]
    save_every: int
    stop: Stop


class _Clock:
    """Tokens per second between rows of the log: compilation, events and saving not counted."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens, self._steps, self._since = tokens_per_step, 0, float("nan")

    def restart(self) -> None:
        self._steps, self._since = 0, time.perf_counter()

    def tick(self) -> None:
        """A step has been seen to finish; the first one starts the clock."""
        if math.isnan(self._since):
            self.restart()
        else:
            self._steps += 1

    def rate(self) -> dict[str, float]:
        if not self._steps:
            return {}
        return {"tokens_per_second": self._steps * self._tokens / (time.perf_counter() - self._since)}


def train(state: TrainState, loop: Loop, *, start: int, measured: Callable[[int, str], bool]) -> TrainState:
    """Train from step `start` (steps done so far) to the last.

    The metrics of a step are read after the next one is launched, so the device never waits for the log.
    `measured` tells which events the log already holds for step `start`, when a run is resumed.

    Raises DivergedError when the loss, the gradient or what an event measured is not finite, before anything of
    that step is saved. Raises StoppedError when a signal came, after saving.
    """
    clock = _Clock(loop.tokens_per_step)
    pending: tuple[int, dict[str, Any]] | None = None

    def report() -> None:
        nonlocal pending
        if pending is None:
            return
        (number, metrics), pending = pending, None
        row = {name: float(value) for name, value in metrics.items()}
        _refuse_non_finite(number, row)
        clock.tick()
        if number % loop.log_every == 0 or number in (1, loop.steps):
            _write(loop, number, row | clock.rate())
            clock.restart()

    due = [event for event in loop.events if event.due(start, loop.steps) and not measured(start, event.name)]
    stopped = _run_events(loop, state, start, due)
    for number in range(start + 1, loop.steps + 1):
        if stopped:
            break
        state, metrics = loop.step(state, loop.batch_at(number - 1))
        report()
        pending = number, metrics
        events = [event for event in loop.events if event.due(number, loop.steps)]
        saving = number % loop.save_every == 0 or number == loop.steps
        stopped = loop.stop.agreed(number)
        if events or saving or stopped:
            report()
            if not stopped:
                stopped = _run_events(loop, state, number, events)
            if saving or stopped:
                loop.save(state, number)
            clock.restart()
        start = number
    if stopped:
        raise stopped_error(loop.stop, f"at step {start}")
    return state


def stopped_error(stop: Stop, where: str) -> StoppedError:
    """The error that a run ends with when it was asked to stop."""
    name = stop.signal.name if stop.signal else "a signal"
    return StoppedError(f"stopped {where}", why=f"{name} came", fix="run the same command again to go on")


def _run_events(loop: Loop, state: TrainState, number: int, events: Sequence[Event]) -> bool:
    """Run what is due and log it. True when a signal cut it short."""
    for event in events:
        try:
            measured = event.run(state)
        except StopRequested:
            return True
        numbers = {name: float(value) for name, value in measured.items() if not isinstance(value, str)}
        _refuse_non_finite(number, numbers)
        _write(loop, number, measured)
    return False


def _write(loop: Loop, number: int, row: dict[str, Any]) -> None:
    for sink in loop.sinks:
        sink.write(number, row)


def _refuse_non_finite(number: int, row: dict[str, float]) -> None:
    wrong = [f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise DivergedError(
            f"diverged at step {number}",
            why=", ".join(wrong),
            fix="lower --optim.learning-rate or lengthen --optim.warmup-steps; earlier checkpoints are intact",
        )
