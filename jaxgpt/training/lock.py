"""The lock of a run directory: one run at a time trains in it, and whoever comes second hears whose it is.

Imports no JAX, so that a second start is refused at once.
"""

import contextlib
import json
import os
import platform
from pathlib import Path

import filelock

from jaxgpt.errors import BusyError, StorageError, unwritable
from jaxgpt.files import write_atomically

LOCK = ".lock"
HOLDER = ".holder"  # who has the lock: an attempt to take it empties the lock's own file


class RunLock:
    """The lock of a run directory, which is made if it is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, filelock.FileLock(folder / LOCK, timeout=0)

    def acquire(self) -> None:
        """Take it. Raises BusyError while another process has it, StorageError when it cannot be made."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except filelock.Timeout:
            raise _in_use(self._folder) from None
        except OSError as error:
            raise unwritable(self._folder, error, "the run directory cannot be made") from None
        with contextlib.suppress(StorageError):  # it is only a word for others
            holder = {"process": os.getpid(), "host": platform.node()}
            write_atomically(self._folder / HOLDER, json.dumps(holder).encode())

    def release(self) -> None:
        """Give it up. Does nothing where this process does not have it."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                (self._folder / HOLDER).unlink(missing_ok=True)
            self._lock.release()


def refuse_in_use(folder: Path) -> None:
    """Raise BusyError while another process has the lock of a run directory. Nothing is made or changed."""
    if not (folder / LOCK).is_file():
        return
    try:
        filelock.FileLock(folder / LOCK, timeout=0).acquire().lock.release()
    except filelock.Timeout:
        raise _in_use(folder) from None
    except OSError:
        pass  # the run itself will say what is wrong with the directory


def _in_use(folder: Path) -> BusyError:
    who = "another process"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        holder = json.loads((folder / HOLDER).read_bytes())
        who = f"process {int(holder['process'])} on {holder['host']!s}"
    return BusyError(
        "run directory is in use",
        path=folder,
        why=f"{who} trains in it",
        fix="wait until it ends, or name another --out-dir",
    )
