"""Ctrl-C ends a command at once, whatever it is doing: importing, computing, or waiting for its threads.

Python raises KeyboardInterrupt, which is not enough here. While a module of JAX is imported, it aborts the
process or leaves half a module; in a callback from C++ it is printed and forgotten; and at an exit in good
order, threads that still compute crash, or are waited for.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from jaxgpt.errors import explain

GRACE = 1.0  # seconds in which a command may put things in order after Ctrl-C
_IMPORTING = "<frozen importlib._bootstrap>"
_pressed = False


@contextlib.contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Around a whole program: Ctrl-C ends it within a second, with one line and exit code 130.

    Whoever installs a signal handler of its own inside the block decides itself. Nothing changes where Ctrl-C
    is ignored, as it is for commands that a shell runs in the background.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except SystemExit as end:
        if _pressed and _is_alone():
            end_process(end.code if isinstance(end.code, int) else 1)
        raise


def show_cursor() -> None:
    """Show the terminal's cursor, which a progress bar that is cut off has hidden."""
    if sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, and end the process if that does not. An import is never interrupted."""
    global _pressed
    if _pressed or _is_importing(frame):
        _leave()
    _pressed = True
    sys.unraisablehook = lambda _: None
    if _is_alone():
        timer = threading.Timer(GRACE, _leave)
        timer.daemon = True
        timer.start()
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame and frame.f_code.co_filename != _IMPORTING:
        frame = frame.f_back
    return frame is not None


def _is_alone() -> bool:
    """Whether this is the only process of its job: the others would wait for one that leaves at once."""
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized()


def _leave() -> NoReturn:
    with contextlib.suppress(Exception):
        show_cursor()
        print(f"jaxgpt: error: {explain(KeyboardInterrupt())}", file=sys.stderr)
    end_process(explain(KeyboardInterrupt()).exit_code)


def end_process(code: int) -> NoReturn:
    """End the process at once, although some of its threads may still compute."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
