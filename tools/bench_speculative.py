"""Measures the tokens per second of a model alone, and with a smaller model that drafts for it.

    jaxgpt pretrain nano --steps 150 --out-dir /tmp/target
    jaxgpt pretrain nano --steps 150 --model.layers 1 --out-dir /tmp/draft
    python tools/bench_speculative.py /tmp/target /tmp/draft --prompt "The "

It prints a line of JSON for each measurement: the target alone (in the engine), then each lookahead. All of
them run in turn, `repeat` times with a new seed each, after a first time that compiles. The median counts.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import tyro

import jaxgpt
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.speculative import SpeculativeDecoder


@dataclass(frozen=True, kw_only=True)
class Args:
    """Measure the tokens per second of a target model alone, and with a draft."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Target: a run directory, weights in any format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl."""
    draft: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Draft: a smaller model with the same vocabulary."""
    prompt: str = "The "
    """Text to continue. Together with the new tokens it must fit the smaller context."""
    max_new_tokens: int = 100
    """Number of tokens that are written. A text does not end before that."""
    temperature: float = 1.0
    """Temperature of the distribution from which tokens are drawn. 0 is greedy decoding."""
    lookaheads: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of tokens that the draft proposes at a time."""
    repeat: int = 5
    """Number of texts for each measurement, one at a time."""


def seconds(write: Callable[[int], Iterable[int]], seed: int, tokens: int) -> float:
    """Return the seconds that a text of so many tokens takes."""
    start = time.perf_counter()
    found = sum(1 for _ in write(seed))
    if found != tokens:
        sys.exit(f"a text has {found} tokens and should have {tokens}")
    return time.perf_counter() - start


def main() -> None:
    """Time all of them in turn, and print the figures."""
    args = tyro.cli(Args)
    target, draft = (jaxgpt.load(model) for model in (args.target, args.draft))
    sampling, prompt = Sampling(temperature=args.temperature), tuple(target.tokenizer.encode(args.prompt))
    engine = Engine(target.served, slots=1)
    decoders = {
        lookahead: SpeculativeDecoder(target.served, draft.served, lookahead=lookahead)
        for lookahead in args.lookaheads
    }

    def alone(seed: int) -> Iterable[int]:
        request = Request(
            prompt=prompt, max_new_tokens=args.max_new_tokens, sampling=sampling, seed=seed, slide=False
        )
        return (new.token for _, new in engine.run([request]) if new.token is not None)

    def with_draft(decoder: SpeculativeDecoder) -> Callable[[int], Iterable[int]]:
        return lambda seed: decoder.stream(
            prompt, max_new_tokens=args.max_new_tokens, sampling=sampling, seed=seed
        )

    writers = {0: alone} | {lookahead: with_draft(decoder) for lookahead, decoder in decoders.items()}
    times: dict[int, list[float]] = {lookahead: [] for lookahead in writers}
    counts: dict[int, list[Any]] = {lookahead: [] for lookahead in decoders}
    for seed in range(args.repeat + 1):
        for lookahead, write in writers.items():
            times[lookahead].append(seconds(write, seed, args.max_new_tokens))
            if lookahead and seed:
                counts[lookahead].append(decoders[lookahead].statistics)
    device = jax.devices()[0].device_kind
    for lookahead, runs in times.items():
        rates = sorted(args.max_new_tokens / run for run in runs[1:])
        figures: dict[str, Any] = {"lookahead": lookahead} if lookahead else {"alone": True}
        figures |= {
            "tokens_per_second": round(statistics.median(rates), 1),
            "slowest": round(rates[0], 1),
            "fastest": round(rates[-1], 1),
            "temperature": args.temperature,
            "device": device,
        }
        if lookahead:
            figures["accepted_share"] = round(statistics.mean(c.accepted_share for c in counts[lookahead]), 3)
            figures["passes_per_token"] = round(
                statistics.mean(c.passes_per_token for c in counts[lookahead]), 3
            )
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
