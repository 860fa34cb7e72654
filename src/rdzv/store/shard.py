"""What a process knows of one object of a store, and wants of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from torch.distributed import DistStoreError

from rdzv.objects import Object, ReadOnlyObject
from rdzv.store import records
from rdzv.store.records import Malformed, Op
from rdzv.store.replay import State, replay

__all__ = ["Shard", "Ticket", "replayed"]


class Ticket:
    """Operations of one thread that wait to be appended."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.size = records.size_of(records.entry_of("", 0, ops))
        self.results: list[str] | None = None
        self.error: Exception | None = None


class Shard:
    """What this process knows of one object, and wants of it."""

    def __init__(self, index: int, name: str) -> None:
        self.index, self.name = index, name
        self.tickets: deque[Ticket] = deque()
        self.turn = threading.Lock()
        """Held by the thread that appends: one entry at a time, so that entries of this writer arrive in order."""
        self.number = 0
        """Of the last entry sent. Never used twice, also if nobody knows what became of it."""
        self.object: Object | None = None
        self.version = 0
        self.deleted = False
        self.crowded_until = 0.0
        """Others were quicker just now: until then, post letters at once."""
        self._state: State | None = None

    @property
    def uid(self) -> str | None:
        """Of the object; None while none was seen."""
        return str(self.object["metadata"]["uid"]) if self.object else None

    def see(self, shard: Object) -> bool:
        """Take note of a state, from wherever it comes; whether it is news."""
        meta = shard["metadata"]
        if self.object and meta["uid"] != self.uid:
            self.deleted = True  # And another store has been made under its name.
            return True
        version = int(meta["resourceVersion"])
        if version <= self.version:
            return False
        self.object, self.version, self._state = shard, version, None
        return True

    def state(self) -> State:
        """Keys and values, without an entry that is not decided."""
        if self._state is None:
            self._state = replayed(self.object)
        return self._state


def replayed(shard: ReadOnlyObject | None) -> State:
    """The state of a shard as it was read; None: it does not exist.

    Raises:
        DistStoreError: it holds what no client writes.
    """
    if shard is None:
        return State()
    try:
        return replay(shard)
    except Malformed as error:
        raise DistStoreError(f"{shard['metadata']['name']} holds what no client writes: {error}") from error
