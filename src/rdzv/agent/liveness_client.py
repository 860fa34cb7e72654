"""A member's side of liveness: the one connection that it keeps to the agent that coordinates."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import random
import re
import secrets
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rdzv.agent.liveness_server import QUESTION, SILENCE_SECONDS
from rdzv.agent.proof import COORDINATOR, LINE_LIMIT, MEMBER, Exchange, decode, encode, proves
from rdzv.protocol.records import Coordinator

if TYPE_CHECKING:
    from rdzv.agent.loop import Loop

__all__ = ["LivenessClient", "UnreachablePeer", "dial"]

log = logging.getLogger("rdzv.agent")

ANSWER_SECONDS = 2.0
"""For the connection, and again for each answer until it stands."""
AGAIN_SECONDS = 1.0
"""Between two attempts to connect."""
SPREAD = (0.1, 0.3)
"""Seconds after which a new coordinator is connected to: not while a round is being formed at full speed."""
_NEWS = re.compile(rb"!(\d{1,19});")
_NEWS_LENGTH = 21


@dataclass(frozen=True)
class UnreachablePeer:
    """Whom this agent cannot connect to, why, in words, and since when on the loop's clock."""

    target: Coordinator
    why: str
    since: float

    def __str__(self) -> str:
        return f"{self.target.address} port {self.target.port}: {self.why}"


def _same_agent(one: Coordinator, other: Coordinator) -> bool:
    """In all but the term."""
    return replace(one, term=0) == replace(other, term=0)


