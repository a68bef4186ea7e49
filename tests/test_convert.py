"""Models saved by Hugging Face transformers give, loaded by us, the logits that PyTorch computed in float64."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgpt.errors import DataError, MissingError
from jaxgpt.model.gpt import define
from jaxgpt.weights.convert import read_huggingface

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = ["plain", "sharded", "headless", "odd", "scaled", "untied", "bfloat16"]


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_equal_pytorchs(name: str) -> None:
    config, params = read_huggingface(GOLDEN / name)
    expected = np.load(GOLDEN / name / "expected.npz")
    logits = jax.jit(define(config).apply)(params, expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5)


def test_stored_dtypes_are_kept() -> None:
    _, params = read_huggingface(GOLDEN / "bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def copy_with_config(tmp_path: Path, **changes: object) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "plain", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_all_misfits_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_huggingface(copy_with_config(tmp_path, n_layer=3, n_positions=9))
    assert "no tensor h.2.ln_1.weight" in str(caught.value) and "wpe.weight is (16, 20), not (9, 20)" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "changes", [{"activation_function": "quick_gelu"}, {"add_cross_attention": True}, {"model_type": "bert"}]
)
def test_what_would_change_the_computation_is_refused_by_name(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(DataError, match=next(iter(changes))):
        read_huggingface(copy_with_config(tmp_path, **changes))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"config\.json"):
        read_huggingface(tmp_path)
    folder = copy_with_config(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="not a safetensors file"):
        read_huggingface(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"model\.safetensors not found"):
        read_huggingface(folder)
