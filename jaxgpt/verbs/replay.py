"""`jaxgpt replay`: train one step of a run again, and show its texts, losses and gradients."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from jaxgpt.config import RunConfig
    from jaxgpt.evaluation.document import Part, Tokens
    from jaxgpt.text.shown import Shown
    from jaxgpt.training.replay import Replayed
    from jaxgpt.training.task import Task

# From the lowest loss to the highest, as a share of the loss of a guess: how a token is coloured.
COLOURS = ("green", "default", "yellow", "red", "white on red")


@dataclass(frozen=True, kw_only=True)
class ReplayArgs:
    """Train one step of a run again, and show its texts with the loss of each token, and its gradients.

    The parameters come from the nearest checkpoint before the step, and the steps between are trained again
    in memory. Nothing is written into the run. On the run's devices, all comes out to the bit as in its log.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    step: int | None = None
    """The step, counted from 1 as the log counts. Without it, the one at which the run diverged."""
    texts: int = 8
    """How many texts are shown here, those with the highest losses. The files have all of them."""
    html: Path | None = None
    """A page to write, in which the pointer over a token shows its loss."""
    json: Path | None = None
    """A file to write, with everything as numbers."""


def run(args: ReplayArgs) -> None:
    """Show the step on stdout, and write the files that are asked for."""
    from jaxgpt.display import note
    from jaxgpt.errors import ConfigError
    from jaxgpt.evaluation.page import page
    from jaxgpt.evaluation.replayed import parts_of
    from jaxgpt.files import write_atomically
    from jaxgpt.runs import task_for
    from jaxgpt.training.divergence import diverged_at
    from jaxgpt.training.replay import replay
    from jaxgpt.verbs.flags import check_output

    check_output("--html", args.html)
    check_output("--json", args.json)

    def task_of(recipe: "RunConfig") -> "Task":
        return task_for(recipe, tell=lambda _: None)[1]

    step = args.step if args.step is not None else diverged_at(args.run)
    if step is None:
        why, fix = "none is named, and the run has not diverged", "name one with --step"
        raise ConfigError("no step", path=args.run, why=why, fix=fix)
    found = replay(args.run, step, task_of, note)
    parts = parts_of(found)
    _show(parts, args.texts)
    files = {args.html: page(f"{args.run.resolve().name}, step {step:,}", parts), args.json: _json(found)}
    for path, content in files.items():
        if path is not None:
            write_atomically(path, content.encode())
            note(f"{path}: step {step:,} with {len(found.texts)} texts")


def _show(parts: list["Part"], most: int) -> None:
    """Print the parts to stdout, of the texts the first ones."""
    from rich.console import Console
    from rich.table import Table as Columns

    from jaxgpt.evaluation.document import Heading, Paragraph, Table, Tokens

    console = Console(highlight=False)
    for part in parts:
        match part:
            case Heading(text):
                console.print(f"\n{text}", style="bold", markup=False)
            case Paragraph(text):
                console.print(text.replace("`", ""), markup=False, soft_wrap=True)
            case Table(head, lines):
                columns = Columns(*head, box=None)
                for line in lines:
                    columns.add_row(*line)
                console.print(columns)
            case Tokens(texts):
                for shown in texts[:most]:
                    console.print(f"\n{shown.title}: {shown.loss:.4f}", style="bold", markup=False)
                    console.print(_coloured(shown, part), soft_wrap=True)


def _coloured(shown: "Shown", among: "Tokens") -> Any:
    from rich.text import Text

    from jaxgpt.display import visible

    line = Text()
    for text, loss in shown.tokens:
        colour = "dim" if loss is None else COLOURS[round(among.heat(loss) * (len(COLOURS) - 1))]
        line.append(visible(text), colour)
    return line


def _json(found: "Replayed") -> str:
    texts = [{"title": text.title, "loss": text.loss, "tokens": text.tokens} for text in found.texts]
    table: dict[str, Any] = {
        "step": found.step,
        "begun_at": found.begun_at,
        **found.metrics,
        "diverged": found.diverged,
        "log": found.logged,
        "gradient_norms": {path: norm.tolist() for path, norm in found.norms.items()},
        "texts": texts,
    }
    return json.dumps(table, ensure_ascii=True) + "\n"
