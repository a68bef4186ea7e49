"""Tests a server on this machine with load, disconnects and malformed requests, and measures its speed.

    jaxgpt pretrain nano --out-dir /tmp/run --steps 200
    jaxgpt serve /tmp/run --port 8000 & python tools/load_server.py --url http://127.0.0.1:8000 --pid $!

There are three parts. Each prints lines of JSON, and a count of 0 leaves it out.

1. One streaming client, and then many at a time: tokens per second and the time to the first token.
2. Clients that leave at random moments: afterwards no slot may be in use.
3. Malformed requests: none may cause a status of 500 or more, a hang, or growth of the server's memory.

If one of these rules does not hold, the exit code is 1.
"""

import asyncio
import contextlib
import ipaddress
import json
import random
import socket
import statistics
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tyro

PATIENCE = 30.0  # a request without an answer for this many seconds counts as a hang
ENOUGH = 1.0  # after this many seconds without an answer, a client says that it sends no more
WARM_UP = 1000  # this many malformed requests are sent before the memory is read for the first time
GROWTH = 0.05  # the server's memory may grow by less than this share


@dataclass(frozen=True, kw_only=True)
class Load:
    """Test a server on this machine with load, disconnects and malformed requests."""

    url: str
    """Address of the server, such as http://127.0.0.1:8000. It must be one of this machine's own."""
    pid: int | None = None
    """Process id of the server, to measure its memory. None means not to."""
    clients: int = 32
    """Number of streaming clients at a time."""
    requests: int = 4
    """Number of requests of each client. 0 leaves this part out."""
    tokens: int = 64
    """Number of new tokens for each request."""
    disconnects: int = 200
    """Number of clients that leave. 0 leaves this part out."""
    malformed: int = 10_000
    """Number of malformed requests. 0 leaves this part out."""
    seed: int = 0
    """Starting point of the random numbers."""


