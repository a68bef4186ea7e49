"""`jaxgpt evaluate`: how well a model predicts text, and how well it answers examples of a task."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from jaxgpt.errors import ConfigError

if TYPE_CHECKING:
    from jaxgpt.language_model import LanguageModel
    from jaxgpt.text.shards import TokenStream
    from jaxgpt.text.tokenizer import Tokenizer

BATCH_TOKENS = 8192  # tokens of validation text that go through the model at a time
LOSS_CHUNK = 128  # positions of each sequence whose logits exist at one time
SLOTS = 8  # questions answered together
RUN_DATA = "data"  # where a run directory keeps the tokens it prepared itself


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Score MODEL on a validation split (--data), on examples of a task (--examples), or both.

    Each figure is printed with the protocol it was measured by.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl."""
    data: Path | None = None
    """A folder that `jaxgpt prepare` made, or a run directory that has one: loss, perplexity and bits per byte of the
    whole validation split."""
    examples: Path | None = None
    """A JSONL file, a line {"input": "2 + 2", "output": "4"} each: few-shot exact match, log-probability and, where
    the outputs are labels, accuracy."""
    shots: int = 3
    """How many other examples are put before each; 0 is zero-shot."""
    instruction: str = ""
    """What to do, said before the examples."""
    seed: int = 0
    """Draws the shots of each example."""
    int8: bool = False
    """Round the weights to int8: --data is measured with and without, --examples with."""
    json: Path | None = None
    """Write the figures to this file too."""


class Figure(NamedTuple):
    """A number, what it is, and by what protocol it was measured."""

    name: str
    value: float
    measure: str
    protocol: str


def run(args: EvaluateArgs) -> None:
    """Measure, print the figures to stdout, write them where asked."""
    from jaxgpt.inference.prompts import read_examples
    from jaxgpt.language_model import load

    if args.data is None and args.examples is None:
        raise ConfigError(
            "nothing to score on",
            why="neither --data nor --examples was given",
            fix="give --data DIR (made by `jaxgpt prepare`, or a run directory), --examples FILE.jsonl, or both",
        )
    examples = read_examples(args.examples) if args.examples else []
    lm = load(args.model)
    figures = text_figures(lm, data_folder(args.data), int8=args.int8) if args.data else []
    if examples:
        figures += task_figures(
            lm, examples, shots=args.shots, instruction=args.instruction, seed=args.seed, int8=args.int8
        )
    _show(figures)
    if args.json:
        found: dict[str, Any] = {"model": args.model} | {figure.name: figure.value for figure in figures}
        found["protocols"] = {figure.name: f"{figure.measure}; {figure.protocol}" for figure in figures}
        args.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def data_folder(given: Path) -> Path:
    """The folder of tokens: the one given, or the one inside the run directory given."""
    from jaxgpt.text.manifest import MANIFEST_FILE

    inside = given / RUN_DATA
    return inside if not (given / MANIFEST_FILE).is_file() and (inside / MANIFEST_FILE).is_file() else given


def text_figures(lm: "LanguageModel", folder: Path, *, int8: bool) -> list[Figure]:
    """Loss, perplexity and bits per byte of a prepared folder's validation split; with int8 weights too on request.

    Raises ConfigError where the folder's tokens are another tokenizer's than the model's.
    """
    from jaxgpt.display import waiting
    from jaxgpt.text.shards import open_split
    from jaxgpt.text.tokenizer import TOKENIZER_FILE, load_tokenizer

    tokens = open_split(folder, "val")
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    mine = lm.given_tokenizer
    if mine.sha256 != tokenizer.sha256 if mine else tokenizer.vocab != lm.config.vocab:
        has = f"{mine.name} of {lm.config.vocab}" if mine else f"one of {lm.config.vocab}"
        raise ConfigError(
            f"--data {folder}",
            fix="prepare the text with the model's tokenizer",
            why=f"its tokens are {tokenizer.name}'s, of {tokenizer.vocab} ids; the model's tokenizer is {has}",
        )
    predictions = max(len(tokens) - 1, 0)
    protocol = f"validation split, {predictions:,} predictions in windows of {lm.config.context} side by side"
    with waiting(f"scoring {predictions:,} tokens"):
        loss = mean_loss(lm, tokens)
    figures = [
        Figure("val_loss", loss, "nats a token", protocol),
        Figure("perplexity", math.exp(loss), "exp of val_loss", protocol),
    ]
    if count := bytes_of(tokens, tokenizer):
        bits = loss * predictions / math.log(2) / count
        figures.append(Figure("bits_per_byte", bits, f"over {count:,} bytes of text", protocol))
    if int8:
        with waiting(f"scoring {predictions:,} tokens with int8 weights"):
            rounded = mean_loss(lm, tokens, int8=True)
        figures += [
            Figure("int8_val_loss", rounded, "nats a token, int8 weights, a scale for each output", protocol),
            Figure("int8_perplexity", math.exp(rounded), "exp of int8_val_loss", protocol),
            Figure(
                "int8_perplexity_ratio", math.exp(rounded - loss), "int8_perplexity / perplexity", protocol
            ),
        ]
    return figures


