"""Several processes of one job: they decide together, wait for one another, and one's error ends them all.

Every process runs the same command. What depends on files that may change is decided by the first process (number 0)
and told to the others; all of them must come to the same calls of this module in the same order. With one process
everything here is only a function call.
"""

import atexit
import contextlib
import itertools
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax

from jaxgpt.errors import ConfigError, JaxgptError, StoppedError, explain

T = TypeVar("T")

HEARTBEAT = 60  # seconds without a sign of life after which JAX takes a process for dead and ends the others
POLL = 0.05  # seconds between two looks for what another process has to say, while waiting for it
WATCH = 0.5  # seconds between two looks for an error, while working
GRACE = 3.0  # seconds for a process to end in good order after another one's error, before it is made to
FAREWELL = (
    8.0  # seconds after an error that the first process stays for the others: JAX's service lives in it
)
SHARED = 3.0  # seconds for a network file system to show a new file to the other hosts


def initialize() -> None:
    """Join the other processes of this job, as Slurm, GKE or a TPU pod has started them.

    Raises ConfigError where no such job is found or its processes do not find one another.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    except Exception as error:  # which kind it is depends on the launcher that JAX found
        raise ConfigError(
            "--distributed",
            why=f"the processes of this job did not find one another: {_first_line(error)}",
            fix="start the same command on every host with Slurm, Open MPI, GKE or on a TPU pod, "
            "or leave --distributed out to use this machine alone",
        ) from error


def is_first() -> bool:
    """Whether this is the process that decides, writes and prints: number 0, or the only one."""
    return jax.process_index() == 0


def decide(choose: Callable[[], T]) -> T:
    """Run `choose` on the first process and return its result, which must be picklable, on every process.

    An error of it is raised on every process with the same message and exit code. `choose` must not wait for the other
    processes: they are waiting for it.
    """
    if jax.process_count() == 1:
        return choose()
    key = _next_key()
    if is_first():
        outcome = _outcome(choose)
        _tell(key, outcome.told)
        return outcome.result()
    return _Outcome.heard(key).result()


def each(act: Callable[[], T]) -> list[T]:
    """Run `act` on every process and return, on every process, what each of them got, in their order.

    An error is raised on all of them, as "process 1: MESSAGE": the one of the lowest number where several fail.
    """
    if jax.process_count() == 1:
        return [act()]
    key = _next_key()
    mine = _outcome(act)
    _tell(f"{key}/{jax.process_index()}", mine.told)
    outcomes = [_Outcome.heard(f"{key}/{number}") for number in range(jax.process_count())]
    for number, outcome in enumerate(outcomes):
        if outcome.error is not None:
            raise _said_by(number, explain(outcome.error)) from mine.error
    return [outcome.value for outcome in outcomes]


def barrier(name: str) -> None:
    """Wait until every process has come here. Raises JaxgptError where one has come to a barrier of another name."""
    names = each(lambda: name)
    if set(names) != {name}:
        raise JaxgptError("processes wait at different barriers", why=", ".join(names), fix="report this")


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Raises ConfigError on every process, naming each value that is not the same on all of them."""
    found = each(lambda: dict(values))
    different = [
        f"{name} is {other.get(name)!r} in process {number} and {value!r} in process 0"
        for number, other in enumerate(found)
        for name, value in found[0].items()
        if other.get(name) != value
    ]
    if different:
        raise ConfigError(
            f"the processes of this job disagree about {what}",
            why=", ".join(different),
            fix="start every process with the same command on the same files",
        )


def check_shared(folder: Path) -> None:
    """Raises ConfigError on every process unless all of them see one and the same folder, which must be there."""
    if jax.process_count() == 1:
        return
    token = decide(lambda: _leave_token(folder))
    try:
        found = each(lambda: (str(folder), _sees(folder / token)))
    finally:
        if is_first():
            (folder / token).unlink(missing_ok=True)
    if blind := [f"process {number} ({place})" for number, (place, seen) in enumerate(found) if not seen]:
        raise ConfigError(
            "the folder is not shared",
            path=found[0][0],
            why=f"what process 0 writes there is not seen by {', '.join(blind)}",
            fix="name a folder that is the same one on every host, such as one on a network file system",
        )


def _leave_token(folder: Path) -> str:
    name = f".shared-{os.urandom(8).hex()}"
    (folder / name).touch()
    return name


def _sees(path: Path) -> bool:
    """Whether a file is there, or soon will be."""
    end = time.monotonic() + SHARED
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(POLL)
    return True


