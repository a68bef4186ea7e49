import sys

import pytest

from jaxgpt.display import TrainingDisplay, duration, waiting, write_text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (90_000, "25.0 h")],
)
def test_durations_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


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
    display = TrainingDisplay(steps=20, start=0)
    display.write(10, {"loss": 1.23456, "tokens_per_second": 12345.6, "grad_norm": 1.0})
    display.write(20, {"val_loss": 2.5, "average_val_loss": 2.25})
    display.write(20, {"sample": "[bold]one[/bold]\ntwo"})
    display.close()
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in err.splitlines()]
    assert out == ""
    assert lines == [
        "step 10: loss 1.235  12,346 tokens/s",
        "step 20: val_loss 2.5000",
        "step 20: average_val_loss 2.2500",
        "step 20: sample",
        "    [bold]one[/bold]",
        "    two",
    ]
