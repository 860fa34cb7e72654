"""The RendezvousRound as one agent knows it: the newest of what its watch, its reads and its own writes have shown."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from rdzv.agent.conditional import OutcomeUnknownError, put
from rdzv.backing import Backing
from rdzv.kube.api import NotFound
from rdzv.kube.retry import Backoff, Retry
from rdzv.kube.watch import DELETED
from rdzv.objects import Object
from rdzv.protocol import coordinator
from rdzv.protocol.records import CLOSED, Round, resource_version
from rdzv.resources import ROUNDS

__all__ = ["Latest", "RoundRecord"]

log = logging.getLogger("rdzv.agent")


@dataclass(frozen=True)
class Latest:
    """The newest Round that this agent knows, `record` None when there is none: then `rv` is the one since when.

    `metadata` is kept by a replace.
    """

    record: Round | None = None
    rv: int | None = None
    metadata: Object | None = None


@dataclass
class RoundRecord:
    """`changed` is called, under `lock`, with each newer Round (None: there is none) and its resourceVersion."""

    client: Backing
    namespace: str
    name: str
    lock: threading.RLock
    changed: Callable[[Round | None, int], None]
    latest: Latest = field(default_factory=Latest)

    def event(self, kind: str, obj: Object) -> None:
        """Take an event of the watch."""
        if kind != DELETED:
            self._take(obj)
            return
        with self.lock:
            rv = resource_version(obj)
            # A deletion that is noticed late comes with the last version before it.
            self._note(None, rv + 1 if rv == self.latest.rv else rv)

    def read(self, retry: Retry) -> Latest:
        """Ask the API server; returns the newest that is known then.

        Raises:
            ApiError, ConfigError: it could not be read.
        """
        before = self.latest.rv
        try:
            self._take(self.client.get(ROUNDS, self.namespace, self.name, retry=retry))
        except NotFound:
            with self.lock:
                # A 404 is of no version: it is no news if the watch has shown anything since it was asked for.
                if self.latest.record is not None or before is None:
                    self._note(None, (before or 0) + 1)
        return self.latest

    def write(self, record: Round, rv: int | None, retry: Retry, owner: Object | None = None) -> None:
        """Create the Round (`rv` None) or replace its version `rv`. `owner` is an ownerReference for a new one.

        Raises:
            OutcomeUnknownError: it may not have been written; what is there has been read.
            ApiError, ConfigError: it was certainly not written, or what is there could not be read.
        """
        obj = record.to_object(self.namespace, rv, owner)
        if rv is not None:
            obj["metadata"] |= {**(self.latest.metadata or {}), "resourceVersion": str(rv)}
        try:
            self._take(put(self.client, ROUNDS, self.namespace, obj))
        except OutcomeUnknownError:
            self.read(retry)
            raise

    def close(self, run_id: str, reason: str, by: str, retry: Retry, closed: Callable[[Round], bool]) -> None:
        """Close it for everybody, whoever else writes meanwhile; `closed` tells whether a Round is so already.

        Raises:
            ApiError, ConfigError: it could not be written.
        """
        backoff = Backoff()
        self.read(retry)
        while True:
            found, rv = self.latest.record, self.latest.rv
            if found is not None and found.run_id == run_id and closed(found):
                return
            if found is not None and found.run_id != run_id and found.phase != CLOSED:
                log.warning(
                    "run %s has Rendezvous %s: there is nothing to close for run %s", found.run_id, self.name, run_id
                )
                return
            own = found if found is not None and found.run_id == run_id else Round(self.name, run_id)
            record = coordinator.close(own, reason, by)
            try:
                self.write(record, rv if found is not None else None, retry)
            except OutcomeUnknownError as error:
                retry.sleep(backoff.next(error.cause.retry_after), error.cause)

    def _take(self, obj: Object) -> None:
        with self.lock:
            self._note(obj, resource_version(obj))

    def _note(self, obj: Object | None, rv: int) -> None:
        if rv <= (self.latest.rv or 0):
            return
        try:
            record = Round.from_object(obj) if obj is not None else None
        except ValueError as error:
            log.error("RendezvousRound %s is not one: %s", self.name, error)
            return
        self.latest = Latest(record, rv, obj["metadata"] if obj is not None else None)
        self.changed(record, rv)
