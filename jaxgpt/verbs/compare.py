"""`jaxgpt compare`: several runs side by side, as a table and a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxgpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CompareArgs:
    """Show what differs between the settings of several runs, and what each has reached.

    The table goes to stdout, in Markdown.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN...")]
    """The run directories."""
    out: Path | None = None
    """A PNG, SVG or PDF file into which the losses of all runs are drawn."""


def run(args: CompareArgs) -> None:
    """Write the table, and the picture if one is asked for."""
    from jaxgpt.display import note
    from jaxgpt.evaluation.compare import check_picture, comparison, draw, read_runs

    if len(args.runs) < 2:
        raise ConfigError(
            f"{len(args.runs)} runs",
            why="there is nothing to compare",
            fix="name two or more run directories",
        )
    if args.out:
        check_picture(args.out)
    runs = read_runs(args.runs)
    if args.out:
        draw(runs, args.out)
        note(f"{args.out}: the losses of {len(runs)} runs")
    print(comparison(runs))
