"""`jaxgpt evaluate`: how well a model predicts text, and how it does at known tasks and at examples."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxgpt.errors import ConfigError
from jaxgpt.files import write_atomically
from jaxgpt.verbs.flags import AdapterFlags

if TYPE_CHECKING:
    from jaxgpt.evaluation.figures import Figure


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs(AdapterFlags):
    """Score MODEL on a text (--data), on known tasks (--tasks), on examples of one's own (--examples).

    Each figure is printed with the protocol it was measured by.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or a name on the Hugging Face hub: gpt2, or OWNER/NAME.
    RUN@best is a run's best checkpoint, RUN@500 that of step 500."""
    data: Path | None = None
    """A text (`-` for standard input), a folder that `jaxgpt prepare` made, or a run directory that has one.
    Loss, perplexity and bits per byte of the whole text are measured; of a folder, of its validation split.
    A text is scored as it is, with the model's own tokenizer."""
    tasks: str = ""
    """Tasks that models are compared by, with commas between them, such as lambada,wikitext-103:harness.
    There are lambada, cbt-cn, cbt-ne, wikitext-2, wikitext-103, ptb, enwik8, text8, 1bw and hellaswag.
    Without a protocol behind a colon, all of the task are measured.
    What was published of GPT-2 stands beside the figures.
    lm-eval:NAME is any task of lm-evaluation-harness (pip install 'jaxgpt[eval]')."""
    data_dir: Path | None = None
    """Folder with the files of the tasks, under their published names.
    YAML files of lm-eval's tasks are found there too.
    Without it, files are downloaded."""
    limit: int | None = None
    """Score only so many items of a task, or windows of a long text. The standard error shows the price."""
    stride: int | None = None
    """Tokens from one window of a long text to the next, at most the model's context.
    Every token is scored once.
    A smaller stride gives it more context before it, and takes more time.
    Without it, windows stand side by side, but for enwik8 and text8, where it is 512."""
    protocol: Literal["tokens", "book"] = "tokens"
    """How the losses of --data are averaged: over all tokens, or as the book does.
    That is over the means of batches of whole windows, and leaves the rest of the text out."""
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
    from jaxgpt.evaluation.figures import few_shot_figures
    from jaxgpt.evaluation.harness import check_installed
    from jaxgpt.evaluation.tasks.table import open_tasks, parted
    from jaxgpt.inference.prompts import read_examples
    from jaxgpt.inference.served import Served
    from jaxgpt.language_model import load
    from jaxgpt.measuring import data_figures, lm_eval_figures, task_figures
    from jaxgpt.verbs.flags import check_output

    check_output("--json", args.json)
    if args.data is None and args.examples is None and not args.tasks:
        raise ConfigError(
            "nothing to score on",
            why="neither --data nor --tasks nor --examples was given",
            fix="give --data (a text, a folder from `jaxgpt prepare`, or a run directory), "
            "--tasks such as lambada, --examples FILE.jsonl, or several of them",
        )
    if args.data is not None:
        is_text(args.data)  # what is missing is told of before a model is read
    examples = read_examples(args.examples) if args.examples else []
    ours, theirs = parted([name.strip() for name in args.tasks.split(",") if name.strip()])
    with progress_bar() as show:
        asked = open_tasks(ours, args.data_dir, show)
    if theirs:
        check_installed()
    lm = load(args.model, adapter=args.adapter)
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
    if asked:
        with waiting(f"scoring {len(asked)} tasks"), progress_bar() as show:
            figures += task_figures(
                lm, asked, stride=args.stride, limit=args.limit, int8=args.int8, show=show
            )
    if theirs:
        with waiting(f"running lm-eval's {', '.join(theirs)}"):
            figures += lm_eval_figures(lm, theirs, folder=args.data_dir, limit=args.limit, int8=args.int8)
    if examples:
        tokenizer = lm.tokenizer
        with waiting(f"asking {len(examples)} examples"), progress_bar() as show:
            figures += few_shot_figures(
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
        found = json.dumps(_as_json(args, figures), indent=2, ensure_ascii=False)
        write_atomically(args.json, (found + "\n").encode())


def _as_json(args: EvaluateArgs, figures: list["Figure"]) -> dict[str, Any]:
    """The figures by their names, and under headings of their own what belongs to them."""
    found: dict[str, Any] = {"model": args.model} | ({"adapter": args.adapter} if args.adapter else {})
    found |= {figure.name: figure.value for figure in figures}
    found["protocols"] = {figure.name: f"{figure.measure}; {figure.protocol}" for figure in figures}
    found["standard_errors"] = {
        figure.name: figure.standard_error for figure in figures if _known(figure.standard_error)
    }
    found["published"] = {
        figure.name: {"value": figure.published, "source": figure.source}
        for figure in figures
        if figure.source
    }
    return found


def _known(error: float | None) -> bool:
    return error is not None and math.isfinite(error)


def _show(figures: list["Figure"]) -> None:
    """Print a table for each protocol."""
    from rich.console import Console
    from rich.table import Table

    for protocol in dict.fromkeys(figure.protocol for figure in figures):
        table = Table(box=None, title=protocol, title_justify="left")
        shown = [figure for figure in figures if figure.protocol == protocol]
        compared = any(figure.source for figure in shown)
        table.show_header = compared
        for heading in ("", "ours", "", *(("published", "delta") if compared else ()), "measure"):
            table.add_column(heading)
        for figure in shown:
            error = f"± {figure.standard_error:.4f}" if _known(figure.standard_error) else ""
            beside = _beside(figure) if compared else ()
            table.add_row(figure.name, f"{figure.value:.4f}", error, *beside, figure.measure)
        Console().print(table, soft_wrap=True)
        for figure in shown:
            if figure.source:
                print(f"{figure.name}: {figure.source}")


def _beside(figure: "Figure") -> tuple[str, str]:
    """What was published, and how far ours is from it."""
    if figure.published is None:
        return "-", "-"
    return f"{figure.published:.4f}", f"{figure.value - figure.published:+.4f}"
