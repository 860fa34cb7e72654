"""The leases that a client's objects are tied to, so that nothing stays in etcd for ever.

What a client writes about itself hangs on a lease of its own; what several share hangs on one lease that all of them know
(`records.shared_lease`) and each of them that has written keeps alive. A lease ends `LEASE_SECONDS` after its last keeper.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from typing import TYPE_CHECKING

from rdzv.etcd import records
from rdzv.etcd.errors import LeaseExists
from rdzv.kube.api import ApiError, Stopped, Unreachable
from rdzv.kube.kubeconfig import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rdzv.objects import Object

__all__ = ["Leases"]

log = logging.getLogger("rdzv.etcd")
log.addHandler(logging.NullHandler())

LEASE_SECONDS = 600
"""Not less: an etcd that cannot be reached for minutes, while it lives, must not end a world that trains."""
KEEP_ALIVE_SECONDS = (50.0, 70.0)
"""Spread, so that agents that start together part."""
RETRY_SECONDS = 5.0
_JOIN_SECONDS = 2.0


class Leases:
    """`post` sends a request to the gateway: its path and body. Thread-safe; begins anew after fork."""

    def __init__(self, post: Callable[[str, Object], Object]) -> None:
        self._post = post
        self._stop = threading.Event()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._own = 0
        self._kept: set[int] = set()
        self._thread: threading.Thread | None = None

    def own(self) -> int:
        """The lease of this client alone. Raises ApiError."""
        self._check_process()
        with self._lock:
            if not self._own:
                self._own = self._grant(0)
            return self._keep(self._own)

    def shared(self, lease: int) -> int:
        """A lease that others may have. Raises ApiError."""
        self._check_process()
        with self._lock:
            if lease not in self._kept:
                try:
                    self._grant(lease)
                except LeaseExists:
                    self._keep_alive(lease)  # It may have been about to end.
            return self._keep(lease)

    def lost(self, lease: int) -> None:
        """It has ended; the next one to ask for it gets another."""
        with self._lock:
            self._kept.discard(lease)
            if self._own == lease:
                self._own = 0

    def close(self) -> None:
        """Keep nothing alive any more."""
        self._stop.set()
        thread = self._thread
        if self._pid == os.getpid() and thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._reset()  # The parent's leases are the parent's to keep; its lock may be held by a thread that is not here.

    def _grant(self, lease: int) -> int:
        reply = self._post("/v3/lease/grant", {"TTL": str(LEASE_SECONDS), "ID": str(lease)})
        granted = _number(reply, "ID")
        if not granted:
            raise Unreachable(None, "the reply is not etcd's: a lease without a number")
        return granted

    def _keep(self, lease: int) -> int:
        self._kept.add(lease)
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._keeping, name="rdzv-lease", daemon=True)
            self._thread.start()
        return lease

    def _keep_alive(self, lease: int) -> bool:
        """Whether there was such a lease. Raises ApiError, also when the reply does not say."""
        result = self._post("/v3/lease/keepalive", {"ID": str(lease)}).get("result")
        if not isinstance(result, dict) or str(result.get("ID")) != str(lease):
            raise Unreachable(None, "the reply is not etcd's: another lease, or none")
        return _number(result, "TTL") > 0

    def _keeping(self) -> None:
        pause = random.uniform(*KEEP_ALIVE_SECONDS)  # noqa: S311 - jitter
        while not self._stop.wait(pause):
            pause = random.uniform(*KEEP_ALIVE_SECONDS)  # noqa: S311
            for lease in list(self._kept):
                try:
                    if not self._keep_alive(lease):
                        log.warning("a lease has ended: this agent could not reach etcd for %d s", LEASE_SECONDS)
                        self.lost(lease)
                except Stopped:
                    return
                except (ApiError, ConfigError) as error:
                    log.info("a lease is not kept alive: %s", error)
                    pause = RETRY_SECONDS


def _number(reply: Object, name: str) -> int:
    try:
        return records.revision(reply, name)
    except ValueError as error:
        raise Unreachable(None, f"the reply is not etcd's: {error}") from None
