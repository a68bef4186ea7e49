"""The thread that owns the engine, and how asyncio talks to it.

Only one thread may use the engine. This thread runs its steps and, between two steps, does what it was asked
to do in the meantime: submit, cancel, score. After each step it hands the news back in a single call of the
event loop, and each job has a queue for its own. Such a queue never holds more than the tokens of its job.
Therefore a reader may be slow: neither the engine nor the other readers wait for it.

`_run` and the methods that it calls run in the engine's thread. All the rest of `Scheduler` runs in the
thread of the event loop.
"""

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import NewToken, Request

Scores = list[NewToken]
_Text = tuple[Sequence[int], int, "Future[Scores]"]  # ids, number of alternatives, where the answer goes


class QueueFull(Exception):
    """More requests would be waiting than are allowed to."""


class EngineFailed(Exception):
    """The engine raised an error or is being stopped: there will be no more tokens."""


class Job:
    """Some requests that belong together. Leaving its `with` block cancels those that have not ended."""

    def __init__(
        self, scheduler: "Scheduler", requests: Sequence[Request], scores: "list[Future[Scores]]"
    ) -> None:
        self.requests = tuple(requests)
        self.scores = [asyncio.wrap_future(score) for score in scores]
        """The result for each text that is to be scored."""
        self.numbers: dict[int, int] = {}
        """The engine's number for each place in `requests`. Only the engine's thread uses it."""
        self._scheduler = scheduler
        self._left = set(range(len(requests)))
        self._news: asyncio.Queue[list[tuple[int, NewToken]] | EngineFailed] = asyncio.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for score in self.scores:
            if not score.cancel() and not score.cancelled():
                score.exception()  # asyncio warns of an exception that nobody has looked at
        for place in list(self._left):
            self.cancel(place)

    async def news(self) -> AsyncIterator[list[tuple[int, NewToken]]]:
        """Yield what happened to the requests in each step, with their places, until all have ended.

        Raises EngineFailed if the engine fails.
        """
        while self._left or not self._news.empty():
            news = await self._news.get()
            if isinstance(news, EngineFailed):
                raise news
            yield news

    def cancel(self, place: int) -> None:
        """End the request at this place early."""
        if place in self._left:
            self.ended(place)
            self._scheduler.forget(self, place)

    def ended(self, place: int) -> None:
        """Note that the request at this place has ended."""
        self._left.discard(place)
        self._scheduler.open -= 1

    def hand_over(self, news: list[tuple[int, NewToken]] | EngineFailed) -> None:
        """Take what the engine made. News of requests that were cancelled are dropped."""
        if not isinstance(news, EngineFailed):
            news = [(place, new) for place, new in news if place in self._left]
            for place, new in news:
                if new.finish:
                    self.ended(place)
        if news:
            self._news.put_nowait(news)


