from __future__ import annotations

import asyncio
import itertools

import pytest

from rdzv.control import queue as queue_module
from rdzv.control.queue import WorkQueue


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "DEBOUNCE", 0.001)
    monkeypatch.setattr(queue_module, "BACKOFF_FIRST", 0.002)
    monkeypatch.setattr(queue_module, "REST_MAX", 0.002)


async def until(condition: asyncio.Condition, predicate: object) -> None:
    async with condition:
        await asyncio.wait_for(condition.wait_for(predicate), 10)  # type: ignore[arg-type]


def test_one_pass_at_a_time_per_key_and_one_more_for_what_came_meanwhile() -> None:
    async def scenario() -> None:
        running, passes, release, started = 0, 0, asyncio.Event(), asyncio.Condition()

        async def work(_key: str) -> None:
            nonlocal running, passes
            assert running == 0
            running += 1
            async with started:
                passes += 1
                started.notify_all()
            await release.wait()
            running -= 1

        queue = WorkQueue(work)
        queue.add("a")
        await until(started, lambda: passes == 1)
        for _ in range(5):
            queue.add("a")
        release.set()
        await until(started, lambda: passes == 2)
        await asyncio.sleep(0.05)
        assert passes == 2
        await queue.close()

    asyncio.run(scenario())


def test_a_failing_key_is_retried_and_does_not_hold_up_others() -> None:
    async def scenario() -> None:
        calls: list[str] = []
        done = asyncio.Condition()

        async def work(key: str) -> None:
            async with done:
                calls.append(key)
                done.notify_all()
            if key == "bad" and calls.count("bad") < 4:
                raise RuntimeError("the API server is away")

        queue = WorkQueue(work)
        queue.add("bad")
        queue.add("good")
        await until(done, lambda: calls.count("bad") == 4)
        assert calls.count("good") == 1
        await asyncio.sleep(0.05)
        assert calls.count("bad") == 4
        await queue.close()

    asyncio.run(scenario())


def test_work_can_ask_for_a_later_pass() -> None:
    async def scenario() -> None:
        calls, done = 0, asyncio.Condition()

        async def work(_key: str) -> float | None:
            nonlocal calls
            async with done:
                calls += 1
                done.notify_all()
            return 0.01 if calls < 3 else None

        queue = WorkQueue(work)
        queue.add("a")
        await until(done, lambda: calls == 3)
        await asyncio.sleep(0.05)
        assert calls == 3
        await queue.close()

    asyncio.run(scenario())


def test_a_key_that_takes_long_rests_longer_and_the_more_comes_meanwhile_is_one_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_module, "REST_MAX", 10.0)

    async def scenario() -> None:
        passes: list[tuple[float, float]] = []

        async def work(_key: str) -> None:
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(0.05)
            passes.append((began, asyncio.get_running_loop().time()))

        queue = WorkQueue(work)
        while len(passes) < 3:
            queue.add("a")
            await asyncio.sleep(0.005)
        await queue.close()
        pauses = [after[0] - before[1] for before, after in itertools.pairwise(passes)]
        assert min(pauses) >= queue_module.REST * 0.05

    asyncio.run(scenario())


def test_what_has_failed_for_hours_is_tried_again_within_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the API server is back shows by trying only."""
    monkeypatch.setattr(queue_module, "BACKOFF_FIRST", 0.5)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def slept(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def scenario() -> None:
        done = asyncio.Event()

        async def work(_key: str) -> None:
            if len(pauses) > 200:
                done.set()
            raise RuntimeError("the API server is away")

        queue = WorkQueue(work)
        queue.add("a")
        await done.wait()
        await queue.close()

    monkeypatch.setattr(asyncio, "sleep", slept)
    asyncio.run(scenario())
    assert 10 < max(pauses) < 30