def dial(address: str, port: int) -> socket.socket:
    """A connection that is being made, which never blocks; writable when it is there or has failed.

    Raises:
        OSError: it was refused at once.
        ValueError: the address is not a literal one. Looking up a name would stop the loop, for as long as whoever wrote
            the name likes.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex((address, port))
    except OSError:
        sock.close()
        raise
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


@dataclass
class _Link:
    """One connection on its way. `exchange`: as far as it is known; `proven`: the other side is who it should be."""

    sock: socket.socket
    exchange: Exchange
    received: bytearray = field(default_factory=bytearray)
    proven: bool = False
    established: bool = False
    heard: float = 0.0


class LivenessClient:
    """Follows one coordinator at a time, in the loop's thread. `unreachable`, `announced` and `linked` may be read from any.

    `lost` and `found` are called with the coordinator when no connection to it can be made, and when one stands.
    """

    def __init__(
        self,
        loop: Loop,
        me: str,
        lost: Callable[[Coordinator], None],
        found: Callable[[Coordinator], None],
        connect: Callable[[str, int], socket.socket] = dial,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self._silence = silence
        self.unreachable: UnreachablePeer | None = None
        self.announced = 0
        """resourceVersion of the last Round that the coordinator told of; 0 when it told of none."""
        self._loop, self._me, self._lost, self._found, self._dial = loop, me, lost, found, connect
        self._target: Coordinator | None = None
        self._wanted: Coordinator | None = None
        """Who is followed from the next switch on; `_target` until then."""
        self._link: _Link | None = None

    @property
    def follows(self) -> bool:
        """Whether there is somebody to keep a connection to."""
        return self._target is not None or self._wanted is not None

    @property
    def linked(self) -> bool:
        """Whether a connection to the coordinator stands."""
        link = self._link
        return link is not None and link.established

    def follow(self, target: Coordinator | None) -> None:
        """Keep a connection to this coordinator, or to nobody."""
        if target == self._wanted:
            return
        self._wanted, before = target, self._target
        if target is not None and before is not None and _same_agent(target, before):
            # In a later term: the connection, or the attempts to make it, go on.
            self._loop.at("liveness.switch", None, self._connect)
            self._target = target
            self._report(target)
        elif target is None:
            self._switch(None)
        else:
            # What stands is kept until then: the one that is replaced may come back, and knows who is connected to it.
            soon = self._loop.clock() + random.uniform(*SPREAD)  # noqa: S311 - jitter
            self._loop.at("liveness.switch", soon, lambda: self._switch(target))

    def _switch(self, target: Coordinator | None) -> None:
        self._loop.at("liveness.switch", None, self._connect)
        self._loop.at("liveness.connect", None, self._connect)
        self._hang_up()
        self._target, self.unreachable, self.announced = target, None, 0
        self._connect()

    def _report(self, target: Coordinator) -> None:
        """What was told of the coordinator holds for its later term."""
        if self.unreachable is not None:
            self.unreachable = replace(self.unreachable, target=target)
            self._lost(target)
        elif self.linked:
            self._found(target)

    def tick(self) -> None:
        """Say that this agent is there, and see whether the other side is."""
        link = self._link
        if link is None or not link.established:
            return
        if self._loop.clock() - link.heard >= self._silence:
            self._broken("silent")
        else:
            self._send(link, b".")

    def slept(self, seconds: float) -> None:
        """As `LivenessServer.slept`."""
        if self._link is not None:
            self._link.heard += seconds

    # Connecting.

    def _connect(self) -> None:
        target = self._target
        if target is None or self._link is not None:
            return
        try:
            sock = self._dial(target.address, target.port)
        except ValueError:
            self._failed("not an IP address")
            return
        except OSError as error:
            self._failed(error.strerror or str(error))
            return
        hello = Exchange(self._me, target.incarnation, secrets.token_hex(16), "")
        self._link = _Link(sock, hello)
        self._loop.watch(sock, selectors.EVENT_WRITE, self._connected)
        self._be_patient()

    def _be_patient(self) -> None:
        self._loop.at("liveness.patience", self._loop.clock() + ANSWER_SECONDS, lambda: self._broken("no answer"))

    def _connected(self) -> None:
        link = self._link
        if link is None:
            return
        code = link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._broken(os.strerror(code))
            return
        self._loop.watch(link.sock, selectors.EVENT_READ, self._readable)
        hello = link.exchange
        hello_line = encode(**{"from": hello.sender, "to": hello.target, "nonce": hello.sender_nonce})
        if self._send(link, hello_line):
            self._be_patient()

    def _readable(self) -> None:
        link = self._link
        if link is None:
            return
        try:
            data = link.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(error.strerror or str(error))
            return
        if not data:
            self._broken("closed by the other side")
            return
        link.received += data
        if link.established:
            self._alive(link)
        else:
            self._answered(link)

    def _answered(self, link: _Link) -> None:
        """The other side has said something before the connection stands."""
        if not link.proven:
            line, newline, rest = link.received.partition(b"\n")
            if newline:
                link.received = rest
                self._prove(link, bytes(line))
            elif len(link.received) >= LINE_LIMIT:
                self._broken("not an agent of this Rendezvous")
        if link is self._link and link.proven and link.received:
            self._establish(link)

    def _prove(self, link: _Link, line: bytes) -> None:
        target = self._target
        if target is None:
            return
        try:
            nonce, proof = decode(line, "nonce", "proof")
            exchange = Exchange(link.exchange.sender, link.exchange.target, link.exchange.sender_nonce, nonce)
            link.proven = proves(exchange, target.key, COORDINATOR, proof)
        except ValueError:
            link.proven = False
        if not link.proven:
            self._broken("it can't prove that it is the coordinator")
        elif self._send(link, encode(proof=exchange.proof(target.key, MEMBER))):
            self._be_patient()

    def _establish(self, link: _Link) -> None:
        link.established = True
        self._loop.at("liveness.patience", None, self._connect)
        self._alive(link)
        self.unreachable = None
        if self._target is not None:
            self._found(self._target)

    def _alive(self, link: _Link) -> None:
        link.heard = self._loop.clock()
        for rv in _NEWS.findall(link.received):
            self.announced = int(rv)
        asked = QUESTION in link.received
        if asked:
            link.received = link.received.replace(QUESTION, b"")
        del link.received[:-_NEWS_LENGTH]  # The end of a word may be still to come; to find one twice does no harm.
        if asked:
            self._send(link, b".")

    def _send(self, link: _Link, data: bytes) -> bool:
        try:
            link.sock.send(data)
        except BlockingIOError:
            pass  # Nobody reads there; the silence will tell.
        except OSError as error:
            self._broken(error.strerror or str(error))
            return False
        return True

    # Losing.

    def _hang_up(self) -> None:
        self._loop.at("liveness.patience", None, self._connect)
        link, self._link = self._link, None
        if link is not None:
            self._loop.forget(link.sock)

    def _broken(self, why: str) -> None:
        was_there = self._link is not None and self._link.established
        self._hang_up()
        if was_there:
            self._connect()  # If it lives, it answers.
        else:
            self._failed(why)

    def _failed(self, why: str) -> None:
        target, now = self._target, self._loop.clock()
        if target is None:
            return
        self._loop.at("liveness.connect", now + AGAIN_SECONDS, self._connect)
        first, since = self.unreachable is None, now if self.unreachable is None else self.unreachable.since
        self.unreachable = UnreachablePeer(target, why, since)
        if first:
            log.info("no connection to the coordinator at %s", self.unreachable)
            self._lost(target)
