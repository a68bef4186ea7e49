"""Load, disconnects and malformed requests against a server on this machine: what holds, and how fast it is.

    jaxgpt pretrain nano --out-dir /tmp/run --steps 200
    jaxgpt serve /tmp/run --port 8000 & python tools/load_server.py --url http://127.0.0.1:8000 --pid $!

Three parts, each left out with a count of 0, a JSON line each: one streaming client and then many at a time, tokens per
second and time to the first token; clients that leave at random moments, after which no slot may be in use; malformed
requests, which may cause no status of 500 or more, no hang, and no growth of the server's memory. Ends with status 1
where something of this does not hold.
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

PATIENCE = 30.0  # seconds without an answer that count as a hang
ENOUGH = 1.0  # seconds after which the end of what is sent is shown
WARM_UP = 1000  # malformed requests before memory is first read
GROWTH = 0.05  # of the server's memory, allowed


@dataclass(frozen=True, kw_only=True)
class Load:
    """Load a server on this machine."""

    url: str
    """Where it is; only loopback addresses are taken."""
    pid: int | None = None
    """The server's process, for its memory."""
    clients: int = 32
    """Streaming clients at a time."""
    requests: int = 4
    """Requests of each client; 0 leaves this part out."""
    tokens: int = 64
    """New tokens of a request."""
    disconnects: int = 200
    """Clients that leave."""
    malformed: int = 10_000
    """Malformed requests."""
    seed: int = 0
    """Decides prompts, moments and mutations."""


@dataclass(frozen=True)
class Server:
    """Where to connect."""

    host: str
    port: int

    async def send(self, raw: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
        with contextlib.suppress(
            ConnectionError
        ):  # refused before all was sent: there may still be an answer
            writer.write(raw)
            await writer.drain()
        return reader, writer

    async def answer(self, raw: bytes) -> bytes:
        """Everything that comes back."""
        reader, writer = await self.send(raw)
        try:
            return await reader.read(-1)
        except ConnectionError:
            return b""
        finally:
            await _close(writer)

    async def gauges(self) -> dict[str, float]:
        """The metrics that are one number."""
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
    if reset:  # at once, with a RST instead of a FIN
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def at_a_time(width: int, count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Do `work(0)` to `work(count - 1)`, so many at a time."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(width)))


# --- throughput


async def throughput(server: Server, args: Load, clients: int) -> dict[str, Any]:
    """Tokens per second, and percentiles of the time to the first token in seconds, with so many clients."""
    first: list[float] = []
    written = 0

    async def stream(number: int) -> None:
        nonlocal written
        start, seen = time.perf_counter(), False
        prompt = f"Request {number} of {clients}: "
        reader, writer = await server.send(
            _completion(
                prompt=prompt,
                max_tokens=args.tokens,
                seed=number,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        async with asyncio.timeout(10 * PATIENCE):
            while line := await reader.readline():
                if line.startswith(b"data: {"):
                    if not seen:
                        first.append(time.perf_counter() - start)
                        seen = True
                    event = json.loads(line.removeprefix(b"data: "))
                    written += (event["usage"] or {}).get("completion_tokens", 0)
        assert seen, "a request was refused: is the server's --queue as long as there are clients?"
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
    """Leave in the queue, while the prompt is read, and while tokens come; what the server then holds."""
    rng, moments = random.Random(args.seed), Counter[str]()

    async def leave(number: int) -> None:
        stream, moment = rng.random() < 0.7, rng.choice(("at once", "soon", "within the text"))
        moments[moment] += 1
        reader, writer = await server.send(
            _completion(
                prompt="x" * rng.randint(1, 60),
                max_tokens=rng.randint(30, 100),
                stream=stream,
                n=rng.choice((1, 1, 1, 2)),
                logprobs=rng.choice((None, 5)),
            )
        )
        if moment == "soon":
            await asyncio.sleep(rng.random() * 0.1)
        elif moment == "within the text":
            with contextlib.suppress(
                TimeoutError, asyncio.IncompleteReadError
            ):  # without a stream nothing comes early
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
    """One request that is wrong in some way, or, rarely, only strange."""
    path = rng.choice(tuple(BASES))
    base = BASES[path] | {"max_tokens": rng.randint(1, 3), "temperature": 1}
    kind = rng.randrange(10)
    body = json.dumps(base).encode()
    if kind <= 3:  # fields of wrong kinds
        for _ in range(rng.randint(1, 3)):
            base[rng.choice(NAMES)] = rng.choice(VALUES)
        return _http("POST", path, json.dumps(base).encode())
    if kind == 4:  # values that JSON may not hold
        name = rng.choice(NAMES[:-1]).encode()
        return _http("POST", path, body[:-1] + b', "%s": %s}' % (name, rng.choice(RAW_VALUES)))
    if kind == 5:  # bytes changed, cut out, put in
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
    """Have all that is compiled that malformed requests reach when they happen to be valid: it stays in memory."""
    for prompt in ("abc", "é" * 50):
        for drawing in ({"temperature": 0}, {"temperature": 1}, {"temperature": 1, "top_k": 3}):
            for logprobs in (None, 1):
                for n in (1, 2, 4, 8):
                    fields = {"prompt": prompt, "max_tokens": 8, "n": n, "logprobs": logprobs, "echo": True}
                    await server.answer(_completion(**fields, **drawing))


async def torment(server: Server, args: Load) -> dict[str, Any]:
    """Send malformed requests; the statuses that came back, the hangs, and the memory before and after."""
    statuses: Counter[str] = Counter()
    rng = random.Random(args.seed)

    async def send(_: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await server.send(malformed(rng))
                answer = asyncio.ensure_future(reader.read(-1))
                if not (await asyncio.wait((answer,), timeout=ENOUGH))[0] and writer.can_write_eof():
                    writer.write_eof()  # it may still wait for the rest of a body
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
    """Resident bytes of a process; 0 where none is named."""
    if pid is None:
        return 0
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


async def run(args: Load) -> bool:
    """Print a JSON line for each part; whether all holds."""
    parts = urlsplit(args.url)
    host = parts.hostname or ""
    if not ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback:
        sys.exit(f"{host} is not this machine: only loopback addresses are loaded")
    server, holds = Server(host, parts.port or 80), True

    def show(found: dict[str, Any]) -> None:
        nonlocal holds
        holds &= found.get("ok", True)
        print(json.dumps(found), flush=True)

    if args.requests:
        await throughput(server, args, args.clients)  # compiles what both measurements run
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
