"""`jaxgpt plan`: what training by a recipe needs on a slice of chips, before anybody pays for them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PlanArgs:
    """What is planned for, and where the figures go."""

    topology: str
    """The slice: chips and how many lie in each direction, such as v5e:2x4 or v5p:2x2x1.
    cpu:8 are eight devices of this CPU; for them there is no time, only what a device needs and sends."""
    price_per_chip_hour: float | None = None
    """Price of a chip for an hour, in any currency. With it the plan says what training costs."""
    json: Path | None = None
    """Write the figures to this file too."""


def run(asked: tuple[TrainConfig, PlanArgs]) -> None:
    """Compile the recipe's step for the slice, print the plan to stdout and write it to the file of --json.

    Raises ConfigError where a chip has too little memory, after the plan was printed.
    """
    from rich.console import Console
    from rich.table import Table

    from jaxgpt.config.checks import require
    from jaxgpt.display import waiting
    from jaxgpt.errors import ConfigError
    from jaxgpt.training.plan import plan
    from jaxgpt.training.topology import Topology
    from jaxgpt.verbs.flags import check_output

    recipe, args = asked
    topology, price = Topology.named(args.topology), args.price_per_chip_hour
    fix = "give the price of a chip for an hour"
    require(price is None or price > 0, "price_per_chip_hour", price, "greater than 0", fix=fix)
    check_output("--json", args.json)
    with waiting(f"compiling the training step for {topology}"):
        figures = plan(recipe, topology, price=price)
    table = Table(show_header=False, box=None)
    for row in rows(figures):
        table.add_row(*row)
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if figures["memory"]["fits"] is False:
        raise ConfigError(
            f"the recipe does not fit on {topology}",
            why=f"a chip lacks {_bytes(figures['memory']['missing'])}",
            fix="lower --batch and raise --accumulate, give --backward-keeps products (or nothing) or "
            "--loss-chunk 128, split the state with --mesh.fsdp, or take more or larger chips",
        )


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The plan as a person reads it: names and texts."""
    from jaxgpt.display import duration

    memory, seconds = figures["memory"], figures["seconds"]
    axes = " ".join(f"{name}={size}" for name, size in figures["mesh"].items())
    found = [
        ("slice", f"{figures['topology']}: {figures['chips']} x {figures['device_kind']} ({axes})"),
        ("model", f"{figures['parameters']:,} parameters"),
        ("training", f"{figures['steps']:,} steps of {figures['tokens_per_step']:,} tokens"),
        ("compiled in", f"{figures['compile_seconds']:.1f} s"),
        ("memory of a chip", _shown_memory(memory)),
        *((f"  {name}", _bytes(memory[name])) for name in memory if name in PARTS),
        *(
            (
                f"{each['kind']} over {each['axes']}",
                f"{each['number']:,} a step, in which a chip sends {_bytes(each['sent'])}",
            )
            for each in figures["collectives"] or ()
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
    basis = "by the compiler's estimate" if seconds["cycles"] else "at best: by the longest of these times"
    found += [
        ("a step", f"{figures['step_seconds'] * 1e3:,.4g} ms, {basis}"),
        ("speed", f"{figures['tokens_per_second']:,.0f} tokens a second"),
        ("utilisation", f"{figures['utilisation']:.1%}" if figures["utilisation"] else "unknown"),
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
    "cycles": "  time, by the compiler's cycles",
}


def _shown_memory(memory: dict[str, Any]) -> str:
    needs = f"{_bytes(memory['total'])} by the compiler's account"
    if memory["fits"] is None:
        return needs
    verdict = "it fits" if memory["fits"] else f"it does NOT fit: {_bytes(memory['missing'])} are missing"
    return f"{needs}, of {_bytes(memory['limit'])}: {verdict}"


def _bytes(size: float) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size:,.0f} bytes"
