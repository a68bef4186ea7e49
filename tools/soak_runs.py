"""A small training as a process of its own, and what it leaves, for tools/soak.py."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.weights.checkpoint import CHECKPOINTS, read_meta

STEPS = 40
TRAINING = [
    *("pretrain", "nano", "--steps", str(STEPS), "--batch", "4", "--log-every", "1", "--eval-every", "10"),
    *("--eval-batches", "2", "--checkpoint-every", "5", "--sample-tokens", "4"),
    *("--model.context", "32", "--model.layers", "2", "--model.heads", "2", "--model.width", "32"),
]
MEASURED = ("loss", "grad_norm", "learning_rate", "val_loss", "sample")


class Left(NamedTuple):
    """What a finished run holds: its log, and the digests of its last state."""

    log: list[tuple[int, str, Any]]
    digests: dict[str, Any]


def command(out: Path) -> list[str]:
    """The command that trains in a directory."""
    return [sys.executable, "-m", "jaxgpt", *TRAINING, "--out-dir", str(out)]


def train(out: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Train to the end."""
    return subprocess.run(command(out), check=check, capture_output=True, text=True)


def left(out: Path) -> Left:
    """What a run that is done holds."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    log = [(row["step"], key, row[key]) for row in map(json.loads, lines) for key in MEASURED if key in row]
    return Left(log, read_meta(out / CHECKPOINTS, STEPS)["digests"])


def unfinished(out: Path) -> list[Path]:
    """Checkpoints that are being saved, or were when the run ended."""
    return [path for path in (out / CHECKPOINTS).glob("*") if not path.name.isdecimal()]


def debris(out: Path) -> list[str]:
    """What a run that is done should not hold."""
    checkpoints = unfinished(out)
    parts = [path for path in out.rglob("*") if path.name.endswith((".part", "-tmp"))]
    return sorted(str(path.relative_to(out)) for path in {*checkpoints, *parts})
