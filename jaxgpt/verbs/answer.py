"""`jaxgpt answer`: a model's answers to the questions of a file, written beside the right ones."""

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from jaxgpt.errors import ConfigError, StorageError, unwritable
from jaxgpt.verbs.flags import AdapterFlags, EngineFlags, SamplingFlags, home_of

LEAST = 4  # an answer has at least the context divided by this, or what it may take if that is less


@dataclass(frozen=True, kw_only=True)
class AnswerArgs(SamplingFlags, EngineFlags, AdapterFlags):
    """Have MODEL answer every question of FILE, and write its answers beside the right ones.

    A question is asked whole if it leaves a quarter of the context, or as much as the longest answer
    takes; a longer one is asked without its beginning.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl.
    RUN@best is a run's best checkpoint, RUN@500 that of step 500."""
    file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")] = None
    """Dialogues, as `jaxgpt finetune instruct` takes them; the last answer of each is the right one.
    None means the test dialogues that the run in the folder MODEL, or that of the adapter, has kept."""
    out: Path = Path("answers.json")
    """The JSON file to write. Each row has a model_response."""
    chat_template: str = "auto"
    """How a question becomes a prompt: instruction, phi3, plain, or a file with a Jinja template.
    auto means what the model says."""
    max_new_tokens: int = 256
    """Largest number of tokens of an answer."""
    temperature: float = 0.0
    """0 takes the most probable token every time. Above 0, tokens are drawn."""


def run(args: AnswerArgs) -> None:
    """Write the answers of a model. Nothing is written before all are there."""
    from jaxgpt.display import note, program, progress_bar
    from jaxgpt.evaluation.answers import answer_rows, answers_of, questions_of
    from jaxgpt.files import write_atomically
    from jaxgpt.inference.engine import Engine
    from jaxgpt.inference.requests import Request
    from jaxgpt.inference.templates import CHAT_FILE, Plain, template_of
    from jaxgpt.language_model import MOST_SLOTS
    from jaxgpt.text.dialogues import read_dialogues

    sampling, seed = args.sampling(), args.first_seed()
    path = _questions(args)
    if args.out.exists():
        raise StorageError(
            "cannot write the answers",
            path=args.out,
            why="something is there already",
            fix="name another file with --out",
        )
    dialogues, notes = read_dialogues(path)
    for text in notes:
        note(text)
    lm = args.load(args.model, args.adapter)
    home = home_of(CHAT_FILE, args.model, args.adapter)
    found = template_of(lm.tokenizer, args.chat_template, home, lm.chat_template)
    template = found or Plain(lm.tokenizer)
    asked = Request(prompt=(), max_new_tokens=args.max_new_tokens, sampling=sampling)
    room = lm.config.context - min(args.max_new_tokens, lm.config.context // LEAST)
    questions = questions_of(dialogues, template)
    if long := sum(len(ids) > room for ids in questions):
        note(f"{long:,} questions are longer than {room} tokens, and asked without their beginnings")
    requests = [
        replace(asked, prompt=ids[-room:], seed=seed + number) for number, ids in enumerate(questions)
    ]
    engine = Engine(args.served(lm), slots=MOST_SLOTS, ends=lm.ends)
    with progress_bar() as bar:

        def done(count: int) -> None:
            bar("answering", count, len(requests))

        answers = answers_of(engine, requests, lm.tokenizer, template, args.stop_strings, done)
    rows = answer_rows(dialogues, answers)
    try:
        write_atomically(args.out, (json.dumps(rows, ensure_ascii=False, indent=2) + "\n").encode())
    except OSError as error:
        raise unwritable(args.out, error, "cannot write the answers") from error
    note(f"{args.out}: {len(rows):,} answers")
    note(f"next: {shlex.join([program(), 'judge', str(args.out)])} --url ADDRESS --model NAME")


def _questions(args: AnswerArgs) -> Path:
    """The file of questions. Raises ConfigError where none is named and the model has none."""
    from jaxgpt.finetuning.dialogue_task import TEST_FILE
    from jaxgpt.weights.run import named_step

    own = named_step(home_of(TEST_FILE, args.model, args.adapter))[0] / TEST_FILE
    if args.file is None and not own.is_file():
        raise ConfigError(
            "no questions",
            why=f"{args.model} keeps no {TEST_FILE}, as runs of `jaxgpt finetune instruct` and `dpo` do",
            fix="name a file with dialogues: answer MODEL FILE",
        )
    return args.file or own
