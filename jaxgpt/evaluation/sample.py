"""A sample of what a model writes while it trains."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxgpt.config import GPTConfig
from jaxgpt.display import Progress, no_progress
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
from jaxgpt.inference.texts import pieces_of
from jaxgpt.model.gpt import Params
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.training.state import TrainState


def sampler(
    config: GPTConfig,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    shown: str,
    tokens: int,
    sampling: Sampling,
    plain: Callable[[Params], Params] = lambda params: params,
    show: Progress = no_progress,
) -> Callable[[TrainState], dict[str, Any]]:
    """A function that has a state's parameters continue the ids of a prompt by up to `tokens` tokens.

    It returns a row for the log, whose `sample` begins with `shown`. `plain` makes of a state's parameters
    those of the plain model, where they are others. `show` is told how far it is, and may
    raise an exception to stop early.
    """
    request = Request(prompt=tuple(prompt), max_new_tokens=tokens, sampling=sampling)

    def write(state: TrainState) -> dict[str, Any]:
        served = Served.of(dataclasses.replace(config, dropout=0.0), plain(state.params))
        engine, text = Engine(served, slots=1, ends=tokenizer.ends), shown
        for number, piece in enumerate(pieces_of(engine, [request], tokenizer)):
            show("writing a sample", min(number, tokens - 1), tokens)
            text += piece.text
        show("writing a sample", tokens, tokens)
        return {"sample": text}

    return write
