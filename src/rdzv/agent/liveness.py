"""Who is alive: every agent keeps one TCP connection to the agent that coordinates.

A process that ends closes its sockets, however it ends, so its death is known in milliseconds; a machine that is gone
says nothing, so both sides send a byte each second and count the silence. A broken connection alone proves nothing: the
other side connects again at once if it is there. All of this happens in the agent's `Loop`; nothing goes through the API.

On the wire: the client sends one line of JSON, `{"from": INCARNATION, "to": INCARNATION}`, then a dot each second. The
server answers `+` and then a dot for each dot; it closes the connection when it is not who was asked for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rdzv.protocol.records import Coordinator

if TYPE_CHECKING:
    from rdzv.agent.loop import Loop

__all__ = ["Liveness", "listen"]

log = logging.getLogger("rdzv.agent")

PING_SECONDS = 1.0
SUSPECT_SECONDS = 5.0
DEAD_SECONDS = 10.0
"""Silence on an open connection."""
RECONNECT_SECONDS = 1.0
"""How long a peer whose connection broke has to connect again."""
FIRST_SECONDS = 15.0
"""How long a peer that never connected has: it may see late, through the API, whom to connect to."""
CONNECT_SECONDS = 2.0
SPREAD = (0.1, 0.3)
"""Seconds after which a new coordinator is connected to: not while a round is being formed at full speed."""
_HELLO_LIMIT = 1024


def listen(address: str, backlog: int = 1024) -> socket.socket:
    """A listening socket on a free port of this address, or of all if the address is not this machine's own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.bind((address, 0))
    except OSError:  # Behind address translation one is not bound to what others connect to.
        sock.close()
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.bind(("", 0))
    sock.listen(backlog)
    return sock


@dataclass
class _Peer:
    """A member as its coordinator sees it. `gone`: when its connection broke."""

    since: float
    heard: float
    gone: float | None = None
    sock: socket.socket | None = None


@dataclass
class _Upstream:
    """The own connection to the coordinator. `lost`: that it is was reported."""

    target: Coordinator
    sock: socket.socket | None = None
    established: bool = False
    lost: bool = False
    heard: float = 0.0


@dataclass(frozen=True)
class Callbacks:
    """Called in the loop's thread. `peers`: what `dead` or `suspected` say has changed."""

    lost: Callable[[Coordinator], None]
    found: Callable[[Coordinator], None]
    peers: Callable[[], None]


