"""A checkpoint that somebody reads stays until that is done, and one that goes is not begun to be read."""

import gc
import os
import threading
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxgpt.config import GPTConfig
from jaxgpt.errors import StorageError
from jaxgpt.model.gpt import Params
from jaxgpt.weights import run
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints, finished_steps
from jaxgpt.weights.kept import Hold
from jaxgpt.weights.params import stored_params
from jaxgpt.weights.run import open_run, write_run


def small(step: int) -> dict[str, Any]:
    return {"params": {"x": jnp.full(3, step, jnp.float32)}}


@pytest.fixture
def folder(tmp_path: Path, config: GPTConfig, params: Params) -> Path:
    write_run(stored_params(config, params), tmp_path / "run")
    return tmp_path / "run"


def test_a_checkpoint_that_is_read_stays_until_that_is_done(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(10, small(10), {})
        checkpoints.wait()
        readers = [Hold(tmp_path / "10"), Hold(tmp_path / "10")]
        for step in (20, 30):
            checkpoints.save(step, small(step), {})
            checkpoints.wait()
            assert finished_steps(tmp_path) == [10, step]
        readers[0].let_go()
        checkpoints.save(40, small(40), {})
        checkpoints.wait()
        assert finished_steps(tmp_path) == [10, 40]
        del readers[:]
        checkpoints.save(50, small(50), {})
    assert finished_steps(tmp_path) == [50]


def test_nobody_begins_to_read_what_is_deleted(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(10, small(10), {})
        checkpoints.save(20, small(20), {})
        with pytest.raises((BlockingIOError, FileNotFoundError)):
            Hold(tmp_path / "10")
    assert Hold(tmp_path / "20").step == 20
    with pytest.raises(FileNotFoundError):
        Hold(tmp_path / "10")


def test_a_model_is_held_as_long_as_it_is_read(folder: Path) -> None:
    checkpoint = folder / CHECKPOINTS / "0"
    model = open_run(folder)
    with pytest.raises(BlockingIOError):
        Hold(checkpoint, alone=True)
    del model
    gc.collect()
    Hold(checkpoint, alone=True).let_go()


def test_a_reader_waits_for_the_next_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deleting = Hold(folder / CHECKPOINTS / "0", alone=True)
    monkeypatch.setattr(run, "WAIT", 0.0)
    with pytest.raises(StorageError, match="its run has been replacing it"):
        open_run(folder)
    monkeypatch.setattr(run, "WAIT", 30.0)
    timer = threading.Timer(0.2, deleting.let_go)
    timer.start()
    assert open_run(folder).config.layers == 3
    timer.join()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux lists them there")
def test_a_hold_ends_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Hold(tmp_path / "7")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
