"""Trainings as processes of their own, for tools/soak.py: signals, SIGKILL, full disks, and readers."""

import contextlib
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
from typing import NamedTuple

import numpy as np
from soak_faults import Outcome
from soak_runs import TRAINING, command, debris, left, train, unfinished

import jaxgpt
from jaxgpt.errors import JaxgptError
from jaxgpt.parallel import by_path
from jaxgpt.weights.checkpoint import CHECKPOINTS, finished_steps

IN_A_ROW = 3  # stops of one run before it goes on to its end
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


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
        train(model)
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
                    parts = [path for path in debris(disk) if "data" not in Path(path).parts]
                    for wrong, what in (
                        (done.returncode not in (0, 74), f"exit code {done.returncode}"),
                        ("Traceback" in done.stderr, "a traceback"),
                        (parts, f"left behind: {', '.join(parts)}"),
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
        argv = [*command(out), *endless, "--eval-every", "0", "--log-every", "1000000"]
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


def _interrupted(folder: Path, signals: Sequence[signal.Signals], tries: int, seed: int) -> Outcome:
    """Stop trainings by these signals in turn. After some stops in a row, let each go on to its end.

    Each second one is stopped at its first save after a random moment, the others at the moment itself.
    """
    for each in SIGNALS:  # what is ignored here, as under nohup, would be ignored by each training too
        signal.signal(each, signal.SIG_DFL)
    draw, began = random.Random(seed), time.monotonic()
    train(folder / "whole")
    usual, whole = time.monotonic() - began, left(folder / "whole")
    problems, done = list[str](), list[str]()
    before_training = in_training = after = in_save = runs = 0
    slowest = 0.0
    for number in range(tries):
        sent, out = signals[number % len(signals)], folder / f"run-{runs}"
        moment = draw.uniform(0, usual)
        ended = _stopped(out, sent, moment, at_save=draw.uniform(0, 0.1) if number % 2 else None)
        saved = finished_steps(out / CHECKPOINTS)
        in_save += bool(unfinished(out))
        before_training += ended.code != 0 and not saved
        in_training += ended.code != 0 and bool(saved)
        after += ended.code == 0
        slowest = max(slowest, ended.seconds)
        done.append(f"{sent.name} after {moment:.1f} s")
        wanted = {0, -signal.SIGKILL if sent == signal.SIGKILL else 75}
        found = [
            (ended.code not in wanted, f"exit code {ended.code}: {ended.said[-300:]}"),
            ("Traceback" in ended.said, f"a traceback: {ended.said[-300:]}"),
        ]
        if len(done) == IN_A_ROW or ended.code == 0 or number == tries - 1:
            again = train(out, check=False)
            found += [
                (again.returncode != 0, f"the next start: {again.stderr[-300:]}"),
                (again.returncode == 0 and left(out) != whole, "another run came out"),
                (bool(debris(out)), f"left behind: {', '.join(debris(out))}"),
            ]
            shutil.rmtree(out)
            runs += 1
        problems += [f"try {number}, {', '.join(done)}: {what}" for wrong, what in found if wrong]
        if not out.exists():
            done.clear()
    return Outcome(
        f"{tries} tries on {runs} runs: {before_training} stopped before a checkpoint, {in_training} after "
        f"one, {after} had ended; {in_save} of them left an unfinished save; the slowest end took "
        f"{slowest:.1f} s",
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


def _stopped(out: Path, sent: signal.Signals, moment: float, at_save: float | None = None) -> Ended:
    """How a training ends that is sent a signal so many seconds after its start.

    With `at_save`, that is so many seconds after a save begins behind that moment, if one does.
    """
    with (
        tempfile.TemporaryFile(
            "w+", encoding="utf-8", errors="replace"
        ) as said,  # a pipe that nobody reads fills
        subprocess.Popen(command(out), stdout=said, stderr=said, start_new_session=True) as process,
    ):
        time.sleep(moment)
        while at_save is not None and process.poll() is None and not unfinished(out):
            time.sleep(0.001)
        time.sleep(at_save or 0)
        began = time.monotonic()
        process.send_signal(sent)  # nothing where it has ended
        process.wait()
        seconds = time.monotonic() - began
        said.seek(0)
        return Ended(process.returncode, seconds, said.read())
