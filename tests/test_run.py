"""A run's weights: read to where they belong, or a leaf at a time."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.errors import DataError, MissingError
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import mesh_of, shardings
from jaxgpt.weights import run
from jaxgpt.weights.params import stored_params
from jaxgpt.weights.run import is_run, one_device, open_run, read_run, write_run
from jaxgpt.weights.tensors import StoredModel


@pytest.fixture
def folder(tmp_path: Path, config: GPTConfig, params: Params) -> Path:
    write_run(stored_params(config, params), tmp_path / "run")
    return tmp_path / "run"


def test_what_is_written_is_a_run_and_reads_back(folder: Path, config: GPTConfig, params: Params) -> None:
    assert is_run(folder)
    found, restored = read_run(folder, mesh_of(MeshConfig(fsdp=2, tensor=4)))
    assert found == config
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


def test_a_damaged_leaf_is_refused_by_its_name_and_the_others_are_read(folder: Path) -> None:
    meta = next((folder / "checkpoints" / "0" / "meta").rglob("metadata"))
    text = meta.read_text()
    place = text.index('"ln_f/bias": "') + len('"ln_f/bias": "float32[24]:')
    meta.write_text(text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :])
    model = open_run(folder)
    model.tensors["ln_f.weight"].read()
    with pytest.raises(DataError, match="other contents than were saved in ln_f/bias"):
        model.tensors["ln_f.bias"].read()


def test_a_run_without_a_checkpoint_is_a_missing_input(folder: Path) -> None:
    (folder / "checkpoints" / "0").rename(folder / "elsewhere")
    with pytest.raises(MissingError, match="the run saved none yet"):
        open_run(folder)


def test_a_bias_free_model_of_another_dtype_is_a_run_too(tmp_path: Path) -> None:
    from jaxgpt.weights.convert import open_model, with_dtype

    model = with_dtype(open_model(Path(__file__).parent / "golden" / "nanogpt_compiled"), "bfloat16")
    write_run(StoredModel(model.config, model.tensors), tmp_path / "run")
    assert {tensor.dtype.name for tensor in open_run(tmp_path / "run").tensors.values()} == {"bfloat16"}
    config, params = read_run(tmp_path / "run", one_device())
    assert not config.bias and {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