@contextlib.contextmanager
def one_error_ends_all() -> Iterator[None]:
    """Around a whole command: an error that one process leaves it with ends every process within ten seconds.

    Each of them prints the message of the first error and exits with its code, even if it is stuck in a collective that
    will never end; the process cannot go on after this. StoppedError is no such error: all processes stop at the same
    step, and each saves to the end. Those that leave in good order wait for the others.
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
    except (Exception, KeyboardInterrupt) as error:
        _watch.leave(error)
    else:
        _watch.wait_for_all()
    finally:
        _watch = None


def announce(error: BaseException | None) -> None:
    """Tell the other processes that this one fails, before it waits for anything; nothing to tell for StoppedError."""
    if _watch is not None and error is not None and not isinstance(error, StoppedError):
        _watch.announce(error)


class _Failure(NamedTuple):
    """The first error of a job."""

    process: int
    error: JaxgptError

    def seen_by(self, process: int) -> JaxgptError:
        return self.error if process == self.process else _said_by(self.process, self.error)


class _Watch:
    """A thread that looks for errors of other processes, and ends this one when its main thread does not end itself.

    The first process to fail sets a key that holds its error. Every process that fails sets a key of its own besides:
    when all of them fail by themselves, as they do when a loss diverges, each may take its time to end in good order.
    """

    def __init__(self) -> None:
        self._prefix, self._index, self._count = _next_key(), jax.process_index(), jax.process_count()
        self._known = 0.0  # when this process learned of the error
        self._left = False  # the main thread has left with an error, and whoever catches it prints it
        self._over = threading.Event()  # all have left in good order: nothing is left to look for
        _store()
        threading.Thread(target=self._run, name="jaxgpt-errors", daemon=True).start()

    def announce(self, error: BaseException) -> _Failure:
        """Tell that this process fails, and return the first failure, which may be another's."""
        self._known = self._known or time.monotonic()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # this process has told so already
            _tell(f"{self._prefix}/failed/{self._index}", b"")
        mine = _Failure(self._index, explain(error))
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was first
            _tell(f"{self._prefix}/first", pickle.dumps(mine))
        return self._failure() or mine

    def leave(self, error: BaseException) -> NoReturn:
        """Leave the command with the first error, of which this process's own may be a consequence."""
        failure = self.announce(error)
        atexit.register(self._end, failure.error.exit_code)
        self._left = True
        if failure.process == self._index or str(failure.error) == str(explain(error)):
            raise error
        raise failure.seen_by(self._index) from error

    def wait_for_all(self) -> None:
        """Return when every process has come here; when one fails instead, leave with its error."""
        _tell(f"{self._prefix}/done/{self._index}", b"")
        while not self._all("done"):
            if failure := self._failure():
                self.leave(failure.seen_by(self._index))
            time.sleep(POLL)
        self._over.set()

    def _all(self, state: str) -> bool:
        return len(_told(f"{self._prefix}/{state}")) == self._count

    def _failure(self) -> _Failure | None:
        found = _told(f"{self._prefix}/first")
        return pickle.loads(found[0]) if found else None

    def _run(self) -> None:
        with contextlib.suppress(
            jax.errors.JaxRuntimeError
        ):  # JAX's service is gone, and JAX ends this process
            while not (failure := self._failure()):
                if self._over.wait(WATCH):
                    return
            self._known = self._known or time.monotonic()
            time.sleep(GRACE)
            if self._all("failed"):
                return
            if not self._left:
                _show_cursor()
                print(f"jaxgpt: error: {failure.seen_by(self._index)}", file=sys.stderr)
            self._end(failure.error.exit_code)

    def _end(self, code: int) -> NoReturn:
        """End this process at once: at an orderly exit JAX, and threads of Orbax, would wait for the other processes.

        The first process lets the others go before it: its end ends them, without the message and the code.
        """
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # told already, or nobody left to be told
            _tell(f"{self._prefix}/gone/{self._index}", b"")
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            end = FAREWELL + (time.monotonic() if self._all("failed") else self._known)
            while self._index == 0 and not self._all("gone") and time.monotonic() < end:
                time.sleep(POLL)
        if self._index == 0:
            time.sleep(WATCH)  # the last of the others has said that it goes, and is about to
        os._exit(code)


_watch: _Watch | None = None


class _Outcome(NamedTuple):
    """What a function returned or raised, here or on another process."""

    value: Any
    error: BaseException | None
    told: bytes = b""

    def result(self) -> Any:
        """The value; raises the error."""
        if self.error is not None:
            raise self.error
        return self.value

    @classmethod
    def heard(cls, key: str) -> "_Outcome":
        return cls(*pickle.loads(_wait_for(key)))


def _outcome(act: Callable[[], Any]) -> _Outcome:
    """Run a function; its outcome, and how the other processes are told of it."""
    try:
        value = act()
        return _Outcome(value, None, pickle.dumps((value, None)))
    except (Exception, KeyboardInterrupt) as error:
        return _Outcome(None, error, pickle.dumps((None, explain(error))))


def _said_by(process: int, error: JaxgptError) -> JaxgptError:
    return type(error).worded(f"process {process}: {error}")


_numbers = itertools.count()


def _next_key() -> str:
    """A key that all processes come to with the same call of this module, and with no other."""
    return f"jaxgpt/{next(_numbers)}"


def _wait_for(key: str) -> bytes:
    """What is told under a key, when it is."""
    while not (found := _told(key)):
        time.sleep(POLL)
    return found[0]


def _tell(key: str, value: bytes) -> None:
    """Set a key for all processes to read. Raises jax.errors.JaxRuntimeError when it is set already."""
    _store().key_value_set_bytes(f"{key}/value", value)


def _told(key: str) -> list[bytes]:
    """What has been told so far under a key and under those that begin with it."""
    return [value for _, value in _store().key_value_dir_get_bytes(f"{key}/")]


def _store() -> Any:
    """The key-value store that JAX's processes share. JAX has no public name for it (0.10 and 0.12).

    (What `jax.experimental.multihost_utils` offers are programs on all devices: a process that is busy or stuck on its
    own devices could not hear of another's error.)
    """
    from jax._src import distributed

    if distributed.global_state.client is None:
        raise ConfigError(
            f"{jax.process_count()} processes",
            why="JAX sees them, but they have not joined one another",
            fix="start each of them with --distributed",
        )
    return distributed.global_state.client


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "").rstrip(".") or repr(error)


def _show_cursor() -> None:
    """A progress bar that is cut off has hidden it."""
    if sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr)
