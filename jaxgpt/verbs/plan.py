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
    cpu:8 are eight devices of this CPU; for them there is no time, only what a device needs and sends.
    For GPUs of one machine, such as h100:8, nothing is compiled: that plan is an estimate on paper."""
    search: bool = False
    """Look for the fastest setting that fits: micro-batch, mesh, --backward-keeps and --loss-chunk.
    A step keeps its number of sequences. Each setting is compiled, which takes its time."""
    write: Path | None = None
    """Write the recipe with the best setting of a search to this TOML file."""
    price_per_chip_hour: float | None = None
    """Price of a chip for an hour, in any currency. With it the plan says what training costs."""
    json: Path | None = None
    """Write the figures to this file too."""
    cache: bool = True
    """Keep what was compiled in the cache folder, and do not compile the same again."""


def run(asked: tuple[TrainConfig, PlanArgs]) -> None:
    """Compile the recipe's step for the slice, print the plan to stdout and write it to the file of --json.

    With --search, do so for several settings, and print the plan of the best one below them. Raises
    ConfigError where a chip has too little memory, after the plan was printed.
    """
    from jaxgpt.config import recipe_text
    from jaxgpt.config.checks import require
    from jaxgpt.display import waiting
    from jaxgpt.errors import ConfigError
    from jaxgpt.files import write_atomically
    from jaxgpt.training.plan import plan
    from jaxgpt.training.topology import Topology
    from jaxgpt.verbs.flags import check_output
    from jaxgpt.verbs.plan_table import lacking, rows, show

    recipe, args = asked
    topology, price = Topology.named(args.topology), args.price_per_chip_hour
    fix = "give the price of a chip for an hour"
    require(price is None or price > 0, "price_per_chip_hour", price, "greater than 0", fix=fix)
    if args.write and not args.search:
        why = "without a search there is no other recipe to write"
        raise ConfigError(f"--write {args.write}", why=why, fix="give --search, or leave --write out")
    check_output("--json", args.json)
    check_output("--write", args.write)

    def measure(recipe: TrainConfig, what: str = "the training step") -> dict[str, Any]:
        doing = "reckoning" if topology.on_paper else "compiling"
        with waiting(f"{doing} {what} for {topology}"):
            return plan(recipe, topology, price=price, cache=args.cache)

    fix = SMALLER
    if args.search and topology.on_paper:
        why = "nothing here compiles for GPUs, and on paper the settings are all equally fast"
        fix = "plan for single settings, or search for a TPU slice"
        raise ConfigError(f"--search for {topology}", why=why, fix=fix)
    if args.search:
        from jaxgpt.verbs.plan_search import FEWER, searched

        best, written = searched(recipe, topology, measure)
        recipe, figures, fix = best.setting.applied(recipe), best.figures, FEWER
    else:
        figures = written = measure(recipe)
    show(rows(figures))
    if args.json:
        args.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    if figures["memory"]["fits"] is False:
        raise ConfigError(f"the recipe does not fit on {topology}", why=lacking(figures["memory"]), fix=fix)
    if args.write:
        found = f"The fastest setting for {topology} that `jaxgpt plan --search` found."
        write_atomically(args.write, recipe_text(recipe, found).encode())


SMALLER = (
    "lower --batch and raise --accumulate, give --backward-keeps products (or nothing) or --loss-chunk 128, "
    "split the state with --mesh.fsdp, or take more or larger chips; --search looks for the fastest that fits"
)
