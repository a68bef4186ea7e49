"""Figures of a model: how well it predicts a text, and how well it answers examples of a task.

Each figure says by which protocol it was measured, because it cannot be compared with others otherwise.
"""

import functools
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from jaxgpt.display import Progress, no_progress
from jaxgpt.evaluation.data import ScoredText
from jaxgpt.evaluation.fewshot import score_examples
from jaxgpt.evaluation.validation import Between, validation_loss
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.served import Served
from jaxgpt.text.batches import ValidationBatches
from jaxgpt.text.shards import TokenStream
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.training.loss import next_token_loss

# Small pieces stay in a CPU's caches (docs/measurements.md).
BATCH_TOKENS = 2048  # tokens of the text that go through the model at a time
LOSS_CHUNK = 32  # positions of each sequence whose logits exist at one time
SLOTS = 8  # questions answered together


class Figure(NamedTuple):
    """A number, what it means, and the protocol by which it was measured."""

    name: str
    value: float
    measure: str
    protocol: str


def text_figures(
    model: Served,
    text: ScoredText,
    *,
    rounded: Served | None = None,
    left_out: int = 0,
    show: Between = lambda *_: None,
) -> list[Figure]:
    """Loss, perplexity and bits per byte of a text.

    `rounded` is the same model with int8 weights, which is measured too. `left_out` says how many ids of the
    model its tokenizer has no text for: no probability goes to them. `show` is called between batches.
    """
    tokens = text.tokens
    predictions = max(len(tokens) - 1, 0)
    protocol = f"{text.name}, {predictions:,} predictions in windows of {model.config.context} side by side"
    if left_out:
        protocol += f", without the {left_out:,} ids that stand for no text"
    loss = scorer(model, tokens, show)()
    figures = [
        Figure("val_loss", loss, "nats a token", protocol),
        Figure("perplexity", math.exp(loss), "exp of val_loss", protocol),
    ]
    if count := bytes_of(tokens, text.tokenizer):
        bits = loss * predictions / math.log(2) / count
        figures.append(Figure("bits_per_byte", bits, f"over {count:,} bytes of text", protocol))
    if rounded is not None:
        int8_loss = scorer(rounded, tokens, show)()
        ratio = math.exp(int8_loss - loss)
        measure = "nats a token, int8 weights, a scale for each output"
        figures += [
            Figure("int8_val_loss", int8_loss, measure, protocol),
            Figure("int8_perplexity", math.exp(int8_loss), "exp of int8_val_loss", protocol),
            Figure("int8_perplexity_ratio", ratio, "int8_perplexity / perplexity", protocol),
        ]
    return figures


def scorer(model: Served, tokens: TokenStream, show: Between = lambda *_: None) -> Callable[[], float]:
    """A function that returns the mean cross-entropy in nats of all tokens but the first.

    It compiles when it is first called. `show` is called between batches, as in `validation_loss`.
    """
    config = model.config
    sequences = max(1, BATCH_TOKENS // config.context)
    batches = ValidationBatches(tokens, context=config.context, sequences=sequences, vocab=config.vocab)
    loss = next_token_loss(model.model, chunk=LOSS_CHUNK)
    return functools.partial(validation_loss(loss, batches, model.mesh, between=show), model.params)


def bytes_of(tokens: TokenStream, tokenizer: Tokenizer) -> int:
    """How many bytes of text all tokens but the first stand for. The end-of-text token stands for none."""
    ends = tokenizer.special_ids.values()
    size_V = np.array(
        [0 if token in ends else len(tokenizer.decode_bytes([token])) for token in range(tokenizer.vocab)]
    )
    total, step = 0, 1 << 20
    for start in range(1, len(tokens), step):
        total += int(size_V[tokens.read(start, min(start + step, len(tokens)))].sum())
    return total


def task_figures(
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
