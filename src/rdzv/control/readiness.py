"""Whether the operator serves: passes end, its memory is complete, the API server answers. Pure, but for the lock."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable

#: Seconds that a pass waits for a thread and none ends, after which the queue is stuck. A pass is a few requests of seconds each at most.
STUCK_SECONDS = 45.0


class Progress:
    """Which passes wait and run, and when the last one ended. Thread-safe; `now` is of any clock that goes forward."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, float] = {}
        self._running: dict[Hashable, float] = {}
        self._ended = float("-inf")

    def waits(self, key: Hashable, now: float) -> None:
        """A pass is due, and gets the next thread that is free."""
        with self._lock:
            self._waiting[key] = now

    def began(self, key: Hashable, now: float) -> None:
        """A pass has a thread."""
        with self._lock:
            self._waiting.pop(key, None)
            self._running[key] = now

    def ended(self, key: Hashable, now: float) -> None:
        """It ended, however it did."""
        with self._lock:
            self._running.pop(key, None)
            self._ended = now

    def waiting(self, now: float) -> tuple[int, float]:
        """How many passes wait for a thread, and for how many seconds the first of them has."""
        with self._lock:
            return len(self._waiting), now - min(self._waiting.values(), default=now)

    @property
    def running(self) -> int:
        """How many passes run."""
        return len(self._running)

    def stuck(self, now: float) -> str:
        """Why nothing gets done, if it does not: passes wait for a thread, and none of those that run has ended for long.

        A pass that hangs while the others get a thread is none of that: whoever led next would meet the same, and then nobody would lead.
        """
        with self._lock:
            if not self._waiting:
                return ""
            since = max(self._ended, min(self._waiting.values()))
            running, waiting = len(self._running), len(self._waiting)
        if now - since <= STUCK_SECONDS:
            return ""
        return f"{running} passes run, {waiting} wait, and none has ended for {now - since:.0f} s"


def answer(troubles: Iterable[str], standing: str) -> tuple[int, str]:
    """The answer to a readiness probe: HTTP status and text. `standing`: why this process only stands by, which is being ready too."""
    found = "; ".join(trouble for trouble in troubles if trouble)
    if found:
        return 503, f"not ready: {found}\n"
    return 200, f"stands by: {standing}\n" if standing else "leads\n"
