"""`jaxgpt.train`: trains and resumes from Python, in any thread, and stops in good order."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from small_runs import without_speed

import jaxgpt
from jaxgpt import StoppedError
from jaxgpt.errors import ConfigError
from jaxgpt.text.prepare import prepare
from jaxgpt.training.metrics import MetricsLog

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SETTINGS: dict[str, Any] = {
    "model.context": 8,
    "model.layers": 1,
    "model.heads": 1,
    "model.width": 8,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "optim.ema_decay": 0.5,
    "batch": 8,
    "log_every": 1,
    "eval_every": 3,
    "eval_batches": 1,
    "sample_tokens": 3,
}


@pytest.fixture(scope="module")
def train(tables_text: Path) -> Callable[..., jaxgpt.Run]:
    """`jaxgpt.train` on a small model and a small text."""

    def call(out: Path, **more: Any) -> jaxgpt.Run:
        settings = SETTINGS | {"data.path": str(tables_text), "out_dir": str(out)}
        return jaxgpt.train("nano", settings, **{"steps": 6, "progress": False} | more)

    return call


def test_a_package_that_is_missing_is_named_before_anything_slow(
    train: Callable[..., jaxgpt.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="tensorboardX is not installed"):
        train(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_without_validation_data_it_is_said_before_anything_slow_how_to_train_without(
    train: Callable[..., jaxgpt.Run], tables_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxgpt.training.run.compile_step", pytest.fail)
    with pytest.raises(ConfigError, match=r"--data.val-fraction 0: .*every 3 steps; give --eval-every 0"):
        train(tmp_path / "run", **{"data.val_fraction": 0})
    assert not (tmp_path / "run").exists()
    prepare([str(tables_text)], tmp_path / "data", tokenizer="bytes", val_fraction=0)
    with pytest.raises(ConfigError, match=r"validation split of 0 tokens .*give --eval-every 0"):
        train(tmp_path / "run", **{"data.path": str(tmp_path / "data")})


@pytest.mark.slow
def test_a_text_that_changed_is_no_reason_to_delete_the_runs_data(
    train: Callable[..., jaxgpt.Run], tables_text: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.txt"
    settings = {"data.path": str(own), "eval_every": 0}
    own.write_text(tables_text.read_text())
    train(tmp_path / "run", steps=1, **settings)
    own.write_text(tables_text.read_text()[::-1])
    with pytest.raises(ConfigError, match=r"another run is here .*own.txt\); give the run the text that"):
        train(tmp_path / "run", steps=2, **settings)


@pytest.mark.slow
def test_without_evaluations_no_validation_data_is_needed(
    train: Callable[..., jaxgpt.Run], tmp_path: Path
) -> None:
    run = train(tmp_path / "run", steps=1, **{"data.val_fraction": 0, "eval_every": 0})
    assert [row["step"] for row in run.metrics if "loss" in row] == [1]


@pytest.fixture(scope="module")
def whole(train: Callable[..., jaxgpt.Run], tmp_path_factory: pytest.TempPathFactory) -> jaxgpt.Run:
    """An uninterrupted run of six steps."""
    return train(tmp_path_factory.mktemp("runs") / "whole")


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Do something when the loss of a step is logged."""
    write = MetricsLog.write

    def write_and_act(self: MetricsLog, step: int, metrics: Mapping[str, Any]) -> None:
        write(self, step, metrics)
        if step == number and "loss" in metrics:
            act()

    monkeypatch.setattr(MetricsLog, "write", write_and_act)


