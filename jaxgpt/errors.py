"""One family of errors, one exit code each.

An error says what is wrong, where, why, and what to do about it. The command line prints these four on one
line, `jaxgpt: error: WHAT (PATH): WHY; WHAT TO DO`, and exits with the code of the error's class.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self


class JaxgptError(Exception):
    """The base of every error that jaxgpt raises on purpose.

    Raised itself, it means a fault of jaxgpt's own (exit code 70). `fix` names the concrete thing to do, such
    as "give a number from 0 to 1": whoever reads the line must not have to guess.
    """

    exit_code = 70

    def __init__(self, what: str, *, why: str, fix: str, path: str | Path | None = None) -> None:
        place = f" ({path})" if path is not None else ""
        super().__init__(f"{what}{place}: {why}; {fix}")

    @classmethod
    def worded(cls, message: str) -> Self:
        """An error of this class whose message is already written."""
        return cls.__new__(cls, message)  # without __init__, which would compose one

    def said_by(self, process: int) -> Self:
        """The same error as the other processes of a job raise it."""
        error = self.worded(f"process {process}: {self}")
        error.__dict__.update(self.__dict__)
        return error

    def __reduce__(self) -> tuple[Callable[[str], Self], tuple[str], dict[str, Any]]:
        """Pickled as class, message and attributes, so that one process can tell another of it."""
        return type(self).worded, (str(self),), self.__dict__


class ConfigError(JaxgptError):
    """A setting is unknown, impossible, or does not go together with another (exit code 2)."""

    exit_code = 2


class DataError(JaxgptError):
    """A data file or a model file does not hold what it should (exit code 65)."""

    exit_code = 65


class MissingError(JaxgptError):
    """An input that was named does not exist (exit code 66)."""

    exit_code = 66


class BusyError(JaxgptError):
    """Another process is writing to the directory (exit code 69)."""

    exit_code = 69


class LostError(JaxgptError):
    """Another process of the job was killed, or its machine is gone (exit code 71)."""

    exit_code = 71


class StorageError(JaxgptError):
    """Reading or writing failed: a full disk, no permission, a save that did not finish (exit code 74)."""

    exit_code = 74


class StoppedError(JaxgptError):
    """A signal stopped the run, after everything that is needed to resume it was saved (exit code 75)."""

    exit_code = 75


class CancelledError(JaxgptError):
    """Ctrl-C ended a command that keeps nothing of its work for later (exit code 130)."""

    exit_code = 130


class DivergedError(JaxgptError):
    """A loss, a gradient or a parameter is no longer finite (exit code 76)."""

    exit_code = 76
    step: int | None = None
    """The step at which that was seen, where it is known."""


def unreadable(path: str | Path | None, error: OSError, what: str = "cannot read") -> StorageError:
    """The error for what the system could not read."""
    fix = "see that it is still there, that you have permission to read it, and that its disk is sound"
    return StorageError(what, path=path, why=str(error), fix=fix)


def unwritable(path: str | Path | None, error: OSError, what: str = "cannot write") -> StorageError:
    """The error for what the system could not write."""
    fix = "free some disk space, or choose a folder that you have permission to write to"
    return StorageError(what, path=path, why=str(error), fix=fix)


def explain(error: BaseException) -> JaxgptError:
    """What a person is told of any error: ours as it is, others with a message and a fitting exit code."""
    if isinstance(error, JaxgptError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return CancelledError.worded("stopped by Ctrl-C")
    if isinstance(error, OSError):
        advice = "see that the disk has free space and that you have permission to read and write there"
        return StorageError("input/output failed", why=str(error), fix=advice)
    advice = "run the command again with --debug and report what it prints"
    return JaxgptError("internal error", why=repr(error), fix=advice)
