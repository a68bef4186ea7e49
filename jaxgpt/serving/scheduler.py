"""The thread that owns the engine, and how asyncio talks to it.

Only one thread may use the engine. Between two steps this thread takes over what has come in the meantime: as
many requests as there are free slots, and one text to read if the last one has been made up for by steps.
Everything else waits in a queue that the event loop can reach, so that what is cancelled leaves it at once.
After each step the thread hands the news back in a single call of the event loop, and each job has a queue
for its own. Such a queue never holds more than the tokens of its job. Therefore a reader may be slow: neither
the engine nor the other readers wait for it.

`_run` and the methods that it calls run in the engine's thread. All the rest of `Scheduler` runs in the
thread of the event loop.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import NewToken, Request
from jaxgpt.inference.served import Served
from jaxgpt.serving.job import EngineFailed, Job, Look, Text, Work

MOST_LEAD = 2.0  # seconds; more than that was compiling
STOP_SECONDS = 5.0  # the thread may take this long to end after it was told to


class QueueFull(Exception):
    """More requests would be waiting than are allowed to."""


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
        self._lead = 0.0
        """By how many seconds texts have had more time than requests that were running meanwhile."""

    @property
    def served(self) -> Served:
        """The model."""
        return self._engine.served

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
        """The number of requests, and texts to read, that have not ended."""
        return sum(len(job.left) for job in self._jobs)

    @property
    def running(self) -> int:
        """The number of slots in use."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """The number of requests, and texts to read, that the engine has not begun."""
        return self._engine.waiting + len(self._requests) + len(self._texts)

    def job(self, requests: Sequence[Request], texts: Sequence[Text | Look] = ()) -> Job:
        """Have requests run, and texts scored or looked into. Raises QueueFull unless all of them fit."""
        if self.open + len(requests) + len(texts) > self.most_open:
            raise QueueFull
        job = Job(requests, texts, ended=self.ended, forget=self.forget)
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
            queue = self._requests if isinstance(work.what, Request) else self._texts
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
                    start = time.monotonic()
                    self._deliver(self._engine.step())
                    self._lead -= time.monotonic() - start
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
            if self._texts and (self._lead <= 0 or not self._engine.busy):
                taken.append(text := next(iter(self._texts)))
                del self._texts[text]
            return taken

    def _begin(self, work: Work) -> None:
        if not isinstance(work.what, Request):
            start = time.monotonic()
            self._tell(work.job.take_found, work, work.what.read(self._engine))
            self._lead = min(MOST_LEAD, time.monotonic() - start)
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
