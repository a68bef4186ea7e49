"""Which checkpoints a run keeps: the newest, the best, and those that somebody reads.

Who reads a checkpoint locks its directory, and so does the run that is about to delete it. A reader's lock is
shared, and the run's is for itself alone. The system lets go of the locks of a process that ends in any way.
On a file system without locks, nothing of this has an effect.
"""

import contextlib
import fcntl
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxgpt import hosts


class Hold:
    """A lock on the directory of a checkpoint. It ends when it is let go, or when nobody refers to it."""

    def __init__(self, checkpoint: Path, *, alone: bool = False) -> None:
        """Lock it. Raises BlockingIOError where somebody else's lock forbids that, FileNotFoundError where it
        is not there, or no longer.
        """
        self.step = int(checkpoint.name)
        opened = os.open(checkpoint, os.O_RDONLY)
        self._end = weakref.finalize(self, os.close, opened)
        try:
            fcntl.flock(opened, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.let_go()
            raise
        except OSError:
            pass  # there are no locks here
        if not _is_still(checkpoint, opened):
            self.let_go()
            raise FileNotFoundError(checkpoint)

    def let_go(self) -> None:
        """End the lock."""
        self._end()


def _is_still(path: Path, opened: int) -> bool:
    """Whether a path still names what was opened there."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(opened))
    return False


class Kept:
    """Keep the newest checkpoints, the best one, and those that somebody reads.

    Orbax's own way to keep the best lets NaN win.
    """

    def __init__(self, folder: Path, keep: int, best: Callable[[], int | None]) -> None:
        self._folder, self._keep, self._best = folder, keep, best
        self._evicted: list[Hold] = []

    def should_preserve(self, checkpoints: Sequence[Any], **_: object) -> Sequence[bool]:
        """Answer for each checkpoint, as Orbax asks before it deletes any."""
        steps, best = [checkpoint.step for checkpoint in checkpoints], self._best()
        newest = set(sorted(steps)[-self._keep :])
        self.let_go()
        return [step in newest or step == best or self._is_read(step) for step in steps]

    def _is_read(self, step: int) -> bool:
        """Whether somebody reads a checkpoint. Otherwise nobody begins to before `let_go`."""
        if hosts.is_first():  # which alone deletes
            try:
                self._evicted.append(Hold(self._folder / str(step), alone=True))
            except BlockingIOError:
                return True
            except OSError:  # it is gone
                return False
        return False

    def let_go(self) -> None:
        """Let others read again what is still there."""
        for hold in self._evicted:
            hold.let_go()
        self._evicted.clear()
