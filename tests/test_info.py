"""`jaxgpt info`: the facts, the warning, and with --check what is wrong and the exit code that says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from command_line import exit_code

from jaxgpt.doctor import machine


def info(*args: object, code: int = 0) -> None:
    assert exit_code("info", *args) == code


@pytest.fixture
def unused_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU that JAX, which is not asked to, does not use."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    monkeypatch.delenv("JAX_PLATFORMS")


def test_it_names_versions_backend_and_devices(capsys: pytest.CaptureFixture) -> None:
    info()
    out, err = capsys.readouterr()
    for fact in (jax.__version__, "backend", "cpu", "device 7", "memory unknown"):
        assert fact in out
    assert err == ""


def test_an_unused_accelerator_is_warned_of(unused_gpu: None, capsys: pytest.CaptureFixture) -> None:
    info()
    err = capsys.readouterr().err
    assert "warning: an NVIDIA GPU is here, but JAX runs on CPU" in err
    assert "to mend it: pip install 'jaxgpt[cuda1" in err


def test_check_of_a_sound_machine_exits_with_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "LEAST_MEMORY", 0)
    monkeypatch.setattr(machine, "LEAST_DISK", 0)
    info("--check", "--json", tmp_path / "info.json")
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads((tmp_path / "info.json").read_text())
    names = [check["name"] for check in found["checks"]]
    assert names == ["accelerators", "packages", "results", "attention", "memory", "disk"]
    assert all(name in out for name in names)
    assert all(check["findings"] == [] for check in found["checks"])
    assert found["facts"]["jax"] == jax.__version__


def test_check_names_each_finding_with_what_mends_it_and_exits_with_2(
    unused_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "LEAST_MEMORY", 0)
    monkeypatch.setattr(machine, "LEAST_DISK", 1e30)
    info("--check", "--json", tmp_path / "info.json", code=2)
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert [line[:5] for line in lines] == ["wrong", "  to ", "wrong", "  to ", "jaxgp"]
    assert "an NVIDIA GPU is here" in lines[0] and "of disk free" in lines[2]
    assert "pip install 'jaxgpt[cuda1" in lines[1] and "--out-dir" in lines[3]
    assert lines[4].startswith("jaxgpt: error: 2 things are wrong with this installation or machine")
    checks = json.loads((tmp_path / "info.json").read_text())["checks"]
    assert [len(check["findings"]) for check in checks] == [1, 0, 0, 0, 0, 1]
    assert set(checks[0]["findings"][0]) == {"what", "fix"}


def test_without_check_no_check_is_written(tmp_path: Path) -> None:
    info("--json", tmp_path / "info.json")
    assert json.loads((tmp_path / "info.json").read_text())["checks"] == []


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_platform_that_is_not_there_is_no_internal_error(platform: str) -> None:
    environment = os.environ | {"JAX_PLATFORMS": platform}
    command = [sys.executable, "-m", "jaxgpt", "info", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert f"jaxgpt: error: JAX does not start (JAX_PLATFORMS={platform})" in done.stderr
    assert "unset JAX_PLATFORMS" in done.stderr
