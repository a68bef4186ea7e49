"""The engine's thread: what clients get, what leaving costs, and what a failure does."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import jax
import pytest

from jaxgpt.config import GPTConfig
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import NewToken, Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
from jaxgpt.model.gpt import define
from jaxgpt.serving import scheduler as scheduling
from jaxgpt.serving.job import EngineFailed, Text
from jaxgpt.serving.scheduler import QueueFull, Scheduler

END = 256
CONFIG = GPTConfig(vocab=257, context=64, layers=1, heads=2, width=16)


class Paced(Engine):
    """An engine that makes only the steps it may make: all of them or, if `held`, those that are released."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.made, self.held, self.allowed, self.fault = 0, False, threading.Semaphore(0), False

    def step(self) -> list[NewToken]:
        if self.held:
            self.allowed.acquire()
        if self.fault:
            raise RuntimeError("out of memory")
        self.made += 1
        return super().step()

    def let_go(self) -> None:
        self.held = False
        self.allowed.release(1000)


@pytest.fixture(scope="module")
def served() -> Served:
    """Random, with large position embeddings: greedy text is not one token for ever."""
    drawn = jax.jit(define(CONFIG).init)(jax.random.key(0))
    return Served.of(CONFIG, drawn | {"wpe": {"embedding": 100 * drawn["wpe"]["embedding"]}})


@pytest.fixture
def engine(served: Served) -> Paced:
    return Paced(served, slots=2, ends={END}, steps=4)


def run(scheduler: Scheduler, test: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """A test inside an event loop with the scheduler started, and stopped at the end."""

    async def whole() -> Any:
        scheduler.start()
        try:
            async with asyncio.timeout(30):
                return await test()
        finally:
            scheduler._engine.let_go()  # type: ignore[attr-defined]
            await scheduler.stop()

    return asyncio.run(whole())


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.002)


def request(text: str, new: int = 10, **more: Any) -> Request:
    sampling = Sampling(temperature=0)
    return Request(prompt=tuple(text.encode()), max_new_tokens=new, sampling=sampling, slide=False, **more)


async def texts(scheduler: Scheduler, *requests: Request) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in requests]
    with scheduler.job(requests) as job:
        async for news in job.news():
            for place, new in news:
                if new.token is not None:
                    found[place].append(new.token)
    return found


def alone(served: Served, *requests: Request) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in requests]
    for place, new in Engine(served, slots=1).run(requests):
        if new.token is not None:
            found[place].append(new.token)
    return found


def test_jobs_side_by_side_get_what_each_request_gets_alone(engine: Paced, served: Served) -> None:
    scheduler = Scheduler(engine)
    first, second = [request("ab"), request("c", 30), request("def", 7)], [request("xyz", 20)]

    async def test() -> Any:
        return await asyncio.gather(texts(scheduler, *first), texts(scheduler, *second))

    assert run(scheduler, test) == [alone(served, *first), alone(served, *second)]
    assert (scheduler.open, scheduler.running, scheduler.waiting) == (0, 0, 0)


@pytest.mark.parametrize("phase", ["queue", "prefill", "decode"])
def test_who_leaves_frees_its_place_within_one_step(engine: Paced, phase: str) -> None:
    scheduler = Scheduler(engine)

    async def test() -> None:
        engine.held = True
        others = [request("a", 50), request("b", 50)] if phase == "queue" else []
        with scheduler.job(others):
            if others:
                await until(lambda: engine.waiting == 2)
            with scheduler.job([request("c", 50)]):
                await until(lambda: scheduler.waiting == len(others) + 1 and engine.busy)
                if phase != "prefill":
                    engine.allowed.release(2)
                    await until(lambda: engine.made == 2)
                assert (scheduler.running, scheduler.waiting) == {
                    "queue": (2, 1),
                    "prefill": (0, 1),
                    "decode": (1, 0),
                }[phase]
                before = engine.made
            assert scheduler.open == len(others)
            engine.allowed.release()
            await until(lambda: scheduler.running == len(others) and scheduler.waiting == 0)
            assert engine.made <= before + 1

    run(scheduler, test)
    assert scheduler.open == 0


