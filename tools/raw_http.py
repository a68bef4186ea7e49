"""Plain HTTP to a server on this machine, byte by byte, for clients that do it wrong on purpose."""

import asyncio
import contextlib
import ipaddress
import json
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


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
            await close(writer)

    async def gauges(self) -> dict[str, float]:
        """Return the metrics that are a single number."""
        page = (await self.answer(http("GET", "/metrics"))).decode()
        lines = (
            line.rsplit(" ", 1)
            for line in page.splitlines()
            if line.startswith("jaxgpt_") and "{" not in line
        )
        return {name: float(value) for name, value in lines}


def local_server(url: str) -> Server:
    """Return the server at an address, which must be one of this machine's own."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback:
        sys.exit(f"{host} is not this machine: give a loopback address such as 127.0.0.1")
    return Server(host, parts.port or 80)


def http(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    known = {
        "Host": "127.0.0.1",
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    known |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in known.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def completion(headers: dict[str, str] | None = None, /, **fields: Any) -> bytes:
    return http("POST", "/v1/completions", json.dumps(fields).encode(), **headers or {})


async def close(writer: asyncio.StreamWriter, *, reset: bool = False) -> None:
    if reset:  # close at once, with a RST instead of a FIN
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def memory_of(pid: int | None) -> int:
    """Return the resident bytes of a process, or 0 if none is named."""
    if pid is None:
        return 0
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
