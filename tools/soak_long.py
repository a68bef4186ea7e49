"""What a long training uses, for tools/soak.py."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from soak_faults import Outcome
from soak_runs import command

# A model that makes the steps cheap: what is looked at are the checkpoints, evaluations, samples and rows.
TINY = [
    *("--model.context", "16", "--model.layers", "1", "--model.heads", "1", "--model.width", "16"),
    *("--batch", "2"),
]


@dataclass(frozen=True, kw_only=True)
class Long:
    """Train for long with evaluations, samples and checkpoints: what is used stays as it is."""

    steps: int = 10_000
    """How many steps."""
    every: int = 50
    """Steps between two checkpoints, evaluations and samples."""

    def run(self, folder: Path) -> Outcome:
        often = [word for name in ("checkpoint", "eval") for word in (f"--{name}-every", str(self.every))]
        argv = [*command(folder / "run"), *TINY, "--steps", str(self.steps), *often]
        seen, output = list[Use](), folder / "output"
        with output.open("w") as said, subprocess.Popen(argv, stdout=said, stderr=said) as process:
            while process.poll() is None:
                with contextlib.suppress(OSError, LookupError):  # it begins, or it has just ended
                    seen.append(use_of(process.pid, _last_step(folder / "run" / "metrics.jsonl")))
                time.sleep(0.2)
        if process.returncode:
            problem = f"the training ended with {process.returncode}: {output.read_text()[-300:]}"
            return Outcome("no figures", [problem])
        told, problems = compare(seen, self.steps)
        return Outcome(
            f"{self.steps} steps with a checkpoint, an evaluation and a sample every {self.every}: {told}",
            problems,
        )


class Use(NamedTuple):
    """What a process uses at a step of its work."""

    step: int
    bytes: int
    files: int
    threads: int


def compare(seen: Sequence[Use], steps: int) -> Outcome:
    """The least use of each half of so many steps, without the first fifth, and what has grown.

    A single moment says little: a save has files open and threads at work while it lasts.
    """
    middle = (steps / 5 + steps) / 2
    halves = [
        [use for use in seen if steps / 5 < use.step and (use.step > middle) == later]
        for later in (False, True)
    ]
    if not all(halves):
        return Outcome("no figures", ["it was too short to look at"])
    before, after = (Use(*map(min, zip(*half, strict=True))) for half in halves)
    problems = [
        f"{name} grew from {one} to {two}"
        for name, one, two in (
            ("open files", before.files, after.files),
            ("threads", before.threads, after.threads),
        )
        if two > one
    ]
    grown = (after.bytes - before.bytes) / 2**20
    return Outcome(
        f"after the first fifth, the second half of the rest used at least {after.bytes / 2**20:.1f} MiB "
        f"({grown:+.1f} against the first half), {after.files} open files ({after.files - before.files:+}) "
        f"and {after.threads} threads ({after.threads - before.threads:+})",
        problems,
    )


def use_of(process: int, step: int) -> Use:
    """What a process uses now. Raises OSError where it has ended."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line
    )
    files = len(os.listdir(f"/proc/{process}/fd"))
    return Use(step, int(status["VmRSS"].split()[0]) * 1024, files, int(status["Threads"]))


def _last_step(log: Path) -> int:
    """The step of the last whole row of a log. Raises OSError, IndexError where there is none yet."""
    with log.open("rb") as rows:
        rows.seek(-min(4096, log.stat().st_size), os.SEEK_END)
        step: int = json.loads(rows.read().splitlines()[-2])["step"]
    return step
