"""What passes have seen that no object says: since when something is so, and how often a world formed lately (no I/O, no clock).

It is lost with the process, and learnt anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

#: Seconds over which rounds are counted.
WINDOW = 60.0
#: Rendezvous that are remembered, and moments of each.
_MOST, _MOMENTS = 20_000, 64


class Noted:
    """Thread-safe. `uid` is that of a Rendezvous; times are seconds since the epoch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._rounds: OrderedDict[str, list[tuple[float, int]]] = OrderedDict()

    def lasts(self, uid: str, what: str, *, holds: bool, now: float) -> float | None:
        """For how many seconds `what` has held without a break, as far as passes have seen; None when it does not."""
        with self._lock:
            if not holds:
                self._since.pop((uid, what), None)
                return None
            since = self._since.setdefault((uid, what), now)
            _keep(self._since, (uid, what))
            return max(0.0, now - since)

    def rounds_lately(self, uid: str, number: int, now: float) -> int:
        """How many rounds formed within `WINDOW`; `number`: that of the last one."""
        with self._lock:
            seen = self._rounds.setdefault(uid, [])
            _keep(self._rounds, uid)
            if not seen or seen[-1][1] != number:
                seen.append((now, number))
            # The last one before the window tells how many there had been when it began.
            while len(seen) > 1 and (seen[1][0] <= now - WINDOW or len(seen) > _MOMENTS):
                del seen[0]
            return max(0, number - seen[0][1])


def _keep(items: OrderedDict[_Key, _Value], key: _Key) -> None:
    items.move_to_end(key)
    while len(items) > _MOST:
        items.popitem(last=False)
