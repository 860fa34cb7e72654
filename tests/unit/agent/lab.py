"""Shared by the tests of the agent's threads: liveness without sockets, and waiting for what other threads do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from rdzv.agent.liveness import Callbacks, Liveness
from rdzv.agent.loop import Loop
from rdzv.protocol.records import Coordinator, Endpoint

WAIT_SECONDS = 20.0


class FakeLiveness:
    """What the agent's threads ask of `Liveness`, written down; `dead` and the like are the test's to set."""

    port = 4999

    def __init__(self, loop: Loop | None, incarnation: str, address: str, callbacks: Callbacks | None) -> None:
        self.incarnation, self.callbacks = incarnation, callbacks
        self.dead = self.suspected = self.connected = self.doubted = self.asked = frozenset[str]()
        self.following: Coordinator | None = None
        self.expected: frozenset[str] = frozenset()
        self.serving = True
        self.linked = True
        self.announced = 0
        self.probed: dict[str, Endpoint] = {}
        self.probes: dict[str, bool] = {}

    def follow(self, target: Coordinator | None) -> None:
        self.following = target

    def expect(self, incarnations: Iterable[str]) -> None:
        self.expected = frozenset(incarnations)

    def serve(self, serving: bool) -> None:
        self.serving = serving

    def probe(self, stores: Mapping[str, Endpoint]) -> None:
        self.probed = dict(stores)

    def ask(self, incarnations: frozenset[str]) -> None:
        self.asked = incarnations

    def announce(self, rv: int) -> None:
        del rv


def as_liveness(fake: FakeLiveness) -> Liveness:
    return cast("Liveness", fake)


def eventually(condition: Callable[[], Any], what: str = "it") -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.005)
    return found
