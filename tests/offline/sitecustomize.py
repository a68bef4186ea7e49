"""Python imports this file as it starts, in every process whose PYTHONPATH has this folder: no network.

Only this machine can be reached, where a notebook's kernel listens. What does not use Python's sockets is
not held back.
"""

import socket
from typing import Any

LOCAL = ("127.0.0.1", "::1", "localhost", "", None)


class Offline(OSError):
    """Somebody wanted the network."""


def _check(host: Any) -> None:
    host = host.decode() if isinstance(host, bytes) else host
    if host not in LOCAL:
        raise Offline(f"a notebook wants the network: {host}")


class _Socket(socket.socket):
    """A socket that connects to this machine only."""

    def connect(self, address: Any) -> None:
        """Connect, if the address is on this machine."""
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        """Connect, if the address is on this machine."""
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        return super().connect_ex(address)


_looked_up = socket.getaddrinfo


def _getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    _check(host)
    return _looked_up(host, *args, **kwargs)


socket.socket = _Socket  # type: ignore[misc]
socket.getaddrinfo = _getaddrinfo
