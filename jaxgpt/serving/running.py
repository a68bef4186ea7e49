"""uvicorn, which runs the app: how it is set up, and how it ends.

The first signal lets running answers end, for as long as is allowed. Then, or at a second signal, what is
left gets an error and the connections are closed. The engine's thread ends before the process does.
"""

import asyncio
import socket
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from jaxgpt.serving.scheduler import Scheduler

LAST_SECONDS = 2.0  # clients have this time to read the error that ends their answers


class HttpServer(uvicorn.Server):
    """A server for `app`, which logs nothing that clients send.

    When it is stopped, running requests have `drain` seconds to end.
    """

    def __init__(self, app: ASGIApp, scheduler: Scheduler, *, drain: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
            )
        )
        self._scheduler, self._drain, self._hurry = scheduler, drain, False

    def handle_exit(self, _sig: int, _frame: FrameType | None) -> None:
        """Stop at the first signal, and stop draining at the second. No signal ends the process by itself."""
        self._hurry = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers end, then end them."""
        ending = asyncio.create_task(self._end_answers())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_answers(self) -> None:
        latest = time.monotonic() + self._drain
        while time.monotonic() < latest and not self._hurry:
            await asyncio.sleep(0.05)
        self._scheduler.end()
        await asyncio.sleep(LAST_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
