"""A plan, and a search for one, as a person reads them: names and texts."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jaxgpt.display import duration

if TYPE_CHECKING:
    from jaxgpt.training.plan_search import Trial


def show(rows: Iterable[tuple[str, ...]], columns: Iterable[str] = ()) -> None:
    """Print a table to stdout, with the names of its columns where they have any."""
    columns = list(columns)
    table = Table(*columns, show_header=bool(columns), box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The plan as a person reads it: names and texts."""
    memory, seconds = figures["memory"], figures["seconds"]
    on_paper = figures.get("on_paper", False)
    made = "on paper", "nothing was compiled: every figure is the least that is needed"
    if not on_paper:
        before = ", by an earlier plan" if figures["from_cache"] else ""
        made = "compiled in", f"{figures['compile_seconds']:.1f} s{before}"
    axes = " ".join(f"{name}={size}" for name, size in figures["mesh"].items())
    found = [
        ("slice", f"{figures['topology']}: {figures['chips']} x {figures['device_kind']} ({axes})"),
        ("model", f"{figures['parameters']:,} parameters"),
        ("training", f"{figures['steps']:,} steps of {figures['tokens_per_step']:,} tokens"),
        made,
        ("memory of a chip", _shown_memory(memory, on_paper=on_paper)),
        *((f"  {name}", _shown_part(memory, name)) for name in memory if name in PARTS),
        *(
            (
                f"{each['kind']} over {each['axes']}",
                f"{each['number']:,} a step, in which a chip sends {shown_bytes(each['sent'])}",
            )
            for each in figures["collectives"] or ()
        ),
        *(
            [("attention's kernels", f"{figures['kernels']:,} calls a step, not in the compiler's cycles")]
            if figures["kernels"]
            else []
        ),
        ("arithmetic", f"{figures['flops_per_chip'] / 1e12:,.4g} TFLOP a step and chip"),
        *(
            (LEAST[name], f"{bound * 1e3:,.4g} ms a step")
            for name, bound in seconds.items()
            if bound is not None
        ),
    ]
    if figures["step_seconds"] is None:
        return found
    least, most = "at best: by the longest of these times", "at most " if on_paper else ""
    basis = "by the compiler's estimate" if figures["step_seconds"] == seconds["cycles"] else least
    found += [
        ("a step", f"{figures['step_seconds'] * 1e3:,.4g} ms, {basis}"),
        ("speed", f"{most}{figures['tokens_per_second']:,.0f} tokens a second"),
        *([] if on_paper else [("utilisation", _share(figures["utilisation"]))]),
        (
            "whole training",
            f"{duration(figures['train_seconds'])}, {figures['chip_hours']:,.1f} chip hours; steps alone",
        ),
    ]
    return found + ([] if figures["cost"] is None else [("cost", f"{figures['cost']:,.2f}")])


PARTS = ("arguments", "outputs", "temporaries", "code")
LEAST = {
    "arithmetic": "  time, at the chip's peak",
    "memory": "  time to read and write memory",
    "links": "  time to send, at the peak of the links",
    "cycles": "  time, by the compiler's cycles, with attention at the peak",
}


def _share(utilisation: float | None) -> str:
    return "unknown" if utilisation is None else f"{utilisation:.1%}"


def _shown_part(memory: dict[str, Any], name: str) -> str:
    """The bytes of a part of the memory. Of temporaries not all need be there at one time."""
    shared = name == "temporaries" and sum(memory.get(part, 0) for part in PARTS) > memory["total"]
    return shown_bytes(memory[name]) + (", not all of them at one time" if shared else "")


def lacking(memory: dict[str, Any]) -> str:
    """How much memory a chip needs, has and lacks, as a sentence."""
    least = "at least " if memory["at_least"] else ""
    needs, limit, missing = (shown_bytes(memory[name]) for name in ("total", "limit", "missing"))
    return f"a chip needs {least}{needs}, it has {limit}, and {least}{missing} are missing"


def _shown_memory(memory: dict[str, Any], *, on_paper: bool) -> str:
    least = "at least " if memory["at_least"] else ""
    said = "" if on_paper else " by the compiler's account"
    needs = f"{least}{shown_bytes(memory['total'])}{said}"
    if memory["limit"] is None:
        return needs
    verdict = {True: "it fits", None: "it may fit"}.get(memory["fits"])
    lacks = f"it does NOT fit: {least}{shown_bytes(memory['missing'])} are missing"
    return f"{needs}, of {shown_bytes(memory['limit'])}: {verdict or lacks}"


def shown_bytes(size: float) -> str:
    """A number of bytes in the unit that fits it."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size:,.0f} bytes"


COLUMNS = "mesh", "batch", "keeps", "loss chunk", "a chip needs", "a step", "tokens/s"


def row_of(trial: "Trial") -> tuple[str, ...]:
    """A row of the table of a search."""
    setting, figures = trial.setting, trial.figures
    how = (
        " x ".join(map(str, setting.mesh)),
        f"{setting.batch} x {setting.accumulate}",
        setting.keeps,
        str(setting.chunk or "all"),
    )
    if "error" in figures:
        return *how, "not compiled", "", ""
    memory, seconds = figures["memory"], figures["step_seconds"]
    least = "at least " if memory["at_least"] else ""
    lacks = f", lacks {least}{shown_bytes(memory['missing'])}" if trial.lacks_memory else ""
    speed = (
        ("", "") if seconds is None else (f"{seconds * 1e3:,.1f} ms", f"{figures['tokens_per_second']:,.0f}")
    )
    return *how, shown_bytes(memory["total"]) + lacks, *speed
