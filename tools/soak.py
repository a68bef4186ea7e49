"""Stops training at random moments and compares what is left with a run that was never stopped.

    python tools/soak.py signals --tries 50
    python tools/soak.py kills --tries 100

Each try begins a small training as a process of its own, sends it a signal at a moment drawn between its
start and its usual end, and runs the same command again. `signals` sends SIGTERM, SIGINT, SIGUSR1 and SIGHUP
in turn, `kills` sends SIGKILL. A line of figures goes to stdout. The exit code is 1 where a try lost
something, left something behind, ended in another way than it should, or came out otherwise.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from jaxgpt.weights.checkpoint import CHECKPOINTS, finished_steps, read_meta

STEPS = 40
TRAINING = [
    *("pretrain", "nano", "--steps", str(STEPS), "--batch", "4", "--log-every", "1", "--eval-every", "10"),
    *("--eval-batches", "2", "--checkpoint-every", "5", "--sample-tokens", "4"),
    *("--model.context", "32", "--model.layers", "2", "--model.heads", "2", "--model.width", "32"),
]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
MEASURED = ("loss", "grad_norm", "learning_rate", "val_loss", "sample")


@dataclass(frozen=True, kw_only=True)
class Signals:
    """Send signals that ask for an end: exit code 75, and the run goes on where it was."""

    tries: int = 20
    """How many trainings to stop."""
    seed: int = 0
    """The seed of the moments."""


@dataclass(frozen=True, kw_only=True)
class Kills:
    """Send SIGKILL, which no process can answer."""

    tries: int = 20
    """How many trainings to kill."""
    seed: int = 0
    """The seed of the moments."""


class Ended(NamedTuple):
    """How a process ended that was sent a signal."""

    code: int
    seconds: float
    """How long it took after the signal."""
    said: str


class Left(NamedTuple):
    """What a finished run holds: its log, and the digests of its last state."""

    log: list[tuple[int, str, Any]]
    digests: dict[str, Any]


def main(args: Signals | Kills) -> None:
    """Run all tries and print what came out."""
    for each in SIGNALS:  # what is ignored here, as under nohup, would be ignored by each training too
        signal.signal(each, signal.SIG_DFL)
    folder, draw = Path(tempfile.mkdtemp(prefix="soak-")), random.Random(args.seed)
    began = time.monotonic()
    _train(folder / "whole")
    usual, whole = time.monotonic() - began, _left(folder / "whole")
    problems: list[str] = []
    before_training = in_training = after = 0
    slowest = 0.0
    for number in range(args.tries):
        sent = signal.SIGKILL if isinstance(args, Kills) else SIGNALS[number % len(SIGNALS)]
        out, moment = folder / f"try-{number}", draw.uniform(0, usual)
        ended = _stopped(out, sent, moment)
        saved = finished_steps(out / CHECKPOINTS)
        before_training += ended.code != 0 and not saved
        in_training += ended.code != 0 and bool(saved)
        after += ended.code == 0
        slowest = max(slowest, ended.seconds)
        wanted = {0, -signal.SIGKILL if sent == signal.SIGKILL else 75}
        again = _train(out, check=False)
        for wrong, what in (
            (ended.code not in wanted, f"exit code {ended.code}: {ended.said[-300:]}"),
            ("Traceback" in ended.said, f"a traceback: {ended.said[-300:]}"),
            (again.returncode != 0, f"the next start: {again.stderr[-300:]}"),
            (again.returncode == 0 and _left(out) != whole, "another run came out"),
            (_debris(out), f"left behind: {', '.join(_debris(out))}"),
        ):
            if wrong:
                problems.append(f"try {number}, {sent.name} after {moment:.1f} s: {what}")
        shutil.rmtree(out, ignore_errors=True)
    print(
        f"{args.tries} tries: {before_training} stopped before a checkpoint, {in_training} after one, "
        f"{after} had ended; the slowest end took {slowest:.1f} s; {len(problems)} problems"
    )
    print(*problems, sep="\n", end="")
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(bool(problems))


def _command(out: Path) -> list[str]:
    return [sys.executable, "-m", "jaxgpt", *TRAINING, "--out-dir", str(out)]


def _train(out: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(out), check=check, capture_output=True, text=True)


def _stopped(out: Path, sent: signal.Signals, moment: float) -> Ended:
    """How a training ends that is sent a signal so many seconds after its start."""
    with subprocess.Popen(_command(out), stdout=-1, stderr=-1, text=True, start_new_session=True) as process:
        time.sleep(moment)
        began = time.monotonic()
        os.kill(process.pid, sent)
        _, said = process.communicate()
        return Ended(process.returncode, time.monotonic() - began, said)


def _left(out: Path) -> Left:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    log = [(row["step"], key, row[key]) for row in map(json.loads, lines) for key in MEASURED if key in row]
    return Left(log, read_meta(out / CHECKPOINTS, STEPS)["digests"])


def _debris(out: Path) -> list[str]:
    """What a run that is done should not hold."""
    checkpoints = [path for path in (out / CHECKPOINTS).glob("*") if not path.name.isdecimal()]
    parts = [path for path in out.rglob("*") if path.name.endswith((".part", "-tmp"))]
    return sorted(str(path.relative_to(out)) for path in {*checkpoints, *parts})


if __name__ == "__main__":
    main(
        tyro.cli(
            Annotated[Signals, tyro.conf.subcommand("signals")]
            | Annotated[Kills, tyro.conf.subcommand("kills")]
        )
    )
