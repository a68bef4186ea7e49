"""`jaxgpt bench train`: how fast training steps are, compared with what the devices can compute."""

import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import BackwardKeeps, GPTConfig, OptimConfig
from jaxgpt.display import note
from jaxgpt.parallel import check_batch, place_rows
from jaxgpt.text.batch import shifted
from jaxgpt.training.flops import count_parameters, measured_matmul_flops, peak_flops, utilisation
from jaxgpt.training.loss import next_token_loss
from jaxgpt.training.optim import learning_rate, optimizer_of
from jaxgpt.training.state import (
    Blocks,
    StepPrograms,
    TrainState,
    compile_step,
    create_state,
    train_step,
    training_model,
)

WARM_UP = 2  # steps


def train_figures(
    config: GPTConfig,
    mesh: Mesh,
    *,
    batch: int,
    steps: int,
    blocks: Blocks = "auto",
    keeps: BackwardKeeps = "all",
    loss_chunk: int = 0,
) -> dict[str, Any]:
    """Figures of training steps on `batch` sequences of random tokens.

    One utilisation is relative to the FLOP/s that matrix products reach here, the other to the data sheet's.
    Raises ConfigError where the batch cannot be divided over the mesh.
    """
    check_batch(batch, mesh)
    note(f"measuring matrix products, then {steps} steps of {batch} x {config.context} tokens ...")
    device = mesh.local_devices[0]
    reached = measured_matmul_flops(config, device)
    peak = peak_flops(device.device_kind, config.compute_dtype)

    start = time.perf_counter()
    state, step = compiled_step(config, mesh, blocks=blocks, keeps=keeps, loss_chunk=loss_chunk)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (batch, config.context + 1), np.int32)
    rows = place_rows(lambda first, stop: shifted(tokens[first:stop]), batch, mesh)
    state, _ = jax.block_until_ready(step(state, rows))
    first, times = time.perf_counter() - start, []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, rows))
        times.append(time.perf_counter() - start)
    del times[:WARM_UP]
    rate = batch * config.context / statistics.median(times)
    return {
        "parameters": count_parameters(config),
        "model": dataclasses.asdict(config),
        "batch": batch,
        "device": device.device_kind,
        "devices": mesh.size,
        "tokens_per_second": rate,
        "step_seconds": statistics.median(times),
        "step_seconds_min": min(times),
        "step_seconds_max": max(times),
        "first_step_seconds": first,
        "matmul_flops": reached,
        "utilisation_of_matmul": utilisation(rate, config, reached, mesh.size),
        "utilisation_of_peak": utilisation(rate, config, peak, mesh.size),
    }


def compiled_step(
    config: GPTConfig, mesh: Mesh, *, blocks: Blocks, keeps: BackwardKeeps, loss_chunk: int
) -> tuple[TrainState, StepPrograms]:
    """A new training state, and a training step, which is compiled when it first runs."""
    model, optim = training_model(config, mesh, keeps=keeps, blocks=blocks), OptimConfig()
    schedule = learning_rate(optim, 1000)
    optimizer = optimizer_of(optim, schedule)
    state = create_state(model, optimizer, 0, mesh)
    step = functools.partial(
        train_step, loss=next_token_loss(model, chunk=loss_chunk), optimizer=optimizer, schedule=schedule
    )
    return state, StepPrograms(compile_step(step, state, mesh))
