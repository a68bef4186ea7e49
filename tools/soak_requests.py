"""What a server uses over many requests, for tools/soak.py."""

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malformed import malformed
from raw_http import Server, close, completion, http
from soak_faults import Outcome
from soak_long import Use, compare, use_of
from soak_runs import train

CLIENTS = 8  # at a time
PATIENCE = 60.0  # seconds after which an answer does not come any more
ENOUGH = 1.0  # seconds without an answer after which a client says that it sends no more
KINDS = ("answer", "stream", "leave", "malformed", "look")


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Send a server requests of all kinds, good ones and bad ones: what it uses stays as it is."""

    requests: int = 20_000
    """How many requests."""
    seed: int = 0
    """The seed of what they are."""

    def run(self, folder: Path) -> Outcome:
        train(folder / "run")
        with _serving(folder) as (process, server):
            return asyncio.run(self._send(process, server))

    async def _send(self, process: subprocess.Popen[bytes], server: Server) -> Outcome:
        draw, statuses, seen, problems = random.Random(self.seed), Counter[str](), list[Use](), list[str]()
        numbers = iter(range(1, self.requests + 1))

        async def client() -> None:
            for number in numbers:
                kind = draw.choice(KINDS)
                try:
                    async with asyncio.timeout(PATIENCE):
                        status = await _request(server, kind, draw)
                except TimeoutError:
                    status = "hang"
                statuses[status] += 1
                if status == "hang" or status.startswith("5"):
                    problems.append(f"request {number}, {kind}: {status}")
                seen.append(use_of(process.pid, number))

        since = time.monotonic()
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        told, grown = compare(seen, self.requests)
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
        return Outcome(
            f"{self.requests} requests in {time.monotonic() - since:.0f} s, answers {answers}: {told}",
            [*problems, *grown],
        )


async def _request(server: Server, kind: str, draw: random.Random) -> str:
    """Send one request, and return the status of the answer, or `none`."""
    reader, writer = await server.send(_content(kind, draw))
    try:
        if kind == "leave":
            await asyncio.sleep(draw.random() * 0.05)
            await close(writer, reset=draw.random() < 0.5)
            return "left"
        answer = asyncio.ensure_future(reader.read(-1))
        if not (await asyncio.wait((answer,), timeout=ENOUGH))[0] and kind == "malformed":
            with contextlib.suppress(OSError):
                writer.write_eof()  # the server may wait for the rest of a body
        found = (await answer).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        await close(writer)
        return found[9:12].decode() or "none"
    except ConnectionError:
        return "none"


def _content(kind: str, draw: random.Random) -> bytes:
    if kind == "malformed":
        return malformed(draw)
    if kind == "look":
        return http("GET", draw.choice(("/", "/health", "/metrics", "/v1/models", "/nothing")))
    fields: dict[str, Any] = {
        "prompt": "x" * draw.randint(1, 30),
        "max_tokens": draw.randint(1, 12),
        "temperature": draw.choice((0, 1)),
        "n": draw.choice((1, 1, 2)),
        "logprobs": draw.choice((None, 2)),
        "stream": kind == "stream" or (kind == "leave" and draw.random() < 0.5),
    }
    return completion(**fields)


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Server]]:
    """A server of the run in a folder, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Server("127.0.0.1", free.getsockname()[1])
    command = [sys.executable, "-m", "jaxgpt", "serve", str(folder / "run"), "--port", str(server.port)]
    with (
        (folder / "output").open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=said) as process,
    ):
        try:
            while not _answers(server):
                assert process.poll() is None, (folder / "output").read_text()
                time.sleep(0.1)
            yield process, server
        finally:
            process.kill()


def _answers(server: Server) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((server.host, server.port), 1):
        return True
    return False
