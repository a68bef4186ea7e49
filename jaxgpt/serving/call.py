"""A valid call, the limits of what a call may ask for, and what it asks of the engine."""

from dataclasses import dataclass

from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.serving.fields import ApiError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one call may ask for."""

    body: int = 1 << 20
    """The most bytes in a body."""
    choices: int = 32
    """The most choices: the number of prompts times n, or times best_of."""
    tokens: int = 1024
    """The most new tokens in one choice."""
    reported: int = 1 << 17
    """The most log-probabilities in an answer: those of all tokens of all choices, and their alternatives."""
    looked_at: int = 128
    """The most tokens of a text that is looked into."""


@dataclass(frozen=True)
class Prompt:
    """A text to continue: its token ids, and the text that `echo` shows."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Call:
    """One valid call."""

    prompts: tuple[Prompt, ...]
    n: int
    best_of: int
    """How many choices are written for each prompt; the n most probable ones are in the answer."""
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...]
    logprobs: int | None
    """The number of alternatives to report with each token. None means no log-probabilities at all."""
    echo: bool
    stream: bool
    usage: bool
    """Whether to report the usage at the end of a stream."""
    chat: bool
    stop_ids: frozenset[int] = frozenset()
    ignore_end: bool = False
    least_tokens: int = 0
    """No token ends the text before so many were written."""
    bias: tuple[tuple[int, float], ...] = ()
    """What is added to the logits of tokens."""

    def requests(self) -> list[Request]:
        """Return the engine's requests: best_of for each prompt, in order; none if max_tokens is 0.

        The choices of a prompt have seeds in a row, which go round at the ends of 64 bits.
        """
        ranked = 0 if self.best_of > self.n else None  # their log-probabilities decide
        return [
            Request(
                prompt=prompt.ids,
                max_new_tokens=self.max_tokens,
                sampling=self.sampling,
                seed=(self.seed + number + 2**63) % 2**64 - 2**63,
                logprobs=ranked if self.logprobs is None else self.logprobs,
                slide=False,
                stop_ids=self.stop_ids,
                ignore_end=self.ignore_end,
                least_new_tokens=self.least_tokens,
                bias=self.bias,
            )
            for prompt in self.prompts
            for number in range(self.best_of)
            if self.max_tokens
        ]

    def check_size(self, limits: Limits) -> None:
        """Raise ApiError for an answer with too many log-probabilities."""
        if self.logprobs is None:
            return
        echoed = sum(len(prompt.ids) for prompt in self.prompts) if self.echo else 0
        tokens = self.n * (len(self.prompts) * self.max_tokens + echoed)
        if tokens * (1 + self.logprobs) > limits.reported:
            name = "top_logprobs" if self.chat else "logprobs"
            rule = f"choices x tokens x (1 + {name}) must be at most {limits.reported}; ask for fewer"
            raise ApiError(400, rule, name)
