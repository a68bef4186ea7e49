"""The one scorer behind all tasks: continuations of texts, documents alone, and a long text in windows."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.validation import Between
from jaxgpt.evaluation.windows import Losses, check_stride, document_losses, window_losses
from jaxgpt.inference.scoring import score_spans
from jaxgpt.inference.served import Served
from jaxgpt.text.shards import TokenStream
from jaxgpt.text.tokenizer import Tokenizer

Pair = tuple[Sequence[int], Sequence[int]]
"""The ids of a text, and of what may follow it."""


class Continued(NamedTuple):
    """What a model finds of a continuation."""

    logprob: float
    """The log-probability of all its tokens, in nats."""
    tokens: int
    greedy: bool
    """Whether greedy decoding would write it."""


@dataclass(frozen=True)
class Scorer:
    """A model, its tokenizer, and how far a task goes."""

    served: Served
    tokenizer: Tokenizer
    stride: int | None = None
    """Tokens from one window of a long text to the next; None means the whole context."""
    limit: int | None = None
    """How many of a task's items or windows are scored; None means all."""
    show: Between = lambda *_: None
    """Is called with how much is scored and how much there is."""

    @property
    def context(self) -> int:
        """The model's context in tokens."""
        return self.served.config.context

    @property
    def windows(self) -> str:
        """How long texts are read, in words."""
        return f"windows of {self.context}, stride {check_stride(self.stride, self.context)}"

    def with_stride(self, stride: int | None) -> Self:
        """The same with this stride, at most the context, unless it has one already."""
        if self.stride is not None or stride is None:
            return self
        return dataclasses.replace(self, stride=min(stride, self.context))

    @property
    def beginning(self) -> int:
        """The id that begins a text. Raises ConfigError for a vocabulary without one."""
        if self.tokenizer.beginning is None:
            raise ConfigError(
                "the first token of a text",
                why=f"the vocabulary {self.tokenizer.name} has no token that begins a text to predict it",
                fix="choose a protocol that does not score the first token, or another model",
            )
        return self.tokenizer.beginning

    def pair(self, text: str, continuation: str) -> Pair:
        """The ids of a text and of a continuation that is tokenized together with it.

        White space at the end of the text belongs to the continuation, since tokens begin with it. An empty
        text is the token that begins one. (As EleutherAI's lm-evaluation-harness does it, `_encode_pair`.)
        """
        kept = text.rstrip()
        continuation = text[len(kept) :] + continuation
        before = self.tokenizer.encode(kept)
        if not before:
            return [self.beginning], self.tokenizer.encode(continuation)
        return before, self.tokenizer.encode(kept + continuation)[len(before) :]

    def continuations(self, pairs: Sequence[Pair], *, barred: Collection[int] = ()) -> list[Continued]:
        """Score each continuation after its text, which is cut at its beginning where both do not fit.

        Greedy decoding does not take the `barred` ids as the first token of a continuation.
        """
        spans = []
        for before, after in pairs:
            ids = [*before, *after][-(self.context + 1) :]
            spans.append((ids, len(ids) - len(after)))
        scores = score_spans(self.served, spans, barred=barred, show=self.show)
        return [
            Continued(
                float(score.logprobs_T.sum(dtype=np.float64)),
                len(score.logprobs_T),
                bool(score.greedy_T.all()),
            )
            for score in scores
        ]

    def documents(self, texts: Sequence[str], *, full_last: bool) -> Losses:
        """The losses of texts, each read alone after the token that begins a text; all its tokens count."""
        ids = [[self.beginning, *self.tokenizer.encode(text)] for text in texts]
        return document_losses(self.served, ids, stride=self.stride, full_last=full_last, show=self.show)

    def stream(self, ids: Sequence[int]) -> tuple[Losses, TokenStream]:
        """The losses of all ids but the first, window by window, and the ids that the limit leaves."""
        stride = check_stride(self.stride, self.context)
        if self.limit is not None:
            ids = ids[: self.context + 1 + (self.limit - 1) * stride]
        tokens = TokenStream.of(np.array(ids))
        return window_losses(self.served, tokens, stride=stride, show=self.show), tokens
