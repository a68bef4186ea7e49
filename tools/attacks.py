"""What one hostile or careless client costs the others.

    jaxgpt serve MODEL --api-key k 2> log & python tools/load_server.py attack flood --key k --pid $!

An honest client streams texts one after another, and another asks for /health, first alone and then beside
the attack. One line of JSON says how long the honest stream ever waited for its next event, how long /health
took, how large the server became and how much it logged.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from raw_http import Server, close, completion, http, local_server, memory_of

Kind = Literal["flood", "chunks", "idle", "departed", "large"]
PAUSE = 0.1  # seconds until an honest client that was refused tries again
SETTLE = 5.0  # seconds in which the honest clients are alone


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Let one kind of client do its worst beside honest ones, and print one line of JSON."""

    kind: Annotated[Kind, tyro.conf.Positional]
    """flood: 12 clients that ask for 4 choices of one token each, again and again. chunks: 4 clients without
    the key that never stop sending a body in tiny chunks. idle: 1,100 connections that send nothing.
    departed: 100 clients that ask for the scores of 8 texts each and leave at once.
    large: one that asks for as many choices, tokens and alternatives as it can."""
    url: str = "http://127.0.0.1:8000"
    """Address of the server. It must be one of this machine's own."""
    key: str | None = None
    """The server's key, if it has one."""
    pid: int | None = None
    """Process id of the server, to measure its memory. None means not to."""
    log: Path | None = None
    """File that the server's stderr goes to, to measure how it grows. None means not to."""
    streams: int = 16
    """Number of honest clients that stream at a time."""
    tokens: int = 60
    """Number of tokens that each of them asks for."""
    seconds: float = 20.0
    """How long the attack lasts."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers of an honest client."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


@dataclass
class Seen:
    """What honest clients see of a server."""

    longest_gap: float = 0.0
    """The longest time, in seconds, that a stream waited for its next event, refusals included."""
    health: float = 0.0
    """The longest time until /health answered, in seconds."""
    events: int = 0
    memory: int = 0
    waiting: int = 0
    """The largest queue, by /metrics."""

    def waited(self, since: float) -> float:
        """Note how long something took, and return the time it is now."""
        now = time.perf_counter()
        self.longest_gap = max(self.longest_gap, now - since)
        return now


async def stream(server: Server, args: Attack, seen: Seen) -> None:
    """Stream one text after another until cancelled."""
    fields = {"prompt": "Once upon a time", "max_tokens": args.tokens, "stream": True}
    since = time.perf_counter()
    try:
        while True:
            begun = False
            with contextlib.suppress(ConnectionError, OSError):
                reader, writer = await server.send(completion(args.headers, **fields))
                try:
                    while line := await reader.readline():
                        if line.startswith(b"data: {"):
                            since, begun, seen.events = seen.waited(since), True, seen.events + 1
                finally:
                    writer.transport.abort()
            if not begun:
                await asyncio.sleep(PAUSE)
    finally:
        seen.waited(since)  # what it still waits for counts, too


async def look(server: Server, args: Attack, seen: Seen) -> None:
    """Ask for /health, /metrics and the memory until cancelled."""
    while True:
        since, answered = time.perf_counter(), False
        try:
            while not answered:
                with contextlib.suppress(OSError):
                    answered = (await server.answer(http("GET", "/health"))).startswith(b"HTTP/1.1 200")
                if not answered:
                    await asyncio.sleep(PAUSE)
        finally:
            seen.health = max(seen.health, time.perf_counter() - since)
        with contextlib.suppress(OSError):
            page = (await server.answer(http("GET", "/metrics", b"", **args.headers))).decode()
            found = [line for line in page.splitlines() if line.startswith("jaxgpt_queue_length ")]
            seen.waiting = max([seen.waiting, *(int(float(line.split()[1])) for line in found)])
        seen.memory = max(seen.memory, memory_of(args.pid))
        await asyncio.sleep(0.2)


async def watch(server: Server, args: Attack, seconds: float, *beside: Awaitable[Any]) -> Seen:
    """Return what honest clients see in this time while something else goes on beside them."""
    seen = Seen()
    clients = [stream(server, args, seen) for _ in range(args.streams)]
    tasks = [asyncio.ensure_future(each) for each in (look(server, args, seen), *clients, *beside)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, Exception):
            raise end
    return seen


# --- the attacks, each of which goes on until it is cancelled


async def again(server: Server, raw: bytes, *, stay: float = 60.0) -> None:
    """Send a request again and again, and leave after `stay` seconds if the answer does not come before."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await server.send(raw)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(-1), stay)
            await close(writer, reset=True)


