"""One request: its body is read within limits, and its work ends when the client goes away."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from jaxgpt.serving.fields import ApiError

BODY_SECONDS = 30.0  # a whole body must arrive in this time

T = TypeVar("T")


async def read_body(request: Request, most: int) -> bytes:
    """Return the JSON body of a request, which may have at most `most` bytes.

    Raises ApiError: 413 for a longer body, 415 for another content type than JSON (which keeps out forms that
    other web sites send), 408 if the body does not arrive in time, 499 if the client goes away.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the content type must be application/json")
    too_large = ApiError(413, f"the body must have at most {most} bytes")
    if int(request.headers.get("content-length", "0")[:15]) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError as error:
        raise ApiError(408, "the body did not arrive in time") from error
    except ClientDisconnect as error:
        raise gone() from error
    return bytes(body)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the work's result. If the client goes away before, cancel the work and raise ApiError 499."""
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
    """Return the error for a client that went away. Nobody reads it; it is counted, under nginx's 499."""
    return ApiError(499, "the client went away")


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
