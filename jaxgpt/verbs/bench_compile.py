"""`jaxgpt bench compile`: what the first step and the first text take, with and without kept programs."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgpt.display import note
from jaxgpt.errors import JaxgptError

MEASURED = {"train": "first_step_seconds", "generate": "compile_seconds"}


def compile_figures(settings: Sequence[str]) -> dict[str, Any]:
    """Figures of four starts: `bench train` and `bench generate`, each in an empty folder for compiled
    programs and then again.

    `settings` are the flags of the model and of the batch. Raises JaxgptError where a start fails.
    """
    figures: dict[str, Any] = {}
    for what, measured in MEASURED.items():
        with tempfile.TemporaryDirectory() as kept:
            for name in ("cold", "kept"):
                note(f"{what}, {name} ...")
                figures[f"{what}_{measured}_{name}"] = _started(what, settings, Path(kept))[measured]
    return figures


def _started(what: str, settings: Sequence[str], kept: Path) -> dict[str, Any]:
    """The figures of one start, whose compiled programs are kept in this folder."""
    file = kept / "figures.json"
    command = [sys.executable, "-m", "jaxgpt", "bench", what, *settings, "--steps", "1", "--json", str(file)]
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(kept / "compiled"),
        "JAX_ENABLE_COMPILATION_CACHE": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise JaxgptError(
            f"bench {what} ended with {ended.returncode}", why=last, fix=f"run {' '.join(command)}"
        )
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return figures
