"""One process's error ends the whole job, with its message and exit code, whatever the others are doing."""

import atexit
import contextlib
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

import jax

from jaxgpt.errors import JaxgptError, LostError, StoppedError, explain
from jaxgpt.hosts.presence import Presence
from jaxgpt.hosts.store import POLL, next_key, store, tell, told
from jaxgpt.interrupt import show_cursor

WATCH = 0.5  # seconds between two looks for an error of another process
GRACE = 3.0  # seconds that a process may take to end by itself after an error, before it is made to end
SETTLE = 1.0  # seconds after which a process that is gone is known, where its machine is there
FAREWELL = 8.0  # seconds that the first process waits after an error for the others to end before it


@contextlib.contextmanager
def one_error_ends_all(resumed_from: Callable[[], str] = lambda: "where it was") -> Iterator[None]:
    """Around a whole command: an error that one process leaves it with ends every process within ten seconds.

    Each of them prints the message of the first error and exits with its code, even if it is stuck in a
    collective that will never end. No process can go on after this. StoppedError is no such error: all
    processes stop at the same step, and each saves to the end. Those that leave in good order wait for the
    others.

    A process that is killed, or whose machine is lost, is LostError in all the others, which end within
    twenty seconds. It says that the job goes on from what `resumed_from` then returns.
    """
    global _watch
    if jax.process_count() == 1 or _watch is not None:
        yield
        return
    _watch = _Watch(resumed_from)
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
        told = process == self.process or isinstance(self.error, LostError)
        return self.error if told else self.error.said_by(self.process)


class _Watch:
    """A thread that looks for other processes' errors, and ends this process when its main thread does not.

    The first process to fail sets a key that holds its error. Every process that fails sets a key of its own
    besides. When all of them fail by themselves, as they do when a loss diverges, each may take its time to
    end in good order.
    """

    def __init__(self, resumed_from: Callable[[], str]) -> None:
        self._resumed_from = resumed_from
        self._prefix = next_key()
        self._index: int = jax.process_index()
        self._count: int = jax.process_count()
        self._known = 0.0  # when this process learned of the error
        self._left = False  # the main thread has left with an error, and whoever catches it prints it
        self._over = threading.Event()  # all have left in good order: there is nothing left to look for
        self._ending = threading.Lock()  # held by the thread that ends the process
        self._without_first: _Failure | None = None  # the first process is gone, and the store with it
        store()  # raises here, not in the thread
        self._presence = Presence(f"{self._prefix}/presence", self._lose)
        threading.Thread(target=self._run, name="jaxgpt-errors", daemon=True).start()

    def announce(self, error: BaseException) -> _Failure:
        """Tell that this process fails, and return the first failure, which may be another's."""
        self._known = self._known or time.monotonic()
        end = time.monotonic() + SETTLE
        while _is_of_jax(error) and not self._first_failure() and time.monotonic() < end:
            time.sleep(POLL)  # a collective fails in the moment in which another process dies
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
        self._presence.leave()
        self._over.set()

    def _lose(self, process: int, host: str) -> None:
        """Tell that a process is gone, or, where it is the first one, end this process."""
        since = "its newest checkpoint"
        with contextlib.suppress(OSError):
            since = self._resumed_from()
        error = LostError(
            f"process {process} of host {host} is gone",
            why="it was killed, or has crashed, or its machine is lost",
            fix=f"start the job again: it goes on from {since}",
        )
        failure = _Failure(process, error)
        if process == 0:
            self._without_first = failure
            self._end_after(failure)
        self._set(f"gone/{process}")
        self._set("first", pickle.dumps(failure))

    def _set(self, state: str, value: bytes = b"") -> None:
        if not self._without_first:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # it is set already
                tell(f"{self._prefix}/{state}", value)

    def _told(self, state: str) -> list[bytes]:
        if not self._without_first:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first process is gone
                return told(f"{self._prefix}/{state}")
        return []

    def _all(self, state: str) -> bool:
        return len(self._told(state)) == self._count

    def _first_failure(self) -> _Failure | None:
        found = self._told("first")
        return self._without_first or (pickle.loads(found[0]) if found else None)

    def _run(self) -> None:
        """Look for an error, and end this process after it."""
        while not (failure := self._first_failure()):
            if self._over.wait(WATCH):
                return
        self._end_after(failure)

    def _end_after(self, failure: _Failure) -> NoReturn:
        """End this process after an error, unless its main thread does so first."""
        with self._ending:
            self._known = self._known or time.monotonic()
            time.sleep(GRACE)
            if self._all("failed"):
                while not self._told("gone"):
                    time.sleep(WATCH)
                time.sleep(GRACE)  # what this one waits for may have gone with the process that went first
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
            end = FAREWELL + (time.monotonic() if self._all("failed") else self._known)
            while not self._all("gone") and time.monotonic() < end:
                time.sleep(POLL)
            time.sleep(WATCH)  # a process says that it is gone just before it goes
        self._presence.leave()
        os._exit(code)


def _is_of_jax(error: BaseException | None) -> bool:
    """Whether JAX has raised an error, or another one that caused it."""
    return error is not None and (
        isinstance(error, jax.errors.JaxRuntimeError) or _is_of_jax(error.__cause__ or error.__context__)
    )


_watch: _Watch | None = None
