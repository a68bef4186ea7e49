"""Stopping in good order: a signal asks, the loop saves and ends."""

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

    def check(self) -> None:
        """Raise StopRequested if a signal has come. For work of one process alone; see `agreed`."""
        if self.signal is not None and jax.process_count() == 1:
            raise StopRequested

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step: with several processes all get the same answer at the same step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signal is not None


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Listen for SIGINT (Ctrl-C) and SIGTERM. The first asks to stop; a second one ends the process as usual."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
