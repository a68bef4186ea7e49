"""Checkpoints that do not hold what was saved in them. Of several processes, what one finds all know."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from jaxgpt import hosts
from jaxgpt.errors import DataError

T = TypeVar("T")


class DamagedError(DataError):
    """A checkpoint does not hold what was saved in it (exit code 65)."""

    checkpoint: Path | None = None
    """Its directory, as this process names it (`named_here`)."""


def paths_of(errors: Iterable[DamagedError]) -> list[Path]:
    """Return the directories of the checkpoints that these errors are about."""
    return [error.checkpoint for error in errors if error.checkpoint]


def damaged(folder: Path, step: int, why: str) -> DamagedError:
    """Return the error for the checkpoint of a step in the directory `folder`."""
    path = folder.absolute() / str(step)
    error = DamagedError(
        "checkpoint is damaged",
        path=path,
        why=why,
        fix="remove this directory, and the checkpoint before it is used",
    )
    error.checkpoint = path
    return error


def read_together(folder: Path, read: Callable[[], T]) -> T:
    """Return what this process reads in the directory of checkpoints, once every process has read.

    What one of them finds damaged is an error on all, so that none waits for it in vain.
    """
    found: list[T] = []
    with named_here(folder):
        hosts.each(lambda: found.append(read()))
    return found[0]


@contextlib.contextmanager
def named_here(folder: Path) -> Iterator[None]:
    """Let a DamagedError name a checkpoint of `folder` as this process does, whichever process has found it.

    The hosts of a job may have the same folder at different places.
    """
    try:
        yield
    except DamagedError as error:
        if error.checkpoint:
            error.checkpoint = folder.absolute() / error.checkpoint.name
        raise
