"""starts.jsonl: each time that a run began or went on, by which command and versions, and how long it ran."""

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jaxgpt.errors import unwritable

STARTS_FILE = "starts.jsonl"
OWN_PROGRAMS = ("jaxgpt", "__main__.py")
CHECKOUT = Path(__file__).parent.parent.parent  # where the package stands in one


class Starts(NamedTuple):
    """What the file of a run says."""

    commands: list[str]
    """The command of each start, in order."""
    environments: list[str]
    """The versions and the system of each start that recorded them, in order."""
    seconds: float
    """How long they ran together, by the clock on the wall. Those that were killed do not count."""
    killed: int
    """How many ended without a word."""
    rewound: int
    """How many were made by the run itself, which went back after a divergence."""


@contextlib.contextmanager
def recorded(folder: Path, step: int, since: float, after: str = "") -> Iterator[None]:
    """Around the work of a run: note that it began at a step, and at the end how long it took.

    `since` is the time, as `time.perf_counter` has it, from which the duration counts. `after` is the
    divergence after which the run went back to that step. Raises StorageError when the file cannot be
    written.
    """
    why = {"after": after} if after else {}
    _append(folder, {"step": step, "command": command(), "environment": environment(), **why})
    try:
        yield
    finally:
        _append(folder, {"seconds": round(time.perf_counter() - since, 1)})


def command() -> str:
    """The command line of this process, or that the run was started from Python."""
    if Path(sys.argv[0]).name not in OWN_PROGRAMS:
        return "jaxgpt.train(...) in Python"
    return shlex.join(["jaxgpt", *sys.argv[1:]])


@functools.cache
def environment() -> str:
    """The versions that decide what a run computes, and the system that it runs on."""
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("jaxgpt", "jax", "jaxlib", "flax")]
    if commit := commit_of(CHECKOUT):
        packages[0] += f" ({commit})"
    system = f"{platform.system()} on {platform.machine()}"
    return ", ".join([*packages, f"Python {platform.python_version()}", system])


def commit_of(checkout: Path) -> str | None:
    """The commit of a git checkout, with `-dirty` where files differ from it. None where there is none."""
    if not (checkout / ".git").exists():  # git itself would look into the folders above, too
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    quietly = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10, env=quietly)
        return done.stdout.strip() or None
    return None


def changed_environment(folder: Path) -> str | None:
    """What a run was last run with, where that is not what it is run with now. None where it is the same."""
    before = read_starts(folder).environments[-1:]
    return before[0] if before and before[0] != environment() else None


def read_starts(folder: Path) -> Starts:
    """Read what is known. Older runs have no such file, and a line that was cut off does not count."""
    path = folder / STARTS_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    found: list[Any] = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # a process was killed while it wrote
            found.append(json.loads(line))
    rows = [row for row in found if isinstance(row, dict)]
    commands = [row["command"] for row in rows if "command" in row]
    environments = [row["environment"] for row in rows if "environment" in row]
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    rewound = sum("after" in row for row in rows)
    return Starts(commands, environments, sum(seconds), len(commands) - len(seconds), rewound)


def _append(folder: Path, row: dict[str, int | float | str]) -> None:
    try:
        with (folder / STARTS_FILE).open("a+b") as file:
            line = json.dumps(row).encode() + b"\n"
            file.write(b"\n" + line if _is_cut_off(file) else line)
    except OSError as error:
        raise unwritable(folder / STARTS_FILE, error) from error


def _is_cut_off(file: BinaryIO) -> bool:
    """Whether the last line has no end, because a process was killed while it wrote it."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read() != b"\n"
