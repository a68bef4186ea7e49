"""`jaxgpt convert`: what it writes, what it says, what it proves."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import exit_code

import jaxgpt
from jaxgpt.weights.open import open_model

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"


def convert(*argv: Any) -> Any:
    return exit_code("convert", *argv)


def test_a_checked_conversion_leaves_its_certificate(tmp_path: Path, capsys: Any) -> None:
    assert convert(GOLDEN / "nanogpt_compiled", tmp_path / "out", "--check") == 0
    output, error = capsys.readouterr()
    assert not output and "biases of zeros added" in error and "tensors are equal byte for byte" in error
    proof = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert proof["passed"] and proof["format"] == "huggingface" and "zeros added" in proof["changes"][0]
    expected = np.load(GOLDEN / "nanogpt_compiled" / "expected.npz")
    logits = jaxgpt.load(tmp_path / "out").logits(expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5)


def test_the_certificate_of_a_single_file_lies_beside_it(tmp_path: Path) -> None:
    assert convert(GOLDEN / "plain", tmp_path / "model.bin", "--to", "llmc", "--check") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.parity.json"]


def test_a_single_file_says_what_else_it_leaves_out(tmp_path: Path, capsys: Any) -> None:
    given = Path(shutil.copytree(GOLDEN / "plain", tmp_path / "given"))
    (given / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert convert(given, tmp_path / "out" / "model.bin", "--to", "llmc", "--check") == 0
    assert "where its texts end and its chat templates are left out" in capsys.readouterr().err


def test_a_conversion_that_changes_the_model_fails_its_check(tmp_path: Path, capsys: Any) -> None:
    """llm.c computes another GELU than nanoGPT. The file is written, and the check says what differs."""
    assert convert(GOLDEN / "nanogpt", tmp_path / "out", "--to", "llmc", "--check") == 65
    error = capsys.readouterr().err
    assert (
        "what was written is not what was meant" in error and "activation: 'gelu' meant, 'gelu_tanh'" in error
    )
    proof = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert not proof["passed"] and proof["byte_exact"]


def test_a_cast_and_another_vocabulary_are_said_and_done(tmp_path: Path, capsys: Any) -> None:
    assert convert(GOLDEN / "plain", tmp_path / "out", "--dtype", "bfloat16", "--vocab", "64", "--check") == 0
    error = capsys.readouterr().err
    assert "cast from float32 to bfloat16" in error and "3 rows of zeros added" in error
    model = open_model(tmp_path / "out")
    assert model.dtype == "bfloat16" and model.config.vocab == 64


@pytest.mark.slow
def test_openais_checkpoint_says_the_epsilon_it_was_read_with(tmp_path: Path, capsys: Any) -> None:
    assert convert(GOLDEN / "openai_tf" / "odd", tmp_path / "assumed") == 0
    assert "1e-05 assumed" in capsys.readouterr().err
    assert (
        convert(GOLDEN / "openai_tf" / "odd", tmp_path / "stated", "--layer-norm-epsilon", "1e-3", "--check")
        == 0
    )
    assert "assumed" not in capsys.readouterr().err
    assert json.loads((tmp_path / "stated" / "config.json").read_text())["layer_norm_epsilon"] == 1e-3


def test_the_script_is_the_verb(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "tools" / "convert_weights.py"]
    subprocess.run(
        [*script, GOLDEN / "plain", tmp_path / "out", "--to", "nanogpt"], check=True, capture_output=True
    )
    assert open_model(tmp_path / "out").config.vocab == 61
    failed = subprocess.run([*script, tmp_path / "nothing", tmp_path / "x"], capture_output=True, text=True)
    assert failed.returncode == 66 and failed.stderr.startswith("jaxgpt: error: no model")
