"""`jaxgpt evaluate`: how well a model predicts text, and how well it answers examples of a task."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxgpt.errors import ConfigError

if TYPE_CHECKING:
    from jaxgpt.evaluation.figures import Figure


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Score MODEL on a text (--data), on examples of a task (--examples), or both.

    Each figure is printed with the protocol it was measured by.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or a name on the Hugging Face hub: gpt2, or OWNER/NAME."""
    data: Path | None = None
    """A text (`-` for standard input), a folder that `jaxgpt prepare` made, or a run directory that has one.
    Loss, perplexity and bits per byte of the whole text are measured; of a folder, of its validation split.
    A text is scored as it is, with the model's own tokenizer."""
    stride: int | None = None
    """Tokens from one window of --data to the next, at most the model's context. Every token is scored once;
    a smaller stride gives it more context and takes more time. Without it, windows stand side by side."""
    protocol: Literal["tokens", "book"] = "tokens"
    """How the losses of --data are averaged: over all tokens, or as the book does, over the means of batches
    of whole windows, which leaves the rest of the text out."""
    batch: int = 2
    """Windows of a batch, for --protocol book."""
    examples: Path | None = None
    """JSONL file of examples, each line an object such as {"input": "2 + 2", "output": "4"}.
    Few-shot exact match and log-probability are measured, and accuracy where the outputs are labels."""
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


def run(args: EvaluateArgs) -> None:
    """Measure, print the figures to stdout, and write them to the file that --json names."""
    from jaxgpt.display import progress_bar, waiting
    from jaxgpt.evaluation.data import is_text
    from jaxgpt.evaluation.figures import task_figures
    from jaxgpt.inference.prompts import read_examples
    from jaxgpt.inference.served import Served
    from jaxgpt.language_model import load
    from jaxgpt.measuring import data_figures
    from jaxgpt.verbs.flags import check_output

    check_output("--json", args.json)
    if args.data is None and args.examples is None:
        raise ConfigError(
            "nothing to score on",
            why="neither --data nor --examples was given",
            fix="give --data (a text, a folder from `jaxgpt prepare`, or a run directory), "
            "--examples FILE.jsonl, or both",
        )
    if args.data is not None:
        is_text(args.data)  # what is missing is told of before a model is read
    examples = read_examples(args.examples) if args.examples else []
    lm = load(args.model)
    figures: list[Figure] = []
    if args.data:
        with waiting(f"scoring {args.data}"), progress_bar() as show:
            figures += data_figures(
                lm,
                args.data,
                stride=args.stride,
                protocol=args.protocol,
                batch=args.batch,
                int8=args.int8,
                show=show,
            )
    if examples:
        tokenizer = lm.tokenizer
        with waiting(f"asking {len(examples)} examples"), progress_bar() as show:
            figures += task_figures(
                Served.of(lm.text_config, lm.params, int8=True) if args.int8 else lm.served,
                tokenizer,
                lm.ends,
                examples,
                shots=args.shots,
                instruction=args.instruction,
                seed=args.seed,
                show=show,
            )
    _show(figures)
    if args.json:
        found: dict[str, Any] = {"model": args.model} | {figure.name: figure.value for figure in figures}
        found["protocols"] = {figure.name: f"{figure.measure}; {figure.protocol}" for figure in figures}
        found["standard_errors"] = {
            figure.name: figure.standard_error for figure in figures if _known(figure.standard_error)
        }
        args.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _known(error: float | None) -> bool:
    return error is not None and math.isfinite(error)


def _show(figures: list["Figure"]) -> None:
    """Print a table for each protocol."""
    from rich.console import Console
    from rich.table import Table

    for protocol in dict.fromkeys(figure.protocol for figure in figures):
        table = Table(box=None, show_header=False, title=protocol, title_justify="left")
        for figure in figures:
            if figure.protocol == protocol:
                error = f"± {figure.standard_error:.4f}" if _known(figure.standard_error) else ""
                table.add_row(figure.name, f"{figure.value:.4f}", error, figure.measure)
        Console().print(table, soft_wrap=True)
