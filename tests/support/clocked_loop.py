"""Agents' loops that are turned by hand, on a clock that stands still: what is decided by time is tested without waiting."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from rdzv.agent.liveness import Callbacks, Liveness
from rdzv.agent.liveness_server import SILENCE_SECONDS
from rdzv.agent.loop import Loop, pipe
from rdzv.protocol.records import Coordinator

KEY = "5" * 64


@dataclass
class Clock:
    """Seconds, and the loops that live by them. A loop that is taken out of `loops` stands still."""

    now: float = 1000.0
    loops: list[Loop] = field(default_factory=list)
    ends: ExitStack = field(default_factory=ExitStack)

    def __call__(self) -> float:
        return self.now

    def loop(self) -> Loop:
        """Another loop, which is never started."""
        loop = Loop("rdzv-test", clock=self)
        self.loops.append(loop)
        self.ends.callback(loop.stop)
        return loop

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Two connected sockets that never block."""
        ours, theirs = pipe()
        self.ends.callback(ours.close)
        self.ends.callback(theirs.close)
        return ours, theirs

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(12):
            for loop in self.loops:
                loop.turn(0)

    def run(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass."""
        end = self.now + seconds
        self.settle()
        while self.now < end - 1e-9:
            self.now += step
            self.settle()


@contextmanager
def clocked() -> Iterator[Clock]:
    """A clock; its loops end with it."""
    clock = Clock()
    with clock.ends:
        yield clock


@dataclass
class Agent:
    """One agent's liveness, and what it was told. It connects by socketpair to whoever has its port in `listening`."""

    clock: Clock
    listening: dict[int, Agent]
    name: str
    key: str = KEY
    lost: list[Coordinator] = field(default_factory=list)
    found: list[Coordinator] = field(default_factory=list)
    dialled: list[float] = field(default_factory=list)
    connect: Callable[[str, int], socket.socket] | None = None
    silence: float = SILENCE_SECONDS

    def __post_init__(self) -> None:
        callbacks = Callbacks(lost=self.lost.append, found=self.found.append, peers=lambda: None)
        self.loop = self.clock.loop()
        self.liveness = Liveness(
            self.loop, self.name, "127.0.0.1", callbacks, self.key, self.connect or self.dial, self.silence
        )
        self.listening[self.liveness.port] = self

    @property
    def record(self) -> Coordinator:
        """This agent as coordinator."""
        return Coordinator(0, self.name, "10.0.0.1", self.liveness.port, 1, self.key)

    def dial(self, _address: str, port: int) -> socket.socket:
        self.dialled.append(self.clock.now)
        if port not in self.listening:
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = self.clock.pair()
        self.listening[port].liveness._server.admission.enter(theirs, "10.0.0.2")
        return ours

    def end(self) -> None:
        """As when the process ends."""
        del self.listening[self.liveness.port]
        self.clock.loops.remove(self.loop)
        self.loop.stop()