@dataclass
class Liveness:
    """Both sides of the connections. `follow` and `expect` may be called from any thread."""

    loop: Loop
    incarnation: str
    address: str
    callbacks: Callbacks
    dead: frozenset[str] = frozenset()
    """Expected incarnations that certainly ended, or were silent for so long that it makes no difference."""
    suspected: frozenset[str] = frozenset()
    """Expected incarnations that are silent."""
    connected: frozenset[str] = frozenset()
    """Incarnations that hold a connection."""
    _expected: dict[str, _Peer] = field(default_factory=dict)
    _connected: dict[str, socket.socket] = field(default_factory=dict)
    _up: _Upstream | None = None
    _ticked: float = 0.0
    _serving: bool = True

    def __post_init__(self) -> None:
        self._listener = listen(self.address)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.loop.watch(self._listener, selectors.EVENT_READ, self._accept)

    def follow(self, target: Coordinator | None) -> None:
        """Keep a connection to this coordinator (None: to nobody)."""
        self.loop.call(lambda: self._follow(target))

    def expect(self, incarnations: Iterable[str]) -> None:
        """As the coordinator: whose connections are expected to be there."""
        wanted = frozenset(incarnations) - {self.incarnation}
        self.loop.call(lambda: self._expect(wanted))

    def serve(self, serving: bool) -> None:
        """False: this agent does not coordinate although the Round says so; its peers are sent away to look for another."""
        self.loop.call(lambda: self._serve(serving))

    # The member's side.

    def _follow(self, target: Coordinator | None) -> None:
        if self._up is not None and self._up.target == target:
            return
        self._hang_up()
        self._up = None
        self.loop.at("liveness.connect", None, self._connect)
        if target is not None:
            self._up = _Upstream(target)
            self._connect_at(time.monotonic() + random.uniform(*SPREAD))  # noqa: S311 - jitter
            self._tick_at()

    def _connect_at(self, when: float) -> None:
        self.loop.at("liveness.connect", when, self._connect)

    def _hang_up(self) -> None:
        up = self._up
        if up is not None and up.sock is not None:
            self.loop.forget(up.sock)
            up.sock, up.established = None, False

    def _connect(self) -> None:
        up = self._up
        if up is None or up.sock is not None:
            return
        target = up.target
        sock = socket.socket(socket.AF_INET6 if ":" in target.address else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            code = sock.connect_ex((target.address, target.port))
        except OSError as error:  # The address is not one.
            code = error.errno or errno.EHOSTUNREACH
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            self._failed(f"cannot be connected to: {os.strerror(code)}")
            return
        up.sock, up.established = sock, False
        self.loop.watch(sock, selectors.EVENT_WRITE, self._connected_up)
        self.loop.at("liveness.patience", time.monotonic() + CONNECT_SECONDS, self._impatient)

    def _connected_up(self) -> None:
        up = self._up
        if up is None or up.sock is None:
            return
        code = up.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._broken(os.strerror(code))
            return
        hello = json.dumps({"from": self.incarnation, "to": up.target.incarnation}) + "\n"
        try:
            up.sock.send(hello.encode())
        except OSError as error:
            self._broken(str(error))
            return
        self.loop.watch(up.sock, selectors.EVENT_READ, self._answered)

    def _impatient(self) -> None:
        if self._up is not None and self._up.sock is not None and not self._up.established:
            self._broken("no answer")

    def _answered(self) -> None:
        up = self._up
        if up is None or up.sock is None:
            return
        try:
            data = up.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(str(error))
            return
        if not data:
            self._broken("closed")
            return
        up.heard = time.monotonic()
        if not up.established:
            up.established = True
            self.loop.at("liveness.patience", None, self._impatient)
            if up.lost:
                up.lost = False
                self.callbacks.found(up.target)

    def _broken(self, why: str) -> None:
        up = self._up
        was_there = up is not None and up.established
        self._hang_up()
        if was_there:
            self._connect()  # If it lives, it answers.
        else:
            self._failed(why)

    def _failed(self, why: str) -> None:
        up = self._up
        if up is None:
            return
        self._connect_at(time.monotonic() + PING_SECONDS)
        if not up.lost:
            up.lost = True
            log.info("coordinator %s:%s: %s", up.target.address, up.target.port, why)
            self.callbacks.lost(up.target)

    # The coordinator's side.

    def _expect(self, wanted: frozenset[str]) -> None:
        now = time.monotonic()
        for gone in self._expected.keys() - wanted:
            del self._expected[gone]
        for new in wanted - self._expected.keys():
            self._expected[new] = _Peer(since=now, heard=now, sock=self._connected.get(new))
        self._judge()
        self._tick_at()

    def _serve(self, serving: bool) -> None:
        self._serving = serving
        if not serving:
            for sock in self._connected.values():
                self.loop.forget(sock)
            self._connected.clear()
            self._expect(frozenset())

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # Given up meanwhile, or out of descriptors: it will try again.
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffer = bytearray()
            self.loop.watch(sock, selectors.EVENT_READ, lambda: self._hello(sock, buffer))

    def _hello(self, sock: socket.socket, buffer: bytearray) -> None:
        try:
            data = sock.recv(_HELLO_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        buffer += data
        line, newline, _ = buffer.partition(b"\n")
        if not newline:
            if not data or len(buffer) > _HELLO_LIMIT:
                self.loop.forget(sock)
            return
        try:
            hello = json.loads(line)
            peer, asked = str(hello["from"]), str(hello["to"])
        except (ValueError, KeyError, TypeError):
            self.loop.forget(sock)
            return
        if asked != self.incarnation or not self._serving:
            self.loop.forget(sock)
            return
        self._admit(peer, sock)

    def _admit(self, incarnation: str, sock: socket.socket) -> None:
        before = self._connected.get(incarnation)
        if before is not None:
            self.loop.forget(before)
        self._connected[incarnation] = sock
        peer = self._expected.get(incarnation)
        if peer is not None:
            peer.sock, peer.gone, peer.heard = sock, None, time.monotonic()
        with contextlib.suppress(OSError):
            sock.send(b"+")
        self.loop.watch(sock, selectors.EVENT_READ, lambda: self._heard(incarnation, sock))
        self._judge()

    def _heard(self, incarnation: str, sock: socket.socket) -> None:
        now = time.monotonic()
        try:
            data = sock.recv(4096)
            if data:
                sock.send(b".")
        except BlockingIOError:
            return
        except OSError:
            data = b""
        peer = self._expected.get(incarnation)
        if data:
            if peer is not None:
                peer.heard = now
                if incarnation in self.suspected:
                    self._judge()
            return
        self.loop.forget(sock)
        if self._connected.get(incarnation) is sock:
            del self._connected[incarnation]
            if peer is not None:
                peer.sock, peer.gone = None, now
                self.loop.at(f"liveness.gone.{incarnation}", now + RECONNECT_SECONDS, self._judge)
            self._judge()

    def _judge(self) -> None:
        now = time.monotonic()
        dead, suspected = set(), set()
        for incarnation, peer in self._expected.items():
            if peer.sock is not None:
                silence, limit = now - peer.heard, DEAD_SECONDS
            elif peer.gone is not None:
                silence, limit = now - peer.gone, RECONNECT_SECONDS
            else:
                silence, limit = now - peer.since, FIRST_SECONDS
            if silence >= limit:
                dead.add(incarnation)
            elif peer.sock is not None and silence >= SUSPECT_SECONDS:
                suspected.add(incarnation)
        known = frozenset(dead), frozenset(suspected), frozenset(self._connected)
        if known != (self.dead, self.suspected, self.connected):
            self.dead, self.suspected, self.connected = known
            self.callbacks.peers()

    # Both.

    def _tick_at(self) -> None:
        if self._up is not None or self._expected:
            if not self._ticked:
                self._ticked = time.monotonic()
            self.loop.at("liveness.tick", time.monotonic() + PING_SECONDS, self._tick)
        else:
            self._ticked = 0.0

    def _tick(self) -> None:
        now = time.monotonic()
        asleep = now - self._ticked - PING_SECONDS
        self._ticked = now
        if asleep > PING_SECONDS:
            # This process was stopped, or starved: what it did not hear meanwhile says nothing about the others.
            for peer in self._expected.values():
                peer.heard, peer.since = peer.heard + asleep, peer.since + asleep
            if self._up is not None:
                self._up.heard += asleep
        up = self._up
        if up is not None and up.sock is not None and up.established:
            if now - up.heard >= DEAD_SECONDS:
                self._broken("silent")
            else:
                self._ping(up)
        self._judge()
        self._tick_at()

    def _ping(self, up: _Upstream) -> None:
        if up.sock is None:
            return
        try:
            up.sock.send(b".")
        except BlockingIOError:
            pass  # Nobody reads there; the silence will tell.
        except OSError as error:
            self._broken(str(error))
