"""Few-shot scores: how well a model answers examples of a task after it has read some others.

Of each example, `shots` others are drawn with a seed and put before it (`inference.prompts.few_shot_prompt`),
never itself. Three scores, after T. Brown et al. 2020, section 2.4: the greedy answer compared with the true
one; the log-probability of the true one; and, for outputs that are labels, whether the true label is the most
probable.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxgpt.display import Progress, no_progress
from jaxgpt.errors import ConfigError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.prompts import FEW_SHOT_STOP, Example, few_shot_prompt
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.scoring import score_spans
from jaxgpt.inference.texts import texts_of
from jaxgpt.text.tokenizer import Tokenizer

MOST_LABELS = 20  # outputs that are more different than this are no labels
SPARE = 8  # tokens an answer may be longer than the longest true one: room for a stop string


@dataclass(frozen=True)
class FewShotScores:
    """What `score_examples` measures."""

    exact_match: float
    """Share of examples whose greedy answer is the true output. The answer ends at a stop string, and
    space around it does not count."""
    output_logprob: float
    """Mean log-probability of a token of the true outputs, over all their tokens, in nats."""
    label_accuracy: float | None
    """Share of examples whose true label has the largest log-probability of all labels. None where
    outputs are no labels."""
    labels: tuple[str, ...]
    """The distinct outputs, where they are labels."""


@dataclass(frozen=True)
class _Question:
    """An example as it is asked: the prompt's ids, those of its true output, and the output's text."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    text: str


def score_examples(
    engine: Engine,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    shots: int,
    instruction: str = "",
    seed: int = 0,
    show: Progress = no_progress,
) -> FewShotScores:
    """Ask all examples, each after `shots` others. `show` hears how far the work is.

    Raises ConfigError for more shots than there are others, and for prompts that do not fit the context with
    their outputs.
    """
    if not 0 <= shots < len(examples):
        raise ConfigError(
            f"shots = {shots}",
            why=f"with {len(examples)} examples there are 0 to {len(examples) - 1} others",
            fix="ask with fewer shots, or give more examples",
        )
    questions = _questions(tokenizer, examples, shots, instruction, seed)
    labels = labels_of([output for _, output in examples])
    tails = {label: _output_ids(tokenizer, label) for label in labels}
    _check_room(questions, max(map(len, tails.values()), default=0), engine.config.context, shots)
    answers = _answers(engine, tokenizer, questions, show)
    by_output = _logprobs(engine, questions, tails, show)
    logprobs = [found[each.text] for found, each in zip(by_output, questions, strict=True)]
    right = sum(
        _most_probable(labels, found) == each.text for found, each in zip(by_output, questions, strict=True)
    )
    return FewShotScores(
        exact_match=float(
            np.mean([answer == each.text for answer, each in zip(answers, questions, strict=True)])
        ),
        output_logprob=float(np.mean(np.concatenate(logprobs))),
        label_accuracy=right / len(questions) if labels else None,
        labels=labels,
    )


def labels_of(outputs: Sequence[str]) -> tuple[str, ...]:
    """The distinct outputs in order, where they are labels.

    They are labels where there are 2 to MOST_LABELS of them, and two examples of each on average.
    """
    distinct = sorted({output.strip() for output in outputs})
    return tuple(distinct) if 2 <= len(distinct) <= min(MOST_LABELS, len(outputs) // 2) else ()


def shots_of(number: int, examples: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """The examples put before example `number`: a draw of its own from all others."""
    others = [place for place in range(len(examples)) if place != number]
    drawn: Sequence[int] = (
        np.random.default_rng((seed, number)).choice(others, shots, replace=False).tolist() if shots else []
    )
    return [examples[place] for place in drawn]


def _questions(
    tokenizer: Tokenizer, examples: Sequence[Example], shots: int, instruction: str, seed: int
) -> list[_Question]:
    questions = []
    for number, (given, output) in enumerate(examples):
        before = shots_of(number, examples, shots, seed)
        prompt = tuple(tokenizer.encode(few_shot_prompt(given, instruction=instruction, examples=before)))
        questions.append(_Question(prompt, _output_ids(tokenizer, output), output.strip()))
    return questions


def _output_ids(tokenizer: Tokenizer, output: str) -> tuple[int, ...]:
    """As the layout has an output: one space, then its text."""
    return tuple(tokenizer.encode(" " + output.strip()))


def _check_room(questions: Sequence[_Question], longest_label: int, context: int, shots: int) -> None:
    lengths = [len(each.prompt) + max(len(each.output), longest_label) for each in questions]
    if too_long := sum(length > context for length in lengths):
        raise ConfigError(
            f"shots = {shots}",
            fix="ask with fewer shots or shorter examples",
            why=f"{too_long} of {len(questions)} prompts do not fit the context of {context} tokens with "
            f"their outputs (the longest has {max(lengths)})",
        )


def _answers(
    engine: Engine, tokenizer: Tokenizer, questions: Sequence[_Question], show: Progress
) -> list[str]:
    """The greedy answers, up to a stop string; one that runs out of tokens or window is taken as it is."""
    most = max(len(each.output) for each in questions) + SPARE
    requests = [
        Request(prompt=each.prompt, max_new_tokens=most, sampling=Sampling(temperature=0), slide=False)
        for each in questions
    ]
    answers = texts_of(engine, requests, tokenizer, FEW_SHOT_STOP, show=functools.partial(show, "answering"))
    return [answer.strip() for answer in answers]


def _logprobs(
    engine: Engine, questions: Sequence[_Question], tails: Mapping[str, tuple[int, ...]], show: Progress
) -> list[dict[str, np.ndarray]]:
    """The log-probabilities of the tokens of each question's output and of every label.

    One dict a question: the text of the output or label, and its log-probabilities in nats.
    """
    outputs = [{**tails, each.text: each.output} for each in questions]
    spans = [
        (each.prompt + ids, len(each.prompt))
        for each, texts in zip(questions, outputs, strict=True)
        for ids in texts.values()
    ]
    scores = iter(score_spans(engine.served, spans, show=functools.partial(show, "scoring outputs")))
    return [{text: next(scores).logprobs_T for text in texts} for texts in outputs]


def _most_probable(labels: Sequence[str], logprobs: Mapping[str, np.ndarray]) -> str | None:
    """The label whose tokens have the largest log-probability together; None where there are no labels."""
    return max(labels, key=lambda label: logprobs[label].sum(), default=None)
