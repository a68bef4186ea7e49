"""uvicorn, which runs the app: how it is set up, and how it ends.

The first signal lets running answers end, for as long as is allowed. Then, or at a second signal, what is
left gets an error and the connections are closed. The engine's thread ends before the process does.
"""

import asyncio
import functools
import logging
import resource
import socket
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from jaxgpt.serving.connection import Connection
from jaxgpt.serving.metrics import Metrics
from jaxgpt.serving.scheduler import Scheduler

BACKLOG = 128  # connections that wait to be accepted
FILES = 128  # files that the process needs besides its connections
LAST_SECONDS = 2.0  # clients have this time to read the error that ends their answers


class HttpServer(uvicorn.Server):
    """A server for `app`, which logs nothing that clients send.

    There may be so many `connections`. When it is stopped, running requests have `drain` seconds to end.
    """

    def __init__(
        self,
        app: ASGIApp,
        schedulers: Sequence[Scheduler],
        metrics: Metrics,
        *,
        drain: float,
        connections: int = 512,
    ) -> None:
        protocol = functools.partial(
            Connection, most=connections, count=functools.partial(metrics.count_request, "other")
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(Any, protocol),
                backlog=BACKLOG,
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
            )
        )
        self._schedulers, self._drain, self._hurry = schedulers, drain, False

    def handle_exit(self, _sig: int, _frame: FrameType | None) -> None:
        """Stop at the first signal, and stop draining at the second. No signal ends the process by itself."""
        self._hurry = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and keep the log quiet about connections that cannot be accepted."""
        asyncio.get_running_loop().set_exception_handler(_Quiet())
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers end, then end them."""
        ending = asyncio.create_task(self._end_answers())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_answers(self) -> None:
        latest = time.monotonic() + self._drain
        while time.monotonic() < latest and not self._hurry:
            await asyncio.sleep(0.05)
        for scheduler in self._schedulers:
            scheduler.end()
        await asyncio.sleep(LAST_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def connections_allowed(wanted: int) -> int:
    """Return how many connections there can be: as many as wanted, or what the limit of open files leaves."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - BACKLOG - FILES))


class _Quiet:
    """Logs once a minute, and not thousands of times, that no connection can be accepted."""

    def __init__(self) -> None:
        self._latest = -60.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and "accept" in context.get("message", "")):
            loop.default_exception_handler(context)
        elif loop.time() - self._latest >= 60:
            self._latest = loop.time()
            logging.getLogger(__name__).error("connections cannot be accepted now: %s", error.strerror)
