"""What training by a recipe needs on devices that are not here. The real training step is compiled for them.

Run as a program, `python -m jaxgpt.training.plan FOLDER TOPOLOGY`, it compiles the step of the recipe whose
settings are in the folder, and writes `program.json` beside them. A compiler may end its process; in one of
its own it ends nothing else.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgpt.config import TrainConfig, read_config, save_config
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.training.flops import (
    attention_flops_per_token,
    count_parameters,
    peak_flops,
    train_flops_per_token,
)
from jaxgpt.training.paper import on_paper
from jaxgpt.training.plan_cache import keep, kept, place_of
from jaxgpt.training.topology import Topology

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

PROGRAM_FILE = "program.json"
# The settings that decide the program of a training step. It is compiled from these alone.
DECISIVE = (
    *("model", "optim", "mesh", "batch", "accumulate", "steps"),
    *("backward_keeps", "blocks", "loss_chunk"),
)
# What the TPU's compiler says of a program that is too large for the chip, and of one with an array that is.
_TOO_LARGE = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_ARRAY_TOO_LARGE = re.compile(r"Allocation \(size=(\d+)\) would exceed memory \(size=(\d+)\)")


def plan(
    recipe: TrainConfig, topology: Topology, *, price: float | None = None, cache: bool = True
) -> dict[str, Any]:
    """Everything that can be said of training by this recipe on this slice, before anybody has it.

    `price` is that of a chip for an hour, in any currency. All times are the least that are possible, but for
    those from the compiler's estimate of cycles. With `cache`, what was compiled before is not compiled
    again. GPUs are not compiled for: all figures of theirs are what is needed at least (`training.paper`).
    Raises ConfigError where the recipe does not suit the slice or where the slice cannot be compiled for.
    """
    if topology.on_paper:
        program = on_paper(recipe, topology)
    else:
        program = compiled_elsewhere(recipe, topology, cache=cache)
    tokens, chip = recipe.tokens_per_step, topology.facts
    of_a_chip = tokens / topology.size
    flops = of_a_chip * train_flops_per_token(recipe.model)
    sent = sum(collective["sent"] for collective in program["collectives"] or ())
    bounds: dict[str, float | None] = dict.fromkeys(("arithmetic", "memory", "links", "cycles"))
    if chip is not None and program["memory"]["fits"] is not False:
        peak = peak_flops(program["device_kind"], recipe.model.compute_dtype)
        bounds["arithmetic"] = None if peak is None else flops / peak
        if program["bytes_accessed"]:
            bounds["memory"] = program["bytes_accessed"] / chip.bandwidth
        bounds["links"] = sent / chip.links
        if chip.clock and program["cycles"]:
            # The cycles of kernels are not among those; what they take at least is added.
            of_kernels = of_a_chip * attention_flops_per_token(recipe.model) if program["kernels"] else 0.0
            bounds["cycles"] = program["cycles"] / chip.clock + of_kernels / (peak or math.inf)
    return (
        {"topology": str(topology), "chips": topology.size}
        | program
        | {"parameters": count_parameters(recipe.model), "steps": recipe.steps, "tokens_per_step": tokens}
        | {"flops_per_chip": flops, "sent_per_chip": sent, "seconds": bounds}
        | _prospect(recipe, topology, bounds, program["device_kind"], price)
    )


def _prospect(
    recipe: TrainConfig,
    topology: Topology,
    bounds: dict[str, float | None],
    device_kind: str,
    price: float | None,
) -> dict[str, Any]:
    """Speed, time and cost that follow from the time of a step."""
    names = "step_seconds", "tokens_per_second", "utilisation", "train_seconds", "chip_hours", "cost"
    prospect: dict[str, Any] = dict.fromkeys(names)
    known = {name: bound for name, bound in bounds.items() if bound is not None}
    if not known.keys() - {"links"}:  # what a step sends says nothing of what it computes
        return prospect
    # The compiler's estimate is of what a chip does, and not of what it waits for.
    seconds = max(bounds["cycles"], bounds["links"] or 0.0) if bounds["cycles"] else max(known.values())
    rate, total = recipe.tokens_per_step / seconds, recipe.steps * seconds
    hours = total * topology.size / 3600
    peak = peak_flops(device_kind, recipe.model.compute_dtype)
    reached = rate * train_flops_per_token(recipe.model) / topology.size
    return prospect | {
        "step_seconds": seconds,
        "tokens_per_second": rate,
        "utilisation": None if peak is None else reached / peak,
        "train_seconds": total,
        "chip_hours": hours,
        "cost": None if price is None else hours * price,
    }


def compiled_elsewhere(recipe: TrainConfig, topology: Topology, *, cache: bool = True) -> dict[str, Any]:
    """What `compiled` says of the recipe's step, compiled in a process of its own, now or (`cache`) before.

    `from_cache` says which.
    """
    recipe = TrainConfig(**{name: getattr(recipe, name) for name in DECISIVE})
    environment = topology.environment()
    place = place_of(recipe, topology, environment) if cache else None
    known = kept(place) if place else None
    found = known or _compiled_now(recipe, topology, environment)
    if place and not known:
        keep(place, found)
    if refused := found.get("refused"):
        raise ConfigError.worded(refused)
    return found | {"from_cache": known is not None}


def _compiled_now(recipe: TrainConfig, topology: Topology, environment: dict[str, str]) -> dict[str, Any]:
    """What a process that was started with these variables writes of the program, or why it refused."""
    with tempfile.TemporaryDirectory(prefix="jaxgpt-plan-") as folder:
        save_config(recipe, Path(folder))
        command = [sys.executable, "-m", "jaxgpt.training.plan", folder, str(topology)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        written = Path(folder) / PROGRAM_FILE
        if ended.returncode or not written.is_file():
            last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise JaxgptError(
                f"compiling for {topology} failed",
                why=f"its process ended with {ended.returncode}: {last}",
                fix="report this with the recipe; other settings of batch, mesh or blocks may compile",
            )
        found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    return found


def compiled(recipe: TrainConfig, topology: Topology) -> dict[str, Any]:
    """Compile the recipe's training step for a slice, and read what a chip needs in the program.

    Raises ConfigError where the recipe does not suit the slice.
    """
    from jaxgpt.training.program_text import collectives, estimated_cycles, kernels

    mesh, lowered = _lowered(recipe, topology)
    since, device = time.perf_counter(), mesh.devices.flat[0]
    found = {"device_kind": device.device_kind, "platform": device.platform, "mesh": dict(mesh.shape)}
    try:
        program = lowered.compile()
    except Exception as error:
        if (memory := _lacked(str(error))) is None:
            raise
        unknown = dict.fromkeys(("collectives", "cycles", "kernels", "bytes_accessed"))
        return found | {"compile_seconds": time.perf_counter() - since, "memory": memory} | unknown
    seconds, text = time.perf_counter() - since, program.as_text() or ""
    return found | {
        "compile_seconds": seconds,
        "memory": _memory(program.memory_analysis(), topology),
        "collectives": [collective._asdict() for collective in collectives(text, mesh)],
        "cycles": estimated_cycles(text),
        "kernels": kernels(text),
        "bytes_accessed": (program.cost_analysis() or {}).get("bytes accessed"),
    }


def _lowered(recipe: TrainConfig, topology: Topology) -> "tuple[Mesh, jax.stages.Lowered]":
    """The training step of a recipe, ready to be compiled, and the mesh that it is for."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from jaxgpt.parallel import ROWS, check_batch, mesh_of
    from jaxgpt.text.batch import Batch
    from jaxgpt.training.loss import next_token_loss
    from jaxgpt.training.setup import step_of
    from jaxgpt.training.state import abstract_state, compile_step, training_model

    mesh = mesh_of(recipe.mesh, topology.devices())
    check_batch(recipe.batch, mesh)
    model = training_model(recipe.model, mesh, keeps=recipe.backward_keeps, blocks=recipe.blocks)
    loss = next_token_loss(model, chunk=recipe.loss_chunk)
    optimizer, step = step_of(recipe, loss)
    state = abstract_state(model, optimizer, mesh)
    shape, rows = (recipe.sequences, recipe.model.context), NamedSharding(mesh, ROWS)
    ids, weights = (jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for dtype in (jnp.int32, jnp.float32))
    return mesh, compile_step(step, state, mesh).lower(state, Batch(ids, ids, weights))


