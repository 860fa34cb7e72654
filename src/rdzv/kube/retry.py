"""How long to keep trying: a deadline, a stop event, and decorrelated jitter between attempts."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

from rdzv.kube.api import ApiError, Stopped

BASE = 0.05
"""Shortest pause between attempts, seconds."""
CAP = 2.5
"""Longest pause that the client itself chooses, seconds: a server that is back is noticed within this."""
CROWD_CAP = 8.0
"""The same in a large crowd."""
CROWD_RATE = 125.0
"""Requests a second of a crowd to a server that has been away, if each of its agents makes one."""


def spread(agents: int) -> float:
    """Seconds over which so many agents come back to a server that they lost at one moment."""
    return min(agents / CROWD_RATE, CROWD_CAP)


def pauses(agents: int, base: float = BASE, cap: float = CAP) -> tuple[float, float]:
    """The first and the longest pause, seconds, of one of so many agents that lose their server at one moment.

    What is enough for a few is a storm in a crowd: it comes back at `CROWD_RATE`, or up to three times as fast.
    """
    # The first one ends anywhere within the spread, since `Backoff` goes up to three times of it.
    return max(base, spread(agents) / 3), max(cap, spread(agents))


@dataclass(frozen=True)
class Retry:
    """Until when to repeat a request: `deadline` on the monotonic clock, or until `stop` is set."""

    deadline: float = float("inf")
    stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def within(cls, seconds: float, stop: threading.Event | None = None) -> Retry:
        """Retry for this many seconds from now."""
        return cls(time.monotonic() + seconds, stop or threading.Event())

    def sleep(self, seconds: float, error: ApiError) -> None:
        """Wait before the next attempt.

        Raises:
            Stopped: the stop event was set, before or meanwhile.
            ApiError: `error` itself, when the deadline is nearer than the end of the wait.
        """
        if time.monotonic() + seconds >= self.deadline:
            raise error
        if self.stop.wait(seconds):
            text = f"stopped while retrying after: {error}"
            raise Stopped(error.call, text, maybe_applied=error.maybe_applied) from error


class Backoff:
    """Pauses with decorrelated jitter: each between `base` and three times the previous one, at most `cap`.

    `agents`: how many lose the server at the moment when this one does.
    """

    def __init__(self, base: float = BASE, cap: float = CAP, agents: int = 1) -> None:
        self.base = base
        self._first, self.cap = pauses(agents, base, cap)
        self._last = self._first

    def next(self, at_least: float | None = None) -> float:
        """Seconds to wait now; `at_least` is a server's Retry-After, spread by up to a tenth so that agents part."""
        # The module's generator is reseeded after fork; an own one would give all children the same pauses.
        self._last = min(self.cap, random.uniform(self.base, self._last * 3))  # noqa: S311 - jitter, not a secret
        if at_least is None:
            return self._last
        return max(self._last, at_least * random.uniform(1.0, 1.1))  # noqa: S311

    def reset(self) -> None:
        """Start again from the shortest pause, after something went well."""
        self._last = self._first
