"""What writes the tokens of `generate`: the engine, a beam search, or a small model that the model checks."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from jaxgpt.errors import ConfigError
from jaxgpt.verbs.flags import EngineFlags

if TYPE_CHECKING:
    from jaxgpt.inference.requests import Decoder, NewToken, Request
    from jaxgpt.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class DecoderFlags(EngineFlags):
    """Which decoder writes the tokens: the engine, unless one of these flags asks for another."""

    beams: int = 0
    """Number of texts that a beam search keeps at a time to find a probable one. 0 means no beam search.
    The flags that say how tokens are chosen then have no effect. The text must fit the context."""
    length_penalty: float = 1.0
    """For --beams: 0 ranks texts by their probability, 1 by the mean of their tokens' log-probabilities."""
    draft: str | None = None
    """Smaller model with the same tokenizer, which proposes tokens that MODEL checks (speculative decoding).
    The text has the same distribution as without it, and comes faster if the draft often guesses right.
    The text must fit the context of both."""
    lookahead: int = 4
    """For --draft: number of tokens that are proposed at a time."""

    @contextmanager
    def decoder(
        self, lm: "LanguageModel", requests: "Sequence[Request]", *, slots: int
    ) -> "Iterator[Decoder]":
        """Yield the decoder that these flags ask for. After a draft, say how often its guesses were right.

        Raises ConfigError for flags that do not go together, and for requests that are too long.
        """
        from jaxgpt.inference.engine import Engine

        if not self.beams and self.draft is None:
            yield Engine(self.served(lm), slots=slots, ends=lm.ends)
            return
        way = "beams" if self.beams else "draft"
        logprobs = any(request.logprobs is not None for request in requests)
        for asked, other in (
            (self.beams and self.draft, "draft"),
            (self.int8, "int8"),
            (logprobs, "logprobs"),
        ):
            if asked:
                raise ConfigError(
                    f"--{way} with --{other}",
                    why="they do not go together",
                    fix=f"leave out --{way} or --{other}",
                )
        draft = None if self.draft is None else self.load(self.draft)
        context = min(model.config.context for model in (lm, draft) if model)
        for number, request in enumerate(requests, 1):
            if len(request.prompt) + request.max_new_tokens > context:
                length = len(request.prompt)
                raise ConfigError(
                    f"max_new_tokens = {request.max_new_tokens} after {length} tokens of prompt {number}",
                    why=f"the context has {context} tokens, and with --{way} the text must fit into it",
                    fix=f"ask for at most {max(context - length, 0)} tokens, or shorten the prompt",
                )
        if draft is None:
            yield OneByOne(self._search(lm))
        else:
            yield from self._judged(lm, draft)

    def _search(self, lm: "LanguageModel") -> "Callable[[Request], Iterator[int]]":
        from jaxgpt.inference.beam import beam_search

        served = self.served(lm)

        def tokens_of(request: "Request") -> Iterator[int]:
            if request.max_new_tokens > 0:
                yield from beam_search(
                    served,
                    request.prompt,
                    beams=self.beams,
                    ends=lm.ends,
                    max_new_tokens=request.max_new_tokens,
                    length_penalty=self.length_penalty,
                )[0].tokens

        return tokens_of

    def _judged(self, lm: "LanguageModel", draft: "LanguageModel") -> "Iterator[Decoder]":
        from jaxgpt.display import note
        from jaxgpt.inference.speculative import SpeculativeDecoder, Statistics

        if draft.tokenizer.sha256 != lm.tokenizer.sha256:
            raise ConfigError(
                f"draft {self.draft}",
                why="it has another tokenizer than the model",
                fix="name a draft that was trained with the model's tokenizer",
            )
        pair = self.served(lm), self.served(draft)
        decoder, told = SpeculativeDecoder(*pair, lookahead=self.lookahead, ends=lm.ends), list[Statistics]()

        def tokens_of(request: "Request") -> Iterator[int]:
            try:
                yield from decoder.stream(
                    request.prompt,
                    max_new_tokens=request.max_new_tokens,
                    sampling=request.sampling,
                    seed=request.seed,
                )
            finally:  # also where a stop string ends the text
                told.append(decoder.statistics)

        yield OneByOne(tokens_of)
        counts = Statistics(*map(sum, zip(*map(astuple, told), strict=True)))
        note(
            f"draft: {counts.accepted_share:.0%} of its tokens were accepted; "
            f"the model ran {counts.passes_per_token:.2f} times for each token"
        )


class OneByOne:
    """A decoder that runs requests one after another; `tokens_of` yields the tokens of one."""

    def __init__(self, tokens_of: "Callable[[Request], Iterator[int]]") -> None:
        self._tokens_of = tokens_of
        self._cancelled: set[int] = set()

    def run(self, requests: "Sequence[Request]") -> "Generator[tuple[int, NewToken], None, None]":
        """Yield each token, with the place of its request in the list."""
        from jaxgpt.inference.requests import NewToken

        self._cancelled.clear()
        for place, request in enumerate(requests):
            for token in self._tokens_of(request):
                yield place, NewToken(place, token, None, (), None)
                if place in self._cancelled:
                    break

    def cancel(self, number: int) -> None:
        """End the request at this place."""
        self._cancelled.add(number)
