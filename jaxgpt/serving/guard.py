"""What every request passes before it reaches a route: checks of the key and of the host, and a counter."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxgpt.serving.fields import ApiError
from jaxgpt.serving.metrics import Metrics

OPEN = "/health"  # the route that needs no key


def error_response(error: ApiError) -> JSONResponse:
    """Return an error as an HTTP response."""
    return JSONResponse(error.body(), error.status, error.headers)


class Guard:
    """An ASGI app around another one, which lets only permitted requests through and counts them all.

    With a `key`, every request but those for /health must present it: `Authorization: Bearer KEY`, or Basic
    with the key as the password, which is how a browser opens the page. `local` is for a server without a key
    on a loopback address: it answers only requests whose Host is a local name. Otherwise a page on the web
    could reach the server through a host name of its own that resolves to this machine (DNS rebinding).
    Requests are counted under their path if it is one of `routes`, and under `other` if it is not.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None, local: bool, metrics: Metrics, routes: Collection[str]
    ) -> None:
        self._app, self._local, self._metrics, self._routes = app, local, metrics, frozenset(routes)
        self._key = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on to the app."""
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
            # Basic makes a browser ask its user for a password, which only the page should do.
            challenge = {"WWW-Authenticate": 'Basic realm="jaxgpt"' if path == "/" else "Bearer"}
            message = "this server needs a key: send the header `Authorization: Bearer KEY`"
            return ApiError(401, message, code="invalid_api_key", headers=challenge)
        if self._local and not _is_local(headers.get("host", "")):
            return ApiError(403, "this server answers only to the names of the machine it runs on")
        return None


def _digest(key: bytes) -> bytes:
    """Return a hash. All hashes have one length, so comparing them reveals nothing of the key's length."""
    return hashlib.sha256(key).digest()


def _presented(authorization: str) -> bytes:
    """Return the key in an Authorization header; it is empty if there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _is_local(host: str) -> bool:
    """Whether a Host header names this machine: as localhost, or by an address, which no web site can own."""
    name, colon, port = host.rpartition(":")
    name = (name if colon and port.isdigit() else host).lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
