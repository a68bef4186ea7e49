"""What writes the tokens of `generate`: the engine, a beam search, or a draft model that the model judges."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Protocol

from jaxgpt.errors import ConfigError
from jaxgpt.verbs.flags import EngineFlags

if TYPE_CHECKING:
    from jaxgpt.inference.requests import NewToken, Request
    from jaxgpt.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class DecoderFlags(EngineFlags):
    """Which decoder; see the module's docstring."""

    beams: int = 0
    """Search for the most probable text among so many at a time (beam search) instead of drawing one; 0 draws. The
    settings of drawing then do nothing, and the text has to fit the context."""
    length_penalty: float = 1.0
    """beams: 0 ranks texts by their probability, 1 by the mean of their tokens' log-probabilities."""
    draft: str | None = None
    """A smaller MODEL of the same tokenizer that proposes tokens, which the model judges (speculative decoding): the
    text is drawn as without, and sooner where the draft guesses well. It has to fit the smaller context."""
    lookahead: int = 4
    """draft: tokens proposed at a time."""

    @contextmanager
    def decoder(
        self, lm: "LanguageModel", requests: "Sequence[Request]", *, slots: int
    ) -> "Iterator[Decoder]":
        """What these flags ask for; afterwards a draft's success is told.

        Raises ConfigError for what does not go together and for too long requests.
        """
        from jaxgpt.inference.engine import Engine

        end = lm.tokenizer.end_of_text
        if not self.beams and self.draft is None:
            yield Engine(lm.text_config, lm.params, slots=slots, end=end, int8=self.int8, consume=True)
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
                    f"--{way} with --{other}", why="they do not go together", fix="leave one out"
                )
        draft = None if self.draft is None else self.load(self.draft)
        context = min(model.config.context for model in (lm, draft) if model)
        for number, request in enumerate(requests, 1):
            if len(request.prompt) + request.max_new_tokens > context:
                raise ConfigError(
                    f"max_new_tokens = {request.max_new_tokens} after {len(request.prompt)} tokens of prompt {number}",
                    why=f"the context is {context}, and with --{way} it does not slide",
                    fix="ask for fewer",
                )
        if draft is None:
            yield OneByOne(self._search(lm, end))
        else:
            yield from self._judged(lm, draft, end)

    def _search(self, lm: "LanguageModel", end: int) -> "Callable[[Request], Iterator[int]]":
        from jaxgpt.inference.beam import beam_search

        def tokens_of(request: "Request") -> Iterator[int]:
            if request.max_new_tokens > 0:
                yield from beam_search(
                    lm.text_config,
                    lm.params,
                    request.prompt,
                    beams=self.beams,
                    end=end,
                    max_new_tokens=request.max_new_tokens,
                    length_penalty=self.length_penalty,
                )[0].tokens

        return tokens_of

    def _judged(self, lm: "LanguageModel", draft: "LanguageModel", end: int) -> "Iterator[Decoder]":
        from jaxgpt.display import note
        from jaxgpt.inference.speculative import SpeculativeDecoder, Statistics

        if draft.tokenizer.sha256 != lm.tokenizer.sha256:
            raise ConfigError(
                f"draft {self.draft}", why="its tokenizer is another", fix="use a draft of the same one"
            )
        pair = (lm.text_config, lm.params), (draft.text_config, draft.params)
        decoder, told = SpeculativeDecoder(*pair, lookahead=self.lookahead, end=end), list[Statistics]()

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
        note(f"draft: {counts.accepted_share:.0%} accepted, {counts.passes_per_token:.2f} passes a token")


class Decoder(Protocol):
    """What `generate` needs of an engine."""

    def run(self, requests: "Sequence[Request]") -> "Iterator[tuple[int, NewToken]]":
        """What happens to the requests, with each one's place in the list."""

    def cancel(self, number: int) -> None:
        """No more of the request that events call so."""


class OneByOne:
    """Requests one after another, from a function that gives the tokens of one."""

    def __init__(self, tokens_of: "Callable[[Request], Iterator[int]]") -> None:
        self._tokens_of = tokens_of
        self._cancelled: set[int] = set()

    def run(self, requests: "Sequence[Request]") -> "Iterator[tuple[int, NewToken]]":
        from jaxgpt.inference.requests import NewToken

        self._cancelled.clear()
        for place, request in enumerate(requests):
            for token in self._tokens_of(request):
                yield place, NewToken(place, token, None, (), None)
                if place in self._cancelled:
                    break

    def cancel(self, number: int) -> None:
        self._cancelled.add(number)
