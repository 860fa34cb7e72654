"""Who is alive: every agent keeps one TCP connection to the agent that coordinates.

A process that ends closes its sockets, however it ends, so its death is known in milliseconds; a machine that is gone
says nothing, so both sides send a byte each second and count the silence. A broken connection alone proves nothing: the
other side connects again at once if it is there. All of this happens in the agent's `Loop`; nothing goes through the API.

On the wire: both sides prove that they may read the Round (`rdzv.agent.proof`). Then the member sends a dot each second,
the coordinator answers each with a dot, and says `!RESOURCEVERSION;` when there is a new Round. When a later agent asks for
a member's slot it says `?`, and the member sends a dot at once.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.agent.liveness_client import LivenessClient, UnreachablePeer, dial
from rdzv.agent.liveness_server import SILENCE_SECONDS, LivenessServer
from rdzv.agent.probe import Prober
from rdzv.env import SILENCE
from rdzv.protocol.encoding import MAX_SLOTS
from rdzv.protocol.records import Coordinator, Endpoint

if TYPE_CHECKING:
    from rdzv.agent.loop import Loop

__all__ = ["Callbacks", "Liveness", "listen", "silence_of"]

PING_SECONDS = 1.0


_LEAST_SILENCE, _MOST_SILENCE = 3, 120
"""Seconds, as the CRD allows. With a word each second, less would be chance."""


def silence_of(environ: Mapping[str, str]) -> float:
    """Seconds of silence after which another agent is dead, as the environment says.

    Raises:
        ValueError: it says something else.
    """
    text = environ.get(SILENCE) or f"{SILENCE_SECONDS:g}"
    if not (text.isascii() and text.isdigit() and len(text) < 4 and _LEAST_SILENCE <= int(text) <= _MOST_SILENCE):
        raise ValueError(f"{SILENCE}={text[:80]}: write seconds as a whole number, {_LEAST_SILENCE} to {_MOST_SILENCE}")
    return float(text)


def listen(address: str) -> socket.socket:
    """A listening socket on a free port of this address, or of all if the address is not this machine's own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.bind((address, 0))
    except OSError:  # Behind address translation one is not bound to what others connect to.
        sock.close()
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.bind(("", 0))
    # A whole world may connect at one moment; who finds the queue full tries again only after a second.
    sock.listen(MAX_SLOTS)
    return sock


@dataclass(frozen=True)
class Callbacks:
    """Called in the loop's thread. `peers`: what `dead`, `suspected`, `doubted`, `connected` or `probes` say has changed."""

    lost: Callable[[Coordinator], None]
    found: Callable[[Coordinator], None]
    peers: Callable[[], None]


class Liveness:
    """Both sides of the connections. Methods and properties may be used from any thread.

    Args:
        incarnation: the own one.
        address: where to listen, a literal IP address.
        key: what members have to know while this agent coordinates (`Identity.key`).
        silence: seconds of silence after which the other end of a connection is dead.
    """

    def __init__(
        self,
        loop: Loop,
        incarnation: str,
        address: str,
        callbacks: Callbacks,
        key: str,
        connect: Callable[[str, int], socket.socket] = dial,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self.incarnation = incarnation
        listener = listen(address)
        listener.setblocking(False)
        self.port: int = listener.getsockname()[1]
        self._loop = loop
        self._server = LivenessServer(loop, listener, incarnation, key, callbacks.peers, silence)
        self._prober = Prober(loop, callbacks.peers, connect)
        self._client = LivenessClient(loop, incarnation, callbacks.lost, callbacks.found, connect, silence)
        self._ticked: float | None = None
        self._followed: Coordinator | None = None
        self._contested: frozenset[str] = frozenset()

    @property
    def dead(self) -> frozenset[str]:
        """Expected incarnations that certainly ended, or were silent for so long that it makes no difference."""
        return self._server.verdict.dead

    @property
    def suspected(self) -> frozenset[str]:
        """Expected incarnations that are silent."""
        return self._server.verdict.suspected

    @property
    def doubted(self) -> frozenset[str]:
        """Expected incarnations that owe a sign of life: to connect again, to answer, or to say anything."""
        return self._server.verdict.doubted

    @property
    def connected(self) -> frozenset[str]:
        """Incarnations that hold a connection to this agent."""
        return self._server.verdict.connected

    @property
    def unreachable(self) -> UnreachablePeer | None:
        """The coordinator that is to be followed, if there is no way to it: with address, port and why."""
        return self._client.unreachable

    @property
    def linked(self) -> bool:
        """Whether the connection to the coordinator stands: then it tells of new Rounds."""
        return self._client.linked

    @property
    def announced(self) -> int:
        """resourceVersion of the last Round that the coordinator told of; 0 when it told of none."""
        return self._client.announced

    def follow(self, target: Coordinator | None) -> None:
        """Keep a connection to this coordinator (None: to nobody)."""
        if target != self._followed:
            self._followed = target
            self._loop.call(lambda: self._then_tick(lambda: self._client.follow(target)))

    def expect(self, incarnations: Iterable[str]) -> None:
        """As the coordinator: whose connections are expected to be there."""
        wanted = frozenset(incarnations)
        self._loop.call(lambda: self._then_tick(lambda: self._server.expect(wanted)))

    def ask(self, incarnations: frozenset[str]) -> None:
        """As the coordinator: ask these, each once, for a sign of life; until it is there they are `doubted`."""
        if incarnations != self._contested:
            self._contested = incarnations
            self._loop.call(lambda: self._server.ask(incarnations))

    def serve(self, serving: bool) -> None:
        """False: this agent does not coordinate although the Round says so; its peers are sent away to look for another."""
        self._loop.call(lambda: self._then_tick(lambda: self._server.serve(serving)))

    def probe(self, stores: Mapping[str, Endpoint]) -> None:
        """As the coordinator: connect to these stores, by incarnation, from time to time, and to no others."""
        self._prober.watch(stores)

    @property
    def probes(self) -> Mapping[str, bool]:
        """Whether that works; nothing of a store before the first attempt is over."""
        return self._prober.outcomes

    def announce(self, rv: int) -> None:
        """Tell who is connected of a new Round, of this resourceVersion."""
        if self.connected:
            self._loop.call(lambda: self._server.announce(rv))

    def _then_tick(self, function: Callable[[], None]) -> None:
        function()
        self._tick_at()

    def _tick_at(self) -> None:
        now = self._loop.clock()
        if not (self._client.follows or self._server.expects):
            self._ticked = None
            self._loop.at("liveness.tick", None, self._tick)
        elif self._ticked is None:
            self._ticked = now
            self._loop.at("liveness.tick", now + PING_SECONDS, self._tick)

    def _tick(self) -> None:
        now = self._loop.clock()
        asleep = now - (now if self._ticked is None else self._ticked) - PING_SECONDS
        self._ticked = None
        if asleep > PING_SECONDS:
            self._server.slept(asleep)
            self._client.slept(asleep)
        self._client.tick()
        self._server.judge()
        self._tick_at()
