"""What a person sees: a model's text on stdout, and on stderr notes, bars and the progress of training."""

import importlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn

from jaxgpt.log import DIVERGED

DAY = 86_400  # seconds
TELL_EVERY = 10.0  # seconds between two lines about one work, where no bar can be drawn
REDRAW_EVERY = 0.5  # seconds between two changes of a notebook's text for a work beside the steps
STEPS = "steps"  # the bar of the training itself
# Control characters can move a terminal's cursor, recolour it or worse. Tab, newline and return are harmless.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def write_text(text: str) -> None:
    """Write a model's text to stdout at once, without its control characters if stdout is a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def visible(text: str) -> str:
    """Return a text without the control characters by which it could steer a terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def note(text: str) -> None:
    """Write a line to stderr for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def program() -> str:
    """How a person starts this program in their shell: by its name, or by its path where PATH has it not."""
    own, found = Path(sys.argv[0]), shutil.which("jaxgpt")
    reached = found is not None and own.exists() and own.samefile(found)
    return str(own) if own.name == "jaxgpt" and not reached else "jaxgpt"


def duration(seconds: float) -> str:
    """Return seconds as a person would say them: `45 s`, `3 min`, `5.2 h`, `12 days`, `4.3 years`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3 * DAY:
        return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{seconds / DAY:.0f} days" if seconds < 2 * 365 * DAY else f"{seconds / DAY / 365:,.1f} years"


@contextmanager
def waiting(what: str, tell: Callable[[str], None] = note) -> Iterator[None]:
    """Say what is awaited before the block begins, and how long it took afterwards."""
    tell(f"{what} ...")
    start = time.perf_counter()
    yield
    tell(f"{what}: {time.perf_counter() - start:.1f} s")


Progress = Callable[[str, int, int | None], None]
"""What shows how far a work is: `show(what, done, total)`. It is over when done is the total."""


def no_progress(what: str, done: int, total: int | None) -> None:
    """Take the place of a display where nothing is shown."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a function that shows what is being done, how much of it is done, and how much there is."""
    bars = Bars(Console(stderr=True))
    try:
        yield bars.show
    finally:
        bars.close()


