"""What instruction and preference tuning have in common: how examples are divided, samples, questions."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxgpt.config import AnswerConfig, DialogueConfig
from jaxgpt.display import Progress
from jaxgpt.errors import DataError
from jaxgpt.evaluation.sample import sampler
from jaxgpt.finetuning.lora import plain_params
from jaxgpt.inference.sampling import Sampling
from jaxgpt.text.dialogues import Dialogue, Divided, divided, leaks, row_of
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.training.loop import Event

TEST_FILE = "test.jsonl"
GREEDY = Sampling(temperature=0.0)

T = TypeVar("T")


def split_of(
    config: AnswerConfig, read: Callable[[Path], tuple[Sequence[T], list[str]]], what: str
) -> tuple[Divided[T], list[str]]:
    """The examples that `read` finds in the data, divided, and sentences about what was noticed.

    Sentences call the examples `what`. Raises what `read` and `divided` raise.
    """
    data, path = config.data, Path(config.data.path)
    assert isinstance(data, DialogueConfig), "tasks of answers have such data"
    examples, notes = read(path)
    seed = config.seed if data.shuffle else None
    parts = divided(examples, val=data.val_fraction, test=data.test_fraction, seed=seed, path=path, what=what)
    return parts, notes + leaks(parts, what)


def check_fits(examples: Sequence[Any], config: AnswerConfig, *, what: str, shorter: str) -> None:
    """Raise DataError where no training example fits the context.

    `what` says so of the context, such as `no pair fits`, and `shorter` names what may be too long.
    """
    if not examples:
        raise DataError(
            "nothing to train on",
            path=config.data.path,
            why=f"{what} the model's context of {config.model.context} tokens",
            fix=f"begin with a model of a longer context, or give shorter {shorter}",
        )


def sample_answers(
    config: AnswerConfig, tokenizer: Tokenizer, question: list[int], show: Progress
) -> list[Event]:
    """The event that writes what the model answers to a question, of which the ids are given.

    There is none without a question or sample tokens, and none with several processes, since the engine runs
    on one host.
    """
    if not question or not config.sample_tokens or jax.process_count() > 1:
        return []
    write = sampler(
        config.model,
        tokenizer,
        question,
        shown=tokenizer.decode(question),
        tokens=config.sample_tokens,
        sampling=GREEDY,
        plain=plain_params(config),
        show=show,
    )
    return [Event("sample", config.eval_every, write)]


def questions_file(dialogues: Iterable[Dialogue]) -> dict[str, bytes]:
    """The file in which a run keeps the dialogues whose questions `jaxgpt answer` asks, by its name."""
    lines = (json.dumps(row_of(dialogue), ensure_ascii=False) + "\n" for dialogue in dialogues)
    return {TEST_FILE: "".join(lines).encode()}
