"""What every request passes before a route sees it: the key, the host it asks for, and the counter."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxgpt.serving.fields import ApiError
from jaxgpt.serving.metrics import Metrics

OPEN = "/health"  # needs no key
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def error_response(error: ApiError) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(error.body(), error.status, error.headers)


class Guard:
    """Wraps an app.

    With a `key`, all but /health must present it: `Authorization: Bearer KEY`, or Basic with the key as password, which
    is how a browser opens the page. `local` is for a server without a key on a loopback address: it answers only what
    was asked of a local name, so that no page on the web reaches it through a name of its own (DNS rebinding).
    Requests are counted under the path if it is one of `routes`, else under `other`.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None, local: bool, metrics: Metrics, routes: Collection[str]
    ) -> None:
        self._app, self._local, self._metrics, self._routes = app, local, metrics, frozenset(routes)
        self._key = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path, status = scope["path"], 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message["headers"]).update(
                    {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
                )
            await send(message)

        refusal = None if path == OPEN else self._refusal(path, Headers(scope=scope))
        try:
            await (error_response(refusal) if refusal else self._app)(scope, receive, watched)
        finally:
            self._metrics.count_request(path if path in self._routes else "other", status)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if self._key is not None:
            if hmac.compare_digest(_digest(_presented(headers.get("authorization", ""))), self._key):
                return None
            challenge = (
                'Basic realm="jaxgpt"' if path == "/" else "Bearer"
            )  # only the page's makes a browser ask
            return ApiError(
                401,
                "a key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": challenge},
            )
        if self._local and _without_port(headers.get("host", "")) not in LOCAL_NAMES:
            return ApiError(403, "this server answers only to the names of the machine it runs on")
        return None


def _digest(key: bytes) -> bytes:
    """Of one length, so that comparing tells nothing of the key's."""
    return hashlib.sha256(key).digest()


def _presented(authorization: str) -> bytes:
    """The key in a header; empty where there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
