"""Figures of a model: how well it predicts a text, and how well it answers examples of a task.

Each figure says by which protocol it was measured, because it cannot be compared with others otherwise.
"""

import codecs
import math
from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np

from jaxgpt.display import Progress, no_progress
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.data import ScoredText
from jaxgpt.evaluation.fewshot import score_examples
from jaxgpt.evaluation.validation import Between
from jaxgpt.evaluation.windows import Losses, check_stride, mean_of_batch_means, window_losses
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.served import Served
from jaxgpt.text.shards import TokenStream
from jaxgpt.text.tokenizer import Tokenizer

SLOTS = 8  # questions answered together
COUNTED = 1 << 20  # tokens that are decoded at a time, to count bytes and words

TextProtocol = Literal["tokens", "book"]
"""How a text's loss is averaged: over its `tokens`, or as the `book` has it, over the means of batches."""


class Figure(NamedTuple):
    """A number, what it means, and the protocol by which it was measured."""

    name: str
    value: float
    measure: str
    protocol: str
    standard_error: float | None = None
    """Of the value; the protocol says over what. None where it is not known."""
    published: float | None = None
    """What was published of GPT-2 of the model's size. None where nothing was, or for other sizes."""
    source: str = ""
    """Where figures of this protocol were published, and by whom they were reproduced."""


def text_figures(
    model: Served,
    text: ScoredText,
    *,
    stride: int | None = None,
    protocol: TextProtocol = "tokens",
    batch: int = 2,
    rounded: Served | None = None,
    left_out: int = 0,
    show: Between = lambda *_: None,
) -> list[Figure]:
    """Loss and perplexity of a text, bits per byte and per word, each with its standard error.

    Each window begins `stride` tokens after the one before it; without a stride, windows stand side by side.
    `batch` windows make a batch of the protocol `book`. `rounded` is the same model with int8 weights, which
    is measured too. `left_out` says how many ids of the model its tokenizer has no text for: no probability
    goes to them. `show` is called between batches. Raises ConfigError for a stride that is impossible, and
    what `window_losses` raises.
    """
    stride = check_stride(stride, model.config.context)
    if protocol == "book":
        _check_book(stride, model.config.context, batch)
    losses = [window_losses(each, text.tokens, stride=stride, show=show) for each in (model, rounded) if each]
    found = [_mean(each, model.config.context, protocol, batch) for each in losses]
    loss, error, predictions = found[0]
    how = f"{text.name}, {predictions:,} predictions in windows of {model.config.context}, stride {stride}"
    how += f", without the {left_out:,} ids that stand for no text" if left_out else ""
    if protocol == "book":
        how += f", protocol book: the mean of the means of batches of {batch} windows"
    over = "batches" if protocol == "book" else f"{len(losses[0].nats_W):,} windows"
    how += f"; \u00b1 is the standard error over {over}"
    figures = _losses("", loss, error, "nats a token", how)
    if protocol == "tokens":
        figures += _by_size(text, loss * predictions, error * predictions, how)
    if rounded is not None:
        int8_loss, int8_error, _ = found[1]
        measure = "nats a token, int8 weights, a scale for each output"
        figures += _losses("int8_", int8_loss, int8_error, measure, how)
        ratio = math.exp(int8_loss - loss)
        figures.append(Figure("int8_perplexity_ratio", ratio, "int8_perplexity / perplexity", how))
    return figures


def _mean(losses: Losses, context: int, protocol: TextProtocol, batch: int) -> tuple[float, float, int]:
    """The loss of a token, its standard error, and how many tokens it is of."""
    if protocol == "book":
        return mean_of_batch_means(losses, context, batch)
    return *losses.per(losses.tokens_W), losses.tokens


def _check_book(stride: int, context: int, batch: int) -> None:
    if stride != context:
        raise ConfigError(
            f"stride = {stride}",
            why="the protocol `book` has its windows side by side",
            fix="leave the stride out, or take the protocol `tokens`",
        )
    if batch < 1:
        raise ConfigError(
            f"batch = {batch}", why="a batch has at least one window", fix="give a number from 1 on"
        )


def _losses(prefix: str, loss: float, error: float, measure: str, protocol: str) -> list[Figure]:
    perplexity = math.exp(loss)
    return [
        Figure(f"{prefix}val_loss", loss, measure, protocol, error),
        Figure(f"{prefix}perplexity", perplexity, f"exp of {prefix}val_loss", protocol, perplexity * error),
    ]


def _by_size(text: ScoredText, nats: float, error: float, protocol: str) -> list[Figure]:
    """Bits per byte and per word, where the text has bytes and words."""
    sizes = bytes_of(text.tokens, text.tokenizer), words_of(text.tokens, text.tokenizer)
    return [
        Figure(
            f"bits_per_{unit}",
            nats / math.log(2) / count,
            f"over {count:,} {unit}s of text",
            protocol,
            error / math.log(2) / count,
        )
        for unit, count in zip(("byte", "word"), sizes, strict=True)
        if count
    ]


def bytes_of(tokens: TokenStream, tokenizer: Tokenizer) -> int:
    """How many bytes of text all tokens but the first stand for. The end-of-text token stands for none."""
    ends = tokenizer.special_ids.values()
    size_V = np.array(
        [0 if token in ends else len(tokenizer.decode_bytes([token])) for token in range(tokenizer.vocab)]
    )
    total = 0
    for start in range(1, len(tokens), COUNTED):
        total += int(size_V[tokens.read(start, min(start + COUNTED, len(tokens)))].sum())
    return total


def words_of(tokens: TokenStream, tokenizer: Tokenizer) -> int:
    """How many words, between white space, all tokens but the first stand for.

    A special token such as the end of a text parts words too, and is none. What the first token leaves of
    its word counts as a word.
    """
    special = np.array(sorted(tokenizer.special_ids.values()), np.int64)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    total, inside = 0, False  # inside a word at the end of what was decoded
    for start in range(1, len(tokens), COUNTED):
        ids = tokens.read(start, min(start + COUNTED, len(tokens)))
        for part in np.split(ids, np.flatnonzero(np.isin(ids, special))):
            if len(part) and part[0] in special:
                decoder.reset()
                part, inside = part[1:], False
            text = decoder.decode(tokenizer.decode_bytes(part))
            if text:
                total += len(text.split()) - (inside and not text[0].isspace())
                inside = not text[-1].isspace()
    return total


def few_shot_figures(
    model: Served,
    tokenizer: Tokenizer,
    ends: Collection[int],
    examples: list[tuple[str, str]],
    *,
    shots: int,
    instruction: str = "",
    seed: int = 0,
    show: Progress = no_progress,
) -> list[Figure]:
    """The few-shot scores of a task's examples: pairs of what is asked and what is right."""
    engine = Engine(model, slots=SLOTS, ends=ends)
    scores = score_examples(
        engine, tokenizer, examples, shots=shots, instruction=instruction, seed=seed, show=show
    )
    drawn = f"{shots} shots drawn with seed {seed}" if shots else "zero-shot"
    protocol = f"{drawn}, {len(examples)} examples" + (", int8 weights" if model.layers.int8 else "")
    exact, logprob = "greedy answer, up to a stop string", "nats a token of the true outputs"
    figures = [
        Figure("few_shot_exact_match", scores.exact_match, exact, protocol),
        Figure("few_shot_output_logprob", scores.output_logprob, logprob, protocol),
    ]
    if scores.label_accuracy is not None:
        measure = f"most probable of {len(scores.labels)} labels"
        figures.append(Figure("few_shot_label_accuracy", scores.label_accuracy, measure, protocol))
    return figures
