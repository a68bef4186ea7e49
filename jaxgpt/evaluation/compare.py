"""Several runs side by side: what differs between their settings, what they reached, and their losses."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.config import RunConfig, flat, read_config, task_of
from jaxgpt.errors import ConfigError, unwritable
from jaxgpt.evaluation.markdown import table
from jaxgpt.evaluation.plots import curve, new_figure
from jaxgpt.log import METRICS_FILE, latest, read_rows, series
from jaxgpt.training.flops import count_parameters

NOT_SHOWN = ("out_dir",)  # it differs always
# What the table tells of a run's end, where the run has measured it.
FINAL = ("val_accuracy", "val_margin", "test_accuracy", "val_macro_f1", "test_macro_f1", "bigram_loss")
FORMATS = (".png", ".svg", ".pdf")


class Compared(NamedTuple):
    """A run: its name, its settings and its log."""

    name: str
    config: RunConfig
    rows: list[dict[str, Any]]


def read_runs(folders: Sequence[Path]) -> list[Compared]:
    """Read runs. Each is called by its folder, or by the whole path where two folders have one name.

    Raises what `read_config` and `read_rows` raise.
    """
    names = [folder.resolve().name for folder in folders]
    return [
        Compared(name if names.count(name) == 1 else str(folder), read_config(folder), rows)
        for name, folder, rows in zip(
            names, folders, [read_rows(folder / METRICS_FILE) for folder in folders], strict=True
        )
    ]


def comparison(runs: Sequence[Compared]) -> str:
    """A table in Markdown with a column for each run: the settings that differ, and what was measured."""
    lines = [*_differences(runs), *_figures(runs)]
    return table(("", *(run.name for run in runs)), lines)


def _differences(runs: Sequence[Compared]) -> list[tuple[str, ...]]:
    settings = [{"task": task_of(run.config)} | flat(run.config) for run in runs]
    names = dict.fromkeys(name for found in settings for name in found if name not in NOT_SHOWN)
    values = {name: tuple(_shown(found.get(name, "")) for found in settings) for name in names}
    return [(name, *each) for name, each in values.items() if len(set(each)) > 1]


def _figures(runs: Sequence[Compared]) -> list[tuple[str, ...]]:
    """The lines of what was measured. A line that no run has a value for is left out."""
    lines = [("parameters", *(f"{count_parameters(run.config.model):,}" for run in runs))]
    lines.append(("steps done", *(f"{run.rows[-1]['step']:,}" if run.rows else "0" for run in runs)))
    lines.append(("last loss", *(_decimals(latest(run.rows, "loss")) for run in runs)))
    best = [min(series(run.rows, "val_loss"), key=lambda pair: pair[1], default=None) for run in runs]
    lines.append(
        ("best validation loss", *(f"{pair[1]:.4f} at step {pair[0]:,}" if pair else "" for pair in best))
    )
    lines += [(name, *(_decimals(latest(run.rows, name)) for run in runs)) for name in FINAL]
    speeds = [[speed for _, speed in series(run.rows, "tokens_per_second")] for run in runs]
    lines.append(
        ("tokens a second, median", *(f"{statistics.median(each):,.0f}" if each else "" for each in speeds))
    )
    return [line for line in lines if any(line[1:])]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def check_picture(path: Path) -> None:
    """Raise ConfigError where a picture cannot be drawn into this file."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"--out {path}", why=f"a picture ends in {', '.join(FORMATS)}", fix="name such a file"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"--out {path}",
            why="matplotlib, which draws, is not installed",
            fix="pip install 'jaxgpt[plots]'",
        ) from None


def draw(runs: Sequence[Compared], path: Path) -> None:
    """Draw the losses of all runs over their steps into a PNG, SVG or PDF file.

    Raises ConfigError where runs have losses of different units, and StorageError.
    """
    units = {run.config.unit for run in runs}
    if len(units) > 1:
        raise ConfigError(
            "runs of different tasks",
            why=f"their losses are {' and '.join(f'nats per {unit}' for unit in sorted(units))}",
            fix="leave out --out, or compare runs of one task",
        )
    figure = new_figure(8, 4.5)
    assert figure is not None, "check_picture comes before"
    axes = figure.add_subplot(ylabel=f"loss (nats per {units.pop()})")
    for number, run in enumerate(runs):
        curve(axes, run.rows, "loss", color=f"C{number}", alpha=0.35, linewidth=1)
        curve(axes, run.rows, "val_loss", "o-", color=f"C{number}", markersize=3)
        axes.plot([], [], color=f"C{number}", label=run.name)
    axes.set_title("validation losses (dots) and training losses (pale)", fontsize=10)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise unwritable(path, error, "cannot write the picture") from error
