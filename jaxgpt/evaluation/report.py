"""report.md: what a run trained, how its loss fell, what it wrote and how fast it was.

The same run always gives the same report.

A report uses these entries of the rows of metrics.jsonl, if they exist: `loss`, `val_loss`, `sample` (a
text), `tokens_per_second`, `unigram_loss` and `bigram_loss` (nats per token on the validation split; the
latest ones count), and what `device_facts` says of the devices. A row about devices begins a stage. The
speeds after it, up to the next such row, were reached on these devices.
"""

import re
import statistics
from pathlib import Path

from jaxgpt.config import ClassifyConfig, GPTConfig, RunConfig, read_config
from jaxgpt.display import duration
from jaxgpt.evaluation.class_report import class_parts
from jaxgpt.evaluation.markdown import table
from jaxgpt.text.tokenizer import TOKENIZER_FILE
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.devices import Devices, Rows, stages
from jaxgpt.training.flops import count_parameters, peak_flops, train_flops_per_token, utilisation
from jaxgpt.training.metrics import METRICS_FILE, latest, read_rows, series
from jaxgpt.training.starts import Starts, read_starts

REPORT_FILE = "report.md"
CURVE_FILE = "loss.png"
BASELINES = {"unigram_loss": "unigram model", "bigram_loss": "bigram model"}
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}


def write_report(run_dir: Path) -> Path:
    """Write report.md and, where matplotlib is installed, loss.png from a run's settings and log.

    Returns the path of report.md. A run without rows gets a report that says so. Raises MissingError when
    `run_dir` has no config.json, and DataError when config.json or the metrics are damaged.
    """
    config, rows = read_config(run_dir), read_rows(run_dir / METRICS_FILE)
    parts = [
        f"# {run_dir.resolve().name}",
        _trained(config, rows, run_dir),
        "## Loss",
        _curve(rows, run_dir / CURVE_FILE, config.unit),
        _val_table(rows, config.unit),
        _preferences(rows),
        *(class_parts(rows, config.labels, run_dir) if isinstance(config, ClassifyConfig) else _texts(rows)),
        "## Speed",
        _speed(config, rows),
    ]
    path = run_dir / REPORT_FILE
    # A sample may contain half of a surrogate pair, which UTF-8 cannot encode.
    path.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8", errors="backslashreplace")
    return path


def refresh_report(folder: Path) -> None:
    """Write report.md where it is missing or older than the log.

    A finished run therefore stays as it is when it is asked for again.
    """
    report, log = folder / REPORT_FILE, folder / METRICS_FILE
    if not report.is_file() or report.stat().st_mtime_ns < log.stat().st_mtime_ns:
        write_report(folder)


def _trained(config: RunConfig, rows: Rows, run_dir: Path) -> str:
    model, steps, tokenizer = config.model, rows[-1]["step"] if rows else 0, run_dir / TOKENIZER_FILE
    name = load_tokenizer(tokenizer).name if tokenizer.is_file() else "of an unknown tokenizer"
    lines = [
        ("parameters", f"{count_parameters(model):,}"),
        (
            "architecture",
            f"{model.layers} layers, {model.heads} heads, width {model.width}, {model.position} positions",
        ),
        ("context", f"{model.context} tokens"),
        ("vocabulary", f"{model.vocab:,} tokens ({name})"),
        ("data", config.data.path),
        ("steps", f"{steps:,} of {config.steps:,}"),
        (config.seen, f"{steps * config.seen_per_step:,} ({config.seen_per_step:,} a step)"),
        ("batch", f"{config.sequences:,} sequences ({config.batch} x {config.accumulate})"),
        ("learning rate", f"{config.optim.learning_rate:g} at most, {config.optim.schedule}"),
        ("seed", f"{config.seed}"),
        ("arithmetic", model.compute_dtype),
        ("devices", _hardware(stages(rows))),
        *_started(read_starts(run_dir)),
    ]
    return table(("", "what was trained"), lines)


def _started(starts: Starts) -> list[tuple[str, str]]:
    """How long the run took by the clock, and the commands that made it: those that differ, in order."""
    if not starts.commands:
        return []
    killed = f", without {starts.killed} of {len(starts.commands)} starts, which were killed"
    took = duration(starts.seconds) + (killed if starts.killed else "")
    commands = [f"`{line.replace('|', chr(92) + '|')}`" for line in dict.fromkeys(starts.commands)]
    return [("wall time", took), ("command", ", then ".join(commands))]


def _hardware(stages: list[tuple[Devices, Rows]]) -> str:
    """The devices in the order of their use. All but the last have the step up to which they were used."""
    if not stages:
        return "not recorded"
    before = [f"{devices} up to step {rows[-1]['step']:,}" for devices, rows in stages[:-1]]
    return ", then ".join([*before, str(stages[-1][0])])


