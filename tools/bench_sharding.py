#!/usr/bin/env python3
"""What a training step needs on each device: memory, and what it sends. The step is compiled, not run.

    python tools/bench_sharding.py gpt2 gpt2-medium gpt2-xl

It simulates devices on the CPU, compiles the training step of each preset on each mesh (data x fsdp x
tensor), and prints a line of JSON for each: temporaries and arguments in GB a device, and for each kind of
collective how many there are in the program and how many MB they give. A collective inside the loop over the
layers counts once.
"""

import functools
import json
import math
import os
import re
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}


@dataclass(frozen=True)
class Args:
    """Compile training steps and print what they need."""

    presets: tyro.conf.Positional[tuple[str, ...]] = ("gpt2", "gpt2-medium", "gpt2-xl")
    """Names of recipes."""
    mesh: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A mesh such as 1x8x1, data x fsdp x tensor. It may be given several times."""
    batch: int | None = None
    """Sequences in a step; None takes the recipe's. Accumulation is left out."""


def step_needs(preset: str, sizes: tuple[int, ...], batch: int | None) -> dict[str, Any]:
    """What one device needs for a step of this preset on a mesh of these sizes."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from jaxgpt.config import MeshConfig, TrainConfig, load_recipe
    from jaxgpt.parallel import ROWS, mesh_of
    from jaxgpt.text.batch import Batch
    from jaxgpt.training.loss import next_token_loss
    from jaxgpt.training.optim import learning_rate, optimizer_of
    from jaxgpt.training.state import abstract_state, compile_step, train_step, training_model

    recipe = load_recipe(preset)
    assert isinstance(recipe, TrainConfig), "a recipe for pretraining"
    data, fsdp, tensor = sizes
    mesh = mesh_of(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: math.prod(sizes)])
    model = training_model(recipe.model, mesh, keeps=recipe.backward_keeps, blocks="scan")
    schedule = learning_rate(recipe.optim, recipe.steps)
    optimizer = optimizer_of(recipe.optim, schedule)
    state = abstract_state(model, optimizer, mesh)
    step = functools.partial(
        train_step,
        loss=next_token_loss(model, chunk=recipe.loss_chunk),
        optimizer=optimizer,
        schedule=schedule,
    )
    tokens, weights = (
        jax.ShapeDtypeStruct(
            (batch or recipe.batch, recipe.model.context), dtype, sharding=NamedSharding(mesh, ROWS)
        )
        for dtype in (jnp.int32, jnp.float32)
    )
    compiled = compile_step(step, state, mesh).lower(state, Batch(tokens, tokens, weights)).compile()
    memory, sent = compiled.memory_analysis(), dict[str, list[float]]()
    for result, kind in COLLECTIVE.findall(compiled.as_text()):
        counts = sent.setdefault(kind, [0, 0.0])
        counts[0] += 1
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
            counts[1] += math.prod(map(int, filter(None, shape.split(",")))) * BYTES.get(dtype, 4) / 1e6
    return {
        "preset": preset,
        "mesh": "x".join(map(str, sizes)),
        "batch": batch or recipe.batch,
        "temporaries_GB": round(memory.temp_size_in_bytes / 1e9, 3),
        "arguments_GB": round(memory.argument_size_in_bytes / 1e9, 3),
        "collectives": {kind: [count, round(size)] for kind, (count, size) in sent.items()},
    }


def main() -> None:
    """Print a line for each preset and mesh."""
    args = tyro.cli(Args, description=__doc__)
    meshes = [tuple(map(int, mesh.split("x"))) for mesh in args.mesh or ("8x1x1", "1x8x1", "1x1x4", "2x2x2")]
    flags = f"--xla_force_host_platform_device_count={max(map(math.prod, meshes))}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags} --xla_backend_optimization_level=0"
    os.environ["JAX_PLATFORMS"] = "cpu"
    for preset in args.presets:
        for sizes in meshes:
            print(json.dumps(step_needs(preset, sizes, args.batch)), flush=True)


if __name__ == "__main__":
    main()
