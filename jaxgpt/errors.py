"""One family of errors, one exit code each.

An error names what is wrong, where, why, and what to do about it; the command line prints it as the one line
`jaxgpt: error: WHAT (PATH): WHY; WHAT TO DO` and exits with the class's code.
"""

from pathlib import Path


class JaxgptError(Exception):
    """Base of every error jaxgpt raises on purpose. Raised itself only for faults of our own (exit code 70)."""

    exit_code = 70

    def __init__(self, what: str, *, why: str, fix: str, path: str | Path | None = None) -> None:
        place = f" ({path})" if path is not None else ""
        super().__init__(f"{what}{place}: {why}; {fix}")


class ConfigError(JaxgptError):
    """A setting is unknown, impossible, or at odds with another (exit code 2)."""

    exit_code = 2


class DataError(JaxgptError):
    """A data or model file holds something other than it should (exit code 65)."""

    exit_code = 65


class MissingError(JaxgptError):
    """An input that was named is not there (exit code 66)."""

    exit_code = 66


class BusyError(JaxgptError):
    """Another process is writing to the directory (exit code 69)."""

    exit_code = 69


class StorageError(JaxgptError):
    """Reading or writing failed: disk full, permission, a save that did not finish (exit code 74)."""

    exit_code = 74


class StoppedError(JaxgptError):
    """Stopped by a signal after saving what is needed to resume (exit code 75)."""

    exit_code = 75


class DivergedError(JaxgptError):
    """The loss or a gradient is no longer finite (exit code 76)."""

    exit_code = 76
