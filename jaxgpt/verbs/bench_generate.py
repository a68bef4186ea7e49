"""`jaxgpt bench generate`: how fast the engine writes, and how near that is to what memory allows."""

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any

from jaxgpt.config import GPTConfig

if TYPE_CHECKING:
    from jaxgpt.inference.engine import Engine
    from jaxgpt.inference.requests import Request
    from jaxgpt.verbs.bench_flags import BenchArgs

COPIED = 1 << 29  # bytes of the copy that measures the memory's bandwidth: more than caches hold


def generate_figures(args: "BenchArgs", config: GPTConfig) -> dict[str, Any]:
    """Figures of greedy generation: `batch` prompts of `prompt` random tokens, `new` tokens each."""
    import jax
    import numpy as np

    from jaxgpt.display import note
    from jaxgpt.errors import ConfigError
    from jaxgpt.inference.engine import Engine
    from jaxgpt.inference.requests import Request
    from jaxgpt.inference.sampling import Sampling
    from jaxgpt.model.gpt import define
    from jaxgpt.parallel import mesh_of
    from jaxgpt.training.flops import count_parameters

    if args.new < 2 or args.prompt < 1 or args.prompt + args.new > config.context:
        raise ConfigError(
            f"prompt = {args.prompt}, new = {args.new}",
            fix="choose other lengths",
            why=f"at least 1 and 2 are needed, and together at most the context of {config.context}",
        )
    mesh = mesh_of(args.mesh)
    note(
        f"measuring memory, then {args.steps} times {args.batch} texts of {args.prompt} + {args.new} tokens ..."
    )
    bandwidth = copy_bandwidth()
    params = jax.jit(define(config).init)(jax.random.key(0))
    engine = Engine(config, params, slots=args.batch, int8=args.int8, mesh=mesh)
    del params
    tokens = np.random.default_rng(0).integers(0, config.vocab, (args.batch, args.prompt)).tolist()
    requests = [
        Request(prompt=tuple(ids), max_new_tokens=args.new, sampling=Sampling(temperature=0))
        for ids in tokens
    ]
    compiled = _timed(engine, requests)[1]
    firsts, totals = zip(*(_timed(engine, requests) for _ in range(args.steps)), strict=True)
    first, total = statistics.median(firsts), statistics.median(totals)
    step = (total - first) / (args.new - 1)
    read = engine.bytes_per_step
    return {
        "parameters": count_parameters(config),
        "model": dataclasses.asdict(config),
        "batch": args.batch,
        "prompt": args.prompt,
        "new": args.new,
        "int8": args.int8,
        "device": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "tokens_per_second": args.batch * args.new / total,
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


def _timed(engine: "Engine", requests: list["Request"]) -> tuple[float, float]:
    """Seconds to the first token of all, and to the last of all."""
    start = time.perf_counter()
    first = 0.0
    for _ in engine.run(requests):
        first = first or time.perf_counter() - start
    return first, time.perf_counter() - start


def copy_bandwidth() -> float:
    """Bytes read and written a second by doubling numbers in place, the best of five."""
    import jax
    import jax.numpy as jnp

    numbers, doubled = jnp.ones(COPIED // 4, jnp.float32), jax.jit(lambda x: x * 2, donate_argnums=0)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        numbers = jax.block_until_ready(doubled(numbers))
        times.append(time.perf_counter() - start)
    return 2 * COPIED / min(times[1:])
