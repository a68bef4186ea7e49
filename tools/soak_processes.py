"""Trainings as processes of their own, for tools/soak.py: signals, SIGKILL, full disks, and readers."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from soak_faults import Outcome

import jaxgpt
from jaxgpt.errors import JaxgptError
from jaxgpt.parallel import by_path
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

    def run(self, folder: Path) -> Outcome:
        return _interrupted(folder, SIGNALS, self.tries, self.seed)


@dataclass(frozen=True, kw_only=True)
class Kills:
    """Send SIGKILL, which no process can answer."""

    tries: int = 20
    """How many trainings to kill."""
    seed: int = 0
    """The seed of the moments."""

    def run(self, folder: Path) -> Outcome:
        return _interrupted(folder, [signal.SIGKILL], self.tries, self.seed)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Fill the disk: exit code 74, what was saved is sound, and nothing is left behind.

    Only prepared tokens leave their parts, from which the same command goes on.
    """

    sizes: int = 6
    """How many sizes of disk each command is given."""

    def run(self, folder: Path) -> Outcome:
        codes, problems = Counter[str](), list[str]()
        text, model, disk = folder / "tables.txt", folder / "model", folder / "disk"
        text.write_text("\n".join(f"{a} times {b} is {a * b}." for a in range(200) for b in range(50)))
        _train(model)
        disk.mkdir()
        commands = {  # with what the largest disk of each is short of, in KiB
            "pretrain": ([*TRAINING, "--out-dir", str(disk / "run")], 1500),
            "prepare": (["prepare", str(text), "--out", str(disk / "data"), "--tokenizer", "bytes"], 400),
            "convert": (["convert", str(model), str(disk / "weights.safetensors")], 150),
            "tokenizer": (["tokenizer", str(text), "--vocab", "1000", "--out", str(disk / "a.tiktoken")], 8),
        }
        for name, (argv, most) in commands.items():
            for number in range(1, self.sizes + 1):
                size = max(4, most * number // self.sizes)
                with _small_disk(disk, size):
                    done = subprocess.run(
                        [sys.executable, "-m", "jaxgpt", *argv], check=False, capture_output=True, text=True
                    )
                    codes[f"{name} {done.returncode}"] += 1
                    debris = [path for path in _debris(disk) if "data" not in Path(path).parts]
                    for wrong, what in (
                        (done.returncode not in (0, 74), f"exit code {done.returncode}"),
                        ("Traceback" in done.stderr, "a traceback"),
                        (debris, f"left behind: {', '.join(debris)}"),
                        (_unreadable(disk / "run"), f"not readable: {_unreadable(disk / 'run')}"),
                    ):
                        if wrong:
                            problems.append(f"{name} on {size} KiB: {what}: {done.stderr[-3000:]}")
        told = ", ".join(f"{name} ({count} times)" for name, count in sorted(codes.items()))
        return Outcome(f"{sum(codes.values())} disks, exit codes {told}", problems)


@dataclass(frozen=True, kw_only=True)
class Readers:
    """Load the model of a run that trains, saves at every step and keeps one checkpoint."""

    tries: int = 50
    """How often to load it."""

    def run(self, folder: Path) -> Outcome:
        out, problems, steps = folder / "run", list[str](), set[float]()
        endless = ["--steps", "1000000", "--checkpoint-every", "1", "--keep-checkpoints", "1"]
        argv = [*_command(out), *endless, "--eval-every", "0", "--log-every", "1000000"]
        with subprocess.Popen(argv, stdout=-3, stderr=-3) as writer:
            while not (out / CHECKPOINTS).is_dir() or not finished_steps(out / CHECKPOINTS):
                time.sleep(0.1)
            since = time.monotonic()
            for number in range(self.tries):
                try:
                    params = by_path(jaxgpt.load(out).params)
                except JaxgptError as error:
                    problems.append(f"try {number}: {error}")
                else:
                    steps.add(float(np.asarray(params["ln_f/bias"]).sum()))
            seconds = time.monotonic() - since
            alive = writer.poll() is None
            writer.kill()
        if not alive:
            problems.append(f"the training ended with {writer.returncode}")
        return Outcome(
            f"{self.tries} loads beside a training in {seconds:.0f} s, of {len(steps)} different checkpoints",
            problems,
        )


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


@dataclass(frozen=True, kw_only=True)
class Long:
    """Train for long with evaluations, samples and checkpoints: what is used stays as it is."""

    steps: int = 10_000
    """How many steps."""

    def run(self, folder: Path) -> Outcome:
        argv = [*_command(folder / "run"), "--steps", str(self.steps), "--checkpoint-every", "50"]
        seen = list[Use]()
        with subprocess.Popen([*argv, "--eval-every", "50"], stdout=-3, stderr=-3) as process:
            while process.poll() is None:
                with contextlib.suppress(OSError, KeyError):  # it begins, or it has just ended
                    seen.append(_use(process.pid, folder / "run" / "metrics.jsonl"))
                time.sleep(0.5)
        begun = next((use for use in seen if use.step > self.steps / 5), None)
        if process.returncode or begun is None:
            return Outcome("no figures", [f"the training ended with {process.returncode}"])
        last = max(seen, key=lambda use: use.step)
        grown = (last.bytes - begun.bytes) / (last.step - begun.step) * 1000 / 2**20
        problems = [
            f"{name} grew from {before} to {after}"
            for name, before, after in (
                ("open files", begun.files, last.files),
                ("threads", begun.threads, last.threads),
            )
            if after > before + 2
        ]
        return Outcome(
            f"{self.steps} steps with a checkpoint, an evaluation and a sample every 50: from step "
            f"{begun.step} to {last.step} {grown:.2f} MiB more memory in 1,000 steps; at the end "
            f"{last.bytes / 2**20:.0f} MiB, {last.files} open files and {last.threads} threads",
            problems,
        )


class Use(NamedTuple):
    """What a process uses at a step of its training."""

    step: int
    bytes: int
    files: int
    threads: int


def _use(process: int, log: Path) -> Use:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line
    )
    rows = log.read_bytes().splitlines()[-2:]
    step = json.loads(rows[0])["step"] if rows else 0
    files = len(os.listdir(f"/proc/{process}/fd"))
    return Use(step, int(status["VmRSS"].split()[0]) * 1024, files, int(status["Threads"]))


