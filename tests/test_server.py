"""The server over real sockets, with OpenAI's own client and with clients that do it wrong."""

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxgpt
from jaxgpt.config import LoraConfig
from jaxgpt.errors import ConfigError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.inside import attention_weights, logit_lens
from jaxgpt.inference.prompts import chat_prompt
from jaxgpt.inference.requests import NewToken
from jaxgpt.inference.templates import Instruction
from jaxgpt.language_model import LanguageModel
from jaxgpt.model.lora import adapter_shapes
from jaxgpt.parallel import by_path
from jaxgpt.text.tokenizer import RankTokenizer
from jaxgpt.verbs import serve
from jaxgpt.weights.adapter import Adapter, Base
from jaxgpt.weights.formats.peft import write_peft

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
from jaxgpt.serving.answers import token_name
from jaxgpt.serving.api import Reader
from jaxgpt.serving.body import while_connected
from jaxgpt.serving.call import Limits
from jaxgpt.serving.fields import ApiError
from jaxgpt.serving.metrics import Metrics
from jaxgpt.serving.running import HttpServer
from jaxgpt.serving.scheduler import Scheduler
from jaxgpt.serving.server import create_app
from jaxgpt.serving.service import Hosted

BYTES = RankTokenizer({bytes([byte]): byte for byte in range(256)})
SECRET = "SECRET7351"
JSON_TYPE = {"Content-Type": "application/json"}


class Paced(Engine):
    """An engine whose steps are counted and, while it is `held`, made one at a time as they are released."""

    held = False
    made = 0

    def step(self) -> list[NewToken]:
        if self.held:
            self.allowed.acquire()
        try:
            return super().step()
        finally:
            self.made += 1

    def hold(self) -> None:
        self.allowed, self.held = threading.Semaphore(0), True

    def allow_until(self, condition: Callable[[], bool]) -> None:
        """Make one step after another until the condition holds; it is looked at between two steps."""
        while not condition():
            before = self.made
            self.allowed.release()
            until(lambda before=before: self.made > before)

    def let_go(self) -> None:
        self.held = False
        if hasattr(self, "allowed"):
            self.allowed.release(1000)