def test_the_token_that_ends_a_text_is_reported_and_nothing_after_it(served: Served) -> None:
    (ids,) = alone(served, request("ab"))
    end = next(token for token in ids if ids.index(token) > 1)  # in the middle of a step of four
    engine = Paced(served, slots=2, ends={end}, steps=4)
    scheduler = Scheduler(engine)

    async def test() -> list[NewToken]:
        with scheduler.job([request("ab", 50, logprobs=1)]) as job:
            found = [new async for news in job.news() for _, new in news]
        await until(lambda: scheduler.running == 0)
        return found

    found = run(scheduler, test)
    assert [new.token for new in found] == ids[: ids.index(end) + 1]
    assert found[-1].finish == "end" and found[-1].logprob is not None
    assert {new.finish for new in found[:-1]} == {None}
    assert engine.made == 1 + -(-ids.index(end) // 4)  # the prompt's token, then four a step


def test_a_job_that_finds_no_room_is_refused_whole(engine: Paced) -> None:
    scheduler = Scheduler(engine, waiting=1)

    async def test() -> None:
        engine.held = True
        with scheduler.job([request("a"), request("b")]):
            with pytest.raises(QueueFull):
                scheduler.job([request("c")], texts=[Text([1, 2])])
            assert scheduler.open == 2
            with scheduler.job([request("c")]), pytest.raises(QueueFull):
                scheduler.job([request("d")])
            assert scheduler.open == 2
        assert scheduler.open == 0

    run(scheduler, test)


def test_one_who_reads_nothing_keeps_nobody_waiting(engine: Paced, served: Served) -> None:
    scheduler = Scheduler(engine)

    async def test() -> Any:
        with scheduler.job([request("slow", 40)]) as slow:
            await texts(scheduler, request("quick", 10))
            await until(lambda: scheduler.running == 0)  # the slow one's text is made all the same
            assert scheduler.open == 0
            return [new.token async for news in slow.news() for _, new in news]

    assert [run(scheduler, test)] == alone(served, request("slow", 40))


def test_scores_are_the_engines_and_wait_in_no_ones_way(engine: Paced) -> None:
    scheduler = Scheduler(engine)

    async def test() -> Any:
        engine.held = True
        with scheduler.job([request("a", 2)], texts=[Text([1, 2, 3], 2), Text([5, 6], 2)]) as job:
            first = await job.found[0]
            assert engine.made == 0 and not job.found[1].done()  # one of them, then the step that is held
            engine.let_go()
            return [first, await job.found[1]]

    scores = run(scheduler, test)
    assert scores == [engine.score([1, 2, 3], 2), engine.score([5, 6], 2)]
    assert scheduler.open == 0


def test_scoring_gets_no_more_time_than_requests_that_run_beside_it(engine: Paced) -> None:
    scheduler, score, order = Scheduler(engine), engine.score, list[str]()

    def slow(ids: Any, alternatives: int = 0) -> list[NewToken]:
        order.append("text")
        time.sleep(0.2)
        return score(ids, alternatives)

    def step() -> list[NewToken]:
        order.append("step")
        time.sleep(0.05)
        return Engine.step(engine)

    async def test() -> None:
        with scheduler.job([], texts=[Text([1, 2])]) as compiled:
            await asyncio.gather(*compiled.found)
        engine.score, engine.step = slow, step  # type: ignore[method-assign]
        with scheduler.job([request("a", 60)]) as job, scheduler.job([], texts=[Text([1, 2])] * 4) as other:
            async for _ in job.news():
                pass
            await asyncio.gather(*other.found)

    run(scheduler, test)
    texts = [place for place, what in enumerate(order) if what == "text"]
    assert len(texts) == 4 and all(order[place + 1 : place + 4] == ["step"] * 3 for place in texts[:3])


def test_a_score_that_comes_while_its_client_leaves_is_dropped(engine: Paced) -> None:
    scheduler, faults = Scheduler(engine), list[Any]()

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        with scheduler.job([], texts=[Text([1, 2, 3])]) as job:
            job.found[0].cancel()
            await until(lambda: scheduler.open == 0)

    run(scheduler, test)
    assert not faults


def test_what_is_cancelled_leaves_the_queue_at_once_whatever_kind_it_is(engine: Paced) -> None:
    scheduler = Scheduler(engine)

    async def test() -> None:
        engine.held = True
        with scheduler.job([request("a", 50), request("b", 50)]):
            await until(lambda: engine.waiting == 2)  # it is in a step, from which it does not return
            for _ in range(100):
                with scheduler.job([request("c")] * 3, texts=[Text([1, 2])] * 5):
                    assert (scheduler.open, scheduler.waiting) == (10, 10)
                assert (scheduler.open, scheduler.waiting) == (2, 2)
            assert not scheduler._dropped and not scheduler._texts

    run(scheduler, test)


def test_a_failure_of_the_engine_reaches_everyone_and_those_who_come_later(engine: Paced) -> None:
    failures: list[str] = []
    scheduler = Scheduler(engine, on_failure=lambda: failures.append("failed"))

    async def test() -> None:
        engine.held = True
        with (
            scheduler.job([request("a")], texts=[Text([1, 2]), Text([3, 4])]) as job,
            scheduler.job([request("b")]) as other,
        ):
            engine.fault = True
            engine.let_go()
            for each in (job, other):
                with pytest.raises(EngineFailed):
                    [news async for news in each.news()]
            with pytest.raises(EngineFailed):
                await job.found[1]
        with scheduler.job([request("c")]) as later, pytest.raises(EngineFailed):
            [news async for news in later.news()]

    run(scheduler, test)
    assert scheduler.failed and failures == ["failed"] and scheduler.open == 0


def test_a_thread_that_dies_of_anything_ends_everything(engine: Paced) -> None:
    scheduler = Scheduler(engine)

    def dies() -> list[NewToken]:
        raise SystemExit  # an error that is no Exception

    async def test() -> None:
        with scheduler.job([request("a")]) as job, pytest.raises(EngineFailed):
            [news async for news in job.news()]
        await until(lambda: not scheduler.alive)

    engine.step = dies  # type: ignore[method-assign]
    run(scheduler, test)
    assert scheduler.failed and scheduler.open == 0


def test_how_long_a_step_takes_is_known_and_one_that_hangs_does_not_keep_the_server(
    engine: Paced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "STOP_SECONDS", 0.2)
    scheduler = Scheduler(engine)

    async def test() -> None:
        assert scheduler.busy_seconds == 0
        engine.held = True
        with scheduler.job([request("a", 50)]) as job:
            await until(lambda: scheduler.busy_seconds > 0.3)
            assert not await scheduler.stop()
            with pytest.raises(EngineFailed):
                [news async for news in job.news()]
            with scheduler.job([request("b")]) as later, pytest.raises(EngineFailed):
                [news async for news in later.news()]
        engine.let_go()
        await until(lambda: not scheduler.alive)
        assert scheduler.busy_seconds == 0

    run(scheduler, test)


def test_a_request_the_engine_refuses_fails_alone(engine: Paced, served: Served) -> None:
    scheduler = Scheduler(engine)

    async def test() -> Any:
        with scheduler.job([Request(prompt=(), max_new_tokens=1)]) as job, pytest.raises(EngineFailed):
            [news async for news in job.news()]
        return await texts(scheduler, request("a"))

    assert run(scheduler, test) == alone(served, request("a"))
    assert not scheduler.failed


def test_an_idle_scheduler_sleeps(engine: Paced) -> None:
    scheduler = Scheduler(engine)

    async def test() -> float:
        await texts(scheduler, request("a"))
        start = time.process_time()
        await asyncio.sleep(0.5)
        return time.process_time() - start

    assert run(scheduler, test) < 0.25


def test_stopping_ends_what_runs_with_an_error(engine: Paced) -> None:
    scheduler = Scheduler(engine)

    async def test() -> None:
        engine.held = True
        with scheduler.job([request("a", 50)]) as job:
            await until(lambda: engine.busy)
            stopping = asyncio.create_task(scheduler.stop())
            await asyncio.sleep(0)  # it has said so to the thread, which is in a step
            engine.allowed.release()
            await stopping
            with pytest.raises(EngineFailed):
                [news async for news in job.news()]

    run(scheduler, test)
    assert engine.running == engine.waiting == 0