def _interrupted(folder: Path, signals: Sequence[signal.Signals], tries: int, seed: int) -> Outcome:
    """Stop trainings by these signals in turn, and run each again to its end.

    Each second one is stopped at its first save after a random moment, the others at the moment itself.
    """
    for each in SIGNALS:  # what is ignored here, as under nohup, would be ignored by each training too
        signal.signal(each, signal.SIG_DFL)
    draw, began = random.Random(seed), time.monotonic()
    _train(folder / "whole")
    usual, whole = time.monotonic() - began, _left(folder / "whole")
    problems: list[str] = []
    before_training = in_training = after = in_save = 0
    slowest = 0.0
    for number in range(tries):
        sent = signals[number % len(signals)]
        out, moment = folder / f"try-{number}", draw.uniform(0, usual)
        ended = _stopped(out, sent, moment, at_save=draw.uniform(0, 0.1) if number % 2 else None)
        in_save += bool(_unfinished(out))
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
    return Outcome(
        f"{tries} tries: {before_training} stopped before a checkpoint, {in_training} after one, "
        f"{after} had ended; {in_save} of them left an unfinished save; the slowest end took {slowest:.1f} s",
        problems,
    )


@contextlib.contextmanager
def _small_disk(path: Path, kibibytes: int) -> Iterator[None]:
    """A disk in memory at this path, of so many KiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _unreadable(run: Path) -> str:
    """Why the model of a run that has saved something cannot be loaded, or nothing."""
    if not (run / CHECKPOINTS).is_dir() or not finished_steps(run / CHECKPOINTS):
        return ""
    try:
        jaxgpt.load(run)
    except JaxgptError as error:
        return str(error)
    return ""


def _command(out: Path) -> list[str]:
    return [sys.executable, "-m", "jaxgpt", *TRAINING, "--out-dir", str(out)]


def _train(out: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(out), check=check, capture_output=True, text=True)


def _stopped(out: Path, sent: signal.Signals, moment: float, at_save: float | None = None) -> Ended:
    """How a training ends that is sent a signal so many seconds after its start.

    With `at_save`, that is so many seconds after a save begins behind that moment, if one does.
    """
    with (
        tempfile.TemporaryFile(
            "w+", encoding="utf-8", errors="replace"
        ) as said,  # a pipe that nobody reads fills
        subprocess.Popen(_command(out), stdout=said, stderr=said, start_new_session=True) as process,
    ):
        time.sleep(moment)
        while at_save is not None and process.poll() is None and not _unfinished(out):
            time.sleep(0.001)
        time.sleep(at_save or 0)
        began = time.monotonic()
        process.send_signal(sent)  # nothing where it has ended
        process.wait()
        seconds = time.monotonic() - began
        said.seek(0)
        return Ended(process.returncode, seconds, said.read())


def _left(out: Path) -> Left:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    log = [(row["step"], key, row[key]) for row in map(json.loads, lines) for key in MEASURED if key in row]
    return Left(log, read_meta(out / CHECKPOINTS, STEPS)["digests"])


def _unfinished(out: Path) -> list[Path]:
    """Checkpoints that are being saved, or were when the run ended."""
    return [path for path in (out / CHECKPOINTS).glob("*") if not path.name.isdecimal()]


def _debris(out: Path) -> list[str]:
    """What a run that is done should not hold."""
    checkpoints = _unfinished(out)
    parts = [path for path in out.rglob("*") if path.name.endswith((".part", "-tmp"))]
    return sorted(str(path.relative_to(out)) for path in {*checkpoints, *parts})
