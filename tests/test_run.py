"""A run's weights: read to where they belong, or a leaf at a time."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgpt.config import GPTConfig, MeshConfig, TrainConfig, save_config
from jaxgpt.errors import DataError, MissingError
from jaxgpt.log import METRICS_FILE
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import mesh_of, shardings
from jaxgpt.weights import run
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints
from jaxgpt.weights.convert import with_dtype, with_vocab
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import read_params, stored_params
from jaxgpt.weights.run import is_run, one_device, open_run, write_run
from jaxgpt.weights.tensors import StoredModel, Tensor


@pytest.fixture
def folder(tmp_path: Path, config: GPTConfig, params: Params) -> Path:
    write_run(stored_params(config, params), tmp_path / "run")
    return tmp_path / "run"


def test_what_is_written_is_a_run_and_reads_back(folder: Path, config: GPTConfig, params: Params) -> None:
    assert is_run(folder)
    stored = open_run(folder)
    assert stored.config == config
    restored = read_params(stored, mesh_of(MeshConfig(fsdp=2, tensor=4)))
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    wanted = shardings(params, mesh_of(MeshConfig(fsdp=2, tensor=4)))
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == wanted


def test_a_run_is_read_a_leaf_at_a_time_and_each_once(
    folder: Path, config: GPTConfig, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    restore_leaf = run.restore_leaf

    def counted(*arguments: object) -> jax.Array:
        reads.append(str(arguments[-1]))
        return restore_leaf(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "restore_leaf", counted)
    model, expected = open_run(folder), stored_params(config, params)
    assert reads == [] and model.config == config
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(tensor.read(), expected.tensors[name].read())
        assert tensor.read().shape == tensor.shape and tensor.dtype == np.float32
    assert len(reads) == len(set(reads)) == len(jax.tree.leaves(params))


def test_a_run_is_restored_straight_to_the_mesh_without_its_tensors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each device reads its own shards: no leaf is ever read whole."""
    model, targets = open_run(folder), []
    restore = run.restore

    def seen(path: Path, step: int, item: str, target: Params) -> Params:
        targets.append(target)
        return restore(path, step, item, target)

    monkeypatch.setattr(run, "restore", seen)
    monkeypatch.setattr(run, "restore_leaf", lambda *_: pytest.fail("a leaf was read whole"))
    mesh = mesh_of(MeshConfig(fsdp=2, tensor=4))
    read_params(model, mesh)
    [target] = targets
    assert jax.tree.map(lambda leaf: leaf.sharding, target) == shardings(target, mesh)


def test_changed_tensors_of_a_run_are_read_and_not_restored(folder: Path, config: GPTConfig) -> None:
    model = open_run(folder)
    half = read_params(with_dtype(model, "bfloat16"), one_device())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    longer = read_params(with_vocab(model, 100), one_device())
    assert longer["wte"]["embedding"].shape == (104, 24)
    moved = {**model.tensors, "ln_f.bias": Tensor.of(np.full(24, 7, np.float32))}
    params = read_params(StoredModel(config, moved), one_device())
    np.testing.assert_array_equal(params["ln_f"]["bias"], np.full(24, 7))


def test_a_damaged_leaf_is_refused_by_its_name_and_the_others_are_read(folder: Path) -> None:
    meta = next((folder / "checkpoints" / "0" / "meta").rglob("metadata"))
    text = meta.read_text()
    place = text.index('"ln_f/bias": "') + len('"ln_f/bias": "float32[24]:')
    meta.write_text(text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :])
    model = open_run(folder)
    model.tensors["ln_f.weight"].read()
    with pytest.raises(DataError, match="other contents than were saved in ln_f/bias"):
        model.tensors["ln_f.bias"].read()
    with pytest.raises(DataError, match="other contents than were saved in ln_f/bias"):
        read_params(model, one_device())


def test_a_run_without_a_checkpoint_is_a_missing_input(folder: Path) -> None:
    (folder / "checkpoints" / "0").rename(folder / "elsewhere")
    with pytest.raises(MissingError, match="the run saved none yet"):
        open_run(folder)


def test_a_checkpoint_is_named_behind_the_run(tmp_path: Path, config: GPTConfig, params: Params) -> None:
    """Each checkpoint holds another number in the bias of the last LayerNorm: its step."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_config(TrainConfig(model=config), folder)
    with Checkpoints(folder / CHECKPOINTS, keep=9) as checkpoints:
        for step in (20, 30, 40):
            moved = params | {"ln_f": params["ln_f"] | {"bias": np.full(24, step, np.float32)}}
            checkpoints.save(step, {"params": moved}, {})

    def step_of(name: str) -> float:
        return float(open_model(name).tensors["ln_f.bias"].read()[0])

    def refused(name: str) -> str:
        with pytest.raises(MissingError) as caught:
            open_model(name)
        return str(caught.value)

    assert step_of(f"{folder}") == step_of(f"{folder}@40") == 40 and step_of(f"{folder}@20") == 20
    names = f"name one of {folder}@20, {folder}@30, {folder}@40"
    assert "it has not measured val_loss after a step" in refused(f"{folder}@best")
    for wanted in ("10", "bests", "", "-1"):
        assert f"{wanted!r} is not the step of a checkpoint that is kept; {names}" in refused(
            f"{folder}@{wanted}"
        )
    losses = {0: 1.0, 20: 3.0, 30: 2.0, 40: 2.5}
    rows = [json.dumps({"step": step, "val_loss": loss}) + "\n" for step, loss in losses.items()]
    (folder / METRICS_FILE).write_text("".join(rows))
    assert step_of(f"{folder}@best") == 30
    (folder / METRICS_FILE).write_text("".join(rows) + json.dumps({"step": 50, "val_loss": 1.5}) + "\n")
    assert f"its best one, of step 50, was not kept; {names}" in refused(f"{folder}@best")
    folder.rename(tmp_path / "run@best")
    assert step_of(f"{tmp_path}/run@best") == 40 and step_of(f"{tmp_path}/run@best@30") == 30
    assert "no model" in refused(f"{folder}@30")


def test_a_bias_free_model_of_another_dtype_is_a_run_too(tmp_path: Path) -> None:
    model = with_dtype(open_model(Path(__file__).parent / "golden" / "nanogpt_compiled"), "bfloat16")
    write_run(StoredModel(model.config, model.tensors), tmp_path / "run")
    assert {tensor.dtype.name for tensor in open_run(tmp_path / "run").tensors.values()} == {"bfloat16"}
    params = read_params(open_run(tmp_path / "run"), one_device())
    assert "bias" not in params["ln_f"] and {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {
        "bfloat16"
    }
