"""`jaxgpt judge`: another model scores answers from 0 to 100."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class JudgeArgs:
    """Have another model score the answers of FILE, which `jaxgpt answer` has written.

    The judge is any model behind OpenAI's API. The mean of its scores goes to stdout. The same command again
    goes on where it was stopped.
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The file of answers."""
    url: str
    """Where the judge answers, up to /chat/completions: http://127.0.0.1:8000/v1 for `jaxgpt serve`."""
    model: str
    """The judge's name at that address."""
    api_key: str | None = None
    """The key that the judge's server asks for, if it does."""
    key: str = "model_response"
    """The name under which each row of FILE has the answer to be judged."""
    out: Path | None = None
    """The JSONL file with the score and the reply for each answer. None means FILE with .scores.jsonl."""
    seed: int = 123
    """The seed that the judge is asked with."""


def run(args: JudgeArgs) -> None:
    """Write the verdicts, and their mean to stdout."""
    from jaxgpt.display import note, progress_bar
    from jaxgpt.evaluation.answers import read_answers
    from jaxgpt.evaluation.judge import ask_at, judged

    answers = read_answers(args.file, args.key)
    out = args.out or args.file.with_suffix(".scores.jsonl")
    ask = ask_at(args.url, args.model, args.api_key, args.seed)
    with progress_bar() as bar:
        verdicts = judged(answers, ask, out, lambda count: bar("judging", count, len(answers)))
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    if missing := len(verdicts) - len(scores):
        note(f"{missing:,} of {len(verdicts):,} replies have no number from 0 to 100, and do not count")
    note(f"{out}: a score and the judge's reply for each answer")
    print(f"{statistics.fmean(scores):.2f}" if scores else "nan")
