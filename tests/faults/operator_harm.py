"""What is done to the operator at each of its writes (Sieve's intermediate states).

It is killed before or after the write, the reply is lost, or the write is refused.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from faults.operator_bugs import AFTER, NOTHING, REFUSED
from support.fault_proxy import Fault, FaultProxy
from support.operator_process import OperatorProcess

__all__ = ["AFTER", "BEFORE", "BY_TURNS", "LOST", "NOTHING", "REFUSED", "WRITES", "AtEachWrite"]

BEFORE, LOST = "killed before each write", "the reply to each write lost"
BY_TURNS = "killed before one write, after the next, the reply to the third lost"
WRITES = {"POST", "PUT", "PATCH", "DELETE"}
ALIKE = 3
"""Writes of different content to one place that are hit in one part of a life: of the status there are many."""
_CHANGING = re.compile(rb'\d{4}-\d\d-\d\dT[\d:.]+Z|"resourceVersion": ?"\d+"|"count": ?\d+')


class AtEachWrite:
    """Does `harm` once at each write: those that were hit pass when they are made again. A context manager.

    `every`: only at each so many; `look` is called while the operator is dead and nothing can change.
    """

    def __init__(
        self,
        proxy: FaultProxy,
        operator: OperatorProcess,
        harm: str,
        *,
        every: int = 1,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._proxy, self._operator, self.harm, self._every, self._look = proxy, operator, harm, every, look
        self.part = ""
        """The part of the life that goes on."""
        self.hits: list[str] = []
        self.problems: list[str] = []
        self.last = time.monotonic()
        """When the last one was hit, or the operator started again after that."""
        self._seen: dict[tuple[str, str, str], set[bytes]] = {}
        self._lock = threading.Lock()
        self._kills: queue.SimpleQueue[Fault | None] = queue.SimpleQueue()
        self._dying: Fault | None = None
        self._count = 0
        self._killer = threading.Thread(target=self._kill, name="killer")

    def __enter__(self) -> AtEachWrite:
        self._proxy.decide = self._decide
        self._killer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.decide = lambda method, target, body: None
        self._kills.put(None)
        self._killer.join()
        self._proxy.clear()

    @property
    def at_work(self) -> bool:
        """Whether the operator is dead."""
        return self._dying is not None

    def _decide(self, method: str, target: str, body: bytes) -> Fault | None:
        if method not in WRITES or self.harm == NOTHING:
            return None
        with self._lock:
            if self._dying is not None:
                # Of the process that is to die: nobody sees what comes after.
                return self._proxy.inject("cut-before", times=0)
            place = (self.part, method, urlsplit(target).path)
            if not self._is_next(place, _CHANGING.sub(b"", body)):
                return None
            self.hits.append(" ".join(place))
            self.last = time.monotonic()
            return self._hit()

    def _is_next(self, place: tuple[str, str, str], content: bytes) -> bool:
        known = self._seen.setdefault(place, set())
        if content in known or len(known) >= ALIKE:
            return False
        known.add(content)
        self._count += 1
        return self._count % self._every == 0

    def _hit(self) -> Fault:
        harm = (BEFORE, AFTER, LOST)[len(self.hits) % 3] if self.harm == BY_TURNS else self.harm
        if harm == LOST:
            return self._proxy.inject("lose-reply", times=0)
        if harm == REFUSED:
            return self._proxy.inject("reply", times=0, status=500, reason="InternalError")
        self._dying = fault = self._proxy.inject("black-hole" if harm == BEFORE else "hold-reply", times=0)
        if harm == BEFORE:
            fault.hit.set()
        self._kills.put(fault)
        return fault

    def _kill(self) -> None:
        while (fault := self._kills.get()) is not None:
            fault.hit.wait(30)
            self._operator.kill()
            fault.release.set()
            try:
                self._look()
            except AssertionError as problem:
                self.problems.append(str(problem))
            with self._lock:
                self._dying = None
            self._operator.start()
            self.last = time.monotonic()
