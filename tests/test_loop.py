"""The loop with a step that only counts: what is logged, measured and saved when, and how it ends."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxgpt.errors import DivergedError, StoppedError
from jaxgpt.log import Best
from jaxgpt.training.divergence import Divergences
from jaxgpt.training.loop import Event, Loop, train
from jaxgpt.training.metrics import MetricsLog
from jaxgpt.training.stop import Stop, StopRequested, stop_on_signal

Row = dict[str, Any]


class Recorder:
    """A fake run whose state is the number of steps done; `calls` is everything that happened, in order."""

    def __init__(self, **settings: Any) -> None:
        self.calls: list[tuple[str, int]] = []
        self.rows: list[Row] = []
        self.losses: dict[int, float] = {}
        self.settings = {
            "steps": 10,
            "log_every": 4,
            "save_every": 100,
            "events": [],
            "stop": Stop(),
            "best": Best("val_loss"),
        } | settings

    def loop(self, **changes: Any) -> Loop:
        given = {
            "tokens_per_step": 8,
            "sinks": [self],
            "batch_at": self.batch_at,
            "step": self.step,
            "save": self.save,
        }
        return Loop(**given | self.settings | changes)

    def train(self, start: int = 0, measured: Callable[[int, str], bool] = lambda step, name: False) -> Any:
        return train(start, self.loop(), start=start, measured=measured)  # type: ignore[arg-type]

    def batch_at(self, step: int) -> str:
        return f"batch {step}"

    def step(self, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        assert batch == f"batch {state}"
        self.calls.append(("step", state + 1))
        return state + 1, {"loss": Metric(self, state + 1)}

    def save(self, state: Any, number: int) -> None:
        assert state == number
        self.calls.append(("save", number))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.rows.append({"step": step, **metrics})

    def close(self) -> None:
        pass

    def event(self, name: str, every: int, act: Callable[[int], None] = lambda number: None) -> Event:
        """An event that measures the state under its name, after `act`."""

        def run(state: Any) -> Row:
            self.calls.append((name, state))
            act(state)
            return {name: state}

        return Event(name, every, run)

    def steps_of(self, name: str) -> list[int]:
        """The steps at which something happened."""
        return [step for call, step in self.calls if call == name]

    def logged(self, name: str) -> list[int]:
        return [row["step"] for row in self.rows if name in row]


@dataclasses.dataclass
class Metric:
    """A number on the device; to read it is to wait for it."""

    recorder: Recorder
    step: int

    def __float__(self) -> float:
        self.recorder.calls.append(("read", self.step))
        return self.recorder.losses.get(self.step, 1 / self.step)


def signal_at(step: int, number: signal.Signals = signal.SIGTERM) -> Callable[[int], None]:
    def act(state: int) -> None:
        if state == step:
            os.kill(os.getpid(), number)

    return act


def test_rows_are_written_first_every_so_many_steps_and_last() -> None:
    run = Recorder()
    assert run.train() == 10
    assert run.logged("loss") == [1, 4, 8, 10]
    assert all(row["loss"] == 1 / row["step"] for row in run.rows)


def test_metrics_are_read_only_after_the_next_step_was_launched() -> None:
    run = Recorder(steps=3)
    run.train()
    assert run.calls == [
        ("step", 1),
        ("step", 2),
        ("read", 1),
        ("step", 3),
        ("read", 2),
        ("read", 3),
        ("save", 3),
    ]


def test_events_run_before_the_first_step_every_so_many_and_after_the_last() -> None:
    run = Recorder()
    run.settings["events"] = [run.event("a", 4), run.event("b", 5)]
    run.train()
    assert run.steps_of("a") == run.logged("a") == [0, 4, 8, 10]
    assert run.steps_of("b") == run.logged("b") == [0, 5, 10]
    assert [row["step"] for row in run.rows] == sorted(row["step"] for row in run.rows)


def test_a_save_comes_every_so_many_steps_and_at_the_last_after_what_was_measured_there() -> None:
    run = Recorder(save_every=3)
    run.settings["events"] = [run.event("a", 3)]
    run.train()
    assert run.steps_of("save") == [3, 6, 9, 10]
    for number in (3, 6, 9, 10):
        at = run.calls.index(("save", number))
        assert run.calls.index(("read", number)) < run.calls.index(("a", number)) < at


def test_resuming_begins_where_it_was_and_measures_again_only_what_is_missing() -> None:
    run = Recorder()
    run.settings["events"] = [run.event("a", 4), run.event("b", 4)]
    run.train(start=4, measured=lambda step, name: (step, name) == (4, "a"))
    assert run.steps_of("step") == list(range(5, 11))
    assert run.steps_of("a") == [8, 10] and run.steps_of("b") == [4, 8, 10]
    assert run.logged("loss") == [8, 10]


def test_a_finished_run_does_nothing_but_measure_what_is_missing() -> None:
    run = Recorder()
    run.settings["events"] = [run.event("a", 4)]
    assert run.train(start=10) == 10
    assert run.calls == [("a", 10)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [1, 5, 6, 10])
def test_a_loss_that_is_not_finite_ends_the_run_before_that_step_is_saved(value: float, step: int) -> None:
    run = Recorder(save_every=3)
    run.losses[step] = value
    with pytest.raises(DivergedError, match=f"diverged at step {step}: loss is {value}"):
        run.train()
    assert run.steps_of("save") == [number for number in (3, 6, 9) if number < step]
    assert all(row["step"] < step for row in run.rows)


def test_steps_that_made_no_update_are_logged_and_counted_until_they_are_too_many() -> None:
    """They say so themselves, in a figure of their own."""
    seen: list[tuple[int, str]] = []
    run = Recorder(
        steps=6, divergences=Divergences(limit=3, count=1, write_down=lambda *what: seen.append(what))
    )
    told = {2: {"loss": 1.0, "no_update": 1}, 4: {"loss": 9.0, "no_update": 1, "loss_limit": 5.0}}

    def step(state: Any, batch: Any) -> tuple[Any, Row]:
        return state + 1, told.get(state + 1, {"loss": 2.0, "no_update": 0, "loss_limit": float("inf")})

    run.settings |= {"step": step, "log_every": 1}
    run.train()
    assert run.logged("loss") == [1, 3, 5, 6] and run.logged("skipped") == [2, 4]
    assert not any("no_update" in row or "loss_limit" in row for row in run.rows)
    whys = ["the update would not be finite", "loss is 9, a spike: the recent ones allow 5"]
    assert [row["diverged"] for row in run.rows if "diverged" in row] == whys
    assert seen == [
        (step, f"step {step} made no update: {why}") for step, why in zip((2, 4), whys, strict=True)
    ]
    told[5] = {"loss": float("nan"), "no_update": 1}
    run.settings["divergences"] = Divergences(limit=2)
    with pytest.raises(DivergedError, match="diverged at step 5: loss is nan"):
        run.train()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 4, 8, 10])
def test_an_event_that_measures_what_is_not_finite_ends_the_run_too(value: float, step: int) -> None:
    """As a validation loss does where a step broke the parameters and no training loss has shown it yet."""
    run = Recorder(save_every=4)

    def measure(state: Any) -> Row:
        return {"val_loss": value if state == step else 1.0, "sample": "text"}

    run.settings["events"] = [Event("val_loss", 4, measure)]
    with pytest.raises(DivergedError, match=f"diverged at step {step}: val_loss is {value}") as caught:
        run.train()
    assert caught.value.exit_code == 76
    assert run.steps_of("save") == [number for number in (4, 8) if number < step]
    assert run.logged("val_loss") == [number for number in (0, 4, 8) if number < step]


@pytest.mark.parametrize(("value", "raised"), [(float("inf"), DivergedError), (1.0, KeyError)])
def test_an_event_that_fails_on_a_state_that_is_not_finite_ends_the_run_as_diverged(
    value: float, raised: type[Exception]
) -> None:
    """A sample's tokens, for one, may be outside the vocabulary then."""

    def fail(state: Any) -> Row:
        raise KeyError("token 99")

    state: Any = {"w": jnp.array([0, value])}
    with pytest.raises(raised) as caught:
        train(state, Recorder(events=[Event("sample", 4, fail)]).loop(), start=0, measured=lambda *_: False)
    if raised is DivergedError:
        assert "diverged at step 0: not finite any more: w" in str(caught.value)


