"""The thread that owns the engine, and how asyncio talks to it.

Only one thread may use the engine. Between two steps this thread takes over what has come in the meantime: as
many requests as there are free slots, and one text to score. Everything else waits in a queue that the event
loop can reach, so that what is cancelled leaves it at once. After each step the thread hands the news back in
a single call of the event loop, and each job has a queue for its own. Such a queue never holds more than the
tokens of its job. Therefore a reader may be slow: neither the engine nor the other readers wait for it.

`_run` and the methods that it calls run in the engine's thread. All the rest of `Scheduler` runs in the
thread of the event loop.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import NewToken, Request

Scores = list[NewToken]
STOP_SECONDS = 5.0  # the thread may take this long to end after it was told to


class QueueFull(Exception):
    """More requests would be waiting than are allowed to."""


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
    """Some work that belongs together. Leaving its `with` block cancels what has not ended."""

    def __init__(self, scheduler: "Scheduler", requests: Sequence[Request], texts: Sequence[Text]) -> None:
        self.scores: list[asyncio.Future[Scores]] = [asyncio.Future() for _ in texts]
        """The result for each text that is to be scored."""
        self.runs = [Work(self, place, request) for place, request in enumerate(requests)]
        self.texts = [Work(self, place, text) for place, text in enumerate(texts)]
        self.left = {*self.runs, *self.texts}
        """What has not ended."""
        self._scheduler = scheduler
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
            self._scheduler.forget(work)

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
            self._scheduler.forget(work)

    def take_news(self, news: list[tuple[Work, NewToken]]) -> None:
        """Take what the engine wrote. News of requests that were cancelled are dropped."""
        if news := [(work, new) for work, new in news if work in self.left]:
            self._news.put_nowait([(work.place, new) for work, new in news])
        for work, new in news:
            if new.finish:
                self._scheduler.ended(work)

    def take_scores(self, work: Work, scores: Scores) -> None:
        """Take the result for a text."""
        if work in self.left:
            self._scheduler.ended(work)
            self.scores[work.place].set_result(scores)

    def fail(self, error: EngineFailed) -> None:
        """End everything that is left with an error."""
        for work in list(self.left):
            self._scheduler.forget(work)
        for score in self.scores:
            if not score.done():
                score.set_exception(error)
        self._news.put_nowait(error)


class Scheduler:
    """Runs an engine in a thread of its own from `start` to `stop`. The docstring of this file explains how.

    `waiting` is how much work of all kinds may wait in addition to what has a slot. `on_failure` is called,
    from the engine's thread, when the engine has raised an error; from then on every job gets EngineFailed.
    """

    def __init__(
        self, engine: Engine, *, waiting: int = 64, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        self.slots, self.most_open = engine.slots, engine.slots + waiting
        self.failed = False
        self._engine, self._on_failure = engine, on_failure
        self._jobs: set[Job] = set()
        self._ended: EngineFailed | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Both threads use what follows, under the lock of `_changed`. The dicts are ordered sets.
        self._changed = threading.Condition()
        self._requests: dict[Work, None] = {}
        self._texts: dict[Work, None] = {}
        self._dropped: list[Work] = []
        self._stopping = False
        # These belong to the engine's thread.
        self._begun: dict[int, Work] = {}
        self._since: float | None = None

    def start(self) -> None:
        """Start the thread. The event loop that will use the scheduler must call this while it runs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def end(self) -> None:
        """End all jobs, and those that come later, with EngineFailed. Have the thread end after its step."""
        self._fail_all(EngineFailed("the server is stopping"))
        with self._changed:
            self._stopping = True
            self._changed.notify()

    async def stop(self) -> bool:
        """End everything (`end`), and return whether the thread has ended, too, within STOP_SECONDS."""
        self.end()
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    @property
    def busy_seconds(self) -> float:
        """For how long the engine has been in its present step; 0 if it is idle. One that hangs goes on."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def open(self) -> int:
        """The number of requests, and texts to score, that have not ended."""
        return sum(len(job.left) for job in self._jobs)

    @property
    def running(self) -> int:
        """The number of slots in use."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """The number of requests, and texts to score, that the engine has not begun."""
        return self._engine.waiting + len(self._requests) + len(self._texts)

    def job(
        self, requests: Sequence[Request], texts: Sequence[Sequence[int]] = (), alternatives: int = 0
    ) -> Job:
        """Have requests run and texts scored (`Engine.score`). Raises QueueFull unless all of them fit."""
        if self.open + len(requests) + len(texts) > self.most_open:
            raise QueueFull
        job = Job(self, requests, [Text(ids, alternatives) for ids in texts])
        if job.left:
            self._jobs.add(job)
        with self._changed:
            self._requests.update(dict.fromkeys(job.runs))
            self._texts.update(dict.fromkeys(job.texts))
            self._changed.notify()
        if self._ended:
            job.fail(self._ended)
        return job

    def forget(self, work: Work) -> None:
        """Cancel work that has not ended. A slot that it has is free before the next step."""
        self.ended(work)
        with self._changed:
            queue = self._texts if isinstance(work.what, Text) else self._requests
            if work in queue:
                del queue[work]
            else:
                self._dropped.append(work)
                self._changed.notify()

    def ended(self, work: Work) -> None:
        """Note that this work has ended."""
        work.job.left.discard(work)
        if not work.job.left:
            self._jobs.discard(work.job)

    def _fail_all(self, error: EngineFailed) -> None:
        self._ended = error
        for job in list(self._jobs):
            job.fail(error)

    # --- what runs in the engine's thread

    def _run(self) -> None:
        try:
            while (works := self._take()) is not None:
                for work in works:
                    self._begin(work)
                if self._engine.busy:
                    self._deliver(self._engine.step())
        except BaseException as error:
            # An engine that has raised is of no use: its cache was given away to the computation that failed.
            logging.getLogger(__name__).critical("the engine failed", exc_info=error)
            self.failed = True
            self._tell(self._fail_all, EngineFailed("failed"))
            self._on_failure()
        finally:
            self._since = None
            for number in self._begun:
                self._engine.cancel(number)

    def _take(self) -> list[Work] | None:
        """Return what is to be begun now. Wait while there is nothing to do at all. None means stop."""
        self._since = None
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._dropped or self._engine.busy or self._requests or self._texts
            )
            if self._stopping:
                return None
            self._since = time.monotonic()
            for work in self._dropped:
                if self._begun.pop(work.number, None):
                    self._engine.cancel(work.number)
            self._dropped.clear()
            free = self.slots - self._engine.running - self._engine.waiting
            taken = list(itertools.islice(self._requests, max(0, free)))
            for work in taken:
                del self._requests[work]
            for text in itertools.islice(list(self._texts), 1):  # other clients do not wait for all
                del self._texts[text]
                taken.append(text)
            return taken

    def _begin(self, work: Work) -> None:
        if isinstance(work.what, Text):
            self._tell(work.job.take_scores, work, self._engine.score(*work.what))
            return
        try:
            work.number = self._engine.submit(work.what)
        # The API should have found what is wrong with this request; the others must go on.
        except Exception as error:  # noqa: BLE001
            logging.getLogger(__name__).error("request refused by the engine: %s", type(error).__name__)
            self._tell(work.job.fail, EngineFailed("refused"))
            return
        self._begun[work.number] = work

    def _deliver(self, news: list[NewToken]) -> None:
        by_job: dict[Job, list[tuple[Work, NewToken]]] = {}
        for new in news:
            work = self._begun[new.request]
            if new.finish:
                del self._begun[new.request]
            by_job.setdefault(work.job, []).append((work, new))
        self._tell(_hand_over, by_job)

    def _tell(self, callback: Callable[..., None], *values: Any) -> None:
        """Have the event loop call this, unless it has ended while the engine was in its last step."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *values)


def _hand_over(by_job: dict[Job, list[tuple[Work, NewToken]]]) -> None:
    for job, news in by_job.items():
        job.take_news(news)
