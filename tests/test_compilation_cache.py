"""What JAX compiles is kept for the next start, unless somebody says otherwise or it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt import compilation_cache
from jaxgpt.compilation_cache import UNFINISHED, keep_compiled_programs


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of a person, in a process that has not imported JAX."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "jax")
    return tmp_path / "jaxgpt" / "compiled"


def test_programs_are_kept_by_processor_and_settings_of_a_person_stay(fresh: Path) -> None:
    environment = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}
    folder = keep_compiled_programs(environment)
    assert folder is not None and folder.parent == fresh and folder.is_dir()
    assert environment == {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    assert keep_compiled_programs({}) == folder


def test_errors_of_xla_are_heard_where_there_may_be_an_accelerator(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation_cache.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    environment: dict[str, str] = {}
    assert keep_compiled_programs(environment) and "TF_CPP_MIN_LOG_LEVEL" not in environment


@pytest.mark.parametrize("name", ["JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"])
def test_a_variable_of_jax_decides(fresh: Path, name: str) -> None:
    environment = {name: "0"}
    assert keep_compiled_programs(environment) is None and environment == {name: "0"}


def test_it_is_too_late_behind_jax_and_a_folder_that_cannot_be_made_is_done_without(fresh: Path) -> None:
    fresh.parent.write_text("a file in its place")
    environment: dict[str, str] = {}
    assert keep_compiled_programs(environment) is None and environment == {}
    fresh.parent.unlink()
    sys.modules["jax"] = sys.modules["jaxgpt"]  # the fixture takes it out again
    assert keep_compiled_programs(environment) is None and environment == {} and not fresh.exists()


def test_an_entry_whose_writing_was_cut_off_is_deleted(fresh: Path) -> None:
    folder = keep_compiled_programs({})
    assert folder is not None
    names = ["whole-cache", "whole-atime", "cut-cache", "new-cache"]
    for name in names:
        (folder / name).write_bytes(b"12345678")
        if name != "new-cache":  # which somebody may be writing
            os.utime(folder / name, (0, (folder / name).stat().st_mtime - 2 * UNFINISHED))
    keep_compiled_programs({})
    assert {path.name for path in folder.iterdir()} == {*names} - {"cut-cache"}


@pytest.mark.slow
def test_a_second_start_compiles_nothing_anew_and_says_nothing_more(lm_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jaxgpt", "generate", str(lm_folder), "ab", "--seed", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TF_"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def start(**more: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
        settings = environment | more
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
        return done, {path.name for path in tmp_path.rglob("*-cache")}

    without, nothing = start(JAX_ENABLE_COMPILATION_CACHE="0")
    first, kept = start()
    second, still = start()
    assert not nothing and kept and kept == still
    assert (second.stdout, second.stderr) == (first.stdout, first.stderr) == (without.stdout, without.stderr)
