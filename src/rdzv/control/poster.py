"""Which Events are written: each once, and not more than the API server should be asked to keep."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from rdzv.control.events import EventToPost
from rdzv.control.remembered import Remembered
from rdzv.control.status import rfc3339

_log = logging.getLogger(__name__)

#: Events at once, and a second in the long run, of all Rendezvous together.
BURST, RATE = 100.0, 5.0
#: Seconds until a pass is made again whose Events were too many.
LATER = 30.0


class EventPoster:
    """Writes Events by `write(event, now)`, which returns whether it is there now. Thread-safe."""

    def __init__(self, write: Callable[[EventToPost, str], bool]) -> None:
        self._write = write
        self._posted = Remembered()
        self._lock = threading.Lock()
        self._left, self._at = BURST, float("-inf")

    def post(self, events: Iterable[EventToPost], now: float) -> float | None:
        """Writes those that were not written before; `now`: seconds since the epoch.

        Returns after how many seconds to come again with those that were too many (None: there were none).
        """
        later = None
        for event in events:
            with self._lock:
                if event.digest in self._posted:
                    continue
                if not self._take(now):
                    later = LATER
                    continue
                self._posted.update([event.digest])
            if not self._write(event, rfc3339(now)):
                with self._lock:
                    self._posted.discard(event.digest)
                later = LATER
        return later

    def _take(self, now: float) -> bool:
        self._left = min(BURST, self._left + max(0.0, now - self._at) * RATE)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
