"""The report of a run: what it trained, how its loss fell, what it wrote and how fast it was.

It is written twice, as report.md and as the page report.html. The same run always gives the same report.

A report uses these entries of the rows of metrics.jsonl, if they exist: `loss`, `val_loss`, `sample` (a
text), `tokens_per_second`, `unigram_loss` and `bigram_loss` (nats per token on the validation split; the
latest ones count), `trained_parameters`, the figures of tasks, and what `device_facts` says of the devices. A
row about devices begins a stage. The speeds after it, up to the next such row, were reached on these devices.
"""

import statistics
from pathlib import Path
from typing import Any

from jaxgpt.config import ClassifyConfig, FinetuneConfig, GPTConfig, RunConfig, flat, read_config
from jaxgpt.display import duration
from jaxgpt.evaluation.class_report import class_parts
from jaxgpt.evaluation.document import Heading, Paragraph, Part, Picture, Table, Verbatim
from jaxgpt.evaluation.markdown import markdown
from jaxgpt.evaluation.page import page
from jaxgpt.evaluation.plots import loss_curves, new_figure
from jaxgpt.files import write_atomically
from jaxgpt.log import DIVERGED, METRICS_FILE, TRAINED, Best, latest, read_rows, series
from jaxgpt.text.tokenizer_files import load_tokenizer, tokenizer_in
from jaxgpt.training.devices import Devices, Rows, stages
from jaxgpt.training.flops import count_parameters, peak_flops, train_flops_per_token, utilisation
from jaxgpt.training.starts import Starts, read_starts
from jaxgpt.weights.checkpoint import CHECKPOINTS, finished_steps

REPORT_FILE = "report.md"
PAGE_FILE = "report.html"
CURVE_FILE = "loss.png"
BASELINES = {"unigram_loss": "unigram model", "bigram_loss": "bigram model"}


def write_report(run_dir: Path) -> Path:
    """Write report.md and report.html from a run's settings and log, and draw where matplotlib is installed.

    Returns the path of report.md. A run without rows gets a report that says so. Raises MissingError when
    `run_dir` has no config.json, and DataError when config.json or the metrics are damaged.
    """
    title, parts = run_dir.resolve().name, report_parts(run_dir)
    for name, text in ((PAGE_FILE, page(title, parts)), (REPORT_FILE, markdown(title, parts))):
        # A sample may contain half of a surrogate pair, which UTF-8 cannot encode.
        write_atomically(run_dir / name, text.encode(errors="backslashreplace"))
    return run_dir / REPORT_FILE


def refresh_report(folder: Path) -> None:
    """Write the report where it is missing or older than the log.

    A finished run therefore stays as it is when it is asked for again.
    """
    files, log = [folder / REPORT_FILE, folder / PAGE_FILE], folder / METRICS_FILE
    if not all(file.is_file() and file.stat().st_mtime_ns >= log.stat().st_mtime_ns for file in files):
        write_report(folder)


def report_parts(run_dir: Path) -> list[Part]:
    """What the report of a run says. The pictures are drawn into its directory."""
    config, rows = read_config(run_dir), read_rows(run_dir / METRICS_FILE)
    return [
        _trained(config, rows, run_dir),
        Heading("Loss"),
        _curve(rows, run_dir / CURVE_FILE, config.unit),
        *_val_losses(rows, config.unit),
        *_best(config, rows, run_dir),
        *_preferences(rows),
        *_tasks(rows),
        *(
            class_parts(rows, config.labels, run_dir)
            if isinstance(config, ClassifyConfig)
            else _samples(rows)
        ),
        Heading("Speed"),
        *_speed(config, rows),
        Heading("Settings that differ from the defaults"),
        _settings(config),
    ]


def _trained(config: RunConfig, rows: Rows, run_dir: Path) -> Table:
    model, steps = config.model, rows[-1]["step"] if rows else 0
    name = load_tokenizer(run_dir).name if tokenizer_in(run_dir) else "of an unknown tokenizer"
    trained = latest(rows, TRAINED)
    diverged = [f"{step:,}" for step, _ in series(rows, DIVERGED)]
    adapts = isinstance(config, FinetuneConfig) and config.adapts
    lines = [
        ("parameters", f"{count_parameters(model):,}" + (", without the adapters" if adapts else "")),
        *([] if trained is None else [("parameters that train", f"{trained:,}")]),
        (
            "architecture",
            f"{model.layers} layers, {model.heads} heads, width {model.width}, {model.position} positions",
        ),
        ("context", f"{model.context} tokens"),
        ("vocabulary", f"{model.vocab:,} tokens ({name})"),
        ("data", config.data.path),
        ("steps", f"{steps:,} of {config.steps:,}"),
        *([("skipped steps", config.skip_steps)] if config.skip_steps else []),
        *([("steps that diverged", f"{', '.join(diverged)}, without an update")] if diverged else []),
        (config.seen, f"{steps * config.seen_per_step:,} ({config.seen_per_step:,} a step)"),
        ("batch", f"{config.sequences:,} sequences ({config.batch} x {config.accumulate})"),
        ("learning rate", f"{config.optim.learning_rate:g} at most, {config.optim.schedule}"),
        ("seed", f"{config.seed}"),
        ("arithmetic", model.compute_dtype),
        ("devices", _hardware(stages(rows))),
        *_started(read_starts(run_dir)),
    ]
    return Table(("", "what was trained"), lines)


