"""`jaxgpt bench`: how fast this machine trains and generates, against what it could do."""

import dataclasses
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

from jaxgpt.config import GPTConfig, OptimConfig, load_recipe
from jaxgpt.verbs.bench_flags import BenchArgs

if TYPE_CHECKING:
    from jax.sharding import Mesh

WARM_UP = 2  # steps


def run(args: BenchArgs) -> None:
    """Measure, print the figures to stdout, write them where asked."""
    from rich.console import Console
    from rich.table import Table

    from jaxgpt.verbs.bench_generate import generate_figures

    config = _model(args)
    figures = train_figures(args, config) if args.what == "train" else generate_figures(args, config)
    table = Table(show_header=False, box=None)
    for name, value in figures.items():
        if name != "model":
            shown = (
                "unknown" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)
            )
            table.add_row(name, shown)
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def train_figures(args: BenchArgs, config: GPTConfig) -> dict[str, Any]:
    """Figures of training steps."""
    import jax

    from jaxgpt.display import note
    from jaxgpt.parallel import check_batch, mesh_of
    from jaxgpt.training.flops import count_parameters, measured_matmul_flops, peak_flops, utilisation

    mesh = mesh_of(args.mesh)
    check_batch(args.batch, mesh)
    note(f"measuring matrix products, then {args.steps} steps of {args.batch} x {config.context} tokens ...")
    kind = jax.devices()[0].device_kind
    reached = measured_matmul_flops(config.compute_dtype)
    first, times = _time_steps(args, config, mesh)
    rate = args.batch * config.context / statistics.median(times)
    return {
        "parameters": count_parameters(config),
        "model": dataclasses.asdict(config),
        "batch": args.batch,
        "device": kind,
        "devices": mesh.size,
        "tokens_per_second": rate,
        "step_seconds": statistics.median(times),
        "step_seconds_min": min(times),
        "step_seconds_max": max(times),
        "first_step_seconds": first,
        "matmul_flops": reached,
        "utilisation_of_matmul": utilisation(rate, config, reached, mesh.size),
        "utilisation_of_peak": utilisation(rate, config, peak_flops(kind, config.compute_dtype), mesh.size),
    }


def _model(args: BenchArgs) -> GPTConfig:
    sizes = {
        name: getattr(args, name)
        for name in ("layers", "heads", "width", "context", "vocab", "compute_dtype")
    }
    base = load_recipe(args.preset).model if args.preset else GPTConfig()
    return dataclasses.replace(base, **{name: size for name, size in sizes.items() if size is not None})


def _time_steps(args: BenchArgs, config: GPTConfig, mesh: "Mesh") -> tuple[float, list[float]]:
    """Seconds from nothing to the end of the first step, and of each timed step."""
    import functools

    import jax
    import numpy as np

    from jaxgpt.parallel import place_rows
    from jaxgpt.text.batch import shifted
    from jaxgpt.training.loss import next_token_loss
    from jaxgpt.training.optim import adamw, learning_rate
    from jaxgpt.training.state import compile_step, create_state, train_step, training_model

    model, optim = training_model(config, mesh, remat=args.remat, blocks=args.blocks), OptimConfig()
    schedule = learning_rate(optim, 1000)
    optimizer = adamw(optim, schedule)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (args.batch, config.context + 1), np.int32)
    batch = place_rows(lambda start, stop: shifted(tokens[start:stop]), args.batch, mesh)
    start = time.perf_counter()
    state = create_state(model, optimizer, 0, mesh)
    step = functools.partial(
        train_step, loss=next_token_loss(model, chunk=args.loss_chunk), optimizer=optimizer, schedule=schedule
    )
    compiled = compile_step(step, state, mesh)
    state, _ = jax.block_until_ready(compiled(state, batch))
    first, times = time.perf_counter() - start, []
    for _ in range(WARM_UP + args.steps):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        times.append(time.perf_counter() - begin)
    return first, times[WARM_UP:]
