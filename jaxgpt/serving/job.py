"""What a client has the engine do, as the event loop sees it: a job waits for its news and its findings."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.inside import attention_weights, compile_attention, compile_lens, logit_lens
from jaxgpt.inference.requests import NewToken, Request
from jaxgpt.inference.served import Served


class EngineFailed(Exception):
    """The engine raised an error or is being stopped: there will be no more tokens."""


class Text(NamedTuple):
    """A text to score, and for how many alternatives at each place."""

    ids: Sequence[int]
    alternatives: int = 0

    def read(self, engine: Engine) -> list[NewToken]:
        """Return the log-probabilities of its tokens."""
        return engine.score(self.ids, self.alternatives)


class Look(NamedTuple):
    """A text to look into: at the attention of a layer or, without one, through the logit lens."""

    ids: Sequence[int]
    layer: int | None

    def compile(self, served: Served) -> None:
        """Compile what `read` runs. This may be done in any thread."""
        (compile_lens if self.layer is None else compile_attention)(served, self.ids)

    def read(self, engine: Engine) -> Any:
        """Return attention weights [H, T, T] or a Lens."""
        if self.layer is None:
            return logit_lens(engine.served, self.ids)
        return attention_weights(engine.served, self.ids, self.layer)


@dataclass(eq=False)
class Work:
    """One thing that the engine is to do, and where it stands among those of its kind in its job."""

    job: "Job"
    place: int
    what: Request | Text | Look
    number: int = 0
    """The engine's number for a request that it has begun. Only the engine's thread uses it."""


class Job:
    """Some work that belongs together. Leaving its `with` block cancels what has not ended.

    `ended` is told of work that has ended, and `forget` of work that is to be cancelled.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        texts: Sequence[Text | Look],
        *,
        ended: Callable[["Work"], None],
        forget: Callable[["Work"], None],
    ) -> None:
        self.found: list[asyncio.Future[Any]] = [asyncio.Future() for _ in texts]
        """What is found of each text: what its `read` returns."""
        self.runs = [Work(self, place, request) for place, request in enumerate(requests)]
        self.texts = [Work(self, place, text) for place, text in enumerate(texts)]
        self.left = {*self.runs, *self.texts}
        """What has not ended."""
        self._ended, self._forget = ended, forget
        self._news: asyncio.Queue[list[tuple[int, NewToken]] | EngineFailed] = asyncio.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for result in self.found:
            if not result.cancel() and not result.cancelled():
                result.exception()  # asyncio warns of an exception that nobody has looked at
        for work in list(self.left):
            self._forget(work)

    async def news(self) -> AsyncIterator[list[tuple[int, NewToken]]]:
        """Yield what happened to the requests in each step, with their places, until all have ended.

        Raises EngineFailed if the engine fails.
        """
        while not (self.left.isdisjoint(self.runs) and self._news.empty()):
            news = await self._news.get()
            if isinstance(news, EngineFailed):
                raise news
            yield news

    def cancel(self, place: int) -> None:
        """End the request at this place early."""
        if (work := self.runs[place]) in self.left:
            self._forget(work)

    def take_news(self, news: list[tuple[Work, NewToken]]) -> None:
        """Take what the engine wrote. News of requests that were cancelled are dropped."""
        if news := [(work, new) for work, new in news if work in self.left]:
            self._news.put_nowait([(work.place, new) for work, new in news])
        for work, new in news:
            if new.finish:
                self._ended(work)

    def take_found(self, work: Work, found: Any) -> None:
        """Take what was found of a text."""
        if work in self.left:
            self._ended(work)
            if not (result := self.found[work.place]).done():  # a client that is leaving has cancelled it
                result.set_result(found)

    def fail(self, error: EngineFailed) -> None:
        """End everything that is left with an error."""
        for work in list(self.left):
            self._forget(work)
        for result in self.found:
            if not result.done():
                result.set_exception(error)
        self._news.put_nowait(error)
