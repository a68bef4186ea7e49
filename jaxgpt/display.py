"""What a person sees: a model's text on stdout, and on stderr notes, bars and the progress of training."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

# Control characters can move a terminal's cursor, recolour it or worse. Tab, newline and return are harmless.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def write_text(text: str) -> None:
    """Write a model's text to stdout at once, without its control characters if stdout is a terminal."""
    sys.stdout.write(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Write a line to stderr for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return seconds as a person would say them: `45 s`, `3 min`, `5.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what is awaited before the block begins, and how long it took afterwards."""
    note(f"{what} ...")
    start = time.perf_counter()
    yield
    note(f"{what}: {time.perf_counter() - start:.1f} s")


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield a function that shows what is being done, how much of it is done, and how much there is."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    tasks: dict[str, TaskID] = {}
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        yield show


class TrainingDisplay:
    """A `Sink` for people: a bar with the loss and the speed in a terminal, plain lines elsewhere.

    Samples are shown in full.
    """

    def __init__(self, steps: int, start: int) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task("", total=steps, completed=start)
        self._terminal, self._loss = console.is_terminal, ""
        if self._terminal:
            self._bar.start()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show what was measured at a step."""
        if "loss" in metrics:
            rate = metrics.get("tokens_per_second")
            text = f"loss {metrics['loss']:.3f}" + (f"  {rate:,.0f} tokens/s" if rate else "")
            self._bar.update(self._task, completed=step, description=text)
            if not self._terminal:
                self._print(f"step {step}: {text}")
        for name in ("val_loss", "average_val_loss"):
            if name in metrics:
                self._print(f"step {step}: {name} {metrics[name]:.4f}")
        if "sample" in metrics:
            self._print(f"step {step}: sample\n    " + metrics["sample"].replace("\n", "\n    "))

    def close(self) -> None:
        """Take the bar away."""
        if self._terminal:
            self._bar.stop()

    def _print(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
