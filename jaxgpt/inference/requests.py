"""What the engine is asked to do, and what it reports."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jaxgpt.errors import ConfigError
from jaxgpt.inference.programs import MOST_LOGPROBS
from jaxgpt.inference.sampling import Sampling
from jaxgpt.text.batch import check_ids


@dataclass(frozen=True, kw_only=True)
class Request:
    """A text to continue, and how to continue it."""

    prompt: tuple[int, ...]
    """The ids of the text, at least one."""
    max_new_tokens: int
    """The largest number of tokens to generate."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """The starting point of the random numbers: token n is drawn with fold_in(key(seed), n).
    Other requests have no influence on them."""
    logprobs: int | None = None
    """The number of alternatives, 0 to 20, to report with the log-probability of each token.
    None means that no log-probabilities are reported."""
    slide: bool = True
    """Whether to go on without the older half of the text when the context is full. False ends it there."""

    def check(self, vocab: int) -> None:
        """Raise ConfigError for impossible settings, DataError for ids outside a vocabulary of this size."""
        if not self.prompt:
            raise ConfigError(
                "empty prompt", why="there is nothing to continue", fix="give at least one token"
            )
        if self.max_new_tokens < 0:
            raise ConfigError(
                f"max_new_tokens = {self.max_new_tokens}",
                why="it must be 0 or more",
                fix="give the number of tokens to generate",
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(
                f"seed = {self.seed}",
                why="it must be a 32-bit unsigned integer",
                fix=f"give a whole number from 0 to {2**32 - 1}",
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise ConfigError(
                f"logprobs = {self.logprobs}",
                why=f"it must be 0 to {MOST_LOGPROBS}",
                fix="give the number of alternatives to report with each token",
            )
        check_ids(np.asarray([self.prompt]), vocab)


class NewToken(NamedTuple):
    """Something that happened to a request: it got a token, it ended, or both."""

    request: int
    """The number that `submit` returned."""
    token: int | None
    logprob: float | None
    """The log-probability of the token in nats, before penalties and temperature."""
    alternatives: tuple[tuple[int, float], ...]
    """The most probable tokens, each with its log-probability."""
    finish: str | None
    """Why the request ended, or None if it goes on. `end` means that the model ended its text.
    `length` means that it has max_new_tokens tokens, or that the context is full and must not slide."""
