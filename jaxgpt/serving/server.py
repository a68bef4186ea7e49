"""The server's routes, which use a scheduler for each model.

GET  /                      the page
GET  /health                200 while the engine works, 503 when it has failed or hangs; never needs a key
GET  /metrics               counters for Prometheus
GET  /v1/models             the models that are served: one, and one more for each adapter
POST /v1/completions        continues prompts, with echo, logprobs, n, stop and stream
POST /v1/chat/completions   answers a conversation, if the model has a chat template
POST /v1/inside             shows what the layers of a model compute for a text
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from jaxgpt.serving.fields import ApiError
from jaxgpt.serving.guard import Guard, error_response
from jaxgpt.serving.metrics import Metrics
from jaxgpt.serving.service import Hosted, Service

PATIENCE = 25.0  # seconds


def create_app(
    hosted: Sequence[Hosted],
    metrics: Metrics,
    *,
    key: str | None = None,
    local: bool = True,
    patience: float = PATIENCE,
    cors: Sequence[str] = (),
) -> ASGIApp:
    """Return the ASGI app, which starts the schedulers and stops them at the end.

    `Guard` explains `key`, `local` and `metrics`. A step of the engine that takes longer than `patience`
    seconds shows in /health. Pages of the origins in `cors` may use the server from a browser.
    """
    service = Service(hosted, metrics, patience)
    routes = [
        Route("/", service.page),
        Route("/health", service.health),
        Route("/metrics", service.show_metrics),
        Route("/v1/models", service.models),
        Route("/v1/models/{model:path}", service.model),
        Route("/v1/completions", service.completions, methods=["POST"]),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/inside", service.inside, methods=["POST"]),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        for each in hosted:
            each.scheduler.start()
        yield
        await asyncio.gather(*(each.scheduler.stop() for each in hosted))

    handlers: Any = {ApiError: _on_api_error, HTTPException: _on_http_error, Exception: _on_fault}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    paths = [route.path for route in routes]
    guard = Guard(app, key=key, local=local, metrics=metrics, routes=paths)
    if not cors:
        return guard
    return CORSMiddleware(
        guard,
        allow_origins=cors,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type"),
        expose_headers=("Retry-After",),
    )


async def _on_api_error(_: Request, error: Exception) -> Response:
    return error_response(cast(ApiError, error))


async def _on_http_error(_: Request, error: Exception) -> Response:
    raised = cast(HTTPException, error)
    messages = {404: "there is no such route", 405: "this route does not take this method"}
    message = messages.get(raised.status_code, "bad request")
    return error_response(ApiError(raised.status_code, message, headers=dict(raised.headers or {})))


async def _on_fault(_: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return error_response(ApiError(500, "internal error"))
