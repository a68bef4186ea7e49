"""One process's error ends the whole job, with its message and exit code, whatever the others are doing."""

import atexit
import contextlib
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import jax

from jaxgpt.errors import JaxgptError, StoppedError, explain
from jaxgpt.hosts.store import POLL, next_key, store, tell, told
from jaxgpt.interrupt import show_cursor

WATCH = 0.5  # seconds between two looks for an error of another process
GRACE = 3.0  # seconds that a process may take to end by itself after an error, before it is made to end
FAREWELL = 8.0  # seconds that the first process waits after an error for the others to end before it


@contextlib.contextmanager
def one_error_ends_all() -> Iterator[None]:
    """Around a whole command: an error that one process leaves it with ends every process within ten seconds.

    Each of them prints the message of the first error and exits with its code, even if it is stuck in a
    collective that will never end. No process can go on after this. StoppedError is no such error: all
    processes stop at the same step, and each saves to the end. Those that leave in good order wait for the
    others.
    """
    global _watch
    if jax.process_count() == 1 or _watch is not None:
        yield
        return
    _watch = _Watch()
    try:
        yield
    except StoppedError:
        _watch.wait_for_all()
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  Any error must end the others.
        _watch.leave(error)
    else:
        _watch.wait_for_all()
    finally:
        _watch = None


def announce(error: BaseException | None) -> None:
    """Tell the others at once that this process fails, for one that has to wait before it leaves the command.

    Without an error, and for StoppedError, there is nothing to tell.
    """
    if _watch is not None and error is not None and not isinstance(error, StoppedError):
        _watch.announce(error)


class _Failure(NamedTuple):
    """The first error of a job."""

    process: int
    error: JaxgptError

    def seen_by(self, process: int) -> JaxgptError:
        """The error as a process raises it: where another one failed, with that one's number."""
        return self.error if process == self.process else self.error.said_by(self.process)


class _Watch:
    """A thread that looks for other processes' errors, and ends this process when its main thread does not.

    The first process to fail sets a key that holds its error. Every process that fails sets a key of its own
    besides. When all of them fail by themselves, as they do when a loss diverges, each may take its time to
    end in good order.
    """

    def __init__(self) -> None:
        self._prefix = next_key()
        self._index: int = jax.process_index()
        self._count: int = jax.process_count()
        self._known = 0.0  # when this process learned of the error
        self._left = False  # the main thread has left with an error, and whoever catches it prints it
        self._over = threading.Event()  # all have left in good order: there is nothing left to look for
        store()  # raises here, not in the thread
        threading.Thread(target=self._run, name="jaxgpt-errors", daemon=True).start()

    def announce(self, error: BaseException) -> _Failure:
        """Tell that this process fails, and return the first failure, which may be another's."""
        self._known = self._known or time.monotonic()
        mine = _Failure(self._index, explain(error))
        self._set(f"failed/{self._index}")
        self._set("first", pickle.dumps(mine))  # has no effect when another one was first
        return self._first_failure() or mine

    def leave(self, error: BaseException) -> NoReturn:
        """Leave the command with the first error. This process's own may be only a consequence of it."""
        failure = self.announce(error)
        atexit.register(self._end, failure.error.exit_code)
        self._left = True
        if failure.process == self._index or str(failure.error) == str(explain(error)):
            raise error
        raise failure.seen_by(self._index) from error

    def wait_for_all(self) -> None:
        """Return when every process has come here. When one fails instead, leave with its error."""
        self._set(f"done/{self._index}")
        while not self._all("done"):
            if failure := self._first_failure():
                self.leave(failure.seen_by(self._index))
            time.sleep(POLL)
        self._over.set()

    def _set(self, state: str, value: bytes = b"") -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # it is set already
            tell(f"{self._prefix}/{state}", value)

    def _all(self, state: str) -> bool:
        return len(told(f"{self._prefix}/{state}")) == self._count

    def _first_failure(self) -> _Failure | None:
        found = told(f"{self._prefix}/first")
        return pickle.loads(found[0]) if found else None

    def _run(self) -> None:
        """Look for an error. End this process after it, unless its main thread does so first."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first process is gone: JAX ends this one
            while not (failure := self._first_failure()):
                if self._over.wait(WATCH):
                    return
            self._known = self._known or time.monotonic()
            time.sleep(GRACE)
            if self._all("failed"):
                while not told(f"{self._prefix}/gone"):
                    time.sleep(WATCH)
                time.sleep(
                    GRACE
                )  # what this one still waits for may have gone with the process that went first
            if not self._left:
                show_cursor()
                print(f"jaxgpt: error: {failure.seen_by(self._index)}", file=sys.stderr)
            self._end(failure.error.exit_code)

    def _end(self, code: int) -> NoReturn:
        """End this process at once. At an orderly exit JAX and Orbax's threads would wait for the others.

        The first process ends last: the service that connects all of them lives in it, and JAX kills those
        that lose it before they have said why they end.
        """
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        self._set(f"gone/{self._index}")
        if self._index == 0:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                end = FAREWELL + (time.monotonic() if self._all("failed") else self._known)
                while not self._all("gone") and time.monotonic() < end:
                    time.sleep(POLL)
            time.sleep(WATCH)  # a process says that it is gone just before it goes
        os._exit(code)


_watch: _Watch | None = None
