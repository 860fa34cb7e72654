"""The liveness port's door: who connects has a moment to prove that it belongs here, and the crowd before it is bounded.

Anybody who can reach the port can connect, so what a connection costs before it has proven itself is bounded: in number,
in time, in bytes, and in what happens when descriptors run out.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import secrets
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rdzv.agent.proof import COORDINATOR, LINE_LIMIT, MEMBER, Exchange, decode, encode, proves

if TYPE_CHECKING:
    from rdzv.agent.loop import Loop

__all__ = ["Admission", "Limits"]

log = logging.getLogger("rdzv.agent")

LINE_SECONDS = 2.0
"""For each of the two lines that a member sends."""
UNPROVEN = 1024
"""Connections that have not proven themselves, or as many as members are expected if that is more."""
PAUSE_SECONDS = 0.5
"""Nobody is accepted for so long after descriptors ran out: the queue stays full, so asking again at once is a busy loop."""
SAY_SECONDS = 60.0
"""Between two words in the log about who was refused."""
_RESERVE = 256
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True)
class Limits:
    """Numbers of connections: of those that have not proven themselves, and of all of this agent's port."""

    unproven: int
    total: int

    @classmethod
    def of(cls, expected: int, descriptors: int) -> Limits:
        """For so many expected members in a process that may have so many descriptors, most of which are not ours."""
        return cls(
            unproven=max(1, min(max(UNPROVEN, expected), descriptors // 4)),
            total=max(1, descriptors - min(_RESERVE, descriptors // 2)),
        )


@dataclass
class _Unproven:
    """A connection at the door. `exchange` is there when its first line was."""

    sock: socket.socket
    source: str
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    exchange: Exchange | None = None


class Admission:
    """Accepts connections on `listener` and hands over those that have proven themselves.

    Runs in the loop's thread.

    Args:
        me: own incarnation, which a member has to name.
        key: what a member has to know.
        admit: takes the incarnation and its connection.
        proven: how many connections were admitted and are still there.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        me: str,
        key: str,
        admit: Callable[[str, socket.socket], None],
        proven: Callable[[], int],
    ) -> None:
        self._loop, self._listener, self._me, self._key = loop, listener, me, key
        self._admit, self._proven = admit, proven
        self._unproven: dict[socket.socket, _Unproven] = {}  # In order of their deadlines.
        self.serving = True
        """False: nobody is let in."""
        self._limits = Limits.of(0, _descriptors())
        self._said = float("-inf")
        self._listen()

    @property
    def waiting(self) -> int:
        """Connections that have not proven themselves."""
        return len(self._unproven)

    def expect(self, members: int) -> None:
        """So many members may connect at about one time."""
        self._limits = Limits.of(members, _descriptors())

    def enter(self, sock: socket.socket, source: str) -> None:
        """Take a connection that was accepted."""
        while self._unproven and self._full():
            self._drop(next((one for one in self._unproven.values() if one.exchange is None), self._oldest()))
        if self._full():
            self._say(f"{self._proven()} connections are as many as this process can have; {source} is refused")
            sock.close()
            return
        sock.setblocking(False)
        one = _Unproven(sock, source, 0.0)
        self._loop.watch(sock, selectors.EVENT_READ, lambda: self._read(one))
        self._await_line(one)

    def _full(self) -> bool:
        limits = self._limits
        return self.waiting >= limits.unproven or self.waiting + self._proven() >= limits.total

    # Accepting.

    def _listen(self) -> None:
        self._loop.watch(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError as error:  # Given up meanwhile, or out of descriptors.
            if error.errno in _EXHAUSTED:
                self._say(f"nobody is let in for {PAUSE_SECONDS:g} s: {error.strerror}")
                self._loop.pause(self._listener)
                self._loop.at("liveness.listen", self._loop.clock() + PAUSE_SECONDS, self._listen)
            return
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.enter(sock, str(address[0]))

    # Proving.

    def _await_line(self, one: _Unproven) -> None:
        self._unproven.pop(one.sock, None)
        one.deadline = self._loop.clock() + LINE_SECONDS
        self._unproven[one.sock] = one
        if len(self._unproven) == 1:
            self._loop.at("liveness.unproven", one.deadline, self._sweep)

    def _oldest(self) -> _Unproven:
        return next(iter(self._unproven.values()))

    def _sweep(self) -> None:
        now = self._loop.clock()
        while self._unproven and self._oldest().deadline <= now:
            self._drop(self._oldest())
        if self._unproven:
            self._loop.at("liveness.unproven", self._oldest().deadline, self._sweep)

    def _drop(self, one: _Unproven) -> None:
        del self._unproven[one.sock]
        self._loop.forget(one.sock)

    def _read(self, one: _Unproven) -> None:
        try:
            data = one.sock.recv(LINE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        one.received += data
        line, newline, rest = one.received.partition(b"\n")
        if newline:
            one.received = rest
            self._take(one, bytes(line))
        elif not data or len(one.received) >= LINE_LIMIT:
            self._drop(one)

    def _take(self, one: _Unproven, line: bytes) -> None:
        try:
            taken = self._challenge(one, line) if one.exchange is None else self._check(one, one.exchange, line)
        except (ValueError, OSError):  # Not one of us, or gone again.
            taken = False
        if not taken:
            self._drop(one)

    def _challenge(self, one: _Unproven, line: bytes) -> bool:
        sender, target, nonce = decode(line, "from", "to", "nonce")
        if target != self._me or not self.serving:
            return False  # Who is asked for had this port before.
        one.exchange = Exchange(sender, target, nonce, secrets.token_hex(16))
        one.sock.send(
            encode(nonce=one.exchange.target_nonce, proof=one.exchange.proof(self._key, COORDINATOR)),
        )
        self._await_line(one)
        return True

    def _check(self, one: _Unproven, exchange: Exchange, line: bytes) -> bool:
        (given,) = decode(line, "proof")
        if not proves(exchange, self._key, MEMBER, given):
            self._say(f"{one.source} says that it is {exchange.sender!a:.128}, and can't prove it")
            return False
        if not self.serving:
            return False
        del self._unproven[one.sock]
        self._admit(exchange.sender, one.sock)
        return True

    def _say(self, text: str) -> None:
        now = self._loop.clock()
        if now >= self._said + SAY_SECONDS:
            self._said = now
            log.warning("liveness port: %s", text)


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
