"""report.md: what a run trained, how its loss fell, what it wrote and how fast it was. One run always gives one report.

Beside `loss` and `val_loss`, a report uses what rows of metrics.jsonl hold of: `sample` (text), `tokens_per_second`,
`devices` (how many), `device_kind` (jax's name for them), `matmul_flops` (measured, FLOP/s of one device),
`unigram_loss` and `bigram_loss` (nats per token on the validation split). Of each of the last five the latest counts.
"""

import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxgpt.config import TrainConfig, read_config
from jaxgpt.training.flops import count_parameters, peak_flops, train_flops_per_token, utilisation
from jaxgpt.training.metrics import METRICS_FILE, read_rows

REPORT_FILE = "report.md"
CURVE_FILE = "loss.png"
BASELINES = {"unigram_loss": "unigram model", "bigram_loss": "bigram model"}
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}

Rows = list[dict[str, Any]]


def write_report(run_dir: Path) -> Path:
    """Write report.md, and loss.png where matplotlib is installed, from config.json and metrics.jsonl of a run.

    Returns the path of report.md. Raises MissingError when `run_dir` has no config.json, DataError when that or the
    metrics are damaged. A run without rows gets a report that says so.
    """
    config, rows = read_config(run_dir), read_rows(run_dir / METRICS_FILE)
    parts = [
        f"# {run_dir.resolve().name}",
        _trained(config, rows),
        "## Loss",
        _curve(rows, run_dir / CURVE_FILE),
        _val_table(rows),
        "## Samples",
        _samples(rows),
        "## Speed",
        _speed(config, rows),
    ]
    path = run_dir / REPORT_FILE
    # A sample may hold half of a surrogate pair, which no encoding has room for.
    path.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8", errors="backslashreplace")
    return path


def _latest(rows: Rows, key: str) -> Any:
    return next((row[key] for row in reversed(rows) if key in row), None)


def _series(rows: Rows, key: str) -> list[tuple[int, Any]]:
    return [(row["step"], row[key]) for row in rows if key in row]


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in [head, ["---"] * len(head), *lines])
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def _trained(config: TrainConfig, rows: Rows) -> str:
    model, steps = config.model, rows[-1]["step"] if rows else 0
    devices, kind = _latest(rows, "devices"), _latest(rows, "device_kind")
    hardware = f"{devices or '?'} x {kind or 'unknown'}" if devices or kind else "not recorded"
    lines = [
        ("parameters", f"{count_parameters(model):,}"),
        (
            "architecture",
            f"{model.layers} layers, {model.heads} heads, width {model.width}, {model.position} positions",
        ),
        ("context", f"{model.context} tokens"),
        ("vocabulary", f"{model.vocab:,} tokens ({config.data.tokenizer})"),
        ("data", config.data.path),
        ("steps", f"{steps:,} of {config.steps:,}"),
        ("tokens", f"{steps * config.tokens_per_step:,} ({config.tokens_per_step:,} a step)"),
        ("arithmetic", model.compute_dtype),
        ("devices", hardware),
    ]
    return _table(("", "what was trained"), lines)


def _curve(rows: Rows, path: Path) -> str:
    """Draw the losses over the steps; the line of the report that shows them."""
    train, val = _series(rows, "loss"), _series(rows, "val_loss")
    if not train and not val:
        return "No loss was recorded."
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "The curve was not drawn: matplotlib is not installed (`pip install 'jaxgpt[plots]'`)."
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for series, style, label in ((train, "-", "training"), (val, "o-", "validation")):
        if series:
            axes.plot(*zip(*series, strict=True), style, label=label, markersize=3)
    for color, (key, label) in zip(("0.4", "0.7"), BASELINES.items(), strict=True):
        if (loss := _latest(rows, key)) is not None:
            axes.axhline(loss, color=color, linestyle="--", linewidth=1, label=label)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return f"![training and validation loss over the steps]({path.name})"


def _val_table(rows: Rows) -> str:
    series = _series(rows, "val_loss")
    if not series:
        return "No validation loss was recorded."
    best = min(series, key=lambda pair: pair[1])
    lines = [(f"{step:,}", f"{loss:.4f}", "best" if (step, loss) == best else "") for step, loss in series]
    reached = [(label, _latest(rows, key)) for key, label in BASELINES.items()]
    baselines = ", ".join(f"a {label} {loss:.4f}" for label, loss in reached if loss is not None)
    table = _table(("step", "validation loss", ""), lines)
    return (
        f"{table}\n\nIn nats per token. To compare: {baselines}."
        if baselines
        else f"{table}\n\nIn nats per token."
    )


def _samples(rows: Rows) -> str:
    series = _series(rows, "sample")
    if not series:
        return "No sample was recorded."
    chosen = sorted({0, len(series) // 2, len(series) - 1})
    return "\n\n".join(f"After {series[k][0]:,} steps:\n\n{_fenced(series[k][1])}" for k in chosen)


def _fenced(text: str) -> str:
    """The text in a fence longer than any run of backticks in it, so that it cannot end its own fence.

    Control characters are shown by their pictures (U+2400 and up): a NUL would make the report a binary file.
    """
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}text\n{text.translate(CONTROL_PICTURES)}\n{fence}"


def _speed(config: TrainConfig, rows: Rows) -> str:
    speeds = [speed for _, speed in _series(rows, "tokens_per_second")]
    if not speeds:
        return "No speed was recorded."
    speed = statistics.median(speeds)
    per_token = train_flops_per_token(config.model)
    return "\n\n".join(
        [
            f"{speed:,.0f} tokens a second (median of {len(speeds)} measurements).",
            _mfu(config, rows, speed),
            f"A token takes {per_token:.4g} FLOPs: 6 x parameters + 12 x layers x width x context (PaLM, appendix B), "
            "with the output head and without the look-ups; causal masking is not discounted.",
        ]
    )


def _mfu(config: TrainConfig, rows: Rows, speed: float) -> str:
    kind, devices, dtype = _latest(rows, "device_kind"), _latest(rows, "devices"), config.model.compute_dtype
    if kind is None or devices is None:
        return "Model FLOPs utilisation (MFU): unknown, because the run recorded no devices."
    peak, measured = peak_flops(kind, dtype), _latest(rows, "matmul_flops")
    if (share := utilisation(speed, config.model, peak, devices)) is not None:
        return f"Model FLOPs utilisation (MFU): {share:.1%} of {peak:.4g} FLOP/s a device (data sheet, {dtype}, dense)."
    unknown = f"Model FLOPs utilisation (MFU): unknown, because no data sheet figure is known for {kind} in {dtype}."
    if (share := utilisation(speed, config.model, measured, devices)) is None:
        return unknown
    return f"{unknown} It is {share:.1%} of the {measured:.4g} FLOP/s a device that a matrix product reached here."
