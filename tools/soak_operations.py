"""SIGKILL before file operations of trainings, for tools/soak.py."""

import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from soak_faults import Outcome
from soak_runs import command, debris, left, train

KILLED_AT = Path(__file__).with_name("killed_at.py")
SAVED = "os.rename checkpoints/N.orbax-checkpoint-tmp"


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Send SIGKILL before one file operation of every kind, of runs that begin and of runs that go on."""

    share: float = 1.0
    """Which share of the kinds, drawn at random."""
    seed: int = 0
    """The seed of the draw."""

    def run(self, folder: Path) -> Outcome:
        draw, problems, told = random.Random(self.seed), list[str](), list[str]()
        nothing, begun = folder / "nothing", folder / "begun"
        nothing.mkdir()
        _killed(folder, begun, SAVED, 5)
        to_do = []
        for name, start in (("begin", nothing), ("go on", begun)):
            done = shutil.copytree(start, folder / f"{name} whole")
            to_do.append((name, start, _kinds(folder, done)))
        whole = left(folder / "begin whole")
        for name, start, kinds in to_do:
            chosen = sorted(draw.sample(sorted(kinds), max(1, round(self.share * len(kinds)))))
            codes = Counter[int]()
            for kind in chosen:
                out, number = shutil.copytree(start, folder / "try"), draw.randint(1, kinds[kind])
                code = _killed(folder, out, kind, number)
                codes[code] += 1
                again = train(out, check=False)
                for wrong, what in (
                    (code not in (0, -signal.SIGKILL), f"exit code {code}"),
                    (again.returncode != 0, f"the next start: {again.stderr[-300:]}"),
                    (again.returncode == 0 and left(out) != whole, "another run came out"),
                    (debris(out), f"left behind: {', '.join(debris(out))}"),
                ):
                    if wrong:
                        problems.append(f"{name}, before {kind} number {number}: {what}")
                shutil.rmtree(out)
            told.append(
                f"of runs that {name} {codes[-signal.SIGKILL]} were killed, each before an operation of "
                f"another kind, and {codes[0]} never came to it"
            )
        return Outcome("; ".join(told), problems)


def _kinds(folder: Path, out: Path) -> Counter[str]:
    """How many operations of each kind a training does to its end."""
    (folder / "log").unlink(missing_ok=True)
    code = _killed(folder, out, "nothing", 0)
    assert code == 0, f"the training ended with {code}"
    return Counter((folder / "log").read_text().splitlines())


def _killed(folder: Path, out: Path, kind: str, number: int) -> int:
    """The exit code of a training that is killed before this operation, if it comes to it."""
    argv = [sys.executable, KILLED_AT, out, folder / "log", kind, number, *command(out)[3:]]
    return subprocess.run([str(arg) for arg in argv], check=False, capture_output=True).returncode
