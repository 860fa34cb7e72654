"""Whether this agent can connect to the stores of those who are left out: one attempt each, again and again, in the loop."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rdzv.agent.liveness_client import dial
from rdzv.protocol.records import Endpoint

if TYPE_CHECKING:
    from rdzv.agent.loop import Loop

__all__ = ["Prober"]

AGAIN_SECONDS, REACHED_SECONDS = 2.0, 60.0
"""From one attempt to the next, when it failed and when it succeeded: nobody accepts these connections until the store is
served, and they fill its queue."""
PATIENCE_SECONDS = 3.0
"""For one attempt."""


class Prober:
    """Nothing is sent: that the connection is made is the answer. `changed` is called, in the loop, when an outcome is news."""

    def __init__(
        self, loop: Loop, changed: Callable[[], None], connect: Callable[[str, int], socket.socket] = dial
    ) -> None:
        self.outcomes: Mapping[str, bool] = {}
        """By key, whether the last attempt succeeded; nothing before the first is over."""
        self._loop, self._changed, self._dial = loop, changed, connect
        self._targets: dict[str, Endpoint] = {}
        self._attempts: dict[str, socket.socket] = {}

    def watch(self, targets: Mapping[str, Endpoint]) -> None:
        """From now on these, by any key, and no others. From any thread."""
        wanted = dict(targets)
        self._loop.call(lambda: self._watch(wanted))

    def _watch(self, wanted: dict[str, Endpoint]) -> None:
        before, self._targets = self._targets, wanted
        for key in before:
            if wanted.get(key) != before[key]:
                self._drop(key)
        for key, target in wanted.items():
            if before.get(key) != target:
                self._try(key)

    def _drop(self, key: str) -> None:
        self._close(key)
        self._loop.at(f"probe.{key}", None, self._changed)
        self.outcomes = {other: reached for other, reached in self.outcomes.items() if other != key}

    def _close(self, key: str) -> None:
        sock = self._attempts.pop(key, None)
        if sock is not None:
            self._loop.forget(sock)

    def _try(self, key: str) -> None:
        target = self._targets.get(key)
        if target is None:
            return
        try:
            sock = self._dial(target.address, target.port)
        except (OSError, ValueError):
            self._over(key, False)
            return
        self._attempts[key] = sock
        self._loop.watch(sock, selectors.EVENT_WRITE, lambda: self._over(key, not _error(sock)))
        self._loop.at(f"probe.{key}", self._loop.clock() + PATIENCE_SECONDS, lambda: self._over(key, False))

    def _over(self, key: str, reached: bool) -> None:
        self._close(key)
        self._loop.at(
            f"probe.{key}", self._loop.clock() + (REACHED_SECONDS if reached else AGAIN_SECONDS), lambda: self._try(key)
        )
        if self.outcomes.get(key) is not reached:
            self.outcomes = {**self.outcomes, key: reached}
            self._changed()


def _error(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
