"""A judge: what counts as a score, verdicts that are kept, and servers that refuse or are not there."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from jaxgpt.cli import main
from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.evaluation.answers import read_answers
from jaxgpt.evaluation.judge import ask_at, judged, score_of

ROWS = [
    {"instruction": "Add.", "input": "1, 2", "output": "3", "model_response": "3"},
    {"instruction": "Name a bird.", "output": "Owl", "model_response": "Cat"},
    {"instruction": "Spell cat.", "output": "c-a-t", "model_response": "cat"},
]


class Judge(HTTPServer):
    """Replies with the given texts in turn, or with a status and an error."""

    def __init__(self, replies: list[str | int]) -> None:
        self.replies, self.asked = replies, list[dict[str, Any]]()
        self.keys: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        judge = self.server
        assert isinstance(judge, Judge) and self.path == "/v1/chat/completions"
        judge.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        judge.keys.append(self.headers["Authorization"])
        reply = judge.replies.pop(0)
        content: Any = {"choices": [{"message": {"content": reply}}]}
        if isinstance(reply, int):
            content = {"error": {"message": "no such model"}}
        body = json.dumps(content).encode()
        self.send_response(reply if isinstance(reply, int) else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def judges() -> Iterator[Any]:
    made: list[Judge] = []

    def judge(*replies: str | int) -> Judge:
        made.append(Judge(list(replies)))
        return made[-1]

    yield judge
    for each in made:
        each.shutdown()
        each.server_close()


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        *[("85", 85), (" 100.\n", 100), ("0", 0), ("**70**", 70), ("Score: 40", 40), ("85/100", 85)],
        *[
            ("101", None),
            ("", None),
            ("Good!", None),
            ("I would say 50", None),
            ("7.5", None),
            ("1,000", None),
        ],
    ],
)
def test_what_counts_as_a_score(reply: str, score: int | None) -> None:
    assert score_of(reply) == score


def test_the_verb_writes_every_verdict_and_the_mean(answers: Path, judges, capsys) -> None:
    judge = judges("100", "no idea", "50")
    main(["judge", str(answers), "--url", judge.url + "/", "--model", "m", "--api-key", "KEY"])
    said = capsys.readouterr()
    assert said.out == "75.00\n" and "1 of 3 replies have no number" in said.err
    written = (answers.parent / "answers.scores.jsonl").read_text(encoding="utf-8")
    verdicts = [json.loads(line) for line in written.splitlines()]
    assert [(each["reply"], each["score"]) for each in verdicts] == [
        ("100", 100),
        ("no idea", None),
        ("50", 50),
    ]
    first = judge.asked[0]
    assert (first["model"], first["temperature"], first["seed"], judge.keys[0]) == ("m", 0, 123, "Bearer KEY")
    question = first["messages"][0]["content"]
    assert question.startswith("Question:\nAdd.\n1, 2\n\nCorrect answer:\n3\n\nAnswer to be judged:\n3\n")


def test_a_judge_that_fails_loses_no_verdict(answers: Path, judges, tmp_path: Path) -> None:
    found, out = read_answers(answers), tmp_path / "scores.jsonl"
    with pytest.raises(ConfigError, match=r"refuses \(HTTP 404\): no such model"):
        judged(found, ask_at(judges("10", 404).url, "m", None, 0), out)
    judge = judges("20", "30")
    verdicts = judged(found, ask_at(judge.url, "m", None, 0), out)
    assert [verdict.score for verdict in verdicts] == [10, 20, 30] and len(judge.asked) == 2
    assert judged(found, ask_at(judge.url, "m", None, 0), out) == verdicts and len(judge.asked) == 2
    with pytest.raises(DataError, match="verdicts of other answers"):
        judged(found[1:], ask_at(judge.url, "m", None, 0), out)


def test_an_answer_that_the_judge_refuses_gets_no_score(answers: Path, judges, tmp_path: Path) -> None:
    """It may be too long for the judge. Where the first one is refused, the reason may be another."""
    found, out = read_answers(answers), tmp_path / "scores.jsonl"
    with pytest.raises(ConfigError, match=r"refuses \(HTTP 400\): no such model"):
        judged(found, ask_at(judges(400, "20").url, "m", None, 0), out)
    verdicts = judged(found, ask_at(judges("10", 400, "30").url, "m", None, 0), out)
    assert [verdict.score for verdict in verdicts] == [10, None, 30]
    assert "refuses (HTTP 400)" in verdicts[1].reply


def test_no_server_and_no_http(answers: Path, judges, tmp_path: Path) -> None:
    found = read_answers(answers)
    gone = judges()
    gone.shutdown()
    gone.server_close()
    with pytest.raises(MissingError, match="nothing answers there"):
        judged(found, ask_at(gone.url, "m", None, 0), tmp_path / "a.jsonl")


def test_another_name_for_the_answers_and_rows_without_one(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([{**ROWS[0], "model 1 response": "x"}, ROWS[1], {"output": "3"}]))
    with pytest.raises(DataError) as caught:
        read_answers(path, "model 1 response")
    assert "line 2 has no text under 'model 1 response'; line 3: it has the keys 'output'" in str(
        caught.value
    )
    path.write_text(json.dumps([{**ROWS[0], "model 1 response": "x"}]))
    assert read_answers(path, "model 1 response")[0].given == "x"
