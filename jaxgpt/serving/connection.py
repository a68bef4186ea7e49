"""One client's connection: its body read within limits, its work ended when it goes away."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from jaxgpt.serving.fields import ApiError

BODY_SECONDS = 30  # for a whole body to arrive
DISCARDED = 16  # times the limit is read and thrown away: a client that still sends reads no answer

T = TypeVar("T")


async def read_body(request: Request, most: int) -> bytes:
    """The JSON body of a request, of so many bytes at most.

    Raises ApiError: 413 for more, 415 for another type of content (asking for JSON keeps other sites' forms out), 408
    where it does not arrive in time, 499 where the client goes away.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the content type must be application/json")
    too_large = ApiError(413, f"the body must have at most {most} bytes")
    length = int(request.headers.get("content-length", "0")[:15])
    if length > DISCARDED * most or (length > most and "expect" in request.headers):
        raise too_large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= most:
                    body += chunk
                elif size > DISCARDED * most:
                    raise too_large
    except TimeoutError as error:
        raise ApiError(408, "the body did not arrive in time") from error
    except ClientDisconnect as error:
        raise gone() from error
    if size > most:
        raise too_large
    return bytes(body)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; when the client goes away first, the work is cancelled and ApiError 499 raised."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise gone()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def gone() -> ApiError:
    """Nobody will read it, but it is counted: nginx's status for a client that closed the connection."""
    return ApiError(499, "the client went away")


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
