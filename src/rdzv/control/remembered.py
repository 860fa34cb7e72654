"""A set that forgets what was not asked for longest, so that it can't grow without bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable


class Remembered:
    """Of at most `limit` texts. Thread-safe."""

    def __init__(self, limit: int = 20_000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._items: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, item: str) -> bool:
        with self._lock:
            if item not in self._items:
                return False
            self._items.move_to_end(item)
            return True

    def update(self, items: Iterable[str]) -> None:
        """Adds them."""
        with self._lock:
            for item in items:
                self._items[item] = None
                self._items.move_to_end(item)
            while len(self._items) > self._limit:
                self._items.popitem(last=False)

    def discard(self, item: str) -> None:
        """Forgets it."""
        with self._lock:
            self._items.pop(item, None)