def _memory(analysis: Any, topology: Topology) -> dict[str, Any]:
    """The bytes that a chip needs, by the compiler's account, and what it has.

    The TPU's compiler says how many are in use at one time at most, besides the code. Its temporaries may add
    up to more than that. Other compilers do not say it, so that their parts are added up.
    """
    needs = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    if (chip := topology.facts) is None:
        verdict: dict[str, Any] = {"total": sum(needs.values()), "limit": None, "fits": None, "missing": None}
    else:
        total = analysis.peak_memory_in_bytes + needs["code"]
        verdict = {"total": total, "limit": chip.memory, "fits": True, "missing": 0}  # its compiler says so
    return needs | verdict | {"at_least": False}


def _lacked(said: str) -> dict[str, Any] | None:
    """The bytes that a chip needs, has and lacks, by the compiler's message. None where it is about others.

    `at_least` says that it names one array that is too large alone, and not what the program needs.
    """
    if found := _TOO_LARGE.search(said):
        needs, limit = (_bytes(*found.groups()[at : at + 2]) for at in (0, 2))
    elif found := _ARRAY_TOO_LARGE.search(said):
        needs, limit = map(float, found.groups())
    else:
        return None
    at_least = found.re is _ARRAY_TOO_LARGE
    return {"total": needs, "limit": limit, "fits": False, "missing": needs - limit, "at_least": at_least}


def _bytes(number: str, unit: str) -> float:
    return float(number) * 1024.0 ** " KMGT".index(unit or " ")


def main() -> None:
    """Compile what the two arguments name. A refusal is written too: it is for the person who asked."""
    folder, name = sys.argv[1:]
    recipe = read_config(Path(folder))
    assert isinstance(recipe, TrainConfig), "the program that started this one takes no other"
    try:
        found = compiled(recipe, Topology.named(name))
    except ConfigError as error:
        found = {"refused": str(error)}
    (Path(folder) / PROGRAM_FILE).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
