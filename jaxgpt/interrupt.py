"""Ctrl-C ends a command at once, whatever it is doing: importing, computing, or waiting for its threads.

Python raises KeyboardInterrupt, which is not enough here. While a module of JAX is imported, it aborts the
process or leaves half a module; in a callback from C++ it is printed and forgotten; and at an exit in good
order, threads that still compute crash, or are waited for. And while XLA compiles, which takes minutes for a
large model, Python handles no signal at all. So a thread of its own hears of every signal at once.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

RESUMABLE = 75  # the exit code that says: run the same command again to go on
TO_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # besides Ctrl-C; Slurm warns with the last one
GRACE = 1.0  # seconds in which a command may put things in order after Ctrl-C
_IMPORTING = "<frozen importlib._bootstrap>"
_pressed = False
_trains = False  # whether the program is one that trains
_leaving = threading.RLock()  # held by the thread that says why the process ends
_heard_by: "Callable[[signal.Signals], None]"  # what the thread that hears of signals calls


@contextlib.contextmanager
def ended_by_ctrl_c(*, trains: bool = False) -> Iterator[None]:
    """Around a whole program: Ctrl-C ends it within a second, with one line and exit code 130.

    A program that `trains` is also ended by SIGTERM, SIGHUP and SIGUSR1, and by all four with exit code 75:
    it has not begun anything yet, and the same command begins again. While it trains, `training.stop` hears
    of these signals. When all is done it ignores them: Python takes its handlers away before the process has
    ended, and a signal would then kill it, as if something had been lost.

    Whoever installs a signal handler of its own inside the block decides itself. Nothing changes where Ctrl-C
    is ignored, as it is for commands that a shell runs in the background.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    global _trains
    if _trains := trains:
        for number in TO_END:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)
    heard, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    threading.Thread(target=_hear, args=[heard], name="signals", daemon=True).start()
    try:
        yield
    except SystemExit as end:
        if _pressed and is_alone():
            code = end.code if isinstance(end.code, int) else 1
            end_process(_code_of(signal.SIGINT) if code == 128 + signal.SIGINT else code)
        raise
    finally:
        for number in TO_END:
            if signal.getsignal(number) is _end:
                signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def hearing(of: Callable[[signal.Signals], None]) -> Iterator[None]:
    """In the block, `of` is called when a signal comes, in another thread and even while XLA compiles.

    The signal's handler is called as well, as soon as Python comes to it. In a program that is not in
    `ended_by_ctrl_c`, `of` is never called.
    """
    global _heard_by
    before, _heard_by = _heard_by, of
    try:
        yield
    finally:
        _heard_by = before


def leave(number: signal.Signals, code: int | None = None) -> NoReturn:
    """End the process at once, whatever its threads do, with one line.

    The exit code is 128 + the signal's, or 75 where nothing is lost by it.
    """
    code = _code_of(number) if code is None else code
    if _leaving.acquire(blocking=False):
        with contextlib.suppress(Exception):
            show_cursor()
            name = "Ctrl-C" if number == signal.SIGINT else number.name
            again = "; run the same command again to go on" if code == RESUMABLE else ""
            print(f"jaxgpt: error: stopped by {name}{again}", file=sys.stderr)
    else:  # another thread says so, and ends the process
        time.sleep(GRACE)
    end_process(code)


def leave_soon(number: signal.Signals, grace: float = GRACE, code: int | None = None) -> None:
    """Do so after some seconds, unless the process has ended by itself or is one of several of a job."""
    if is_alone():
        timer = threading.Timer(grace, leave, [number, code])
        timer.daemon = True
        timer.start()


def is_alone() -> bool:
    """Whether this is the only process of its job: the others would wait for one that leaves at once."""
    jax = sys.modules.get("jax")
    try:
        return jax is None or not jax.distributed.is_initialized()
    except AttributeError:  # JAX is being imported
        return True


def show_cursor() -> None:
    """Show the terminal's cursor, which a progress bar that is cut off has hidden."""
    if sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, and end the process if that does not. An import is never interrupted."""
    global _pressed
    if _pressed or _is_importing(frame):
        leave(signal.SIGINT)
    _pressed = True
    sys.unraisablehook = lambda _: None
    leave_soon(signal.SIGINT)
    raise KeyboardInterrupt


def _end(number: int, _: FrameType | None) -> None:
    leave(signal.Signals(number))


def _code_of(number: signal.Signals) -> int:
    return RESUMABLE if _trains else 128 + number


def _hear(pipe: int) -> None:
    """Tell of each signal whose number is written into the pipe."""
    while number := os.read(pipe, 1):
        _heard_by(signal.Signals(number[0]))


def _expect_an_end(number: signal.Signals) -> None:
    """After a signal, end the process soon, even if Python never comes to the handler that would."""
    handler = signal.getsignal(number)
    if handler is _interrupt:
        leave_soon(number)
    elif handler is _end and is_alone():
        leave(number)


_heard_by = _expect_an_end


def _is_importing(frame: FrameType | None) -> bool:
    while frame and frame.f_code.co_filename != _IMPORTING:
        frame = frame.f_back
    return frame is not None


def end_process(code: int) -> NoReturn:
    """End the process at once, although some of its threads may still compute."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
