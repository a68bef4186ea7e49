"""Tests a server on this machine with load, disconnects and malformed requests, and measures its speed.

    jaxgpt pretrain nano --out-dir /tmp/run --steps 200
    jaxgpt serve /tmp/run --port 8000 & python tools/load_server.py load --pid $!

`attack KIND` is about clients that are hostile or careless; see `attacks.py`. `load` has three parts. Each
prints lines of JSON, and a count of 0 leaves it out.

1. One streaming client, and then many at a time: tokens per second and the time to the first token.
2. Clients that leave at random moments: afterwards no slot may be in use.
3. Malformed requests: none may cause a status of 500 or more, a hang, or growth of the server's memory.

If one of these rules does not hold, the exit code is 1.
"""

import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from attacks import Attack, attack
from malformed import malformed
from raw_http import Server, close, completion, local_server, memory_of

PATIENCE = 30.0  # a request without an answer for this many seconds counts as a hang
ENOUGH = 1.0  # after this many seconds without an answer, a client says that it sends no more
WARM_UP = 1000  # this many malformed requests are sent before the memory is read for the first time
GROWTH = 0.05  # the server's memory may grow by less than this share


@dataclass(frozen=True, kw_only=True)
class Load:
    """Test a server on this machine with load, disconnects and malformed requests."""

    url: str = "http://127.0.0.1:8000"
    """Address of the server. It must be one of this machine's own."""
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
        reader, writer = await server.send(completion(**fields, **streaming))
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
        await close(writer)

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


async def median(server: Server, args: Load, clients: int) -> dict[str, Any]:
    """Return the middle one of three measurements: in one of them, a program may still be compiled."""
    found = [await throughput(server, args, clients) for _ in range(3)]
    return sorted(found, key=lambda each: float(each["tokens_per_second"]))[1]


# --- clients that leave


async def disconnects(server: Server, args: Load) -> dict[str, Any]:
    """Leave in the queue, during the prompt or during the text. Return what the server then still holds."""
    rng, moments = random.Random(args.seed), Counter[str]()

    async def leave(_: int) -> None:
        stream, moment = rng.random() < 0.7, rng.choice(("at once", "soon", "within the text"))
        moments[moment] += 1
        fields = {"prompt": "x" * rng.randint(1, 60), "max_tokens": rng.randint(30, 100), "stream": stream}
        several = {"n": rng.choice((1, 1, 1, 2)), "logprobs": rng.choice((None, 5))}
        reader, writer = await server.send(completion(**fields, **several))
        if moment == "soon":
            await asyncio.sleep(rng.random() * 0.1)
        elif moment == "within the text":
            # Without a stream, nothing comes before the end.
            with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
                await asyncio.wait_for(reader.readuntil(b"data: "), 2 if stream else 0.05)
        await close(writer, reset=rng.random() < 0.5)

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


async def compile_programs(server: Server) -> None:
    """Have every program compiled that a malformed request needs when it happens to be valid.

    Programs stay in memory. Compiled later, they would look like a leak.
    """
    for prompt in ("abc", "é" * 50):
        for drawing in ({"temperature": 0}, {"temperature": 1}, {"temperature": 1, "top_k": 3}):
            for logprobs in (None, 1):
                for n in (1, 2, 4, 8):
                    fields = {"prompt": prompt, "max_tokens": 8, "n": n, "logprobs": logprobs, "echo": True}
                    await server.answer(completion(**fields, **drawing))


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
                await close(writer)
            statuses[found[9:12].decode() or "closed"] += 1
        except ConnectionError:
            statuses["closed"] += 1
        except TimeoutError:
            statuses["hang"] += 1

    await compile_programs(server)
    await at_a_time(8, min(WARM_UP, args.malformed), send)
    statuses.clear()
    before, start = memory_of(args.pid), time.perf_counter()
    await at_a_time(8, args.malformed, send)
    seconds, after = time.perf_counter() - start, memory_of(args.pid)
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


async def run(args: Load) -> bool:
    """Run the parts and print their lines of JSON. Return whether all rules hold."""
    server, holds = local_server(args.url), True

    def show(found: dict[str, Any]) -> None:
        nonlocal holds
        holds &= found.get("ok", True)
        print(json.dumps(found), flush=True)

    if args.requests:
        await throughput(server, args, args.clients)  # compiles the programs that both measurements run
        await throughput(server, args, 1)
        one, many = [await median(server, args, clients) for clients in (1, args.clients)]
        show(one)
        show(many | {"ratio": round(many["tokens_per_second"] / one["tokens_per_second"], 2)})
    if args.disconnects:
        show(await disconnects(server, args))
    if args.malformed:
        show(await torment(server, args))
    return holds


Command = Annotated[Load, tyro.conf.subcommand("load")] | Annotated[Attack, tyro.conf.subcommand("attack")]

if __name__ == "__main__":
    args = tyro.cli(Command)
    sys.exit(not asyncio.run(attack(args) if isinstance(args, Attack) else run(args)))
