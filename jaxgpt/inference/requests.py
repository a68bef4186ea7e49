"""What a decoder is asked to do, and what it reports."""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

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
    """The starting point of the random numbers, a signed integer of 64 bits: token n is drawn with
    fold_in(key(seed), n), where a seed of more than 32 bits is first mixed into 32.
    Other requests have no influence on them."""
    logprobs: int | None = None
    """The number of alternatives, 0 to 20, to report with the log-probability of each token.
    None means that no log-probabilities are reported."""
    slide: bool = True
    """Whether to go on without the older half of the text when the context is full. False ends it there."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the text, besides the model's own."""
    ignore_end: bool = False
    """Whether the model's own end of a text is a token like any other."""
    least_new_tokens: int = 0
    """Before so many tokens are written, no token may end the text."""
    bias: tuple[tuple[int, float], ...] = ()
    """What is added to the logits of tokens, before penalties and temperature."""

    @property
    def seed32(self) -> int:
        """The seed as the device takes it."""
        if 0 <= self.seed < 2**32:
            return self.seed
        content = self.seed.to_bytes(8, "little", signed=True)
        return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "little")

    def check(self, vocab: int) -> None:
        """Raise ConfigError for impossible settings, DataError for ids outside a vocabulary of this size."""
        for holds, what, why, fix in (
            (bool(self.prompt), "empty prompt", "there is nothing to continue", "give at least one token"),
            (
                self.max_new_tokens >= 0,
                f"max_new_tokens = {self.max_new_tokens}",
                "it must be 0 or more",
                "give the number of tokens to generate",
            ),
            (
                -(2**63) <= self.seed < 2**63,
                f"seed = {self.seed}",
                "it must be a signed integer of 64 bits",
                f"give a whole number from {-(2**63)} to {2**63 - 1}",
            ),
            (
                self.least_new_tokens >= 0,
                f"least_new_tokens = {self.least_new_tokens}",
                "it must be 0 or more",
                "give the number of tokens that no token may end",
            ),
            (
                self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS,
                f"logprobs = {self.logprobs}",
                f"it must be 0 to {MOST_LOGPROBS}",
                "give the number of alternatives to report with each token",
            ),
        ):
            if not holds:
                raise ConfigError(what, why=why, fix=fix)
        check_ids(np.asarray([self.prompt]), vocab)
        check_ids(np.asarray([[*self.stop_ids, *(id for id, _ in self.bias)]], np.int64), vocab)


class NewToken(NamedTuple):
    """Something that happened to a request: it got a token, it ended, or both."""

    request: int
    """The request's number, as its decoder counts."""
    token: int | None
    """The token that was drawn. With the finish `end` it ends the text, and is no part of it."""
    logprob: float | None
    """The log-probability of the token in nats, before penalties and temperature."""
    alternatives: tuple[tuple[int, float], ...]
    """The most probable tokens, each with its log-probability."""
    finish: str | None
    """Why the request ended, or None if it goes on. `end` means that the model ended its text.
    `length` means that it has max_new_tokens tokens, or that the context is full and must not slide."""

    @property
    def written(self) -> int | None:
        """The token that is added to the text; None for the token that ends it."""
        return None if self.finish == "end" else self.token


class Decoder(Protocol):
    """Whatever continues texts: an engine, a beam search, a model with a draft."""

    def run(self, requests: Sequence[Request]) -> Generator[tuple[int, NewToken], None, None]:
        """Yield what happens to these requests until all have ended, each with its place in the list.

        Closing the generator cancels what has not ended.
        """

    def cancel(self, number: int) -> None:
        """Make no more of the request that has this number in the news."""
