"""What the engine is asked for, and what it tells of it."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jaxgpt.errors import ConfigError
from jaxgpt.inference.programs import MOST_LOGPROBS
from jaxgpt.inference.sampling import Sampling
from jaxgpt.text.batch import check_ids


@dataclass(frozen=True, kw_only=True)
class Request:
    """A text to continue, and how."""

    prompt: tuple[int, ...]
    """At least one id."""
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """Decides the random numbers, whatever else is in the batch: token n draws with fold_in(key(seed), n)."""
    logprobs: int | None = None
    """How many alternatives to report with each token's log-probability, 0 to 20; None reports nothing."""
    slide: bool = True
    """Past the context window, drop the older half and go on; False finishes there."""

    def check(self, vocab: int) -> None:
        """Raise ConfigError for what cannot be run, DataError for ids outside a vocabulary of this size."""
        if not self.prompt:
            raise ConfigError(
                "empty prompt", why="there is nothing to continue", fix="give at least one token"
            )
        if self.max_new_tokens < 0:
            raise ConfigError(
                f"max_new_tokens = {self.max_new_tokens}", why="it must be 0 or more", fix="change it"
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(
                f"seed = {self.seed}", why="it must be a 32-bit unsigned integer", fix="change it"
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise ConfigError(
                f"logprobs = {self.logprobs}", why=f"it must be 0 to {MOST_LOGPROBS}", fix="change it"
            )
        check_ids(np.asarray([self.prompt]), vocab)


class NewToken(NamedTuple):
    """Something that happened to a request: a token, its end, or both."""

    request: int
    """What `submit` returned."""
    token: int | None
    logprob: float | None
    """Of the token under the model itself, before penalties and temperature; in nats."""
    alternatives: tuple[tuple[int, float], ...]
    """The most probable tokens and their log-probabilities."""
    finish: str | None
    """`length` (max_new_tokens, or the window without sliding), `end` (the model ended its text); None: not yet."""