def losses(run: Recorder, *values: float) -> Event:
    """Validation losses of the steps 0, 2, 4, ..."""

    def measure(state: Any) -> Row:
        run.calls.append(("val_loss", state))
        return {"val_loss": values[state // 2]}

    return Event("val_loss", 2, measure)


def test_the_step_of_a_new_best_value_is_saved_at_once_and_once() -> None:
    run = Recorder(save_every=4)
    run.settings["events"] = [losses(run, 0.5, 5, 4, 6, 3, 8)]
    assert run.train() == 10
    assert run.steps_of("save") == [2, 4, 8, 10]
    assert run.settings["best"].step == 8
    only = Recorder(save_every=4, best=Best("none"))
    only.settings["events"] = [losses(only, 0.5, 5, 4, 6, 3, 8)]
    only.train()
    assert only.steps_of("save") == [4, 8, 10]


def test_training_ends_early_with_all_that_is_due_at_the_end_measured_and_saved() -> None:
    run = Recorder(best=Best("val_loss", patience=2))
    run.settings["events"] = [losses(run, 9, 5, 4, 6, 4, 1), run.event("test", 10), run.event("b", 4)]
    assert run.train() == 8
    assert run.steps_of("step") == list(range(1, 9))
    assert (
        run.steps_of("test") == [0, 8]
        and run.steps_of("b") == [0, 4, 8]
        and run.steps_of("save") == [2, 4, 8]
    )
    assert run.logged("loss") == [1, 4, 8]
    again = Recorder(best=Best.of(run.rows, "val_loss", 2))
    again.settings["events"] = run.settings["events"]
    run.calls.clear()
    assert again.train(8, lambda _, name: name != "test") == 8
    assert run.calls == [("test", 8)] and again.calls == []
    patient = Recorder(best=Best.of(run.rows, "val_loss", 3))
    patient.settings["events"] = [losses(patient, 9, 5, 4, 6, 4, 4.5)]
    assert patient.train(8, lambda *_: True) == 10
    assert patient.steps_of("step") == [9, 10] and patient.settings["best"].exhausted


def test_a_signal_in_the_last_measurement_of_an_early_end_leaves_a_run_that_goes_on() -> None:
    run = Recorder(best=Best("val_loss", patience=1))
    with stop_on_signal() as stop:
        run.settings |= {"stop": stop}
        run.settings["events"] = [losses(run, 9, 5, 6), run.event("test", 10, cut_short(stop, 4))]
        with pytest.raises(StoppedError, match="stopped at step 4"):
            run.train()
    assert run.steps_of("save") == [2, 4] and run.logged("test") == [0]
    run.settings |= {"stop": Stop(), "best": Best.of(run.rows, "val_loss", 1)}
    run.settings["events"] = [losses(run, 9, 5, 6), run.event("test", 10)]
    assert run.train(4, lambda _, name: name == "val_loss") == 4
    assert run.logged("test") == [0, 4]


def test_tokens_per_second_leave_out_compilation_events_and_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 2 seconds of a clock that the first step, an event and a save move on by 1000."""
    clock, run = [0.0], Recorder(save_every=5)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def step(state: Any, batch: Any) -> Any:
        clock[0] += 1000 if state == 0 else 2
        return Recorder.step(run, state, batch)

    def pause(*_: Any) -> None:
        clock[0] += 1000

    run.settings |= {"step": step, "save": pause, "events": [run.event("a", 5, pause)]}
    run.train()
    rates = {row["step"]: row.get("tokens_per_second") for row in run.rows if "loss" in row}
    assert rates[8] == pytest.approx(4.0, rel=0.5) and rates[4] == pytest.approx(4.0, rel=0.5)


@pytest.mark.parametrize("at_once", [True, False])
def test_tokens_per_second_are_those_of_the_steps_whether_they_are_computed_at_once_or_later(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Step n takes n seconds. A small step on a CPU has ended when it is launched, and one on a GPU has not.

    A program for another shape is compiled in step 2, which takes 1000 seconds.
    """
    clock, compiled, run = [0.0], [0.0], Recorder(steps=4, log_every=1)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("jaxgpt.training.loop._is_computed", lambda metrics: at_once)

    class Later(Metric):
        def __float__(self) -> float:
            clock[0] += 0 if at_once else self.step
            return super().__float__()

    def step(state: Any, batch: Any) -> Any:
        compiled[0] += 1000 if state == 1 else 0
        clock[0] += (1000 if state == 1 else 0) + (state + 1 if at_once else 0)
        return state + 1, {"loss": Later(run, state + 1)}

    run.settings |= {"step": step, "compiling": lambda: compiled[0]}
    run.train()
    rates = {row["step"]: row.get("tokens_per_second") for row in run.rows if "loss" in row}
    assert rates == {1: None, 2: pytest.approx(8 / 2), 3: pytest.approx(8 / 3), 4: pytest.approx(8 / 4)}


def test_a_step_that_is_computed_at_once_after_one_that_is_waited_for_counts_for_the_next_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each step takes a second. Of step 3 alone it is known at once that it has ended."""
    clock, run = [0.0], Recorder(steps=5, log_every=1)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("jaxgpt.training.loop._is_computed", lambda metrics: metrics["loss"].step == 3)

    class Later(Metric):
        def __float__(self) -> float:
            clock[0] += self.step != 3
            return super().__float__()

    def step(state: Any, batch: Any) -> Any:
        clock[0] += state == 2
        return state + 1, {"loss": Later(run, state + 1)}

    run.settings |= {"step": step}
    run.train()
    rates = {row["step"]: row.get("tokens_per_second") for row in run.rows if "loss" in row}
    assert rates == {1: None, 2: pytest.approx(4), 3: None, 4: pytest.approx(16), 5: pytest.approx(8)}


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_the_step_that_is_done_and_stops(number: signal.Signals) -> None:
    handlers = {each: signal.getsignal(each) for each in SIGNALS}
    run = Recorder()
    with (
        pytest.raises(
            StoppedError, match=rf"stopped at step 6: {number.name} came; run the same command"
        ) as caught,
        stop_on_signal() as run.settings["stop"],
    ):

        def step(state: Any, batch: Any) -> Any:
            signal_at(5, number)(state)
            return Recorder.step(run, state, batch)

        run.settings["step"] = step
        run.train()
    assert caught.value.exit_code == 75
    assert run.steps_of("save") == [6] and run.calls.index(("read", 6)) < run.calls.index(("save", 6))
    assert {each: signal.getsignal(each) for each in handlers} == handlers


def test_handlers_are_restored_whatever_happens() -> None:
    handlers = {each: signal.getsignal(each) for each in SIGNALS}
    with pytest.raises(KeyError), stop_on_signal() as stop:
        assert all(signal.getsignal(each) != handler for each, handler in handlers.items())
        assert stop.signal is None
        raise KeyError
    assert {each: signal.getsignal(each) for each in handlers} == handlers


def test_under_nohup_the_end_of_the_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


PROGRAM = """
import os, signal, sys, time
from jaxgpt.training.stop import stop_on_signal
with stop_on_signal() as stop:
    for name in sys.argv[1:]:
        print(stop.signal and stop.signal.name, flush=True)
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(0.1)
    print(stop.signal.name, flush=True)
"""


@pytest.mark.parametrize(
    ("signals", "code", "output"),
    [
        (["SIGTERM"], 0, ["None", "SIGTERM"]),
        (["SIGTERM", "SIGTERM"], -signal.SIGTERM, ["None", "SIGTERM"]),
        (["SIGINT", "SIGTERM"], -signal.SIGTERM, ["None", "SIGINT"]),
    ],
)
def test_a_second_signal_of_either_kind_ends_the_process(
    signals: list[str], code: int, output: list[str]
) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *signals], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout.split() == output


def cut_short(stop: Stop, step: int) -> Callable[[int], None]:
    """An event that gets a signal at a step and, polling, ends its work there."""

    def act(state: int) -> None:
        signal_at(step)(state)
        stop.check()

    return act


def comparable(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]


@pytest.mark.parametrize("step", [0, 3, 5, 8, 10])
@pytest.mark.parametrize("where", ["first event", "second event", "step"])
def test_an_interrupted_run_leaves_the_rows_of_an_uninterrupted_one(
    tmp_path: Path, step: int, where: str
) -> None:
    """Events at 0, 4, 8 and 10, so that a signal comes at a step with and one without them."""

    def attempt(folder: Path, start: int, interrupt: bool) -> tuple[Recorder, MetricsLog]:
        folder.mkdir(exist_ok=True)
        log = MetricsLog(folder / "metrics.jsonl")
        log.cut_back(start if start else -1)
        run = Recorder()
        with stop_on_signal() as stop:
            acts = {
                place: cut_short(stop, step if interrupt and where == place else -1)
                for place in ("first event", "second event")
            }

            def one(state: Any, batch: Any) -> Any:
                signal_at(step - 1 if interrupt and where == "step" else -1)(state)
                return Recorder.step(run, state, batch)

            events = [run.event("a", 4, acts["first event"]), run.event("b", 4, acts["second event"])]
            run.settings |= {"stop": stop, "sinks": [log], "events": events, "step": one}
            try:
                measured = {(row["step"], name) for row in log.rows() for name in row}
                run.train(start, lambda *what: what in measured)
            except StoppedError:
                run.calls.append(("stopped", -1))
        return run, log

    _, expected = attempt(tmp_path / "whole", 0, interrupt=False)
    run, log = attempt(tmp_path / "cut", 0, interrupt=True)
    interrupted = step in (0, 4, 8, 10) if where != "step" else step > 0
    assert bool(run.steps_of("stopped")) == interrupted
    if interrupted:
        missing = {"first event": {"a", "b"}, "second event": {"b"}, "step": {"a", "b"}}[where]
        assert not any(name in row for row in log.rows() for name in missing if row["step"] == step)
        again, log = attempt(tmp_path / "cut", max(run.steps_of("save"), default=0), interrupt=False)
        assert again.steps_of("step") == list(range(step + 1, 11)) and not again.steps_of("stopped")
    assert comparable(log.rows()) == comparable(expected.rows())


def test_a_check_is_silent_until_a_signal_comes() -> None:
    with stop_on_signal() as stop:
        stop.check()
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()
        with pytest.raises(StopRequested):
            stop.check()
