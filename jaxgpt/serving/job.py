"""What a client has the engine do, as the event loop sees it: a job waits for its news and its scores."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from jaxgpt.inference.requests import NewToken, Request

Scores = list[NewToken]


class EngineFailed(Exception):
    """The engine raised an error or is being stopped: there will be no more tokens."""


class Text(NamedTuple):
    """A text to score, and for how many alternatives at each place."""

    ids: Sequence[int]
    alternatives: int


@dataclass(eq=False)
class Work:
    """One thing that the engine is to do, and where it stands among those of its kind in its job."""

    job: "Job"
    place: int
    what: Request | Text
    number: int = 0
    """The engine's number for a request that it has begun. Only the engine's thread uses it."""


class Job:
    """Some work that belongs together. Leaving its `with` block cancels what has not ended.

    `ended` is told of work that has ended, and `forget` of work that is to be cancelled.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        texts: Sequence[Text],
        *,
        ended: Callable[["Work"], None],
        forget: Callable[["Work"], None],
    ) -> None:
        self.scores: list[asyncio.Future[Scores]] = [asyncio.Future() for _ in texts]
        """The result for each text that is to be scored."""
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
        for score in self.scores:
            if not score.cancel() and not score.cancelled():
                score.exception()  # asyncio warns of an exception that nobody has looked at
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

    def take_scores(self, work: Work, scores: Scores) -> None:
        """Take the result for a text."""
        if work in self.left:
            self._ended(work)
            if not (score := self.scores[work.place]).done():  # a client that is leaving has cancelled it
                score.set_result(scores)

    def fail(self, error: EngineFailed) -> None:
        """End everything that is left with an error."""
        for work in list(self.left):
            self._forget(work)
        for score in self.scores:
            if not score.done():
                score.set_exception(error)
        self._news.put_nowait(error)