async def flood(server: Server, args: Attack) -> None:
    """Clients that ask for one token each."""
    raw = completion(args.headers, prompt="Once upon a time", max_tokens=1, n=4)
    await asyncio.gather(*(again(server, raw) for _ in range(12)))


async def chunks(server: Server, _: Attack) -> None:
    """Clients without the key, whose bodies never end."""
    head = http("POST", "/v1/completions", Transfer_Encoding="chunked", Authorization="Bearer wrong")
    head = head.replace(b"Content-Length: 0\r\n", b"").replace(b"Connection: close\r\n", b"")

    async def one() -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await server.send(head)
                try:
                    while not writer.is_closing():
                        writer.write(b"1\r\nx\r\n" * 10_000)
                        await writer.drain()
                finally:
                    writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(4)))


async def idle(server: Server, _: Attack) -> None:
    """Connections that send nothing, opened again when the server closes them."""

    async def one() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(server.host, server.port)
                try:
                    await reader.read(-1)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(1)

    await asyncio.gather(*(one() for _ in range(1100)))


async def departed(server: Server, args: Attack) -> None:
    """Clients that ask for the scores of long texts and leave."""
    texts = [[(7 * place + line) % 250 for place in range(100)] for line in range(8)]
    raw = completion(args.headers, prompt=texts, echo=True, logprobs=1, max_tokens=0)
    await asyncio.gather(*(again(server, raw, stay=0.2) for _ in range(100)))


async def large(server: Server, args: Attack) -> None:
    """A client that asks for as much as it can."""
    tokens = 1000
    while tokens > 1:
        asked = {"prompt": "a", "n": 32, "max_tokens": tokens, "logprobs": 20}
        found = await server.answer(completion(args.headers, **asked))
        LARGEST.append(len(found))
        if found.startswith(b"HTTP/1.1 400"):
            tokens //= 2


LARGEST: list[int] = []  # the bytes of answers
ATTACKS: dict[Kind, Callable[[Server, Attack], Awaitable[None]]] = {
    "flood": flood,
    "chunks": chunks,
    "idle": idle,
    "departed": departed,
    "large": large,
}


async def attack(args: Attack) -> bool:
    """Watch the honest clients alone, then beside the attack, and print what they saw."""
    server = local_server(args.url)
    for _ in range(10):  # until everything is compiled
        alone = await watch(server, args, SETTLE)
        if 0 < alone.longest_gap < SETTLE / 2:
            break
    logged = args.log.stat().st_size if args.log else 0
    beside = await watch(server, args, args.seconds, ATTACKS[args.kind](server, args))
    found = {
        "attack": args.kind,
        "seconds": args.seconds,
        "events_a_second": [round(alone.events / SETTLE, 1), round(beside.events / args.seconds, 1)],
        "longest_gap": [round(alone.longest_gap, 3), round(beside.longest_gap, 3)],
        "longest_health": [round(alone.health, 3), round(beside.health, 3)],
        "memory_mib": [alone.memory >> 20, beside.memory >> 20],
        "longest_queue": beside.waiting,
        "logged_bytes": args.log.stat().st_size - logged if args.log else None,
        "largest_answer": max(LARGEST, default=0),
    }
    print(json.dumps(found), flush=True)
    return True