class Bars:
    """Bars below the lines of a terminal, one for each work. Elsewhere a line of a long work now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: rich.progress.Progress | None = None  # where they can be redrawn, from the first one on
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}  # when a line told of a work

    def show(self, what: str, done: int, total: int | None) -> None:
        """Show how far a work is; its bar goes away when it is over."""
        over = total is not None and done >= total
        if self.redraws:
            said = f"{done / total:.0%}" if total else ""
            self.draw(what, done, total, description=what, said=said)
            if over and self._bars:
                self._bars.remove_task(self._tasks.pop(what))
            return
        since = self._told.setdefault(what, time.monotonic())
        if over:
            del self._told[what]
        elif time.monotonic() - since >= TELL_EVERY:
            self._told[what] = time.monotonic()
            note(f"{what}: {done / total:.0%}" if total else f"{what}: {done:,} so far")

    @property
    def redraws(self) -> bool:
        """Whether there are bars."""
        return _can_redraw(self._console)

    def draw(self, key: str, done: int, total: int | None, *, description: str, said: str) -> None:
        """Draw a bar. The time that is left is reckoned from where it was first drawn."""
        if self._bars is None:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}")
            self._bars = rich.progress.Progress(
                *columns, TimeRemainingColumn(), console=self._console, transient=True
            )
            self._bars.start()
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(description, completed=done, total=total, said=said)
        self._bars.update(self._tasks[key], completed=done, total=total, description=description, said=said)

    def close(self) -> None:
        """Take all bars away."""
        if self._bars:
            self._bars.stop()


class TrainingDisplay:
    """A `Sink` that shows training on stderr: as a bar in a terminal, as plain lines elsewhere."""

    def __init__(self, steps: int = 0) -> None:
        self.steps = steps
        self._console = Console(stderr=True)
        self._bars = Bars(self._console)

    def tell(self, text: str) -> None:
        """Show a line."""
        note(text)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Show how far a work beside the steps is, such as an evaluation."""
        self._bars.show(what, done, total)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show what was measured at a step."""
        if "loss" in metrics:
            said = _loss_and_speed(metrics)
            if self._bars.redraws:
                self._bars.draw(STEPS, step, self.steps, description=f"step {step}/{self.steps}", said=said)
            else:
                self._print(f"step {step}: {said}")
        for text in [*_lines(step, metrics), *_sample_text(step, metrics)]:
            self._print(text)

    def close(self) -> None:
        """Take the bars away."""
        self._bars.close()

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class NotebookDisplay:
    """The same in a notebook's cell: one text, replaced in place as training goes on.

    A terminal's bar would need ipywidgets there, and without them it is shown anew at every change.
    """

    def __init__(self, steps: int = 0) -> None:
        self.steps = steps
        self._step, self._status, self._beside, self._shown_at = 0, "", "", 0.0
        self._lines: list[str] = []
        self._sample: list[str] = []
        self._shown: Any = None  # IPython's handle of the text

    def tell(self, text: str) -> None:
        """Show a line."""
        self._lines.append(text)
        self._show()

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Show how far a work beside the steps is, such as an evaluation."""
        over = total is not None and done >= total
        self._beside = "" if over else f"{what} {done / total:.0%}" if total else what
        if time.monotonic() - self._shown_at >= REDRAW_EVERY:
            self._show()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show what was measured at a step; of the samples, the latest."""
        if "loss" in metrics:
            self._step, self._status = step, _loss_and_speed(metrics)
        self._lines += _lines(step, metrics)
        self._sample = _sample_text(step, metrics) or self._sample
        self._show()

    def close(self) -> None:
        """Nothing is left to do: the text stays as it was shown last."""

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        bar = ""
        if self._status:
            done = round(20 * self._step / self.steps)
            bar = f"step {self._step}/{self.steps} {'█' * done}{'░' * (20 - done)} {self._status}"
        content = {"text/plain": "\n".join([*self._lines, *self._sample, *filter(None, [bar, self._beside])])}
        if self._shown is None:
            display = importlib.import_module("IPython.display").display
            self._shown = display(content, raw=True, display_id=True)
        else:
            self._shown.update(content, raw=True)


def in_notebook() -> bool:
    """Whether this program's output goes to the cells of a Jupyter notebook (Colab's and Kaggle's too)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def _can_redraw(console: Console) -> bool:
    """Whether lines can be drawn again in their place there.

    A notebook runs `!command` in a terminal, too, but the cell keeps every line that is drawn. Jupyter marks
    the processes of its kernels.
    """
    return console.file.isatty() and not console.is_dumb_terminal and "JPY_PARENT_PID" not in os.environ


def _loss_and_speed(metrics: Mapping[str, Any]) -> str:
    rate = metrics.get("tokens_per_second")
    return f"loss {metrics['loss']:.3f}" + (f"  {rate:,.0f} tokens/s" if rate else "")


def _lines(step: int, metrics: Mapping[str, Any]) -> list[str]:
    """What is said in lines of their own: validation losses, figures of tasks, steps without an update."""
    if DIVERGED in metrics:
        return [f"step {step}: no update, because it diverged: {metrics[DIVERGED]}"]
    if "skipped" in metrics:
        return [f"step {step}: no update, as skip_steps says"]
    losses = ("val_loss", "average_val_loss", "val_accuracy", "val_margin")
    names = [name for name in metrics if name in losses or ":" in name]
    return [f"step {step}: {name} {metrics[name]:.4f}" for name in names]


def _sample_text(step: int, metrics: Mapping[str, Any]) -> list[str]:
    if "sample" not in metrics:
        return []
    return [f"step {step}: sample\n    " + visible(metrics["sample"]).replace("\n", "\n    ")]
