"""The coordinator's side of liveness: the connections of members, and who of those expected is dead or silent."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.agent.admission import Admission

if TYPE_CHECKING:
    from rdzv.agent.loop import Loop

__all__ = ["NEWS", "LivenessServer", "Verdict", "judge"]

SILENCE_SECONDS = 4.0
"""Silence on an open connection after which its other end is dead, unless another limit is set; after half of it, it is suspected."""
RECONNECT_SECONDS = 1.0
"""How long a peer whose connection broke has to connect again."""
FIRST_SECONDS = 15.0
"""How long a peer that never connected has: it may see late, through the API, whom to connect to."""
DOUBT_SECONDS = 2.5
"""Silence, or absence of a peer that never connected, after which its replacement is believed."""
QUESTION = b"?"
"""What a member answers at once, instead of with its next word."""
NEWS = "!{};"
"""What members are sent when there is a new Round, with its resourceVersion: should their watch be deaf, they know it."""


@dataclass
class Peer:
    """An expected member. `since`: expected; `heard`: its last byte; `gone`: when its connection broke.

    `asked`: for a sign of life, which it has not given yet.
    """

    since: float
    heard: float
    gone: float | None = None
    connected: bool = False
    asked: bool = False


@dataclass(frozen=True)
class Verdict:
    """Incarnations of expected members, and of all that hold a connection.

    `dead`: they certainly ended, or were silent for so long that it makes no difference; `suspected`: they are silent;
    `doubted`: they owe a sign of life.
    """

    dead: frozenset[str] = frozenset()
    suspected: frozenset[str] = frozenset()
    doubted: frozenset[str] = frozenset()
    connected: frozenset[str] = frozenset()


def judge(
    peers: Mapping[str, Peer], now: float, most: float = SILENCE_SECONDS
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Who is dead, who is suspected, and who is doubted. `most`: seconds of silence."""
    dead, suspected, doubted = set(), set(), set()
    for incarnation, peer in peers.items():
        if peer.connected:
            silence, limit = now - peer.heard, most
        elif peer.gone is not None:
            silence, limit = now - peer.gone, RECONNECT_SECONDS
        else:
            silence, limit = now - peer.since, FIRST_SECONDS
        if silence >= limit:
            dead.add(incarnation)
        elif peer.connected and silence >= most / 2:
            suspected.add(incarnation)
        if silence >= DOUBT_SECONDS or peer.asked or peer.gone is not None:
            doubted.add(incarnation)
    return frozenset(dead), frozenset(suspected), frozenset(doubted)


class LivenessServer:
    """Everything runs in the loop's thread; `verdict` may be read from any. `changed` is called when it is another one."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        me: str,
        key: str,
        changed: Callable[[], None],
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self._silence = silence
        self.verdict = Verdict()
        self._loop, self._me, self._changed = loop, me, changed
        self._expected: dict[str, Peer] = {}
        self._connected: dict[str, socket.socket] = {}
        self._last_heard: dict[str, float] = {}
        self._asked: frozenset[str] = frozenset()
        self.admission = Admission(loop, listener, me, key, self.admit, lambda: len(self._connected))

    @property
    def expects(self) -> bool:
        """Whether time alone may change the verdict."""
        return bool(self._expected)

    def expect(self, incarnations: frozenset[str]) -> None:
        """These members, and no others, are expected to hold a connection."""
        now, wanted = self._loop.clock(), incarnations - {self._me}
        for gone in self._expected.keys() - wanted:
            del self._expected[gone]
        for new in wanted - self._expected.keys():
            # A connection may have been silent for long by then.
            self._expected[new] = Peer(now, self._last_heard.get(new, now), connected=new in self._connected)
        self.admission.expect(len(wanted))
        self.judge()

    def serve(self, serving: bool) -> None:
        """Let members in, or send all away."""
        self.admission.serving = serving
        if not serving:
            for sock in self._connected.values():
                self._loop.forget(sock)
            self._connected.clear()
            self._last_heard.clear()
            self.expect(frozenset())

    def ask(self, incarnations: frozenset[str]) -> None:
        """Ask these members, each once, for a sign of life; not at all whom that is not expected of."""
        for incarnation in incarnations - self._asked:
            peer, sock = self._expected.get(incarnation), self._connected.get(incarnation)
            if peer is not None and sock is not None:
                peer.asked = True
                with contextlib.suppress(OSError):  # As in `announce`.
                    sock.send(QUESTION)
        self._asked = incarnations
        self._judge_soon()

    def announce(self, rv: int) -> None:
        """Tell everybody who is connected of the Round of this resourceVersion."""
        for sock in self._connected.values():
            with contextlib.suppress(OSError):  # Nobody reads there; the silence will tell.
                sock.send(NEWS.format(rv).encode())

    def judge(self) -> None:
        """Find out who is dead or suspected by now."""
        verdict = Verdict(*judge(self._expected, self._loop.clock(), self._silence), frozenset(self._connected))
        if verdict != self.verdict:
            self.verdict = verdict
            self._changed()

    def _judge_soon(self) -> None:
        """Once for all that happens in this turn of the loop: each judgement goes through all, and thousands may connect at one time."""
        self._loop.at("liveness.judge", self._loop.clock(), self.judge)

    def slept(self, seconds: float) -> None:
        """This process was stopped, or starved: what it did not hear meanwhile says nothing about the others."""
        for peer in self._expected.values():
            peer.heard += seconds
            peer.since += seconds
        for incarnation in self._last_heard:
            self._last_heard[incarnation] += seconds

    def admit(self, incarnation: str, sock: socket.socket) -> None:
        """Take a connection that has proven itself; it replaces an earlier one of the same incarnation."""
        before = self._connected.get(incarnation)
        if before is not None:
            self._loop.forget(before)
        self._connected[incarnation], self._last_heard[incarnation] = sock, self._loop.clock()
        peer = self._expected.get(incarnation)
        if peer is not None:
            peer.connected, peer.gone, peer.heard, peer.asked = True, None, self._last_heard[incarnation], False
        with contextlib.suppress(OSError):
            sock.send(b"+")
        self._loop.watch(sock, selectors.EVENT_READ, lambda: self._heard(incarnation, sock))
        self._judge_soon()

    def _heard(self, incarnation: str, sock: socket.socket) -> None:
        try:
            data = sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended(incarnation, sock)
            return
        with contextlib.suppress(OSError):  # Nobody reads there, or it ends: the next read tells.
            sock.send(b".")
        self._last_heard[incarnation] = self._loop.clock()
        peer = self._expected.get(incarnation)
        if peer is not None:
            peer.heard, peer.asked = self._last_heard[incarnation], False
            if incarnation in self.verdict.suspected or incarnation in self.verdict.doubted:
                self._judge_soon()

    def _ended(self, incarnation: str, sock: socket.socket) -> None:
        self._loop.forget(sock)
        if self._connected.get(incarnation) is not sock:
            return
        del self._connected[incarnation], self._last_heard[incarnation]
        peer = self._expected.get(incarnation)
        if peer is not None:
            peer.connected, peer.gone = False, self._loop.clock()
            self._loop.at(f"liveness.gone.{incarnation}", peer.gone + RECONNECT_SECONDS, self._judge_soon)
        self._judge_soon()
