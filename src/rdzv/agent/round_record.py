"""The RendezvousRound as one agent knows it: the newest of what its watch, its reads and its own writes have shown."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from rdzv.agent.coordinator_loop import Latest
from rdzv.kube.api import ApiError, Conflict, NotFound
from rdzv.kube.client import Client
from rdzv.kube.retry import Backoff, Retry
from rdzv.kube.watch import DELETED
from rdzv.objects import Object
from rdzv.protocol import coordinator
from rdzv.protocol.records import CLOSED, Round, resource_version
from rdzv.resources import ROUNDS

__all__ = ["RoundRecord"]

log = logging.getLogger("rdzv.agent")


@dataclass
class RoundRecord:
    """`changed` is called, under `lock`, with each newer Round (None: there is none) and its resourceVersion."""

    client: Client
    namespace: str
    name: str
    lock: threading.RLock
    changed: Callable[[Round | None, int], None]
    latest: Latest = field(default_factory=Latest)

    def event(self, kind: str, obj: Object) -> bool:
        """Take an event of the watch; returns whether it was news."""
        if kind != DELETED:
            return self.take(obj)
        with self.lock:
            rv = resource_version(obj)
            # A deletion that is noticed late comes with the last version before it.
            return self._note(None, rv + 1 if rv == self.latest.rv else rv)

    def take(self, obj: Object | None) -> bool:
        """Take the reply to a read (None: there is no Round) or to an own write; returns whether it was news."""
        with self.lock:
            return self._note(obj, resource_version(obj) if obj is not None else (self.latest.rv or 0) + 1)

    def _note(self, obj: Object | None, rv: int) -> bool:
        if rv <= (self.latest.rv or 0):
            return False
        try:
            record = Round.from_object(obj) if obj is not None else None
        except ValueError as error:
            log.error("RendezvousRound %s is not one: %s", self.name, error)
            return False
        self.latest = Latest(record, rv, obj["metadata"] if obj is not None else None)
        self.changed(record, rv)
        return True

    def close(self, run_id: str, reason: str, by: str, retry: Retry, closed: Callable[[Round], bool]) -> None:
        """Close it for everybody, whoever else writes meanwhile; `closed` tells whether a Round is so already.

        Raises:
            ApiError: it could not be written.
        """
        backoff = Backoff()
        while True:
            obj = self._read(retry)
            found = Round.from_object(obj) if obj is not None else None
            if found is not None and found.run_id == run_id and closed(found):
                self.take(obj)
                return
            if found is not None and found.run_id != run_id and found.phase != CLOSED:
                log.warning(
                    "run %s has Rendezvous %s: there is nothing to close for run %s", found.run_id, self.name, run_id
                )
                return
            own = found if found is not None and found.run_id == run_id else Round(self.name, run_id)
            record = coordinator.close(own, reason, by)
            try:
                self.take(self._put(record, obj))
            except ApiError as error:
                if not isinstance(error, (Conflict, NotFound)) and not error.maybe_applied:
                    raise
                retry.sleep(backoff.next(error.retry_after), error)
            else:
                return

    def _read(self, retry: Retry) -> Object | None:
        try:
            return self.client.get(ROUNDS, self.namespace, self.name, retry=retry)
        except NotFound:
            return None

    def _put(self, record: Round, obj: Object | None) -> Object:
        body = record.to_object(self.namespace)
        if obj is None:
            return self.client.create(ROUNDS, self.namespace, body)
        return self.client.replace(ROUNDS, self.namespace, {**body, "metadata": obj["metadata"]})