class Served:
    """A server in a thread of its own, and plain HTTP to it."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        key: str | None = None,
        queue: int = 64,
        drain: float = 5,
        patience: float = 25,
        connections: int = 64,
        cors: tuple[str, ...] = (),
        others: Sequence[Hosted] = (),
    ) -> None:
        self.engine = Paced(model.served, slots=2, ends={BYTES.end_of_text}, steps=4)
        self.scheduler = Scheduler(self.engine, waiting=queue)
        limits = Limits(body=20_000, choices=8, tokens=180)
        reader = Reader("tiny", BYTES, model.config.context, limits, Instruction(BYTES))
        counted = Metrics()
        hosted = [Hosted(reader, self.scheduler), *others]
        app = create_app(hosted, counted, key=key, patience=patience, cors=cors)
        schedulers = [each.scheduler for each in hosted]
        self.server = HttpServer(app, schedulers, counted, drain=drain, connections=connections)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that a slow reader is soon felt
        self.port = listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()

    def stop(self) -> None:
        self.engine.let_go()
        self.server.should_exit = True
        self.thread.join()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] = b"",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, content, JSON_TYPE | (headers or {}))
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def complete(self, **fields: Any) -> dict[str, Any]:
        status, _, body = self.ask("POST", "/v1/completions", {"temperature": 0} | fields)
        assert status == 200, body
        return json.loads(body)

    def inside(self, **fields: Any) -> dict[str, Any]:
        status, _, body = self.ask("POST", "/v1/inside", fields)
        assert status == 200, body
        return json.loads(body)

    def send(self, receives: int | None = None, **fields: Any) -> socket.socket:
        """A completion asked for, its answer not yet read; the connection takes so many bytes unread."""
        content = json.dumps({"prompt": "a", "temperature": 0} | fields).encode()
        client = socket.socket()
        if receives:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        client.settimeout(60)
        client.connect(("127.0.0.1", self.port))
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return client

    def metrics(self) -> dict[str, float]:
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def _server(model: LanguageModel) -> Iterator[Served]:
    served = Served(model)
    yield served
    served.stop()


@pytest.fixture
def server(_server: Served) -> Iterator[Served]:
    yield _server
    _server.engine.let_go()
    until(lambda: _server.scheduler.open == _server.scheduler.running == _server.scheduler.waiting == 0)


@pytest.fixture
def client(server: Served) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


# --- what it answers


def test_openais_client_completes_streams_and_lists(client: Any, model: LanguageModel) -> None:
    ask = {"model": "tiny", "prompt": "ab", "max_tokens": 20, "seed": 3, "temperature": 0.9, "logprobs": 2}
    whole = client.completions.create(**ask, n=2)
    assert (
        whole.choices[0].text
        == model.generate(["ab"], max_new_tokens=20, temperature=0.9, top_k=0, seed=3)[0]
    )
    assert (
        whole.choices[1].text
        == model.generate(["ab"], max_new_tokens=20, temperature=0.9, top_k=0, seed=4)[0]
    )
    assert [choice.finish_reason for choice in whole.choices] == ["length"] * 2
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 40)
    chunks = list(client.completions.create(**ask, n=2, stream=True, stream_options={"include_usage": True}))
    for index in (0, 1):
        parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(part.text for part in parts) == whole.choices[index].text and len(parts) > 3
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + ["length"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [value for part in parts for value in getattr(part.logprobs, name)]
            assert joined == getattr(whole.choices[index].logprobs, name)
    assert chunks[-1].usage == whole.usage and {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [found.id for found in client.models.list()] == ["tiny"] and client.models.retrieve(
        "tiny"
    ).id == "tiny"


def test_openais_client_chats(client: Any, model: LanguageModel) -> None:
    ask = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 10,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=1)
    expected = model.generate([chat_prompt([("user", "Hi")])], max_new_tokens=10, temperature=0)[0]
    assert whole.choices[0].message.content == expected and whole.choices[0].message.role == "assistant"
    assert len(whole.choices[0].logprobs.content) == 10
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "length"


def test_openais_client_gets_its_own_errors(client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="a", suffix="b")
    assert caught.value.param == "suffix"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="another", prompt="a")
    assert missing.value.code == "model_not_found"


def test_a_stop_string_ends_the_text_and_frees_the_slot(server: Served) -> None:
    whole = server.complete(prompt="ab", max_tokens=100)["choices"][0]["text"]
    stop, before = whole[5:7], server.engine.made
    choice = server.complete(prompt="ab", max_tokens=100, stop=[stop])["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    until(lambda: server.scheduler.running == 0)
    assert server.engine.made < before + 10  # of the 26 steps that the whole text takes


@pytest.mark.parametrize("as_ids", [True, False])
def test_an_lm_eval_request_equals_the_engines_scores(
    server: Served, model: LanguageModel, as_ids: bool
) -> None:
    """As its local-completions asks: a batch, echo, one more token; it reads [context:-1] of each list."""
    texts = ["The quick", "brown fox jumps", "a"]
    prompts = [list(text.encode()) for text in texts] if as_ids else texts
    answer = server.complete(prompt=prompts, echo=True, logprobs=1, max_tokens=1, seed=1234)
    engine = Engine(model.served, slots=1)
    for text, choice in zip(texts, answer["choices"], strict=True):
        scores, logprobs = engine.score(list(text.encode()), 1), choice["logprobs"]
        assert choice["text"].startswith(text) and len(logprobs["tokens"]) == len(text) + 1
        assert logprobs["token_logprobs"][:-1] == [score.logprob for score in scores]
        assert logprobs["top_logprobs"][0] is None
        for score, top in list(zip(scores, logprobs["top_logprobs"][:-1], strict=True))[1:]:
            assert max(top.values()) == score.alternatives[0][1]
    only = server.complete(prompt=prompts, echo=True, logprobs=1, max_tokens=0)
    for with_one, choice in zip(answer["choices"], only["choices"], strict=True):
        assert choice["logprobs"]["token_logprobs"] == with_one["logprobs"]["token_logprobs"][:-1]
    assert only["usage"]["completion_tokens"] == 0


def test_it_shows_what_the_layers_compute(server: Served, model: LanguageModel) -> None:
    text = "The quick"
    found = server.inside(prompt=text)
    assert (found["tokens"], found["layers"], found["heads"]) == ([*text], 1, 2)
    expected = logit_lens(model.served, list(text.encode()))
    for layer, places in enumerate(found["lens"]):
        for place, top in enumerate(places):
            assert [*top.values()] == expected.logprobs_NTK[layer, place].tolist()
            names = [token_name(BYTES, id) for id in expected.ids_NTK[layer, place].tolist()]
            assert [*top] == names
    said = server.complete(prompt=text, logprobs=5, max_tokens=1)["choices"][0]["logprobs"]
    assert found["lens"][-1][-1] == pytest.approx(said["top_logprobs"][0], abs=1e-5)
    found = server.inside(prompt=text, layer=0)
    weights_HTT = attention_weights(model.served, list(text.encode()), 0)
    for head, rows in enumerate(found["attention"]):
        assert [len(row) for row in rows] == list(range(1, len(text) + 1))
        for place, row in enumerate(rows):
            np.testing.assert_allclose(row, weights_HTT[head, place, : place + 1], atol=6e-4)
    assert "lens" not in found and found["layer"] == 0
    assert server.metrics()['jaxgpt_requests_total{route="/v1/inside",status="200"}'] == 2


def test_looking_inside_waits_for_a_step_and_not_for_the_texts_that_are_written(server: Served) -> None:
    server.engine.hold()
    running, found = server.send(max_tokens=150), list[int]()
    server.engine.allow_until(lambda: server.scheduler.running == 1)
    asking = threading.Thread(target=lambda: found.append(len(server.inside(prompt="ab")["tokens"])))
    asking.start()
    until(lambda: server.scheduler.waiting == 1)
    server.engine.allow_until(lambda: server.scheduler.open == 1)
    asking.join()
    assert found == [2] and server.scheduler.running == 1  # the text is still being written
    running.close()


def test_a_text_ends_where_the_context_is_full(server: Served) -> None:
    choice = server.complete(prompt="a" * 190, max_tokens=50)["choices"][0]
    assert choice["finish_reason"] == "length" and len(choice["text"].encode()) >= 1
    assert (
        server.complete(prompt="a" * 190, max_tokens=50)["usage"]["completion_tokens"] == 3
    )  # the last is not read


def test_metrics_count_requests_and_tokens(server: Served) -> None:
    before = server.metrics()
    server.complete(prompt="abc", max_tokens=5)
    server.ask("GET", f"/{SECRET}")
    after = server.metrics()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["jaxgpt_prompt_tokens_total"] == 3 and grown["jaxgpt_generated_tokens_total"] == 5
    assert grown['jaxgpt_requests_total{route="/v1/completions",status="200"}'] == 1
    assert grown['jaxgpt_requests_total{route="other",status="404"}'] == 1
    assert grown["jaxgpt_time_to_first_token_seconds_count"] == 1
    assert grown['jaxgpt_time_to_first_token_seconds_bucket{le="+Inf"}'] == 1
    assert (after["jaxgpt_slots"], after["jaxgpt_slots_in_use"], after["jaxgpt_queue_length"]) == (2, 0, 0)
    assert not any(SECRET in name for name in after)


def test_the_page_may_run_its_own_script_and_nothing_else(server: Served) -> None:
    status, headers, body = server.ask("GET", "/")
    policy = headers["content-security-policy"]
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert not re.search(
        rb"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?://(?!www\.w3\.org)", body
    )


def test_it_answers_to_every_name_of_this_machine_and_to_no_other(server: Served) -> None:
    for host, status in (
        *[(name, 200) for name in ("localhost:8000", "LOCALHOST", "127.0.0.2", "127.9.9.9:80", "[::1]:80")],
        *[(name, 403) for name in ("10.0.0.1", "127.0.0.1.example", "localhost.example", "[::2]", "")],
    ):
        assert server.ask("GET", "/health", headers={"Host": host})[0] == 200
        assert server.ask("GET", "/v1/models", headers={"Host": host})[0] == status, host


# --- what it refuses


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/v1/completions", {"prompt": SECRET, SECRET[:3] + "<": 1}, {}, 400),
        ("POST", "/v1/completions", SECRET.encode(), {}, 400),
        ("POST", "/v1/completions", b"[" * 10_000, {}, 400),
        ("POST", "/v1/completions", {"prompt": SECRET}, {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/completions", SECRET.encode() * 3000, {}, 413),
        ("GET", f"/{SECRET}", b"", {}, 404),
        ("GET", "/v1/completions", b"", {}, 405),
        ("GET", "/v1/inside", b"", {}, 405),
        ("POST", "/v1/inside", {"prompt": SECRET * 15}, {}, 400),
        ("POST", "/v1/inside", SECRET.encode() * 3000, {}, 413),
        ("POST", "/v1/inside", {"prompt": SECRET}, {"Content-Type": "text/plain"}, 415),
        ("PUT", "/health", b"", {}, 405),
        ("GET", f"/v1/models/{SECRET}", b"", {}, 404),
        ("GET", "/", b"", {"Host": f"{SECRET}.example"}, 403),
    ],
)
def test_errors_have_openais_shape_and_repeat_nothing(
    server: Served, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    found, answered, content = server.ask(method, path, body, headers)
    assert found == status and SECRET.encode() not in content and SECRET not in str(answered)
    assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}


def test_a_body_without_a_length_is_cut_off_where_it_is_too_long(server: Served) -> None:
    with contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        chunks = (b"x" * 1000 for _ in range(40))
        connection.request("POST", "/v1/completions", chunks, JSON_TYPE, encode_chunked=True)
        assert connection.getresponse().status == 413


@pytest.mark.parametrize(
    "headers", ["Content-Length: 999999999", "Content-Length: 30000\r\nExpect: 100-continue"]
)
def test_a_length_that_is_far_too_long_is_refused_before_anything_is_sent(
    server: Served, headers: str
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}{headers}\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 413"


def test_a_full_queue_answers_429_and_when_to_come_again(model: LanguageModel) -> None:
    server = Served(model, queue=1)
    try:
        server.engine.hold()
        clients = [server.send(max_tokens=2) for _ in range(3)]
        until(lambda: server.scheduler.open == 3)
        for route, more in (("completions", {}), ("completions", {"stream": True}), ("inside", {})):
            status, headers, body = server.ask("POST", f"/v1/{route}", {"prompt": SECRET} | more)
            assert status == 429 and int(headers["retry-after"]) >= 1 and SECRET.encode() not in body
        server.engine.let_go()
        assert [each.recv(15) for each in clients] == [b"HTTP/1.1 200 OK"] * 3
        assert server.ask("POST", "/v1/completions", {"prompt": "a"})[0] == 200
        for each in clients:
            each.close()
    finally:
        server.stop()


def test_every_route_but_health_needs_the_key(model: LanguageModel) -> None:
    server = Served(model, key=SECRET)
    try:
        basic = base64.b64encode(f"user:{SECRET}".encode()).decode()
        assert server.ask("GET", "/health")[0] == 200
        for method, path in (
            ("GET", "/"),
            ("GET", "/metrics"),
            ("GET", "/v1/models"),
            ("GET", "/nothing"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/inside"),
        ):
            for wrong in (
                "",
                "Bearer",
                f"Bearer {SECRET}x",
                f"Bearer {SECRET[:-1]}",
                "Bearer é",
                f"Token {SECRET}",
                "Basic !",
                "Basic " + basic[:-4],
                SECRET,
            ):
                status, headers, body = server.ask(method, path, {"prompt": "a"}, {"Authorization": wrong})
                assert status == 401 and SECRET.encode() not in body, (path, wrong)
                assert headers["www-authenticate"] == ('Basic realm="jaxgpt"' if path == "/" else "Bearer")
            for right in (f"Bearer {SECRET}", f"bearer {SECRET}", f"Basic {basic}"):
                assert server.ask(method, path, {"prompt": "a"}, {"Authorization": right})[0] != 401
        elsewhere = {"Authorization": f"Basic {basic}", "Host": "elsewhere.example"}
        assert server.ask("GET", "/", headers=elsewhere)[0] == 200
    finally:
        server.stop()


# --- clients that go away, or do not read


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["queue", "prefill", "decode"])
def test_a_client_that_goes_away_frees_its_slot_within_one_step(
    server: Served, phase: str, stream: bool
) -> None:
    scheduler, engine = server.scheduler, server.engine
    engine.hold()
    others = [server.send(max_tokens=150) for _ in range(2 if phase == "queue" else 0)]
    until(lambda: scheduler.open == len(others))
    leaving = server.send(max_tokens=150, stream=stream)
    until(lambda: scheduler.open == len(others) + 1)
    if phase == "queue":  # prompts that did not arrive together take more than one step
        engine.allow_until(lambda: scheduler.running == 2 and scheduler.waiting == 1)
    elif phase == "decode":
        start = engine.made
        engine.allowed.release(2)
        until(lambda: engine.made == start + 2 and scheduler.running == 1)
    before = engine.made
    leaving.close()
    until(lambda: scheduler.open == len(others))
    engine.allowed.release()
    until(lambda: scheduler.running == len(others) and scheduler.waiting == 0)
    assert engine.made <= before + 1
    for other in others:
        other.close()


def test_a_slow_reader_blocks_neither_the_engine_nor_others(server: Served) -> None:
    answered = 'jaxgpt_requests_total{route="/v1/completions",status="200"}'
    before = server.metrics().get(answered, 0)
    slow = server.send(receives=4096, max_tokens=180, n=4, logprobs=20, stream=True)
    until(lambda: server.scheduler.open == 4)
    until(
        lambda: server.scheduler.open == server.scheduler.running == 0
    )  # all is made though nothing was read
    assert server.complete(prompt="b", max_tokens=5)["usage"]["completion_tokens"] == 5
    assert server.metrics()[answered] == before + 1  # that one; the slow one's answer waits in its job
    received = b""
    while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        piece = slow.recv(1 << 16)
        assert piece, received[-200:]
        received += piece
    slow.close()


def test_what_has_not_ended_when_the_time_to_drain_is_over_ends_in_an_error(model: LanguageModel) -> None:
    server = Served(model, drain=0.3)
    try:
        server.engine.hold()
        clients = [server.send(max_tokens=150, stream=stream) for stream in (True, False)]
        until(lambda: server.scheduler.open == 2)
        server.server.should_exit = True
        streamed, whole = (client.makefile("rb").read() for client in clients)
        assert streamed.startswith(b"HTTP/1.1 200") and b"[DONE]" not in streamed
        assert b'data: {"error":{"message":"the engine has failed or the server is stopping' in streamed
        assert whole.startswith(b"HTTP/1.1 503") and json.loads(whole.partition(b"\r\n\r\n")[2])["error"]
        assert server.scheduler.open == 0
        for client in clients:
            client.close()
    finally:
        server.stop()
    assert server.engine.running == server.engine.waiting == 0


def test_a_step_that_takes_too_long_shows_in_health_until_it_ends(model: LanguageModel) -> None:
    server = Served(model, patience=0.2)
    try:
        server.engine.hold()
        with server.send(max_tokens=2):
            until(lambda: server.ask("GET", "/health")[0] == 503)
            assert json.loads(server.ask("GET", "/health")[2])["status"] == "stuck"
            server.engine.let_go()
            until(lambda: server.ask("GET", "/health")[0] == 200)
    finally:
        server.stop()


def test_a_failed_engine_ends_streams_with_an_error_and_shows_in_health(model: LanguageModel) -> None:
    server = Served(model)
    try:
        server.engine.hold()
        client = server.send(max_tokens=150, stream=True)
        until(lambda: server.scheduler.open == 1)
        del server.engine.served
        server.engine.let_go()
        received = b""
        with client:
            while not received.endswith(b"\r\n0\r\n\r\n"):
                received += client.recv(4096)
        assert b'data: {"error"' in received and b"[DONE]" not in received
        assert server.ask("GET", "/health")[0] == 503
        assert server.ask("POST", "/v1/completions", {"prompt": "a"})[0] == 503
    finally:
        server.stop()


def test_work_for_a_client_that_left_is_cancelled() -> None:
    async def test() -> None:
        cancelled = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async def receive() -> dict[str, str]:
            return {"type": "http.disconnect"}

        with pytest.raises(ApiError) as caught:
            await while_connected(receive, work())  # type: ignore[arg-type]
        assert caught.value.status == 499 and cancelled.is_set()

    asyncio.run(test())


# --- the verb


@pytest.fixture(scope="module")
def saved(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny"
    model.save(path)
    BYTES.save_json(path / "tokenizer.json")
    return path


@pytest.fixture(scope="module")
def adapter(model: LanguageModel, saved: Path) -> Path:
    """An adapter of the served model, which moves its text."""
    lora, draw = LoraConfig(rank=2, alpha=8), np.random.default_rng(0)
    leaves = {
        path: draw.normal(size=shape).astype(np.float32)
        for path, shape in adapter_shapes(model.config, lora).items()
    }
    path = saved.with_name("adapter")
    write_peft(Adapter(lora, (0,), leaves, Base(str(saved))), path)
    return path


def test_an_adapter_is_a_further_model_that_shares_what_it_does_not_change(
    model: LanguageModel, saved: Path, adapter: Path
) -> None:
    args = serve.ServeArgs(model=str(saved), adapter=(f"other={adapter}",), slots=2)
    first, other = serve._hosted(args, lambda: None)
    base, moved = (each.scheduler._engine.served.params for each in (first, other))
    own = [path for path, leaf in by_path(moved).items() if leaf is not by_path(base)[path]]
    assert own == ["h/0/attn/c_attn/kernel"]
    served = Served(model, others=[other])
    try:
        names = [each["id"] for each in json.loads(served.ask("GET", "/v1/models")[2])["data"]]
        assert names == ["tiny", "other"] and served.ask("GET", "/v1/models/other")[0] == 200
        expected = jaxgpt.load(saved, adapter=adapter).generate("abc", max_new_tokens=20, temperature=0)
        said = {
            name: served.complete(prompt="abc", max_tokens=20, **named)["choices"][0]["text"]
            for name, named in (("", {}), ("tiny", {"model": "tiny"}), ("other", {"model": "other"}))
        }
        assert said["other"] == expected and said[""] == said["tiny"] != expected
        answer = served.complete(prompt="abc", max_tokens=1, model="other")
        assert answer["model"] == "other"
        assert served.ask("POST", "/v1/completions", {"prompt": "a", "model": "third"})[0] == 404
        assert b"jaxgpt_slots 4" in served.ask("GET", "/metrics")[2]
    finally:
        served.stop()
    assert not other.scheduler.alive


@contextlib.contextmanager
def process_of(saved: Path, before: str = "", **settings: Any) -> Iterator[tuple[Any, int, HTTPConnection]]:
    """The verb in a process of its own, its port, and a connection on which a stream was asked for."""
    code = (
        f"import sys; from jaxgpt.verbs.serve import *; {before}\n"
        f"run(ServeArgs(model=sys.argv[1], port=0, **{settings!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(saved)],
        stderr=subprocess.PIPE,
        env=os.environ | {"XLA_FLAGS": ""},
        text=True,
    )
    assert process.stderr
    with process, process.stderr:
        lines = iter(process.stderr.readline, "")
        port = next(int(found[1]) for line in lines if (found := re.search(r"127\.0\.0\.1:(\d+)/ ", line)))
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 180, "stream": True, "seed": 1})
            connection.request("POST", "/v1/completions", body, JSON_TYPE)
            try:
                yield process, port, connection
            finally:
                process.kill()


@pytest.mark.slow
def test_sigterm_lets_a_running_request_end_and_exits_with_0(saved: Path) -> None:
    with process_of(saved, steps=1, warm_up=True) as (process, port, connection):
        answer = connection.getresponse()
        first = answer.readline()
        process.send_signal(signal.SIGTERM)
        rest = answer.read()
        assert first.startswith(b"data: {") and rest.endswith(b"data: [DONE]\n\n") and b'"length"' in rest
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


SLOW = """
import time
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.inside import attention_weights, logit_lens
step = Engine.step
Engine.step = lambda self: (time.sleep({seconds}), step(self))[1]
"""

# A computation of the device that never ends: Python's own end would wait for it.
HANGS = """
import jax
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.inside import attention_weights, logit_lens
forever = jax.jit(lambda x: jax.lax.while_loop(lambda x: x >= 0, lambda x: x * 0, x))
Engine.step = lambda self: forever(0.0).block_until_ready()
"""


@pytest.mark.slow
def test_a_second_ctrl_c_ends_what_runs_with_an_error_and_exits_with_0(saved: Path) -> None:
    with process_of(saved, SLOW.format(seconds=0.3)) as (process, _, connection):
        answer = connection.getresponse()
        answer.readline()
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert b'data: {"error"' in answer.read()
        assert process.wait(20) == 0 and process.stderr.read() == ""


def test_an_engine_that_hangs_can_be_stopped(saved: Path) -> None:
    before = HANGS + "import jaxgpt.serving.scheduler as s; s.STOP_SECONDS = 0.5"
    with process_of(saved, before, drain=1, patience=1) as (process, port, connection):
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)) as other:

            def health() -> int:
                other.request("GET", "/health")
                answer = other.getresponse()
                answer.read()
                return answer.status

            until(lambda: health() == 503)
        process.send_signal(signal.SIGTERM)
        assert b'data: {"error"' in connection.getresponse().read()
        assert process.wait(20) == 0 and "did not end its last step" in process.stderr.read()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 without a key"),
        ({"host": "example.org"}, "without a key"),
        ({"api_key": ""}, "the key"),
        ({"api_key": "a b"}, "the key"),
        ({"port": 70000}, "--port 70000"),
        ({"queue": -1}, "--max-choices"),
        ({"max_tokens": 0}, "--max-tokens 0"),
        ({"slots": 0}, "--slots 0"),
        ({"steps": 0}, "--steps 0"),
        ({"max_choices": 40}, "--max-choices 40"),
        ({"api_key": "a", "api_key_file": Path("b")}, "leave out --api-key"),
        ({"host": "192.0.2.1", "api_key": "a"}, "--host"),
        ({"cors": ("*",)}, "--cors '*' without a key"),
        ({"cors": ("example.org",)}, "--cors example.org"),
        ({"cors": ("https://example.org/",)}, "--cors https://example.org/"),
        ({"adapter": ("runs/lora",)}, "--adapter runs/lora: it names no adapter; write NAME=PATH"),
        ({"adapter": ("a=b", "a=c")}, "--adapter a=c: a model is called a already"),
        ({"adapter": ("none=b",)}, "--adapter none=b: a model is called none already"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        serve.run(serve.ServeArgs(model="none", **settings))


def test_a_port_in_use_is_refused_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="another program"):
        serve.run(serve.ServeArgs(model="none", port=taken.getsockname()[1]))


def test_a_port_that_is_taken_while_the_model_is_loaded_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = serve._bound

    def bound_by_two(host: str, port: int) -> socket.socket:
        ours = bound(host, port)
        others.append(bound(host, ours.getsockname()[1]))
        others[0].listen()
        return ours

    others: list[socket.socket] = []
    monkeypatch.setattr(serve, "_bound", bound_by_two)
    with pytest.raises(ConfigError, match="another program uses this port"):
        serve.run(serve.ServeArgs(model=str(saved), port=0))
    others[0].close()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.delitem(sys.modules, "jaxgpt.serving.server")
    with pytest.raises(ConfigError, match=re.escape("pip install 'jaxgpt[serve]'")):
        serve.run(serve.ServeArgs(model="none"))
