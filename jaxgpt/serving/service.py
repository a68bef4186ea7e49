"""What the server's routes do with a scheduler, and how their answers are sent."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from jaxgpt.inference.requests import Request as EngineRequest
from jaxgpt.serving import page
from jaxgpt.serving.answers import Answer, Choice, Piece
from jaxgpt.serving.api import Reader, unknown_model
from jaxgpt.serving.body import read_body, while_connected
from jaxgpt.serving.call import Call
from jaxgpt.serving.fields import ApiError, parse_object
from jaxgpt.serving.inside import inside_answer
from jaxgpt.serving.job import EngineFailed, Job, Look, Text
from jaxgpt.serving.metrics import CONTENT_TYPE, Metrics
from jaxgpt.serving.scheduler import QueueFull, Scheduler

RETRY_SECONDS = 1
AT_ONCE = 1 << 16  # bytes of an answer that are sent at a time


class Hosted(NamedTuple):
    """A model that is served: what reads its bodies, and what runs its engine."""

    reader: Reader
    scheduler: Scheduler


class Service:
    """What the routes do. A request that names no model means the first one."""

    def __init__(self, hosted: Sequence[Hosted], metrics: Metrics, patience: float) -> None:
        self._hosted = {each.reader.model: each for each in hosted}
        self._first, self.metrics, self._patience = hosted[0], metrics, patience
        self._since = int(time.time())
        self._compiling = asyncio.Lock()  # nothing is compiled twice

    async def page(self, _: Request) -> Response:
        """Answer GET / with the page."""
        return HTMLResponse(page.HTML, headers=page.HEADERS)

    async def health(self, _: Request) -> Response:
        """Answer GET /health: 200, or 503 when the engine has failed, or a step takes longer than allowed."""
        schedulers = [each.scheduler for each in self._hosted.values()]
        if any(scheduler.failed or not scheduler.alive for scheduler in schedulers):
            return JSONResponse({"status": "failed"}, 503)
        if (seconds := max(scheduler.busy_seconds for scheduler in schedulers)) > self._patience:
            return JSONResponse({"status": "stuck", "seconds": round(seconds)}, 503)
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, _: Request) -> Response:
        """Answer GET /metrics."""
        schedulers = [each.scheduler for each in self._hosted.values()]
        text = self.metrics.text(
            slots=sum(scheduler.slots for scheduler in schedulers),
            slots_in_use=sum(scheduler.running for scheduler in schedulers),
            queue_length=sum(scheduler.waiting for scheduler in schedulers),
        )
        return Response(text, media_type=CONTENT_TYPE)

    async def models(self, _: Request) -> Response:
        """Answer GET /v1/models with a list of the models, the first of which is the one with no adapter."""
        return JSONResponse({"object": "list", "data": list(map(self._model, self._hosted))})

    async def model(self, request: Request) -> Response:
        """Answer GET /v1/models/NAME, with 404 for any name but those of the models."""
        if (name := request.path_params["model"]) not in self._hosted:
            raise unknown_model()
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        reader = self._hosted[name].reader
        return {
            "id": name,
            "object": "model",
            "created": self._since,
            "owned_by": "jaxgpt",
            "context_length": reader.context,
            "max_tokens": reader.limits.tokens,
            "chat": reader.template is not None,
        }

    async def completions(self, request: Request) -> "Response | EventStream":
        """Answer POST /v1/completions."""
        return await self._answer(request, Reader.completion)

    async def chat(self, request: Request) -> "Response | EventStream":
        """Answer POST /v1/chat/completions."""
        return await self._answer(request, Reader.chat)

    async def _answer(
        self, request: Request, read: Callable[[Reader, bytes], Call]
    ) -> "Response | EventStream":
        body = await read_body(request, self._first.reader.limits.body)
        hosted = await asyncio.to_thread(self._asked, body)
        call = await asyncio.to_thread(read, hosted.reader, body)  # a long prompt takes a while to encode
        answer = Answer(call, hosted.reader.model, hosted.reader.tokenizer)
        if call.stream:
            return EventStream(self, hosted.scheduler, answer)
        with self.open(hosted.scheduler, call) as job:
            return Whole(await while_connected(request.receive, self._whole(answer, job)))

    async def inside(self, request: Request) -> Response:
        """Answer POST /v1/inside.

        What has to be compiled is compiled here, beside the engine, which goes on meanwhile. The engine then
        runs it between two steps, as it does with texts to score.
        """
        body = await read_body(request, self._first.reader.limits.body)
        reader, scheduler = await asyncio.to_thread(self._asked, body)
        look = await asyncio.to_thread(reader.look, body, scheduler.served.config.layers)
        async with self._compiling:
            await asyncio.to_thread(look.compile, scheduler.served)
        with _opened(scheduler, [], [look]) as job:
            try:
                found = await while_connected(request.receive, _result(job))
            except EngineFailed as error:
                raise failure() from error
        config = scheduler.served.config
        answer = await asyncio.to_thread(inside_answer, look, found, reader.model, reader.tokenizer, config)
        return Whole([answer])

    def _asked(self, body: bytes) -> Hosted:
        """The model that a body names. The first one for any other name, which its reader then refuses."""
        if len(self._hosted) == 1:
            return self._first
        name = parse_object(body).get("model")
        return self._hosted.get(name, self._first) if isinstance(name, str) else self._first

    def open(self, scheduler: Scheduler, call: Call) -> Job:
        """Hand a call to the scheduler. Raises ApiError if it is full (429) or has failed (503)."""
        reports = call.echo and call.logprobs is not None
        texts = [Text(prompt.ids, call.logprobs or 0) for prompt in call.prompts] if reports else []
        job = _opened(scheduler, call.requests(), texts)
        self.metrics.prompt_tokens += sum(len(prompt.ids) for prompt in call.prompts)
        return job

    async def _whole(self, answer: Answer, job: Job) -> list[bytes]:
        choices = answer.choices()
        pieces: list[list[Piece]] = [[] for _ in choices]
        async for index, piece in self.pieces(answer.call, choices, job):
            pieces[index].append(piece)
        best = [pieces[index] for index in answer.best(choices)]
        del pieces
        written = sum(choice.written for choice in choices)
        return await asyncio.to_thread(answer.whole, best, written)  # a long answer takes a while

    async def pieces(self, call: Call, choices: list[Choice], job: Job) -> AsyncIterator[tuple[int, Piece]]:
        """Yield the pieces of all choices as they come, each with the index of its choice.

        Raises ApiError if the engine fails.
        """
        try:
            if call.echo:
                scores = await asyncio.gather(*job.found)
                for index, choice in enumerate(choices):
                    prompt = index // call.best_of
                    yield index, choice.echo(call.prompts[prompt], scores[prompt] if scores else ())
            if not call.max_tokens:
                for index in range(len(choices)):
                    yield index, Piece("", (), "length")
            async for pair in self._new_pieces(choices, job):
                yield pair
        except EngineFailed as error:
            raise failure() from error

    async def _new_pieces(self, choices: list[Choice], job: Job) -> AsyncIterator[tuple[int, Piece]]:
        start, first = time.perf_counter(), True
        async for news in job.news():
            if first:
                self.metrics.count_first_token(time.perf_counter() - start)
                first = False
            self.metrics.generated_tokens += sum(new.token is not None for _, new in news)
            for index in sorted({place for place, _ in news}):
                piece = choices[index].add([new for place, new in news if place == index])
                if choices[index].finish:
                    job.cancel(index)  # the engine does not know of stop strings
                if any(piece):
                    yield index, piece


class Whole(Response):
    """An answer that is sent in pieces, as fast as the client reads them."""

    def __init__(self, parts: list[bytes]) -> None:
        size = str(sum(len(part) for part in parts))
        super().__init__(headers={"content-length": size}, media_type="application/json")
        self._parts = parts

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for part in self._parts:
            for start in range(0, len(part), AT_ONCE):
                body = part[start : start + AT_ONCE]
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class EventStream:
    """The answer to a call, as server-sent events. It is an ASGI app, like a response of Starlette."""

    def __init__(self, service: Service, scheduler: Scheduler, answer: Answer) -> None:
        self._service, self._scheduler, self._answer = service, scheduler, answer

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the answer ends or the client goes away."""
        with self._service.open(self._scheduler, self._answer.call) as job, contextlib.suppress(ApiError):
            await while_connected(receive, self._send_all(job, send))

    async def _send_all(self, job: Job, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for event in self._events(job):
                await _send_event(send, event)
            await _send_event(send, "[DONE]")
        except ApiError as error:
            await _send_event(send, error.body())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        answer, choices = self._answer, self._answer.choices()
        if answer.call.chat:
            for index in range(answer.call.n):
                yield answer.opening(index)
        async for index, piece in self._service.pieces(answer.call, choices, job):
            yield answer.chunk(index, piece)
        if answer.call.usage:
            yield answer.closing(sum(choice.written for choice in choices))


def _opened(scheduler: Scheduler, requests: Sequence[EngineRequest], texts: Sequence[Text | Look]) -> Job:
    """A job of the scheduler. Raises ApiError if it is full (429) or has failed (503)."""
    if scheduler.failed:
        raise failure()
    try:
        return scheduler.job(requests, texts)
    except QueueFull as error:
        headers = {"Retry-After": str(RETRY_SECONDS)}
        message = "too many requests are waiting; try again later"
        raise ApiError(429, message, headers=headers) from error


async def _result(job: Job) -> Any:
    """What is found of the job's only text."""
    return await job.found[0]


async def _send_event(send: Send, event: dict[str, Any] | str) -> None:
    data = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


def failure() -> ApiError:
    """Return the error for a request that the engine could not finish."""
    return ApiError(503, "the engine has failed or the server is stopping; the request was not finished")
