"""A work queue of keys: each key is worked on by one task at a time, asked for again while it runs is done once more, failures back off.

The shape of client-go's workqueue, on asyncio.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

_log = logging.getLogger(__name__)

#: Seconds. Events of one change (a Job's pods) come in a burst: one pass for all of them.
DEBOUNCE = 0.05
#: A pass over thousands of pods takes long, and while they come each of them asks for one: pauses are so many times as long as passes,
#: up to so many seconds.
REST, REST_MAX = 4.0, 1.0
#: Only by trying is it seen that an outage is over, so the longest pause is also what a pass may be late after one.
BACKOFF_FIRST, BACKOFF_MAX = 0.5, 20.0


class WorkQueue(Generic[Key]):
    """Calls `work(key)` for keys that are added.

    `work` returns after how many seconds it wants to be called again (None: when something changes). It may raise: then the key is
    retried with jittered exponential backoff. What is not of an `expected` kind is logged with its traceback.
    """

    def __init__(
        self, work: Callable[[Key], Awaitable[float | None]], expected: tuple[type[Exception], ...] = ()
    ) -> None:
        self._work, self._expected = work, expected
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._wanted: dict[Key, asyncio.Event] = {}

    def add(self, *keys: Key) -> None:
        """Asks for a pass over each of them, soon."""
        for key in keys:
            if key not in self._wanted:
                self._wanted[key] = asyncio.Event()
                self._tasks[key] = asyncio.get_running_loop().create_task(self._run(key), name=f"reconcile {key}")
            self._wanted[key].set()

    async def close(self) -> None:
        """Ends all tasks and waits for them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: Key) -> None:
        failures, again, rest = 0, None, 0.0
        wanted = self._wanted[key]
        try:
            while wanted.is_set() or again is not None:
                await self._wait(wanted, again)
                await asyncio.sleep(max(DEBOUNCE, rest))
                wanted.clear()
                began = time.monotonic()
                try:
                    again = await self._work(key)
                    failures = 0
                except Exception as error:  # noqa: BLE001 - whatever one object's pass meets must not end the work on it, or on others
                    delay = min(BACKOFF_MAX, BACKOFF_FIRST * 2**failures)
                    again = random.uniform(delay / 2, delay)  # noqa: S311 - jitter
                    failures += 1
                    unexpected = not isinstance(error, self._expected)
                    _log.warning("pass over %s failed, again in %.1f s: %s", key, again, error, exc_info=unexpected)
                    # An event must not cut the backoff short, or a busy object would be retried without pause.
                    await asyncio.sleep(again)
                    wanted.set()
                rest = min(REST_MAX, REST * (time.monotonic() - began))
        finally:
            # No await since the loop's last look at `wanted`: an add() either was seen by it or starts a new task.
            del self._wanted[key], self._tasks[key]

    @staticmethod
    async def _wait(wanted: asyncio.Event, timeout: float | None) -> None:
        try:
            await asyncio.wait_for(wanted.wait(), timeout)
        except asyncio.TimeoutError:
            return
