"""Takes part in the election (`rdzv.control.election`) in a thread of its own, and fences what the operator writes."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from rdzv.control.election import (
    API_VERSION,
    RENEW_SECONDS,
    RETRY_SECONDS,
    Candidate,
    Sighting,
    elect,
    holder,
    is_of_another_release,
    see,
    written,
)
from rdzv.control.transport import Transport, unless_changed
from rdzv.kube.api import ApiError, Resource
from rdzv.objects import Object, ReadOnlyObject

_log = logging.getLogger(__name__)

#: Seconds to connect and to read: several attempts must fit into `RENEW_SECONDS`.
LEASE_TIMEOUT = (1.5, 2.0)
#: Seconds until the next attempt after one that failed.
AGAIN_SECONDS = 0.5
#: Seconds without an answer of the API server after which a process that stands by is of no use.
DEAF_SECONDS = 15.0

_LEASES = Resource(API_VERSION, "leases")


class Leases(Transport):
    """The requests about one Lease. A client of its own: neither the passes' connections nor their fence may hold up a renewal."""

    timeout = LEASE_TIMEOUT

    def read(self, namespace: str, name: str) -> Object | None:
        """As of now; None: there is none."""
        return self.look(_LEASES, namespace, name)

    def write(self, lease: Object) -> Object:
        """Only over the version that it is a change of; `ApiError` with code 409 or 404 if that is not the last."""
        meta = lease["metadata"]
        write = self.client.replace if "resourceVersion" in meta else self.client.create
        return write(_LEASES, meta["namespace"], lease)

    def remove(self, lease: ReadOnlyObject) -> None:
        """Exactly this state of it."""
        meta = lease["metadata"]
        with unless_changed():
            self.client.delete(
                _LEASES, meta["namespace"], meta["name"], uid=meta["uid"], resource_version=meta["resourceVersion"]
            )


class Leader(threading.Thread):
    """Leads, or stands by until it may. `changed(leads)` is called in this thread.

    When it may not lead any more it stands by again: an API server that is away is no reason to end, and nobody would do better.
    """

    def __init__(
        self,
        api: Leases,
        place: tuple[str, str],
        me: Candidate,
        changed: Callable[[bool], object],
    ) -> None:
        super().__init__(name="leader", daemon=True)
        self._api, self._place, self._me, self._changed = api, place, me, changed
        self.unfit: Callable[[], str] = lambda: ""
        """Why the process should not lead; empty: it may. To be set before the thread starts."""
        self._ended = threading.Event()
        self._seen: Sighting | None = None
        self._current = False
        """Whether `_seen` is what the last request left or found."""
        self._until, self._led = float("-inf"), False
        self._heard: float | None = None
        self.standing = "it has not read the Lease yet"
        """Why it does not lead, in words; empty while it does."""
        self.elsewhere = False
        """Whether another release led when the Lease was last read."""

    def meter(self, told: Callable[[str, int], object]) -> None:
        """`told`: called after every request with its verb and the HTTP status, 0 if it was not answered."""
        self._api.client.meter = told

    @property
    def leads(self) -> bool:
        """Whether this process may write now."""
        return time.monotonic() < self._until and not self._ended.is_set()

    def fence(self) -> None:
        """Called right before every write.

        Raises:
            ApiError: somebody else may lead by the time that it arrives.
        """
        if not self.leads:
            raise ApiError(None, f"nothing is written: {self.standing or 'the Lease was not renewed in time'}")

    def fence_of_release(self) -> None:
        """As `fence`, for what belongs to this release alone: nobody else writes that while another release leads.

        Raises:
            ApiError: another process of this release may lead by the time that it arrives.
        """
        if not self.elsewhere:
            self.fence()

    def deaf(self) -> str:
        """Why it could not take over: the API server has not answered for long. Empty if it has."""
        if self._heard is None:
            return "the Lease was not read yet"
        silent = time.monotonic() - self._heard
        return f"the API server has not answered for {silent:.0f} s" if silent > DEAF_SECONDS else ""

    def run(self) -> None:
        """The thread's life."""
        pause = 0.0
        while not self._ended.wait(pause * random.uniform(0.9, 1.0)):  # noqa: S311 - jitter
            try:
                pause = self._turn()
            except Exception:  # noqa: BLE001 - whatever a Lease holds must not end the election
                _log.exception("the election goes on")
                pause = RETRY_SECONDS
            if self._led != self.leads:
                self._led = self.leads
                self._changed(self._led)

    def resign(self) -> None:
        """Writes nothing more from now on."""
        self._ended.set()
        self.standing = "the process ends"

    def release(self) -> None:
        """After `resign`, when the last write is through: another one may lead at once. Without it, when the Lease is over."""
        if self.is_alive():
            self.join(sum(LEASE_TIMEOUT))
        lease = None if self._seen is None else self._seen.lease
        if self.is_alive() or lease is None or holder(lease) != self._me.identity:
            return
        try:
            self._api.remove(lease)
            _log.info("the Lease is given back")
        except ApiError as error:
            _log.warning("the Lease is not given back, it ends by itself: %s", error)

    def _turn(self) -> float:
        """One look or renewal; returns after how many seconds to come again."""
        began = time.monotonic()
        try:
            # Who leads knows the Lease. If somebody has changed it, the API server refuses the write.
            if self._seen is None or not (self.leads and self._current):
                self._seen = see(self._seen, self._api.read(*self._place), began)
            verdict = elect(self._seen, self._me, time.monotonic(), self.unfit())
            self.elsewhere = not verdict.write and is_of_another_release(self._seen.lease, self._me)
            if verdict.write:
                self._current = False
                stored = self._api.write(written(self._seen.lease, self._me, *self._place, time.time()))
                self._seen, self._current = Sighting(stored, began), True
                if not self._led:
                    _log.info("%s leads: %s", self._me.identity, verdict.reason)
                self._until, self.standing = began + RENEW_SECONDS, ""
            else:
                self._stands_by(verdict.reason)
        except ApiError as error:
            return self._failed(error)
        self._heard = began
        return verdict.again

    def _failed(self, error: ApiError) -> float:
        if error.code in {404, 409}:
            self._heard = time.monotonic()
        elif self.leads:
            _log.warning("the Lease could not be renewed: %s", error)
        if not self.leads:
            self._stands_by(f"the Lease can't be read or written: {error}")
        return AGAIN_SECONDS

    def _stands_by(self, reason: str) -> None:
        self._until = float("-inf")
        if reason != self.standing:
            _log.info("%s stands by: %s", self._me.identity, reason)
        self.standing = reason
