"""Stopping in good order: a signal asks, the loop saves and ends."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequested(Exception):
    """Raised by `Stop.check` inside long work so that the loop can save and end."""


class Stop:
    """Whether a signal has asked this run to end."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._first_step: int | None = None

    def ask(self, number: signal.Signals) -> None:
        """Ask the run to end. With several processes all are asked: JAX tells the others of a SIGTERM."""
        self.signal = number
        if jax.process_count() > 1 and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX listens to this one alone, and catches it

    def check(self) -> None:
        """Raise StopRequested if a signal has come. For work of one process alone; see `agreed`."""
        if self.signal is not None and jax.process_count() == 1:
            raise StopRequested

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step: with several processes all get the same answer at the same step.

        It must be called after every step. JAX stops all at the step after the last one that any of them has
        asked about, and at step 1 when a signal came before the first. So it is told steps counted from the
        first of this process: those of a resumed run may all lie behind 1.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        if self._first_step is None:
            self._first_step = step
        return multihost_utils.reached_preemption_sync_point(step - self._first_step + 1)


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Listen for SIGINT (Ctrl-C) and SIGTERM. The first asks to stop; a second one ends the process as usual.

    With several processes SIGTERM is left to JAX, which passes it on and ignores a second one.
    """
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        stop.ask(signal.Signals(number))

    numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