def mean_loss(lm: "LanguageModel", tokens: "TokenStream", *, int8: bool = False) -> float:
    """Mean cross-entropy in nats of all tokens but the first, with the parameters laid out as the engine has them."""
    from jaxgpt.evaluation.validation import validation_loss
    from jaxgpt.inference.served import kernels_for, served
    from jaxgpt.model.gpt import define
    from jaxgpt.text.batches import ValidationBatches
    from jaxgpt.training.loss import next_token_loss
    from jaxgpt.weights.run import one_device

    config, mesh = lm.text_config, one_device()
    kernels = kernels_for(mesh, int8=int8)
    sequences = max(1, BATCH_TOKENS // config.context)
    batches = ValidationBatches(tokens, context=config.context, sequences=sequences, vocab=config.vocab)
    loss = next_token_loss(define(config, kernels=kernels), chunk=LOSS_CHUNK)
    return validation_loss(loss, batches, mesh)(served(lm.params, config, kernels, mesh))


def bytes_of(tokens: "TokenStream", tokenizer: "Tokenizer") -> int:
    """How many bytes of text all tokens but the first stand for; the end of a text has none."""
    import numpy as np

    size_V = np.array([len(tokenizer.decode_bytes([token])) for token in range(tokenizer.end_of_text)] + [0])
    total, step = 0, 1 << 20
    for start in range(1, len(tokens), step):
        total += int(size_V[tokens.read(start, min(start + step, len(tokens)))].sum())
    return total


def task_figures(
    lm: "LanguageModel",
    examples: list[tuple[str, str]],
    *,
    shots: int,
    instruction: str,
    seed: int,
    int8: bool,
) -> list[Figure]:
    """The few-shot scores of a task's examples."""
    from jaxgpt.display import waiting
    from jaxgpt.evaluation.fewshot import score_examples
    from jaxgpt.inference.engine import Engine

    tokenizer = lm.tokenizer
    engine = Engine(lm.text_config, lm.params, slots=SLOTS, end=tokenizer.end_of_text, int8=int8)
    with waiting(f"asking {len(examples)} examples"):
        scores = score_examples(engine, tokenizer, examples, shots=shots, instruction=instruction, seed=seed)
    drawn = f"{shots} shots drawn with seed {seed}" if shots else "zero-shot"
    protocol = f"{drawn}, {len(examples)} examples" + (", int8 weights" if int8 else "")
    figures = [
        Figure("few_shot_exact_match", scores.exact_match, "greedy answer, up to a stop string", protocol),
        Figure(
            "few_shot_output_logprob", scores.output_logprob, "nats a token of the true outputs", protocol
        ),
    ]
    if scores.label_accuracy is not None:
        measure = f"most probable of {len(scores.labels)} labels"
        figures.append(Figure("few_shot_label_accuracy", scores.label_accuracy, measure, protocol))
    return figures


def _show(figures: list[Figure]) -> None:
    """A table for each protocol."""
    from rich.console import Console
    from rich.table import Table

    for protocol in dict.fromkeys(figure.protocol for figure in figures):
        table = Table(box=None, show_header=False, title=protocol, title_justify="left")
        for figure in figures:
            if figure.protocol == protocol:
                table.add_row(figure.name, f"{figure.value:.4f}", figure.measure)
        Console().print(table, soft_wrap=True)
