"""Connections between agents, over real sockets: who is told of whose end, and who is not declared dead by mistake."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from rdzv.agent.liveness import Callbacks, Liveness
from rdzv.agent.loop import Loop
from rdzv.agent.signals import SignalPipe
from rdzv.protocol.records import Coordinator


@dataclass
class Peer:
    """One agent's half: its liveness and what it was told."""

    name: str
    address: str = "127.0.0.1"
    lost: list[Coordinator] = field(default_factory=list)
    found: list[Coordinator] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = Loop(f"rdzv-test-{self.name}")
        callbacks = Callbacks(lost=self.lost.append, found=self.found.append, peers=lambda: None)
        self.liveness = Liveness(self.loop, self.name, self.address, callbacks)
        self.loop.start()

    @property
    def record(self) -> Coordinator:
        return Coordinator(0, self.name, self.address, self.liveness.port, 1)

    def end(self) -> None:
        """As when the process ends: every socket is closed."""
        self.loop.stop()


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Peer, Peer]]:
    coordinator, member = Peer("c", request.param), Peer("m", request.param)
    coordinator.liveness.expect(["m"])
    member.liveness.follow(coordinator.record)
    eventually(lambda: coordinator.liveness.connected == {"m"})
    yield coordinator, member
    coordinator.end()
    member.end()


def test_the_end_of_a_member_is_noticed(pair: tuple[Peer, Peer]) -> None:
    coordinator, member = pair
    assert coordinator.liveness.dead == frozenset()
    member.end()
    eventually(lambda: coordinator.liveness.dead == {"m"})
    coordinator.liveness.expect([])
    eventually(lambda: coordinator.liveness.dead == frozenset())


def test_the_end_of_the_coordinator_is_noticed(pair: tuple[Peer, Peer]) -> None:
    coordinator, member = pair
    coordinator.end()
    eventually(lambda: member.lost == [coordinator.record])


def test_a_broken_connection_is_nobodys_end(pair: tuple[Peer, Peer]) -> None:
    coordinator, member = pair
    (sock,) = coordinator.liveness._connected.values()
    sock.shutdown(socket.SHUT_RDWR)
    eventually(lambda: coordinator.liveness.connected == {"m"} and sock.fileno() == -1)
    time.sleep(1.5)
    assert coordinator.liveness.dead == frozenset()
    assert member.lost == []


def test_another_process_on_the_coordinators_port_is_not_taken_for_it() -> None:
    other, member = Peer("another"), Peer("m")
    gone = replace(other.record, incarnation="c")
    member.liveness.follow(gone)
    eventually(lambda: member.lost == [gone])
    other.end()
    member.end()


def test_a_coordinator_that_answers_again_is_found() -> None:
    member = Peer("m")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    target = Coordinator(0, "c", "127.0.0.1", port, 1)
    member.liveness.follow(target)
    eventually(lambda: member.lost == [target])
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(20)
        connection, _ = server.accept()
        connection.sendall(b"+")
        eventually(lambda: member.found == [target])
        connection.close()
    member.end()


def test_garbage_does_no_harm(pair: tuple[Peer, Peer]) -> None:
    coordinator, _ = pair
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000, b'{"from": 1}\n', b""):
        with socket.create_connection((coordinator.address, coordinator.liveness.port)) as sock:
            sock.sendall(data)
    time.sleep(0.2)
    assert coordinator.liveness.connected == {"m"}


def test_a_signal_is_noticed_and_passed_on_to_who_had_the_descriptor_before() -> None:
    assert threading.current_thread() is threading.main_thread()
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno())
    handler = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        loop, noticed = Loop("rdzv-test-signals"), threading.Event()
        first = SignalPipe(loop, {signal.SIGUSR1}, noticed.set)
        second = SignalPipe(loop, {signal.SIGUSR2}, lambda: None)
        loop.start()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert noticed.wait(10)
        eventually(lambda: reader.recv(10) == bytes([signal.SIGUSR1]) if _readable(reader) else False)
        first.close()  # Not in the reverse order: the other one goes on.
        second.close()
        loop.stop()
        assert signal.set_wakeup_fd(writer.fileno()) == writer.fileno()
    finally:
        signal.signal(signal.SIGUSR1, handler)
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()


def _readable(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
