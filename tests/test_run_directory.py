"""A run directory: what is written when a run begins or goes on, and the state saved and restored."""

import dataclasses
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import filelock
import jax
import numpy as np
import pytest

from jaxgpt.config import GPTConfig, MeshConfig, OptimConfig, load_recipe, read_config, with_settings
from jaxgpt.errors import BusyError, StorageError
from jaxgpt.model.gpt import define
from jaxgpt.parallel import abstract, mesh_of, shardings
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.lock import refuse_in_use
from jaxgpt.training.optim import averaged, learning_rate, optimizer_of
from jaxgpt.training.resume import Found
from jaxgpt.training.run_directory import locked, restore_state, save_state, write_settings
from jaxgpt.training.starts import changed_environment, commit_of, recorded
from jaxgpt.training.state import abstract_state, create_state
from jaxgpt.training.trainable import Chosen
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints, restore

BYTES = load_tokenizer("bytes")
NANO = load_recipe("nano")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def begun(tmp_path: Path, told: list[str]) -> Path:
    """A run that has begun and logged two steps."""
    write_settings(tmp_path, NANO, BYTES, None, told.append)
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 2.0}\n{"step": 5, "loss": 1.0}\n')
    return tmp_path


def test_a_new_run_writes_its_settings_and_its_tokenizer(begun: Path, told: list[str]) -> None:
    assert read_config(begun) == NANO and load_tokenizer(begun).sha256 == BYTES.sha256
    assert {path.name for path in begun.iterdir()} == {"config.json", "tokenizer.tiktoken", "metrics.jsonl"}
    assert told == []


def test_the_log_of_an_attempt_that_saved_nothing_is_kept(begun: Path, told: list[str]) -> None:
    log = begun / "metrics.jsonl"
    first = log.read_bytes()
    write_settings(begun, NANO, BYTES, None, told.append)
    assert not log.exists() and (begun / "metrics.before-1.jsonl").read_bytes() == first
    log.write_text('{"step": 0, "devices": 1}\n')
    write_settings(begun, NANO, BYTES, None, told.append)
    assert (begun / "metrics.before-1.jsonl").read_bytes() == first
    assert (begun / "metrics.before-2.jsonl").read_text() == '{"step": 0, "devices": 1}\n'
    assert told[2:] == [
        f"{begun} holds no finished checkpoint; training begins at step 0",
        "the log so far is kept as metrics.before-2.jsonl",
    ]


def test_a_run_that_goes_on_as_it_was_writes_nothing_but_its_shorter_log(
    begun: Path, told: list[str]
) -> None:
    before = contents(begun)
    write_settings(begun, NANO, BYTES, Found(5, NANO, "", frozenset()), told.append)
    assert contents(begun) == before
    write_settings(begun, NANO, BYTES, Found(4, NANO, "", frozenset()), told.append)
    assert (begun / "metrics.jsonl").read_text() == '{"step": 4, "loss": 2.0}\n'
    assert not (begun / "settings.jsonl").exists() and told == []


def test_changed_settings_are_written_and_their_history_is_kept(begun: Path, told: list[str]) -> None:
    longer = with_settings(NANO, {"steps": 900})
    slower = with_settings(longer, {"optim.learning_rate": 1e-3, "log_every": 5})
    write_settings(begun, longer, BYTES, Found(4, NANO, "", frozenset()), told.append)
    write_settings(begun, slower, BYTES, Found(4, longer, "", frozenset()), told.append)
    assert read_config(begun) == slower
    assert [json.loads(line) for line in (begun / "settings.jsonl").read_text().splitlines()] == [
        {"step": 4, "changed": {"steps": [600, 900]}},
        {"step": 4, "changed": {"log_every": [10, 5], "optim.learning_rate": [0.003, 0.001]}},
    ]


def test_settings_that_cannot_be_written_are_a_storage_error(begun: Path, told: list[str]) -> None:
    (begun / "settings.jsonl").mkdir()
    longer = with_settings(NANO, {"steps": 900})
    with pytest.raises(StorageError, match="cannot write"):
        write_settings(begun, longer, BYTES, Found(5, NANO, "", frozenset()), told.append)
    assert read_config(begun) == NANO


def test_other_versions_than_those_of_the_last_start_are_noticed(tmp_path: Path) -> None:
    assert changed_environment(tmp_path) is None
    with recorded(tmp_path, 0, 0.0):
        assert changed_environment(tmp_path) is None
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('[1]\n7\n{"environment": "jax 0.1"}\n')
    assert changed_environment(tmp_path) == "jax 0.1"


def test_the_commit_of_a_checkout_is_recorded_and_that_it_was_changed(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None

    def git(*args: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    assert commit_of(tmp_path) is None
    (tmp_path / "a").write_text("one")
    git("add", "a")
    git("commit", "--quiet", "--message", "one")
    assert commit_of(tmp_path) == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "b").mkdir()
    assert commit_of(tmp_path / "b") is None
    (tmp_path / "a").write_text("two")
    assert commit_of(tmp_path) == git("rev-parse", "--short=12", "HEAD") + "-dirty"


def test_a_directory_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(BusyError, match=f"process {os.getpid()} on {re.escape(platform.node())} trains in it"),
        locked(tmp_path / "run"),
    ):
        pass
    with locked(tmp_path / "run"):
        pass
    refuse_in_use(tmp_path / "run")
    with filelock.FileLock(tmp_path / "run" / ".lock"):  # nobody holds it any more
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def assert_same(ours: jax.Array, theirs: jax.Array) -> None:
    if jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
        ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_state_is_restored_as_it_was_on_another_mesh(tmp_path: Path, config: GPTConfig) -> None:
    optim, config = OptimConfig(ema_decay=0.5), dataclasses.replace(config, layers=1)
    optimizer = optimizer_of(optim, learning_rate(optim, 10))
    model, eight = define(config), mesh_of(MeshConfig(data=4, fsdp=2))
    state = create_state(model, optimizer, 3, mesh_of(MeshConfig(data=1), jax.devices()[:1]))
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        save_state(checkpoints, "abc", state, 7)
    restored = restore_state(tmp_path, 7, abstract_state(model, optimizer, eight))
    jax.tree.map(assert_same, restored, state)
    for leaf, sharding in zip(
        jax.tree.leaves(restored), jax.tree.leaves(shardings(restored, eight)), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert averaged(restored.opt_state) is not None


def test_the_average_of_a_run_that_trains_a_part_is_saved_as_a_whole_model(
    tmp_path: Path, config: GPTConfig
) -> None:
    optim, chosen = OptimConfig(ema_decay=0.5), Chosen(pattern="h/.*", layers=(1, 3))
    optimizer, mesh = (
        optimizer_of(optim, learning_rate(optim, 10)),
        mesh_of(MeshConfig(data=1), jax.devices()[:1]),
    )
    state = create_state(define(config), optimizer, 3, mesh, chosen=chosen)
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        save_state(checkpoints, "abc", state, 7)
    saved = restore(tmp_path / CHECKPOINTS, 7, "average", abstract(state.params, mesh))
    jax.tree.map(assert_same, saved, state.params)  # an average begins with the parameters
