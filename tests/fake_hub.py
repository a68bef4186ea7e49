"""A server on this machine that answers the few requests the hub's client makes, and can be told to fail."""

import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable

import pytest
from huggingface_hub import close_session, constants

Files = dict[str, bytes]
LARGE = re.compile(r".*\.(safetensors|bin)")  # kept by git-lfs: named by sha256


def identity(name: str, content: bytes) -> str:
    """The hash a hub names a file by."""
    if LARGE.fullmatch(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub:
    """A hub with one repository. Use as a context manager: leaving it stops the server."""

    def __init__(self, repository: str, files: Files) -> None:
        self.repository = repository
        self.commits: dict[str, Files] = {}
        self.requests: list[str] = []
        """Method and path of every request."""
        self.tokens: list[str] = []
        self.status = 200
        """Of every answer."""
        self.files_status = 200
        """Of every answer about a file."""
        self.listing: bytes | None = None
        """What the API answers instead of the truth."""
        self.bodies: Files = {}
        """What is served for a file instead of the truth."""
        self.cut: dict[str, int] = {}
        """At which byte of a file the connection closes."""
        self.after: Callable[[str], None] = lambda _: None
        """Called when a file has been served."""
        self.push(files)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> "FakeHub":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def push(self, files: Files) -> str:
        """A new commit, which main then is."""
        self.main = hashlib.sha1(b"commit %d" % len(self.commits)).hexdigest()
        self.commits[self.main] = files
        return self.main

    def contents(self) -> list[str]:
        """The files whose contents were asked for."""
        return [request.rpartition("/")[2] for request in self.requests if re.match("GET /(?!api/)", request)]

    def _info(self, commit: str) -> bytes:
        siblings = []
        for name, content in self.commits[commit].items():
            sibling = {"rfilename": name, "size": len(content), "blobId": identity("pointer", content)}
            if LARGE.fullmatch(name):
                sibling["lfs"] = {"sha256": identity(name, content), "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        return json.dumps({"id": self.repository, "sha": commit, "siblings": siblings}).encode()

    def _handler(hub) -> type[http.server.BaseHTTPRequestHandler]:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                hub.tokens += self.headers.get_all("Authorization") or []
                path = self.path.partition("?")[0]
                status = hub.status if path.startswith("/api/") else max(hub.status, hub.files_status)
                if status != 200:
                    self.answer(status, b"", {})
                elif path == f"/api/models/{hub.repository}":
                    self.answer(200, hub.listing or hub._info(hub.main), {"Content-Type": "application/json"})
                elif match := re.fullmatch(f"/{hub.repository}/resolve/([^/]+)/(.+)", path):
                    self.resolve(hub.main if match[1] == "main" else match[1], match[2])
                elif match := re.fullmatch("/storage/([^/]+)/(.+)", path):
                    self.content(match[1], match[2], {})
                else:
                    self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

            do_HEAD = do_GET

            def resolve(self, commit: str, name: str) -> None:
                true = hub.commits[commit][name]
                headers = {"ETag": f'"{identity(name, true)}"', "X-Repo-Commit": commit}
                if not LARGE.fullmatch(name):
                    self.content(commit, name, headers)
                    return
                # Large files lie on another host.
                headers |= {"X-Linked-Etag": headers.pop("ETag"), "X-Linked-Size": str(len(true))}
                storage = f"http://localhost:{hub.server.server_port}/storage/{commit}/{name}"
                self.answer(302, b"", headers | {"Location": storage})

            def content(self, commit: str, name: str, headers: dict[str, str]) -> None:
                body = hub.bodies.get(name, hub.commits[commit][name])
                start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
                if start:
                    headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                self.answer(
                    206 if start else 200, body[start:], headers, max(0, hub.cut.get(name, len(body)) - start)
                )
                if self.command == "GET":
                    hub.after(name)

            def answer(
                self, status: int, body: bytes, headers: dict[str, str], upto: int | None = None
            ) -> None:
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body[:upto])

            def log_message(self, *_: object) -> None: ...

        return Handler


def down(hub: FakeHub, _: pytest.MonkeyPatch) -> None:
    hub.stop()


def offline(_: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def answering(status: int) -> Callable[[FakeHub, pytest.MonkeyPatch], None]:
    return lambda hub, _: setattr(hub, "status", status)


def saying(listing: bytes) -> Callable[[FakeHub, pytest.MonkeyPatch], None]:
    return lambda hub, _: setattr(hub, "listing", listing)


def behind_a_dead_proxy(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stop()
    monkeypatch.setenv("HTTP_PROXY", hub.endpoint)
    close_session()


def moved(hub: FakeHub, _: pytest.MonkeyPatch) -> None:
    hub.repository = "openai-community/elsewhere"


def slow(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setattr(hub, "_info", lambda _: time.sleep(0.5) or b"{}")


# How a hub can fail, and what is said of it.
FAILURES = {
    "down": (down, "refused"),
    "offline": (offline, "HF_HUB_OFFLINE is set"),
    "proxy": (behind_a_dead_proxy, "refused"),
    "slow": (slow, "timed out"),
    "401": (answering(401), "the server answered 401 Unauthorized"),
    "503": (answering(503), "the server answered 503 Service Unavailable"),
    "gone": (moved, "the server answered 404 Not Found"),
    "login page": (saying(b"<html>"), "the server does not answer as a hub does: Expecting value"),
    "other JSON": (saying(b"[1]"), "the server does not answer as a hub does: "),
    "no commit": (saying(b'{"id": "a/b"}'), r"the repository has no config\.json"),
}
