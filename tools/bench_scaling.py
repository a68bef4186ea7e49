#!/usr/bin/env python3
"""What a chip sends in a training step on 8 to 256 TPU chips, against the theory of a ring.

    python tools/bench_scaling.py --measure      # compiles, into docs/scaling.csv: half an hour or more
    python tools/bench_scaling.py                # draws docs/scaling.svg from that file

Each chip has the same number of sequences, however many chips there are (weak scaling). Nothing is run: the
collectives are those of the programs that the TPUs' compiler makes (extra `plan`). The theory is that of
`training.paper`. The model is GPT-2 124M with a vocabulary of 1,024 and scanned blocks, which compiles
sooner. Points that the file has already are not compiled again.
"""

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

DOCS = Path(__file__).parent.parent / "docs"
TABLE = DOCS / "scaling.csv"
SLICES = "v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16"
ON_A_CHIP = 8  # sequences of 1,024
TENSOR = 4  # chips that share a product; the others have other sequences
MIB = 2**20


@dataclass(frozen=True)
class Args:
    """Draw the figure, or compile what it shows."""

    measure: bool = False
    """Compile the points that the table lacks."""
    slices: tuple[str, ...] = SLICES
    """Slices to measure."""


def recipe_of(axis: str, chips: int) -> Any:
    """The recipe of a point: whole copies, shards, or products that four chips share."""
    from jaxgpt.config import MeshConfig, TrainConfig, load_recipe

    recipe = load_recipe("gpt2", {"model.vocab": 1024, "accumulate": 1, "loss_chunk": 0})
    assert isinstance(recipe, TrainConfig)
    sizes = {"data": (chips, 1, 1), "fsdp": (1, chips, 1), "tensor": (chips // TENSOR, 1, TENSOR)}
    data, fsdp, tensor = sizes[axis]
    mesh = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    batch = ON_A_CHIP * data * fsdp
    return dataclasses.replace(recipe, mesh=mesh, batch=batch, backward_keeps="products", blocks="scan")


def sent_along(collectives: list[dict[str, Any]], axis: str) -> float:
    """MiB that a chip sends along an axis of the mesh."""
    return float(sum(each["sent"] for each in collectives if each["axes"] == axis)) / MIB


def point(axis: str, name: str) -> dict[str, Any]:
    """A row of the table: what a chip sends along this axis, compiled and in theory."""
    from jaxgpt.training.paper import on_paper
    from jaxgpt.training.plan import compiled_elsewhere
    from jaxgpt.training.topology import Topology

    topology = Topology.named(name)
    recipe = recipe_of(axis, topology.size)
    found = compiled_elsewhere(recipe, topology)
    return {
        "axis": axis,
        "slice": name,
        "chips": topology.size,
        "sent_mib": round(sent_along(found["collectives"], axis), 1),
        "theory_mib": round(sent_along(on_paper(recipe, topology)["collectives"], axis), 1),
    }


def measure(slices: tuple[str, ...]) -> None:
    """Compile the points that the table lacks, and write each to it."""
    rows = read()
    known = {(row["axis"], row["slice"]) for row in rows}
    for name in slices:
        for axis in ("data", "fsdp", "tensor"):
            if (axis, name) not in known:
                rows.append(point(axis, name))
                print(rows[-1], flush=True)
                with TABLE.open("w", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, rows[-1], lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)


def read() -> list[dict[str, Any]]:
    """The rows of the table."""
    if not TABLE.is_file():
        return []
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw(rows: list[dict[str, Any]]) -> None:
    """The figure: what is compiled as points, the theory as lines."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "jaxgpt"  # the same names inside whenever it is drawn
    import matplotlib.pyplot as plt

    said = {
        "data": "data: 2 x parameters",
        "fsdp": "fsdp: 3 x parameters",
        "tensor": f"tensor ({TENSOR} chips): activations",
    }
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for number, (axis, label) in enumerate(said.items()):
        of_axis = sorted((row for row in rows if row["axis"] == axis), key=lambda row: int(row["chips"]))
        chips = [int(row["chips"]) for row in of_axis]
        axes.plot(chips, [float(row["theory_mib"]) for row in of_axis], "-", color=f"C{number}", label=label)
        axes.plot(chips, [float(row["sent_mib"]) for row in of_axis], "o", color=f"C{number}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({int(row["chips"]) for row in rows}), minor=False)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(0)
    axes.set_xlabel("TPU v5e chips, 8 sequences of 1,024 each")
    axes.set_ylabel("MiB that a chip sends in a step")
    figure.legend(title="lines: theory; points: compiled", loc="outside upper center", ncols=3)
    figure.savefig(DOCS / "scaling.svg", metadata={"Date": None})


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.measure:
        measure(args.slices)
    draw(read())


if __name__ == "__main__":
    main()
