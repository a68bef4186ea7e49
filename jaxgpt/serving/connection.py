"""A client's connection: uvicorn's own protocol with limits that keep one client from harming the others.

There are at most so many connections: a new one takes the place of the one that has been idle longest. The
head of a request must arrive in HEAD_SECONDS, and an answer must be read on within READ_SECONDS. If an answer
is sent before the whole body has come (401, 413, ...), the rest of the body is neither parsed nor kept, and
the connection is closed. Errors of HTTP itself are JSON and counted, as all others are.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from jaxgpt.serving.fields import ApiError

HEAD_SECONDS = 10.0  # from the connection, or from the last answer, until the head of a request is there
READ_SECONDS = 60.0  # a client that reads so little for this time that nothing more can be sent is cut off
LINGER_SECONDS, LINGER_BYTES = 2.0, 1 << 24  # so much of a refused body is taken, or the answer might be lost
SLICE, LINGER_SLICE, PAUSE = 1 << 13, 1 << 18, 0.01  # bytes that are read at a time, and seconds between


class Connection(H11Protocol):
    """One connection. There may be `most` of them; `count` is told the status of an error of HTTP itself."""

    def __init__(self, *args: Any, most: int, count: Callable[[int], None], **more: Any) -> None:
        super().__init__(*args, **more)
        self._most, self._count = most, count
        self._inner = cast(ASGIApp, self.app)
        self.app = cast(Any, self._answered)
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        self._discarded = 0
        self.since = 0.0
        """The time, by the loop's clock, since which the connection has been idle."""
        self.closing = self.dropped = False

    @property
    def under_way(self) -> bool:
        """Whether there is a request that has not been answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def drop(self) -> None:
        """Close the socket at once."""
        self.closing = self.dropped = True
        self.transport.abort()

    def end(self) -> None:
        """Close the connection when the client has what was written."""
        if self.closing:
            return
        self.closing = True
        socket = cast(_Lingering, self.transport).inner
        # A socket that is closed before all was read resets the connection, and takes the answer away.
        lingers = self.cycle is None or self.cycle.more_body
        self._set_timer(LINGER_SECONDS if lingers else READ_SECONDS, self.drop)
        if lingers and socket.can_write_eof() and not socket.is_closing():
            cast(Any, socket).max_size = LINGER_SLICE
            socket.write_eof()
            self.flow.resume_reading()
        else:
            socket.close()

    # --- what asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, in the place of another connection if there are too many."""
        cast(Any, transport).max_size = SLICE
        super().connection_made(cast(asyncio.Transport, _Lingering(self, transport)))
        self._wait()
        there = [each for each in cast(set[Connection], self.connections) if not each.dropped]
        if len(there) > self._most:
            idle = [each for each in there if each is not self and (each.closing or not each.under_way)]
            if idle:
                min(idle, key=lambda each: each.since).drop()
            else:
                self._refuse(503, "there are too many connections; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        """End all waiting."""
        self.closing = self.dropped = True
        super().connection_lost(exc)
        for timer in (self._timer, self._reader):
            if timer:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take what has come, the head of a request first: the app may refuse the rest."""
        if self.closing:
            self._discard(data)
            return
        head = len(data) if self.under_way else data.find(b"\r\n\r\n") + 4
        super().data_received(data[:head] if head > 3 else data)
        if 3 < head < len(data):
            self.loop.call_soon(self.data_received, data[head:])
        if self.under_way and self._timer and not self.closing:
            self._timer.cancel()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        self._reader = self.loop.call_later(READ_SECONDS, self.drop)

    def resume_writing(self) -> None:
        """End that: it has read."""
        super().resume_writing()
        if self._reader:
            self._reader.cancel()

    # --- what uvicorn calls

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not (self.closing or self.under_way):
            self._wait()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is not HTTP."""
        self._refuse(400, "this is not valid HTTP")

    def shutdown(self) -> None:
        """Close an idle connection, and any other after its answer."""
        if not self.closing:
            super().shutdown()

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app. If it answers before the whole body is there, the connection is closed after it."""

        async def said(message: Message) -> None:
            if message["type"] == "http.response.start" and self.cycle.more_body:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._inner(scope, receive, said)

    # ---

    def _wait(self) -> None:
        self.since = self.loop.time()
        self._set_timer(HEAD_SECONDS, lambda: self._refuse(408, "the request did not arrive in time"))

    def _set_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, callback)

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, if no answer has begun, and close the connection."""
        if self.under_way:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            self._count(status)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(status, message).body()).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
            start = h11.Response(
                status_code=status, headers=[*headers, ("connection", "close")], reason=STATUS_PHRASES[status]
            )
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.end()

    def _discard(self, data: bytes) -> None:
        """Throw away what a client sends that was answered already, slowly, and not for ever."""
        self._discarded += len(data)
        if self._discarded > LINGER_BYTES:
            self.drop()
            return
        self.transport.pause_reading()
        self.loop.call_later(PAUSE, self.transport.resume_reading)


class _Lingering:
    """asyncio's transport, which uvicorn is given, but for how it closes (`Connection.end`)."""

    def __init__(self, connection: Connection, inner: asyncio.Transport) -> None:
        self._connection, self.inner = connection, inner
        self.write = inner.write  # each token is written, so this one is not looked up each time

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def is_closing(self) -> bool:
        return self._connection.closing or self.inner.is_closing()

    def close(self) -> None:
        self._connection.end()
