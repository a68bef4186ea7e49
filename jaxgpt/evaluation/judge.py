"""A judge: another model, behind OpenAI's API, gives each answer a number from 0 to 100.

The book does this in section 7.8 with a model that runs beside it. The words are our own, so that scores can
be compared among each other, but not with the book's.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxgpt.errors import ConfigError, DataError, MissingError, StorageError, unwritable
from jaxgpt.evaluation.answers import Answered

if TYPE_CHECKING:
    import requests

PROMPT = """Question:
{question}

Correct answer:
{expected}

Answer to be judged:
{given}

How good is the answer to be judged, from 0 to 100, where 100 is the best? Reply with the number alone."""
TIMEOUT = 300.0  # seconds; a large model on a small machine takes its time
LONGEST = 16  # tokens of a reply
OF_ONE_QUESTION = (400, 413, 422)  # HTTP: what was asked is wrong, such as longer than the judge's context


class RefusedError(ConfigError):
    """The judge does not answer this question."""


class Verdict(NamedTuple):
    """What the judge said of an answer."""

    reply: str
    score: int | None
    """From 0 to 100; None where the reply has no such number."""


def score_of(reply: str) -> int | None:
    """The number that a reply begins with, from 0 to 100, or that it names behind the word score."""
    found = re.match(r"\W*(?:score\W+)?(\d+)(?![\d.,]*\d)", reply, re.IGNORECASE)
    return int(found[1]) if found and int(found[1]) <= 100 else None


def judged(
    answers: Sequence[Answered],
    ask: Callable[[str], str],
    path: Path,
    done: Callable[[int], None] = lambda _: None,
) -> list[Verdict]:
    """Have every answer judged. Each verdict is a line of the JSONL file `path` as soon as it is there.

    Verdicts that the file holds already are not asked for again, so that the same call goes on where an
    earlier one ended. An answer that the judge refuses, because it is too long for it, say, gets no score,
    and the refusal as its reply; but where the first one is refused, something else may be wrong. `done` is
    told how many there are. Raises DataError where the file holds verdicts of other answers, StorageError
    when it cannot be written, and what `ask` raises.
    """
    verdicts = _kept(path, answers)
    try:
        with path.open("a", encoding="utf-8") as file:
            for answer in answers[len(verdicts) :]:
                done(len(verdicts))
                try:
                    reply = ask(PROMPT.format(**answer._asdict()))
                    verdicts.append(Verdict(reply, score_of(reply)))
                except RefusedError as error:
                    if not verdicts:
                        raise
                    verdicts.append(Verdict(str(error), None))
                file.write(json.dumps(answer._asdict() | verdicts[-1]._asdict(), ensure_ascii=False) + "\n")
                file.flush()
    except OSError as error:
        raise unwritable(path, error, "cannot write the verdicts") from error
    return verdicts


def _kept(path: Path, answers: Sequence[Answered]) -> list[Verdict]:
    if not path.exists():
        return []
    verdicts = []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for answer, row in zip(answers, rows, strict=False):
            if row | answer._asdict() != row:
                raise ValueError("it holds verdicts of other answers")
            verdicts.append(Verdict(row["reply"], row["score"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            "a file of verdicts", path=path, why=str(error), fix="name another file with --out"
        ) from error
    return verdicts


def ask_at(url: str, model: str, key: str | None, seed: int) -> Callable[[str], str]:
    """A function that asks a model behind OpenAI's API a question, and returns its reply.

    `url` is the part before `/chat/completions`, such as `http://127.0.0.1:8000/v1`. The most probable
    tokens are taken (temperature 0). Raises MissingError where nothing answers, StorageError where the
    connection breaks, and ConfigError with the server\'s own words where it refuses (RefusedError where it
    may be because of this question).
    """
    import requests

    session = requests.Session()
    if key:
        session.headers["Authorization"] = f"Bearer {key}"

    def ask(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "temperature": 0,
            "seed": seed,
            "max_tokens": LONGEST,
        }
        try:
            answer = session.post(f"{url.rstrip('/')}/chat/completions", json=body, timeout=TIMEOUT)
        except (requests.exceptions.ConnectionError, requests.exceptions.InvalidURL) as error:
            raise MissingError(
                f"no judge at {url}",
                why=f"nothing answers there ({type(error).__name__})",
                fix="start its server, or name its address with --url",
            ) from error
        except requests.exceptions.RequestException as error:
            raise StorageError(
                f"the judge at {url} did not answer", why=str(error)[:200], fix="run the command again"
            ) from error
        return _reply(answer, url)

    return ask


def _reply(answer: "requests.Response", url: str) -> str:
    """The text of a reply."""
    try:
        content = answer.json()
        if answer.ok:
            return str(content["choices"][0]["message"]["content"] or "")
        why = str(content["error"]["message"])
    except (ValueError, KeyError, IndexError, TypeError):
        why = answer.text[:200]
    kind = RefusedError if answer.status_code in OF_ONE_QUESTION else ConfigError
    raise kind(
        f"the judge at {url} refuses (HTTP {answer.status_code})",
        why=why[:500],
        fix="do what it says, or check --url, --model and --api-key",
    )