def _curve(rows: Rows, path: Path, unit: str) -> str:
    """Draw the losses over the steps. Returns the line of the report that shows the picture."""
    train, val = series(rows, "loss"), series(rows, "val_loss")
    if not train and not val:
        return "No loss was recorded."
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "The curve was not drawn: matplotlib is not installed (`pip install 'jaxgpt[plots]'`)."
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel=f"loss (nats per {unit})")
    for points, style, label in ((train, "-", "training"), (val, "o-", "validation")):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3)
    for color, (key, label) in zip(("0.4", "0.7"), BASELINES.items(), strict=True):
        if (loss := latest(rows, key)) is not None:
            axes.axhline(loss, color=color, linestyle="--", linewidth=1, label=label)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return f"![training and validation loss over the steps]({path.name})"


def _val_table(rows: Rows, unit: str) -> str:
    measured = series(rows, "val_loss")
    if not measured:
        return "No validation loss was recorded."
    best = min(measured, key=lambda pair: pair[1])
    lines = [(f"{step:,}", f"{loss:.4f}", "best" if (step, loss) == best else "") for step, loss in measured]
    reached = [(label, latest(rows, key)) for key, label in BASELINES.items()]
    baselines = ", ".join(f"a {label} {loss:.4f}" for label, loss in reached if loss is not None)
    shown = table(("step", "validation loss", ""), lines)
    return (
        f"{shown}\n\nIn nats per {unit}. To compare: {baselines}."
        if baselines
        else f"{shown}\n\nIn nats per {unit}."
    )


def _preferences(rows: Rows) -> str:
    """How well chosen and rejected answers were told apart; nothing where there were none."""
    lines = [
        (
            f"{row['step']:,}",
            f"{row['val_accuracy']:.1%}",
            *(f"{row[f'val_{name}']:.4f}" for name in ("margin", "chosen_reward", "rejected_reward")),
        )
        for row in rows
        if "val_margin" in row
    ]
    if not lines:
        return ""
    shown = table(("step", "accuracy", "margin", "reward of chosen", "reward of rejected"), lines)
    told = (
        "Of the validation pairs. A reward is beta times the change of an answer's log-probability since "
        "step 0. The margin is the reward of the chosen answer minus that of the rejected one, and the "
        "accuracy is the share of pairs whose margin is above 0."
    )
    return f"## Preferences\n\n{shown}\n\n{told}"


def _texts(rows: Rows) -> list[str]:
    return ["## Samples", _samples(rows)]


def _samples(rows: Rows) -> str:
    samples = series(rows, "sample")
    if not samples:
        return "No sample was recorded."
    chosen = sorted({0, len(samples) // 2, len(samples) - 1})
    return "\n\n".join(f"After {samples[k][0]:,} steps:\n\n{_fenced(samples[k][1])}" for k in chosen)


def _fenced(text: str) -> str:
    """The text in a fence longer than any run of backticks in it, so that the text cannot end the fence.

    Control characters become their pictures (U+2400 and up), since a NUL would make the report a binary file.
    """
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}text\n{text.translate(CONTROL_PICTURES)}\n{fence}"


def _speed(config: RunConfig, rows: Rows) -> str:
    by_devices: dict[Devices, Rows] = {}
    for devices, of_stage in stages(rows):
        by_devices.setdefault(devices, []).extend(of_stage)
    told = []
    for devices, theirs in by_devices.items():
        if speeds := [speed for _, speed in series(theirs, "tokens_per_second")]:
            speed, count = statistics.median(speeds), len(speeds)
            told.append(f"On {devices}: {speed:,.0f} tokens a second (median of {count} measurements).")
            told.append(_mfu(config.model, devices, speed, latest(theirs, "matmul_flops")))
    if not told:
        return "No speed was recorded."
    told.append(
        f"A token takes {train_flops_per_token(config.model):.4g} FLOPs: 6 x parameters + 12 x layers x "
        "width x context (PaLM, appendix B). The parameters include the output head, but not the look-ups. "
        "Causal masking does not lower the count."
    )
    return "\n\n".join(told)


def _mfu(model: GPTConfig, devices: Devices, speed: float, measured: float | None) -> str:
    name, dtype = "Model FLOPs utilisation (MFU)", model.compute_dtype
    if devices.kind is None or devices.number is None:
        return f"{name}: unknown, because the run recorded no devices."
    peak = peak_flops(devices.kind, dtype)
    if (share := utilisation(speed, model, peak, devices.number)) is not None:
        return f"{name}: {share:.1%} of {peak:.4g} FLOP/s a device (data sheet, {dtype}, dense)."
    unknown = f"{name}: unknown, because no data sheet figure is known for {devices.kind} in {dtype}."
    if (share := utilisation(speed, model, measured, devices.number)) is None:
        return unknown
    reached = f"{measured:.4g} FLOP/s a device that a matrix product reached"
    return f"{unknown} It is {share:.1%} of the {reached}."