class Scheduler:
    """Runs an engine in a thread of its own from `start` to `stop`. The docstring of this file explains how.

    `waiting` is how many requests may wait in addition to those that have a slot. `on_failure` is called,
    from the engine's thread, when the engine has raised an error; from then on every request gets
    EngineFailed.
    """

    def __init__(
        self, engine: Engine, *, waiting: int = 64, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        self.slots, self.most_open = engine.slots, engine.slots + waiting
        self.failed = False
        self.open = 0
        """The number of requests, and texts to score, that have not ended."""
        self._engine, self._on_failure = engine, on_failure
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: dict[int, tuple[Job, int]] = {}
        self._texts: deque[_Text] = deque()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread. The event loop that will use the scheduler must call this while it runs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after the present step. Requests that have not ended get EngineFailed."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def running(self) -> int:
        """The number of slots in use."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """The number of requests, and texts to score, that the engine has not begun."""
        return self._engine.waiting + len(self._texts) + self._commands.qsize()

    def job(
        self, requests: Sequence[Request], texts: Sequence[Sequence[int]] = (), alternatives: int = 0
    ) -> Job:
        """Have requests run and texts scored (`Engine.score`). Raises QueueFull unless all of them fit."""
        if self.open + len(requests) + len(texts) > self.most_open:
            raise QueueFull
        self.open += len(requests) + len(texts)
        scores: list[Future[Scores]] = [Future() for _ in texts]
        job = Job(self, requests, scores)
        for score in job.scores:
            score.add_done_callback(self._text_ended)
        pairs = [(ids, alternatives, score) for ids, score in zip(texts, scores, strict=True)]
        self._commands.put(lambda: self._submit(job, pairs))
        return job

    def forget(self, job: Job, place: int) -> None:
        """Take a request away from the engine. Its slot is free before the next step."""
        self._commands.put(lambda: self._cancel(job.numbers.get(place)))

    def _text_ended(self, _: "asyncio.Future[Scores]") -> None:
        self.open -= 1

    # --- what runs in the engine's thread

    def _run(self) -> None:
        while self._obey():
            try:
                if self._texts and not self.failed:
                    self._score_one()  # only one in each step, so that other clients do not wait for all
                if self._engine.busy and not self.failed:
                    self._deliver(self._engine.step())
            except Exception as error:  # noqa: BLE001  Whatever it is, every client must hear of it.
                self._fail(error)
        self._refuse(EngineFailed("stopped"))

    def _obey(self) -> bool:
        """Do what was asked, and wait while there is nothing else to do. False means stop."""
        while True:
            idle = self.failed or not (self._engine.busy or self._texts)
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _submit(self, job: Job, texts: list[_Text]) -> None:
        self._texts.extend(texts)
        for place, request in enumerate(job.requests):
            try:
                number = self._engine.submit(request)
            # The API should have found what is wrong with this request; the others must go on.
            except Exception as error:  # noqa: BLE001
                logging.getLogger(__name__).error("request refused by the engine: %s", type(error).__name__)
                self._loop.call_soon_threadsafe(job.hand_over, EngineFailed("refused"))
                return
            job.numbers[place] = number
            self._jobs[number] = job, place
        if self.failed:
            self._refuse(EngineFailed("failed"))

    def _cancel(self, number: int | None) -> None:
        if number is not None:
            self._engine.cancel(number)
            self._jobs.pop(number, None)

    def _score_one(self) -> None:
        ids, alternatives, score = self._texts.popleft()
        if score.set_running_or_notify_cancel():
            try:
                score.set_result(self._engine.score(ids, alternatives))
            except Exception as error:
                score.set_exception(EngineFailed("failed"))
                raise error

    def _deliver(self, news: list[NewToken]) -> None:
        by_job: dict[Job, list[tuple[int, NewToken]]] = {}
        for new in news:
            job, place = self._jobs[new.request]
            if new.finish:
                del self._jobs[new.request]
            by_job.setdefault(job, []).append((place, new))
        self._loop.call_soon_threadsafe(_hand_over, list(by_job.items()))

    def _fail(self, error: Exception) -> None:
        """Stop using an engine that has raised: its cache was given away to the computation that failed."""
        logging.getLogger(__name__).critical("the engine failed", exc_info=error)
        self.failed = True
        self._refuse(EngineFailed("failed"))
        self._on_failure()

    def _refuse(self, error: EngineFailed) -> None:
        """End everything there is with an error."""
        for number in self._jobs:
            self._engine.cancel(number)
        jobs = {job for job, _ in self._jobs.values()}
        self._jobs.clear()
        for _, _, score in self._texts:
            if score.set_running_or_notify_cancel():
                score.set_exception(error)
        self._texts.clear()
        self._loop.call_soon_threadsafe(_hand_over, [(job, error) for job in jobs])


def _hand_over(news_of_jobs: Sequence[tuple[Job, list[tuple[int, NewToken]] | EngineFailed]]) -> None:
    for job, news in news_of_jobs:
        job.hand_over(news)
