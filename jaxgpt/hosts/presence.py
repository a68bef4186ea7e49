"""Whether the other processes of a job are there: connections that the system closes when a process dies.

Process 0 has a connection with each of the others. A process says goodbye before it ends. Where a connection
closes without that, its process was killed or has crashed. A machine that is lost closes nothing, so the
system asks at both ends whether the other one is there. The system answers that by itself: a process that is
slow or stopped is never taken for dead.
"""

import ctypes
import json
import pickle
import platform
import secrets
import selectors
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import jax

from jaxgpt.hosts.store import coordinator, tell, wait_for

GOODBYE = b"goodbye\n"
# A lost machine is known after 5 + 3 x 3 seconds. macOS has the second name for the first option.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPALIVE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}
JOINING = 10.0  # seconds in which a process has to reach process 0
MOST = 1024  # bytes that a process may say
LOOK = 1.0  # seconds between two looks whether all have left


class Presence:
    """This process's connections. A thread calls `lost` with the number and the host of a process that dies.

    Process 0 hears of each of the others, and they hear of process 0. All must make this with the same key,
    under which nothing else is told.
    """

    def __init__(self, key: str, lost: Callable[[int, str], None]) -> None:
        self._lost = lost
        self._left = False
        self._connections: list[socket.socket] = []
        self._handler: int | None = None
        if jax.process_index() == 0:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
            place = _Place(server.getsockname()[1], secrets.token_hex(), platform.node())
            tell(key, pickle.dumps(tuple(place)))
            self._begin(self._hear_all, server, place.secret)
        else:
            self._handler = _handle_abort(_function("sleep"))
            place = _Place(*pickle.loads(wait_for(key)))
            if connection := _joined(place):
                self._connections.append(connection)
                self._begin(self._hear_first, connection, place.host)

    def leave(self) -> None:
        """Say goodbye: nobody takes this process for dead from here on."""
        self._left = True
        for connection in list(self._connections):
            with suppress(OSError):
                connection.sendall(GOODBYE)
        if self._handler is not None:
            _handle_abort(self._handler)

    def _begin(self, work: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=work, args=args, name="jaxgpt-presence", daemon=True).start()

    def _hear_all(self, server: socket.socket, secret: str) -> None:
        """In process 0: hear what the others say, until this process and all of them have left."""
        with server, selectors.DefaultSelector() as waiting:
            waiting.register(server, selectors.EVENT_READ)
            while not self._left or self._connections:
                for ready, _ in waiting.select(LOOK):
                    source: Any = ready.fileobj
                    if source is server:
                        with suppress(OSError):
                            connection = _kept_alive(server.accept()[0])
                            waiting.register(connection, selectors.EVENT_READ, bytearray())
                            self._connections.append(connection)
                    elif self._has_ended(source, ready.data, secret):
                        waiting.unregister(source)
                        self._connections.remove(source)
                        source.close()

    def _has_ended(self, connection: socket.socket, said: bytearray, secret: str) -> bool:
        """Hear what there is. Whether that was all; if it ends without a goodbye, its process is lost."""
        heard = b""
        with suppress(OSError):
            heard = connection.recv(MOST)
        said += heard
        if heard and len(said) <= MOST:
            return False
        hello, _, rest = bytes(said).partition(b"\n")
        one = _member(hello, secret)
        if one and rest != GOODBYE and not self._left:
            self._lost(*one)
        return True

    def _hear_first(self, connection: socket.socket, host: str) -> None:
        """In another process: hear whether process 0 says goodbye or dies."""
        with connection:
            heard = b""
            with suppress(OSError):
                heard = connection.recv(MOST)
            if not heard and not self._left:
                self._lost(0, host)


class _Place(NamedTuple):
    """Where process 0 waits for the others, and the word by which they are known."""

    port: int
    secret: str
    host: str


def _joined(place: _Place) -> socket.socket | None:
    """A connection with process 0, to which this process has said who it is. None where there is no way."""
    hello = {"secret": place.secret, "process": jax.process_index(), "host": platform.node()}
    try:
        connection = socket.create_connection((coordinator(), place.port), JOINING)
        connection.settimeout(None)
        _kept_alive(connection).sendall(json.dumps(hello).encode() + b"\n")
    except OSError as error:
        where = f"port {place.port} of process 0, on {place.host}, cannot be reached ({error})"
        warnings.warn(f"{where}: a process that dies ends the job late", stacklevel=2)
        return None
    return connection


def _member(hello: bytes, secret: str) -> tuple[int, str] | None:
    """The number and the host of a process that knows the word; None where somebody else has connected."""
    with suppress(ValueError, KeyError, TypeError):
        said = json.loads(hello)
        if secrets.compare_digest(said["secret"], secret):
            return int(said["process"]), str(said["host"])
    return None


def _kept_alive(connection: socket.socket) -> socket.socket:
    """Have the system ask whether the machine at the other end is there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _handle_abort(handler: int) -> int:
    """Set the address of the C function that handles SIGABRT. Returns the one before.

    JAX aborts a process as soon as process 0 has died, before the process can say why it ends. Where the
    handler is `sleep`, which takes the signal's number for seconds, the thread that aborts sleeps 6 seconds,
    and the others go on meanwhile. Then the process aborts as it would have.
    """
    set_handler = _LIBC.signal
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    return set_handler(signal.SIGABRT, handler) or 0


def _function(name: str) -> int:
    """The address of a function of the C library."""
    return ctypes.cast(getattr(_LIBC, name), ctypes.c_void_p).value or 0


_LIBC = ctypes.CDLL(None)
