"""Requests that are wrong in some way: what the server is tormented with."""

import json
import random
from typing import Any

from raw_http import http

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
        return http("POST", path, json.dumps(base).encode())
    if kind == 4:  # values that are no JSON
        name = rng.choice(NAMES[:-1]).encode()
        return http("POST", path, body[:-1] + b', "%s": %s}' % (name, rng.choice(RAW_VALUES)))
    if kind == 5:  # changed, removed and added bytes
        changed = bytearray(body)
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(len(changed))
            changed[place : place + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        return http("POST", path, bytes(changed))
    if kind == 6:
        return http(
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
        return http("POST", path, body, **wrong)
    if kind == 8 and rng.random() < 0.2:
        return http("POST", path, b'{"prompt": "' + b"a" * rng.randint(1 << 20, 3 << 20) + b'"}')
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
