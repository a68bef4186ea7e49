#!/usr/bin/env python3
"""Compares the training step with the loss's own backward pass and with the one that JAX derives.

    python tools/bench_loss.py --layers 4 --heads 4 --width 128 --context 64 --batch 12
    python tools/bench_loss.py --layers 4 --heads 4 --width 128 --context 64 --batch 12 --chunk 16

Both steps train the same model on the same random tokens, in turn. A line of JSON holds, for wall time and
for processor time (of all threads; other work disturbs it less), the median seconds of a step of each, and
the quartiles of the quotient of the turns (derived / own): above 1, our own is the faster one.
"""

import json
import operator
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from jaxgpt.config import GPTConfig, MeshConfig, OptimConfig
from jaxgpt.parallel import mesh_of, place_rows
from jaxgpt.text.batch import Batch, shifted
from jaxgpt.training import loss
from jaxgpt.training.setup import training_step
from jaxgpt.training.state import compile_step, create_state, training_model


@dataclass(frozen=True)
class Args:
    """Measure both in turn, and print a line of JSON."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    vocab: int = 50257
    context: int = 64
    batch: int = 12
    chunk: int = 0
    """Positions whose logits exist at one time. 0 means all."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    turns: int = 15
    """How often each of the two is measured."""


def derived(logits_V: Array, targets: Array) -> Array:
    """The same cross-entropy, whose backward pass is left to JAX."""
    chosen = jnp.take_along_axis(logits_V, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_V, axis=-1) - chosen


def step_of(args: Args, cross_entropy: Callable[[Array, Array], Array]) -> Callable[[], float]:
    """A function that trains one step and returns its loss."""
    mesh = mesh_of(MeshConfig(data=1), jax.devices()[:1])
    config = GPTConfig(
        vocab=args.vocab,
        context=args.context,
        layers=args.layers,
        heads=args.heads,
        width=args.width,
        compute_dtype=args.compute_dtype,
    )
    model = training_model(config, mesh)
    loss.cross_entropy = cross_entropy  # type: ignore[assignment]
    optimizer, step = training_step(OptimConfig(), loss.next_token_loss(model, chunk=args.chunk), steps=1000)
    state = create_state(model, optimizer, 0, mesh)
    tokens = np.random.default_rng(0).integers(0, args.vocab, (args.batch, args.context + 1), np.int32)

    def rows(start: int, stop: int) -> Batch:
        return shifted(tokens[start:stop])

    batch = place_rows(rows, args.batch, mesh)
    program = compile_step(step, state, mesh).lower(state, batch).compile()

    def train() -> float:
        nonlocal state
        state, metrics = program(state, batch)
        return float(metrics["loss"])

    return train


def compare(args: Args) -> dict[str, Any]:
    """The figures on this machine's first device."""
    sides = {name: step_of(args, side) for name, side in (("derived", derived), ("own", loss.cross_entropy))}
    losses = {name: [train() for _ in range(3)] for name, train in sides.items()}
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in sides} for clock in clocks}
    for turn in range(args.turns):
        for name in sorted(sides, reverse=turn % 2 == 1):
            starts = {clock: now() for clock, now in clocks.items()}
            sides[name]()
            for clock, now in clocks.items():
                taken[clock][name].append(now() - starts[clock])
    return {"settings": vars(args), "losses": losses} | {
        clock: {name: statistics.median(times) for name, times in seconds.items()}
        | {"quotient": statistics.quantiles(map(operator.truediv, seconds["derived"], seconds["own"]), n=4)}
        for clock, seconds in taken.items()
    }


if __name__ == "__main__":
    print(json.dumps(compare(tyro.cli(Args))), flush=True)
