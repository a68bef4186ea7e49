"""Connections: their number, their times, and what is refused without being read."""

import asyncio
import contextlib
import json
import logging
import socket
import struct
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from test_server import JSON_TYPE, SECRET, Served, until

from jaxgpt.language_model import LanguageModel
from jaxgpt.serving import connection as limits
from jaxgpt.serving import running

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
KEYED = {"Authorization": f"Bearer {SECRET}"}
ORIGIN = "https://example.org"


@pytest.fixture(scope="module")
def server(model: LanguageModel) -> Iterator[Served]:
    """It has a key, room for six connections, and little patience."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "HEAD_SECONDS", 0.5)
        patch.setattr(limits, "READ_SECONDS", 0.5)
        patch.setattr(limits, "LINGER_SECONDS", 0.5)
        served = Served(model, key=SECRET, connections=6, cors=(ORIGIN,))
        yield served
        served.stop()


@contextlib.contextmanager
def connected(server: Served, sends: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(sends)
        yield client


def answer_of(client: socket.socket) -> tuple[int, bytes, dict[str, Any]]:
    """The status, the head and the JSON of an answer, after which the connection is closed."""
    received = b"".join(iter(lambda: client.recv(1 << 16), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head[9:12]), head.lower(), json.loads(body)


def counted(server: Served, status: int) -> float:
    page = server.ask("GET", "/metrics", headers=KEYED)[2].decode()
    name = f'jaxgpt_requests_total{{route="other",status="{status}"}} '
    return sum(float(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))


@pytest.mark.parametrize("sends", [b"", b"GET /health HTTP/1.1\r\nHost: loc"])
def test_a_request_that_does_not_come_is_not_waited_for(server: Served, sends: bytes) -> None:
    before = counted(server, 408)
    with connected(server, sends) as client:
        status, head, body = answer_of(client)
    assert status == 408 and b"connection: close" in head and body["error"]["type"]
    assert counted(server, 408) == before + 1


def test_bytes_that_come_one_by_one_are_not_waited_for_either(server: Served) -> None:
    with connected(server) as client:
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 100:
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "sends", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET  / x\r\n\r\n"]
)
def test_what_is_not_http_is_answered_with_json_and_counted(server: Served, sends: bytes) -> None:
    before = counted(server, 400)
    with connected(server, sends) as client:
        status, _, body = answer_of(client)
    assert status == 400 and set(body["error"]) == {"message", "type", "param", "code"}
    assert counted(server, 400) == before + 1


def test_a_body_is_not_even_parsed_after_a_401(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    data_received = limits.H11Protocol.data_received

    def watched(self: Any, data: bytes) -> None:
        parsed.append(len(data))
        data_received(self, data)

    monkeypatch.setattr(limits.H11Protocol, "data_received", watched)
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    with connected(server, head + b"1\r\nx\r\n" * 20_000) as client:
        status, head_of_answer, body = answer_of(client)
    assert status == 401 and b"connection: close" in head_of_answer and body["error"]
    assert sum(parsed) == len(head)


def test_one_who_sends_for_ever_after_a_refusal_is_cut_off(server: Served) -> None:
    start = time.monotonic()
    with connected(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n") as client:
        with pytest.raises(ConnectionError):
            while True:
                client.sendall(b"1\r\nx\r\n" * 1000)
        assert time.monotonic() - start < 10


def test_a_body_that_is_too_long_gets_its_answer_though_it_is_still_sent(server: Served) -> None:
    with contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as client:
        client.request("POST", "/v1/completions", b"x" * 4_000_000, JSON_TYPE | KEYED)
        answer = client.getresponse()
        assert answer.status == 413 and json.load(answer)["error"]["message"].endswith("at most 20000 bytes")


def test_an_answer_that_is_not_read_ends_with_the_connection(server: Served) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 180, "n": 8, "logprobs": 5, "stream": True}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", server.port))
        key = f"Authorization: Bearer {SECRET}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        client.sendall(HEAD + key + body)
        until(lambda: bool(connections_of(server)) and connections_of(server)[0].flow.write_paused)
        until(lambda: not connections_of(server))
        until(lambda: server.scheduler.open == 0)


def connections_of(server: Served) -> list[Any]:
    return list(server.server.server_state.connections)


def test_a_new_connection_takes_the_place_of_the_one_that_was_idle_longest(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", 30)
    until(lambda: not connections_of(server))
    with contextlib.ExitStack() as stack:
        idle = []
        for number in range(1, 7):
            idle.append(stack.enter_context(connected(server)))
            until(lambda number=number: len(connections_of(server)) == number)
        assert server.ask("GET", "/health")[0] == 200
        assert idle[0].recv(1) == b""  # closed
        idle[1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer_of(idle[1])[0] == 200


def test_where_all_connections_are_busy_a_new_one_is_refused(server: Served) -> None:
    until(lambda: not connections_of(server))
    body = json.dumps({"prompt": "a", "max_tokens": 180}).encode()
    key = f"Authorization: Bearer {SECRET}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    server.engine.hold()
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connected(server, HEAD + key + body)) for _ in range(6)]
        until(lambda: server.scheduler.open == 6)
        with connected(server) as client:
            assert answer_of(client)[0] == 503
        server.engine.let_go()
        assert [client.recv(12) for client in busy] == [b"HTTP/1.1 200"] * 6
    until(lambda: server.scheduler.open == 0)


def test_pages_of_the_origins_named_may_use_it(server: Served) -> None:
    asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    asked = asks | {"Access-Control-Request-Headers": "authorization,content-type"}
    status, headers, _ = server.ask("OPTIONS", "/v1/completions", headers=asked)
    assert status == 200 and headers["access-control-allow-origin"] == ORIGIN
    for key, status in ((KEYED, 200), ({}, 401)):
        found, headers, _ = server.ask("GET", "/v1/models", headers={"Origin": ORIGIN} | key)
        assert (found, headers["access-control-allow-origin"]) == (status, ORIGIN)
    _, headers, _ = server.ask("GET", "/v1/models", headers={"Origin": "https://example.com"} | KEYED)
    assert "access-control-allow-origin" not in headers


def test_a_full_table_of_files_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    loop, full = asyncio.new_event_loop(), OSError(24, "Too many open files")
    quiet = running._Quiet()
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            quiet(loop, {"message": "socket.accept() out of system resource", "exception": full})
    assert len(caplog.records) == 1 and caplog.records[0].exc_info is None
    with caplog.at_level(logging.ERROR):
        quiet(loop, {"message": "something else", "exception": ValueError("x")})
    assert len(caplog.records) == 2 and caplog.records[1].exc_info
    loop.close()


def test_the_limit_of_open_files_bounds_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, expected in ((1024, 512), (300, 44), (100, 1), (running.resource.RLIM_INFINITY, 512)):
        monkeypatch.setattr(running.resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert running.connections_allowed(512) == expected


def test_a_connection_that_is_reset_in_its_request_leaves_nothing(server: Served) -> None:
    for _ in range(20):
        with connected(server, HEAD) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: not connections_of(server))
