#!/usr/bin/env python3
"""Compares the tokens per second of `jaxgpt evaluate` with those of training's forward pass.

    python tools/bench_evaluate.py nano small

Both read the same random tokens with the same random weights, in turn: training's forward pass as the recipe
batches it, and evaluation in pieces of --batch-tokens tokens and --loss-chunk positions. A line of JSON for
each preset holds the median tokens per second of both, and the median quotient of the turns with its
quartiles. Above 1, evaluation is the faster one. `small` has GPT-2's 50,257 ids.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import tyro

from jaxgpt.config import MeshConfig, TrainConfig, load_recipe
from jaxgpt.evaluation import windows
from jaxgpt.evaluation.validation import validation_loss
from jaxgpt.inference import scoring
from jaxgpt.inference.served import Served
from jaxgpt.parallel import mesh_of
from jaxgpt.text.batches import ValidationBatches
from jaxgpt.text.shards import TokenStream
from jaxgpt.training.loss import next_token_loss
from jaxgpt.training.state import training_model


@dataclass(frozen=True)
class Args:
    """Measure both in turn, and print a line of JSON for each preset."""

    presets: tyro.conf.Positional[tuple[str, ...]] = ("nano", "small")
    """Names of recipes."""
    tokens: int = 8192
    """Tokens that are scored in a turn."""
    turns: int = 9
    """How often each of the two is measured."""
    batch_tokens: int = windows.BATCH_TOKENS
    """Tokens that evaluation takes at a time."""
    loss_chunk: int = scoring.CHUNK
    """Positions whose logits evaluation computes at a time."""


def compare(preset: str, args: Args) -> dict[str, Any]:
    """The figures of one preset on this machine's first device."""
    recipe = load_recipe(preset)
    assert isinstance(recipe, TrainConfig), "a recipe for pretraining"
    config, mesh = recipe.model, mesh_of(MeshConfig(data=1), jax.devices()[:1])
    ids = np.random.default_rng(0).integers(0, config.vocab, args.tokens + 1, np.int32)
    tokens, model = TokenStream.of(ids), training_model(config, mesh, blocks=recipe.blocks)
    params = jax.jit(model.init)(jax.random.key(0))
    batches = ValidationBatches(tokens, context=config.context, sequences=recipe.batch, vocab=config.vocab)
    forward = validation_loss(next_token_loss(model, chunk=recipe.loss_chunk), batches, mesh)
    served = Served.of(config, params)

    def score() -> float:
        losses = windows.window_losses(served, tokens)
        return losses.nats / losses.tokens

    sides: dict[str, Callable[[], float]] = {"training_forward": lambda: forward(params), "evaluate": score}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses = {name: side() for name, side in sides.items()}  # the first call compiles
    for _ in range(args.turns):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    pairs = zip(seconds["training_forward"], seconds["evaluate"], strict=True)
    low, middle, high = statistics.quantiles([forward / ours for forward, ours in pairs], n=4)
    rates = {name: args.tokens / statistics.median(times) for name, times in seconds.items()}
    return {"preset": preset, "losses": losses, "tokens_per_second": rates, "quotient": [low, middle, high]}


if __name__ == "__main__":
    given = tyro.cli(Args)
    windows.BATCH_TOKENS, scoring.CHUNK = given.batch_tokens, given.loss_chunk
    for name in given.presets:
        print(json.dumps(compare(name, given)), flush=True)
