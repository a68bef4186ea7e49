"""`jaxgpt bench generate`: how fast the engine writes, compared with what the memory allows."""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import GPTConfig
from jaxgpt.display import note
from jaxgpt.errors import ConfigError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
from jaxgpt.model.gpt import define
from jaxgpt.training.flops import count_parameters

COPIED = 1 << 29  # bytes copied to measure the memory's bandwidth; more than caches hold


def generate_figures(
    config: GPTConfig, mesh: Mesh, *, batch: int, prompt: int, new: int, repeats: int, int8: bool = False
) -> dict[str, Any]:
    """Figures of greedy generation.

    `batch` prompts of `prompt` random tokens get `new` tokens each, `repeats` times. `bytes_per_step` and the
    bandwidth are those of one device. Raises ConfigError for lengths that cannot be timed.
    """
    if new < 2 or prompt < 1 or prompt + new > config.context:
        raise ConfigError(
            f"prompt = {prompt}, new = {new}",
            why=f"prompt must be at least 1, new at least 2, and their sum at most {config.context}",
            fix=f"choose --prompt and --new with a sum of at most {config.context}, or a longer --context",
        )
    note(f"measuring memory, then {repeats} times {batch} texts of {prompt} + {new} tokens ...")
    device = mesh.local_devices[0]
    bandwidth = copy_bandwidth(device)
    params = jax.jit(define(config).init)(jax.random.key(0))
    engine = Engine(Served.of(config, params, int8=int8, mesh=mesh), slots=batch)
    del params
    tokens = np.random.default_rng(0).integers(0, config.vocab, (batch, prompt)).tolist()
    greedy = Sampling(temperature=0)
    requests = [Request(prompt=tuple(ids), max_new_tokens=new, sampling=greedy) for ids in tokens]
    compiled = _timed(engine, requests)[1]
    firsts, totals = zip(*(_timed(engine, requests) for _ in range(repeats)), strict=True)
    first, total = statistics.median(firsts), statistics.median(totals)
    step = (total - first) / (new - 1)
    read = engine.bytes_per_step
    return {
        "parameters": count_parameters(config),
        "model": dataclasses.asdict(config),
        "batch": batch,
        "prompt": prompt,
        "new": new,
        "int8": int8,
        "device": device.device_kind,
        "devices": mesh.size,
        "tokens_per_second": batch * new / total,
        "seconds": total,
        "seconds_min": min(totals),
        "seconds_max": max(totals),
        "first_token_seconds": first,
        "step_seconds": step,
        "compile_seconds": compiled - total,
        "bytes_per_step": read,
        "copy_bytes_per_second": bandwidth,
        "share_of_bandwidth": read / step / bandwidth,
    }


def _timed(engine: Engine, requests: list[Request]) -> tuple[float, float]:
    """Seconds until the first token of any request, and until the last."""
    start, first = time.perf_counter(), None
    for _ in engine.run(requests):
        first = first or time.perf_counter() - start
    assert first is not None
    return first, time.perf_counter() - start


def copy_bandwidth(device: jax.Device) -> float:
    """Bytes a second that one device reads and writes when it doubles an array in place; the best of five."""
    with jax.default_device(device):
        numbers, doubled = jnp.ones(COPIED // 4, jnp.float32), jax.jit(lambda x: x * 2, donate_argnums=0)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            numbers = jax.block_until_ready(doubled(numbers))
            times.append(time.perf_counter() - start)
    return 2 * COPIED / min(times[1:])
