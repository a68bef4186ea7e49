"""Every parameter that docs/server.md lists does what the table says."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_api import READER
from test_server import Served

from jaxgpt.language_model import LanguageModel
from jaxgpt.serving.call import Call
from jaxgpt.serving.fields import ApiError
from jaxgpt.serving.parameters import IGNORED, NEUTRAL

PAGE = (Path(__file__).parent.parent / "docs" / "server.md").read_text(encoding="utf-8")
ROW = re.compile(r"\| `(\w+)` \| `(.*?)` \| (\S+) \| (\S+) \|")
ROUTES = ("completions", "chat/completions")
Row = tuple[str, Any, str]  # parameter, value, and what becomes of it
PROMPTS: dict[str, dict[str, Any]] = {
    "completions": {"prompt": "a", "max_tokens": 2},
    "chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
}
NEEDS = {"stream_options": {"stream": True}}
SAME = ("model",)  # honoured, but not by what is asked of the engine


def rows(route: str) -> list[Row]:
    found = [(name, json.loads(value), states) for name, value, *states in ROW.findall(PAGE)]
    return [(name, value, states[ROUTES.index(route)]) for name, value, states in found]


@pytest.fixture(scope="module")
def server(model: LanguageModel) -> Iterator[Served]:
    served = Served(model)
    yield served
    served.stop()


@pytest.mark.parametrize("route", ROUTES)
def test_the_server_takes_and_refuses_what_the_table_says(server: Served, route: str) -> None:
    wrong = []
    for name, value, state in rows(route):
        body = PROMPTS[route] | NEEDS.get(name, {}) | {name: value}
        status, _, content = server.ask("POST", f"/v1/{route}", body)
        if state == "refused":
            right = status == 400 and json.loads(content)["error"]["param"] == name
        else:
            right = state == "-" or status == 200
        if not right:
            wrong.append((name, value, state, status))
    assert not wrong and len(rows(route)) > 100


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_honoured_changes_what_is_asked_and_nothing_else_does(route: str) -> None:
    read = READER.completion if route == "completions" else READER.chat

    def call(**fields: Any) -> Call:
        return read(json.dumps(PROMPTS[route] | {"max_tokens": 5, "seed": 1} | fields).encode())

    for name, value, state in rows(route):
        more = NEEDS.get(name, {})
        if state in ("honoured", "nothing") and name not in SAME:
            assert (call(**more, **{name: value}) == call(**more)) == (state == "nothing"), (name, value)


def test_the_table_has_every_parameter_that_is_passed_over() -> None:
    passed = {name for name, _, state in rows("completions") if state == "nothing"}
    assert passed >= IGNORED | set(NEUTRAL)


def test_the_model_must_be_the_one_that_is_served() -> None:
    with pytest.raises(ApiError) as caught:
        READER.completion(b'{"prompt": "a", "model": "another"}')
    assert caught.value.status == 404