def _started(starts: Starts) -> list[tuple[str, str]]:
    """How long the run took by the clock, and the commands and versions that made it: each once, in order."""
    if not starts.commands:
        return []
    killed = f", without {starts.killed} of {len(starts.commands)} starts, which were killed"
    took = duration(starts.seconds) + (killed if starts.killed else "")
    commands = ", then ".join(f"`{line}`" for line in dict.fromkeys(starts.commands))
    versions = ", then ".join(dict.fromkeys(starts.environments))
    lines = [("wall time", took), ("command", commands), ("environment", versions)]
    return [line for line in lines if line[1]]


def _hardware(stages: list[tuple[Devices, Rows]]) -> str:
    """The devices in the order of their use. All but the last have the step up to which they were used."""
    if not stages:
        return "not recorded"
    before = [f"{devices} up to step {rows[-1]['step']:,}" for devices, rows in stages[:-1]]
    return ", then ".join([*before, str(stages[-1][0])])


def _settings(config: RunConfig) -> Part:
    """The settings by their dotted names."""
    kind: Any = type(config)
    usual = flat(kind())
    lines = [(name, f"`{value}`") for name, value in flat(config).items() if value != usual[name]]
    return Table(("setting", "value"), lines) if lines else Paragraph("There are none.")


def _curve(rows: Rows, path: Path, unit: str) -> Part:
    """Draw the losses over the steps. Returns the picture, or why there is none."""
    if not series(rows, "loss") and not series(rows, "val_loss"):
        return Paragraph("No loss was recorded.")
    if (figure := new_figure(8, 4.5)) is None:
        return Paragraph(
            "The curve was not drawn: matplotlib is not installed (`pip install 'jaxgpt[plots]'`)."
        )
    axes = figure.add_subplot()
    loss_curves(axes, rows, unit=unit)
    for color, (key, label) in zip(("0.4", "0.7"), BASELINES.items(), strict=True):
        if (loss := latest(rows, key)) is not None:
            axes.axhline(loss, color=color, linestyle="--", linewidth=1, label=label)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return Picture(path, "training and validation loss over the steps")


def _val_losses(rows: Rows, unit: str) -> list[Part]:
    measured = series(rows, "val_loss")
    if not measured:
        return [Paragraph("No validation loss was recorded.")]
    best = min(measured, key=lambda pair: pair[1])
    lines = [(f"{step:,}", f"{loss:.4f}", "best" if (step, loss) == best else "") for step, loss in measured]
    reached = [(label, latest(rows, key)) for key, label in BASELINES.items()]
    baselines = ", ".join(f"a {label} {loss:.4f}" for label, loss in reached if loss is not None)
    compared = f" To compare: {baselines}." if baselines else ""
    return [Table(("step", "validation loss", ""), lines), Paragraph(f"In nats per {unit}.{compared}")]


def _preferences(rows: Rows) -> list[Part]:
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
        return []
    told = (
        "Of the validation pairs. A reward is beta times the change of an answer's log-probability since "
        "step 0. The margin is the reward of the chosen answer minus that of the rejected one, and the "
        "accuracy is the share of pairs whose margin is above 0."
    )
    head = ("step", "accuracy", "margin", "reward of chosen", "reward of rejected")
    return [Heading("Preferences"), Table(head, lines), Paragraph(told)]


def _tasks(rows: Rows) -> list[Part]:
    """What tasks and texts measured during training; nothing where there were none."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if figures := {name: row[name] for name in row if ":" in name}:
            found.setdefault(row["step"], {}).update(figures)
    if not found:
        return []
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    lines = [
        (f"{step:,}", *(f"{figures[name]:.4f}" if name in figures else "" for name in names))
        for step, figures in found.items()
    ]
    told = "Each figure is named with its task and its protocol (docs/evaluation.md)."
    return [Heading("Tasks"), Table(("step", *names), lines), Paragraph(told)]


def _best(config: RunConfig, rows: Rows, run_dir: Path) -> list[Part]:
    """Which checkpoint is the best one, and whether the run ended early for want of a better one."""
    best = Best.of(rows, config.best_metric, config.patience)
    if best.step is None:
        return []
    kept = best.step in finished_steps(run_dir / CHECKPOINTS)
    place = f": `{run_dir.resolve().name}@best`." if kept else ", which was not kept."
    told = f"The best checkpoint is that of step {best.step:,} ({best.name} {best.value:.4f}){place}"
    if best.exhausted and rows[-1]["step"] < config.steps:
        told += (
            f" The run ended early, because {best.since} evaluations since then were not better "
            f"(`--patience {best.patience}`)."
        )
    return [Paragraph(told)]


def _samples(rows: Rows) -> list[Part]:
    samples = series(rows, "sample")
    if not samples:
        return [Heading("Samples"), Paragraph("No sample was recorded.")]
    chosen = [samples[place] for place in sorted({0, len(samples) // 2, len(samples) - 1})]
    pairs = [(Paragraph(f"After {step:,} steps:"), Verbatim(text)) for step, text in chosen]
    return [Heading("Samples"), *(part for pair in pairs for part in pair)]


def _speed(config: RunConfig, rows: Rows) -> list[Part]:
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
        return [Paragraph("No speed was recorded.")]
    told.append(
        f"A token takes {train_flops_per_token(config.model):.4g} FLOPs: 6 x parameters + 12 x layers x "
        "width x context (PaLM, appendix B). The parameters include the output head, but not the look-ups. "
        "Causal masking does not lower the count."
    )
    return [Paragraph(text) for text in told]


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