def interrupt(number: signal.Signals = signal.SIGINT) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def test_a_run_has_its_directory_its_rows_and_its_model(whole: jaxgpt.Run) -> None:
    names = {path.name for path in whole.directory.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "tokenizer.tiktoken", "report.md"} <= names
    losses = [row["loss"] for row in whole.metrics if "loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert "model" not in vars(whole)  # nothing is loaded before it is asked for
    assert whole.model is whole.model
    loaded = jaxgpt.load(whole.directory)
    jax.tree.map(np.testing.assert_array_equal, whole.model.params, loaded.params)


def test_ctrl_c_saves_and_the_same_call_in_another_thread_goes_on_bit_for_bit(
    whole: jaxgpt.Run, train: Callable[..., jaxgpt.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    during: list[Any] = []
    with monkeypatch.context() as patch:

        def act() -> None:
            during.append({number: signal.getsignal(number) for number in SIGNALS})
            interrupt()()

        at_step(patch, 3, act)
        with pytest.raises(StoppedError, match=r"stopped at step [34]: SIGINT came") as stopped:
            train(tmp_path / "run")
    assert during == [handlers]
    assert stopped.value.__context__ is None  # not told as an error in the handling of another
    [step] = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert f"stopped at step {step}" in str(stopped.value)
    done: list[jaxgpt.Run] = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path / "run", handle_signals=True)))
    thread.start()
    thread.join()
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers
    assert without_speed(done[0].metrics) == without_speed(whole.metrics)
    jax.tree.map(np.testing.assert_array_equal, done[0].model.params, whole.model.params)


def test_signals_are_handled_where_that_is_asked_for(
    train: Callable[..., jaxgpt.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    at_step(monkeypatch, 2, interrupt(signal.SIGTERM))
    with pytest.raises(StoppedError, match=r"stopped at step [23]: SIGTERM came"):
        train(tmp_path / "run", handle_signals=True)
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_a_stop_while_text_is_tokenized_comes_before_the_first_step(
    train: Callable[..., jaxgpt.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxgpt import pretraining

    prepare = pretraining.prepare
    reached = threading.Event()

    def slow(*arguments: Any, progress: Callable[[str, int, int], None], **more: Any) -> Any:
        interrupt()()
        for _ in range(1000):  # as over a large text
            progress("tokenizing", 1, 2)
            reached.wait(0.01)
        return prepare(*arguments, progress=progress, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "prepare", slow)
        with pytest.raises(StoppedError, match="stopped before the first step: SIGINT came"):
            train(tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_progress_is_shown_on_stderr_and_can_be_turned_off(
    train: Callable[..., jaxgpt.Run], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", steps=2, sample_tokens=0)
    assert capfd.readouterr() == ("", "")
    train(tmp_path / "run", steps=4, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "going on from step 2" in err
    assert "step 4: loss" in err and "step 4: val_loss" in err and "step 4: sample" in err


def test_in_a_notebook_progress_is_shown_in_the_cell(
    train: Callable[..., jaxgpt.Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    texts: list[str] = []

    def show(content: Mapping[str, str], **_: Any) -> Any:
        texts.append(content["text/plain"])
        return SimpleNamespace(update=show)

    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=show))
    train(tmp_path / "run", steps=1, sample_tokens=0, progress=True)
    assert "step 1/1" in texts[-1] and "val_loss" in texts[-1] and "compiling the training step" in texts[-1]
    assert capfd.readouterr() == ("", "")


def test_a_setting_that_changes_by_name_only_is_named_by_the_call(
    train: Callable[..., jaxgpt.Run], tmp_path: Path
) -> None:
    first = train(tmp_path / "run", steps=1, eval_every=0)
    recipe = jaxgpt.config.read_config(first.directory)
    other = jaxgpt.config.with_settings(recipe, {"optim.beta1": 0.3})
    with pytest.raises(ConfigError, match=r"optim.beta1: 0.9 then, 0.3 now"):
        jaxgpt.train(other, steps=2, progress=False)
    jaxgpt.train(recipe, {"optim.beta1": 0.3}, steps=2, progress=False)
    assert jaxgpt.config.read_config(first.directory).optim.beta1 == 0.3


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown key step \(did you mean 'steps'\?\)"):
        jaxgpt.train("nano", step=3)