@dataclass(frozen=True)
class Server:
    """The address of a server."""

    host: str
    port: int

    async def send(self, raw: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect and send these bytes. Return the connection."""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
        # If the server refuses a request before all of it was sent, it may still answer.
        with contextlib.suppress(ConnectionError):
            writer.write(raw)
            await writer.drain()
        return reader, writer

    async def answer(self, raw: bytes) -> bytes:
        """Send these bytes, and return everything that comes back."""
        reader, writer = await self.send(raw)
        try:
            return await reader.read(-1)
        except ConnectionError:
            return b""
        finally:
            await _close(writer)

    async def gauges(self) -> dict[str, float]:
        """Return the metrics that are a single number."""
        page = (await self.answer(_http("GET", "/metrics"))).decode()
        lines = (
            line.rsplit(" ", 1)
            for line in page.splitlines()
            if line.startswith("jaxgpt_") and "{" not in line
        )
        return {name: float(value) for name, value in lines}


def _http(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    known = {
        "Host": "127.0.0.1",
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    known |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in known.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def _completion(**fields: Any) -> bytes:
    return _http("POST", "/v1/completions", json.dumps(fields).encode())


async def _close(writer: asyncio.StreamWriter, *, reset: bool = False) -> None:
    if reset:  # close at once, with a RST instead of a FIN
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def at_a_time(width: int, count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Do `work(0)` to `work(count - 1)`, `width` of them at a time."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(width)))


# --- throughput


async def throughput(server: Server, args: Load, clients: int) -> dict[str, Any]:
    """Measure the tokens per second and the time to the first token, in seconds, with this many clients."""
    first: list[float] = []
    written = 0

    async def stream(number: int) -> None:
        nonlocal written
        start, seen = time.perf_counter(), False
        fields = {"prompt": f"Request {number} of {clients}: ", "max_tokens": args.tokens, "seed": number}
        streaming = {"stream": True, "stream_options": {"include_usage": True}}
        reader, writer = await server.send(_completion(**fields, **streaming))
        async with asyncio.timeout(10 * PATIENCE):
            while line := await reader.readline():
                if line.startswith(b"data: {"):
                    if not seen:
                        first.append(time.perf_counter() - start)
                        seen = True
                    event = json.loads(line.removeprefix(b"data: "))
                    written += (event["usage"] or {}).get("completion_tokens", 0)
        if not seen:
            sys.exit(
                "a request was refused: start the server with a --queue of at least the number of clients"
            )
        await _close(writer)

    start = time.perf_counter()
    await at_a_time(clients, clients * args.requests, stream)
    seconds = time.perf_counter() - start
    cuts = statistics.quantiles(first, n=100, method="inclusive") if len(first) > 1 else first * 99
    return {
        "clients": clients,
        "requests": len(first),
        "tokens": written,
        "tokens_per_second": round(written / seconds, 1),
        "first_token_p50": round(cuts[49], 4),
        "first_token_p99": round(cuts[98], 4),
    }


# --- clients that leave


async def disconnects(server: Server, args: Load) -> dict[str, Any]:
    """Leave in the queue, during the prompt or during the text. Return what the server then still holds."""
    rng, moments = random.Random(args.seed), Counter[str]()

    async def leave(_: int) -> None:
        stream, moment = rng.random() < 0.7, rng.choice(("at once", "soon", "within the text"))
        moments[moment] += 1
        fields = {"prompt": "x" * rng.randint(1, 60), "max_tokens": rng.randint(30, 100), "stream": stream}
        several = {"n": rng.choice((1, 1, 1, 2)), "logprobs": rng.choice((None, 5))}
        reader, writer = await server.send(_completion(**fields, **several))
        if moment == "soon":
            await asyncio.sleep(rng.random() * 0.1)
        elif moment == "within the text":
            # Without a stream, nothing comes before the end.
            with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
                await asyncio.wait_for(reader.readuntil(b"data: "), 2 if stream else 0.05)
        await _close(writer, reset=rng.random() < 0.5)

    await at_a_time(24, args.disconnects, leave)
    start = time.perf_counter()
    while True:
        gauges = await server.gauges()
        held = int(gauges["jaxgpt_slots_in_use"]), int(gauges["jaxgpt_queue_length"])
        if held == (0, 0) or time.perf_counter() - start > 10:
            break
        await asyncio.sleep(0.01)
    return {
        "disconnects": args.disconnects,
        "moments": dict(moments),
        "slots_in_use": held[0],
        "queue_length": held[1],
        "free_after_seconds": round(time.perf_counter() - start, 3),
        "ok": held == (0, 0),
    }


# --- malformed requests

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    3,
    2**31,
    2**63,
    -(2**63),
    1e308,
    -0.0,
    1e-300,
    "",
    "x",
    "\ud800",
    "é" * 50,
    [],
    {},
    [[]],
    [None],
    {"a": {"b": []}},
    [1, "a"],
    [-1],
    [10**9],
    "a" * 5000,
    [["x"]],
    [0] * 2000,
)
NAMES = (
    "prompt",
    "messages",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "stop",
    "logprobs",
    "echo",
    "stream",
    "seed",
    "stream_options",
    "logit_bias",
    "model",
    "best_of",
    "suffix",
    "tools",
    "__proto__",
    "",
)
BASES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "abc"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
}
RAW_VALUES = (
    b"NaN",
    b"-Infinity",
    b"9" * 6000,
    b"1e999",
    b"[" * 50_000,
    b'{"a":' * 3000,
    b"'x'",
    b"\xff\xfe",
    b"0x1",
)


def malformed(rng: random.Random) -> bytes:
    """Return a request that is wrong in some way or, rarely, only strange."""
    path = rng.choice(tuple(BASES))
    base = BASES[path] | {"max_tokens": rng.randint(1, 3), "temperature": 1}
    kind = rng.randrange(10)
    body = json.dumps(base).encode()
    if kind <= 3:  # fields of wrong kinds
        for _ in range(rng.randint(1, 3)):
            base[rng.choice(NAMES)] = rng.choice(VALUES)
        return _http("POST", path, json.dumps(base).encode())
    if kind == 4:  # values that are no JSON
        name = rng.choice(NAMES[:-1]).encode()
        return _http("POST", path, body[:-1] + b', "%s": %s}' % (name, rng.choice(RAW_VALUES)))
    if kind == 5:  # changed, removed and added bytes
        changed = bytearray(body)
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(len(changed))
            changed[place : place + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        return _http("POST", path, bytes(changed))
    if kind == 6:
        return _http(
            rng.choice(("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "TRACE", "X")),
            rng.choice((path, "/", "/..%2f", "/v1/models/%ff", "/metrics", "/%00", "*")),
            body,
        )
    if kind == 7:  # headers
        wrong = rng.choice(
            (
                {"Content_Type": "text/plain"},
                {"Content_Type": ""},
                {"Content_Length": "-1"},
                {"Content_Length": "x"},
                {"Content_Length": str(len(body) - 5)},
                {"Content_Length": "9" * 30},
                {"Transfer_Encoding": "chunked"},
                {"Authorization": "Bearer " + "k" * 3000},
                {"Host": ""},
                {"Host": "\udcff"},
                {"Expect": "100-continue"},
                {"X": "y" * 80_000},
                {"Content_Encoding": "gzip"},
                {"Upgrade": "websocket", "Connection": "Upgrade, close"},
            )
        )
        return _http("POST", path, body, **wrong)
    if kind == 8 and rng.random() < 0.2:
        return _http("POST", path, b'{"prompt": "' + b"a" * rng.randint(1 << 20, 3 << 20) + b'"}')
    return (
        rng.choice(
            (
                rng.randbytes(rng.randint(1, 300)),
                b"\x16\x03\x01\x02\x00",
                b"GET / HTTP/9.9\r\n\r\n",
                b"POST " + path.encode() + b" HTTP/1.1\r\n\r\n",
                b"\r\n" * 50,
            )
        )
        + b"\r\n\r\n"
    )


async def compile_programs(server: Server) -> None:
    """Have every program compiled that a malformed request needs when it happens to be valid.

    Programs stay in memory. Compiled later, they would look like a leak.
    """
    for prompt in ("abc", "é" * 50):
        for drawing in ({"temperature": 0}, {"temperature": 1}, {"temperature": 1, "top_k": 3}):
            for logprobs in (None, 1):
                for n in (1, 2, 4, 8):
                    fields = {"prompt": prompt, "max_tokens": 8, "n": n, "logprobs": logprobs, "echo": True}
                    await server.answer(_completion(**fields, **drawing))


async def torment(server: Server, args: Load) -> dict[str, Any]:
    """Send malformed requests. Return the statuses that came back, the hangs, and how memory grew."""
    statuses: Counter[str] = Counter()
    rng = random.Random(args.seed)

    async def send(_: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await server.send(malformed(rng))
                answer = asyncio.ensure_future(reader.read(-1))
                if not (await asyncio.wait((answer,), timeout=ENOUGH))[0] and writer.can_write_eof():
                    writer.write_eof()  # the server may still wait for the rest of a body
                found = (await answer).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
                await _close(writer)
            statuses[found[9:12].decode() or "closed"] += 1
        except ConnectionError:
            statuses["closed"] += 1
        except TimeoutError:
            statuses["hang"] += 1

    await compile_programs(server)
    await at_a_time(8, min(WARM_UP, args.malformed), send)
    statuses.clear()
    before, start = _memory(args.pid), time.perf_counter()
    await at_a_time(8, args.malformed, send)
    seconds, after = time.perf_counter() - start, _memory(args.pid)
    growth = after / before - 1 if before else 0.0
    wrong = statuses["hang"] + sum(count for status, count in statuses.items() if status.startswith("5"))
    return {
        "malformed": args.malformed,
        "statuses": dict(sorted(statuses.items())),
        "seconds": round(seconds, 1),
        "memory_before_mib": round(before / 2**20),
        "memory_after_mib": round(after / 2**20),
        "growth": round(growth, 4),
        "ok": not wrong and growth < GROWTH,
    }


def _memory(pid: int | None) -> int:
    """Return the resident bytes of a process, or 0 if none is named."""
    if pid is None:
        return 0
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


async def run(args: Load) -> bool:
    """Run the parts and print their lines of JSON. Return whether all rules hold."""
    parts = urlsplit(args.url)
    host = parts.hostname or ""
    if not ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback:
        sys.exit(f"{host} is not this machine: give a loopback address such as 127.0.0.1")
    server, holds = Server(host, parts.port or 80), True

    def show(found: dict[str, Any]) -> None:
        nonlocal holds
        holds &= found.get("ok", True)
        print(json.dumps(found), flush=True)

    if args.requests:
        await throughput(server, args, args.clients)  # compiles the programs that both measurements run
        await throughput(server, args, 1)
        one = await throughput(server, args, 1)
        many = await throughput(server, args, args.clients)
        show(one)
        show(many | {"ratio": round(many["tokens_per_second"] / one["tokens_per_second"], 2)})
    if args.disconnects:
        show(await disconnects(server, args))
    if args.malformed:
        show(await torment(server, args))
    return holds


if __name__ == "__main__":
    sys.exit(not asyncio.run(run(tyro.cli(Load))))
