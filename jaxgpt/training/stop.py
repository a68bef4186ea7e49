"""Stopping a run safely: a signal asks for it, and the loop saves the state and ends."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

from jaxgpt.display import Progress
from jaxgpt.interrupt import RESUMABLE, TO_END, hearing, is_alone, leave, leave_soon

GRACE = 0.2  # seconds in which a second signal may end the run by its own handler


class StopRequested(Exception):
    """Raised by `Stop.check` to interrupt long work, so that the loop can save and end."""


class Stop:
    """Whether a signal has asked this run to end."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.nothing_to_save = False
        """Whether the process may end at once, because all is as the last save left it."""
        self._asked = 0

    def ask(self, number: signal.Signals) -> None:
        """Ask the run to end. JAX passes a SIGTERM on, so that several processes are all asked."""
        self.signal = number
        if jax.process_count() > 1 and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)  # the only signal that JAX handles

    def check(self) -> None:
        """Raise StopRequested if a signal has come and this is the only process; see `agreed`."""
        if self.signal is not None and jax.process_count() == 1:
            raise StopRequested

    def checked(self, progress: Progress) -> Progress:
        """The same display; to show something raises StopRequested where the run is asked to end."""

        def show(what: str, done: int, total: int | None) -> None:
            self.check()
            progress(what, done, total)

        return show

    def agreed(self) -> bool:
        """Whether to stop after this step. Several processes all get the same answer for the same step.

        It must be called after every step. JAX lets all processes stop at the step after the last one that it
        was asked about, or at step 1 when a signal came before that. A resumed run would never reach step 1,
        and one that goes back reaches some steps twice, so the questions are counted here.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)


@contextmanager
def stop_on_signal(tell: Callable[[str], None] = lambda _: None) -> Iterator[Stop]:
    """Listen for SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal is gone) and SIGUSR1 (Slurm's warning).

    The first asks to stop, and a second ends the process at once. So does the first while there is nothing to
    save. SIGHUP is not listened to where it is ignored, as it is under `nohup`.

    `tell` hears of the first at once, even while the training step compiles, where the process is a command
    (`interrupt.hearing`). With several processes JAX handles SIGTERM. It passes the signal on, and ignores a
    second one.
    """
    stop, come = Stop(), list[signal.Signals]()

    def ask(number: int, _frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        stop.ask(signal.Signals(number))

    def hear(number: signal.Signals) -> None:
        if number not in before:
            return
        come.append(number)
        if len(come) == 1 and stop.nothing_to_save and is_alone():
            leave(number, RESUMABLE)
        if len(come) == 1:
            name = "Ctrl-C" if number == signal.SIGINT else number.name
            tell(f"{name}: saving and stopping as soon as this is done; a second one leaves at once, unsaved")
        else:
            leave_soon(number, GRACE, 128 + number)

    numbers = {signal.SIGINT, *TO_END} - ({signal.SIGTERM} if jax.process_count() > 1 else set())
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        with hearing(hear):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
