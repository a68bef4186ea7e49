"""What a person sees of a wait and of training: in a terminal, in a file, and in a notebook."""

import io
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jaxgpt.display import (
    NotebookDisplay,
    TrainingDisplay,
    duration,
    in_notebook,
    program,
    progress_bar,
    waiting,
    write_text,
)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (90_000, "25.0 h"),
        (300_000, "3 days"),
        (134_258_400, "4.3 years"),
    ],
)
def test_durations_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_program_is_named_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make demo` calls it, by a path that leads to no folder of PATH; and once that folder is on PATH."""
    own = tmp_path / "bin" / "jaxgpt"
    own.parent.mkdir()
    own.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bin/jaxgpt", "pretrain"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == "bin/jaxgpt"
    monkeypatch.setenv("PATH", str(own.parent))
    assert program() == "jaxgpt"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_models_text_cannot_steer_a_terminal(
    terminal: bool, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a\tb\r\n\x1b[2J\x07\x9b1m\x7f é\u3000"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    write_text(text)
    assert capsys.readouterr().out == ("a\tb\r\n�[2J��1m� é\u3000" if terminal else text)


def test_a_wait_is_named_before_it_begins(capsys: pytest.CaptureFixture) -> None:
    with waiting("tokenizing"):
        assert capsys.readouterr().err == "tokenizing ...\n"
    assert capsys.readouterr().err.startswith("tokenizing: 0.0 s")


def test_outside_a_terminal_training_is_shown_as_lines_on_stderr(capsys: pytest.CaptureFixture) -> None:
    display = TrainingDisplay(steps=20)
    display.write(10, {"loss": 1.23456, "tokens_per_second": 12345.6, "grad_norm": 1.0})
    display.write(11, {"skipped": 1})
    display.write(12, {"skipped": 1, "diverged": "loss is nan"})
    display.write(20, {"val_loss": 2.5, "average_val_loss": 2.25})
    display.write(20, {"sample": "[bold]one[/bold]\ntwo\x1b[2J"})
    display.close()
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in err.splitlines()]
    assert out == ""
    assert lines == [
        "step 10: loss 1.235  12,346 tokens/s",
        "step 11: no update, as skip_steps says",
        "step 12: no update, because it diverged: loss is nan",
        "step 20: val_loss 2.5000",
        "step 20: average_val_loss 2.2500",
        "step 20: sample",
        "    [bold]one[/bold]",
        "    two�[2J",
    ]


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("where", "variables"), [(Screen, {"JPY_PARENT_PID": "7"}), (Screen, {"TERM": "dumb"}), (io.StringIO, {})]
)
def test_where_lines_cannot_be_redrawn_there_is_no_bar(
    where: type[io.StringIO], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook's `!command`, in a terminal without a cursor, and in the log of a job with colours."""
    for name, value in {"FORCE_COLOR": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    screen = where()
    monkeypatch.setattr(sys, "stderr", screen)
    display = TrainingDisplay(steps=20)
    with progress_bar() as show:
        for step in range(1, 20):
            display.write(step, {"loss": 1.5})
            show("reading", step, 20)
    display.close()
    lines = [re.sub(r"\x1b\[\d*m", "", line).rstrip() for line in screen.getvalue().splitlines()]
    assert lines == [f"step {step}: loss 1.500" for step in range(1, 20)]


def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal behind stderr."""
    shown = Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


def test_in_a_terminal_a_bar_goes_from_the_first_step_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    display = TrainingDisplay(steps=20)
    display.write(0, {"devices": 8})
    assert screen.getvalue() == ""
    display.write(12, {"loss": 1.5})
    display.write(13, {"loss": 1.25, "tokens_per_second": 2000.0})
    display.write(13, {"val_loss": 1.0})
    display.close()
    shown = screen.getvalue()
    assert "step 12/20" in shown and "step 0/20" not in shown
    assert (
        "step 13/20" in shown
        and "loss 1.250  2,000 tokens/s" in shown
        and "step 13: val_loss 1.0000" in shown
    )


def test_an_evaluation_has_a_bar_of_its_own_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    display = TrainingDisplay(steps=20)
    display.progress("evaluating", 0, 4)  # before the first step is shown
    display.write(12, {"loss": 1.5})
    display.progress("evaluating", 1, 4)
    drawn: Any = display._bars._bars
    drawn.refresh()  # as it does by itself ten times a second
    both = screen.getvalue()
    assert "evaluating" in both and "25%" in both and "step 12/20" in both
    display.progress("evaluating", 4, 4)
    before = len(screen.getvalue())
    drawn.refresh()
    after = screen.getvalue()[before:]
    display.close()
    assert "step 12/20" in after and "evaluating" not in after


def test_elsewhere_a_long_work_is_told_of_now_and_then(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("jaxgpt.display.time", SimpleNamespace(monotonic=lambda: clock[0]))
    with progress_bar() as show:
        for second in range(26):
            clock[0] = float(second)
            show("scoring", second, 50)
        show("scoring", 50, 50)
        clock[0] += 9
        show("scoring", 0, None)
    assert capsys.readouterr().err.splitlines() == ["scoring: 20%", "scoring: 40%"]


class Shown:
    """What stands in the cell of a notebook, through the calls of IPython that it is shown by."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.places = 0

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> "Shown":
        assert raw and display_id
        self.places += 1
        self.texts.append(content["text/plain"])
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.texts.append(content["text/plain"])


def test_in_a_notebook_one_text_is_replaced_in_place(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Shown()
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=cell.display))
    display = NotebookDisplay(steps=20)
    display.tell("compiling ...")
    assert cell.texts == ["compiling ..."]
    display.write(10, {"loss": 1.5, "tokens_per_second": 12345.6})
    display.write(10, {"val_loss": 2.5})
    display.write(10, {"sample": "one\ntwo"})
    display.write(20, {"sample": "three"})
    display.write(20, {"loss": 1.25})
    display.close()
    assert cell.places == 1 and len(cell.texts) == 6
    clock = [time.monotonic() + 1]
    monkeypatch.setattr("jaxgpt.display.time", SimpleNamespace(monotonic=lambda: clock[0]))
    for done, second in enumerate((0.0, 0.1, 1.0, 0.1, 1.0)):
        clock[0] += second
        display.progress("evaluating", done, 4)
    told = [text.splitlines()[-1] for text in cell.texts[6:]]
    assert told == ["evaluating 0%", "evaluating 50%", "step 20/20 ████████████████████ loss 1.250"]
    assert cell.texts[-1].splitlines() == [
        "compiling ...",
        "step 10: val_loss 2.5000",
        "step 20: sample",
        "    three",
        "step 20/20 ████████████████████ loss 1.250",
    ]
    assert cell.texts[1].splitlines()[-1] == "step 10/20 ██████████░░░░░░░░░░ loss 1.500  12,346 tokens/s"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("shell", "expected"),
    [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=object()), True)],
)
def test_a_notebook_is_told_from_a_terminal_by_its_kernel(
    shell: Any, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert in_notebook() == expected
