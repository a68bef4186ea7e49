"""The processes of a job agree: the first decides for all, and all check that they have the same."""

import os
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax

from jaxgpt.errors import ConfigError, JaxgptError, explain
from jaxgpt.hosts.store import POLL, next_key, tell, wait_for

T = TypeVar("T")

# Seconds without a sign of life after which JAX takes a process for dead and aborts the others. `presence`
# knows earlier. They are many, because JAX cannot tell a process that dies from one that is slow.
HEARTBEAT = 60
PATIENCE = 3.0  # seconds that a network file system may take to show a new file to the other hosts


def initialize() -> None:
    """Join the other processes of this job, which Slurm, GKE or a TPU pod has started.

    Raises ConfigError when there is no such job, or when its processes do not find one another.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    except Exception as error:  # its kind depends on the launcher that JAX has found
        reason = next(iter(str(error).splitlines()), repr(error)).rstrip(".")
        raise ConfigError(
            "--distributed",
            why=f"the processes of this job did not find one another: {reason}",
            fix="start the same command on every host with Slurm, Open MPI, GKE or on a TPU pod, "
            "or leave --distributed out to use this machine alone",
        ) from error


def is_first() -> bool:
    """Whether this is the process that decides, writes and prints: number 0, or the only one."""
    return jax.process_index() == 0


def decide(choose: Callable[[], T]) -> T:
    """Run `choose` on the first process and return its result, which must be picklable, on every process.

    When it raises, every process raises an error with the same message and exit code. `choose` must not wait
    for the other processes, because they are waiting for it.
    """
    if jax.process_count() == 1:
        return choose()
    key = next_key()
    if not is_first():
        heard: _Outcome[T] = _heard(key)
        return heard.result()
    outcome = _outcome(choose)
    tell(key, outcome.told)
    return outcome.result()


def each(act: Callable[[], T]) -> list[T]:
    """Run `act` on every process, and return on every process what each of them got, in their order.

    When it raises on some of them, every process raises the error of the lowest number: "process 1: MESSAGE".
    """
    if jax.process_count() == 1:
        return [act()]
    key = next_key()
    mine = _outcome(act)
    tell(f"{key}/{jax.process_index()}", mine.told)
    outcomes: list[_Outcome[T]] = [_heard(f"{key}/{number}") for number in range(jax.process_count())]
    for number, outcome in enumerate(outcomes):
        if outcome.error is not None:
            raise explain(outcome.error).said_by(number) from mine.error
    return [outcome.result() for outcome in outcomes]


def barrier(name: str) -> None:
    """Wait until every process has come here. Raises JaxgptError when the barriers are different ones."""
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
    """Raises ConfigError on every process unless all of them see one and the same folder. It must exist."""
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
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(POLL)
    return True


class _Outcome(NamedTuple, Generic[T]):
    """What a function returned or raised, on this process or on another one."""

    value: T | None
    error: BaseException | None
    told: bytes = b""

    def result(self) -> T:
        """The value; raises the error."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


def _outcome(act: Callable[[], T]) -> _Outcome[T]:
    """Run a function; its outcome here, and the bytes that tell the other processes of it."""
    try:
        value = act()
        return _Outcome(value, None, pickle.dumps((value, None)))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  The others must hear of any error.
        return _Outcome(None, error, pickle.dumps((None, explain(error))))


def _heard(key: str) -> _Outcome[Any]:
    """The outcome that another process tells under a key."""
    return _Outcome(*pickle.loads(wait_for(key)))
