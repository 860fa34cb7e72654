"""Connections between agents, over real sockets: who is told of whose end, and who is not declared dead by mistake."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support import silent_crowd as silent_crowd_program

from deploy.local.cluster.control import free_ports
from rdzv.agent.admission import Limits
from rdzv.agent.liveness import Callbacks, Liveness
from rdzv.agent.loop import Loop
from rdzv.agent.proof import COORDINATOR, MEMBER, Exchange, decode, encode, proves
from rdzv.agent.signals import SignalPipe
from rdzv.protocol.records import Coordinator

KEY = "7" * 64


class CountingLoop(Loop):
    """Counts its turns."""

    turns = 0

    def turn(self, most: float = 3600.0) -> None:
        self.turns += 1
        super().turn(most)


@dataclass
class Peer:
    """One agent's half: its liveness and what it was told."""

    name: str
    address: str = "127.0.0.1"
    lost: list[Coordinator] = field(default_factory=list)
    found: list[Coordinator] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = CountingLoop(f"rdzv-test-{self.name}")
        callbacks = Callbacks(lost=self.lost.append, found=self.found.append, peers=lambda: None)
        self.liveness = Liveness(self.loop, self.name, self.address, callbacks, KEY)
        self.loop.start()

    @property
    def record(self) -> Coordinator:
        return Coordinator(0, self.name, self.address, self.liveness.port, 1, KEY)

    def processor(self) -> float:
        """Seconds that the loop's thread has used so far."""
        used: list[float] = []
        self.loop.call(lambda: used.append(time.thread_time()))
        eventually(lambda: bool(used))
        return used[0]

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
    (sock,) = coordinator.liveness._server._connected.values()
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
    (port,) = free_ports(1)
    target = Coordinator(0, "c", "127.0.0.1", port, 1, KEY)
    member.liveness.follow(target)
    eventually(lambda: member.lost == [target])
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(20)
        connection, _ = server.accept()
        sender, name, nonce = decode(connection.recv(1024), "from", "to", "nonce")
        assert (sender, name) == ("m", "c")
        exchange = Exchange("m", "c", nonce, "2")
        connection.sendall(encode(nonce="2", proof=exchange.proof(KEY, COORDINATOR)))
        (proof,) = decode(connection.recv(1024), "proof")
        assert proves(exchange, KEY, MEMBER, proof)
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


@contextmanager
def silent_crowd(port: int, count: int) -> Iterator[None]:
    """Connections of another process, all open and silent."""
    program = Path(silent_crowd_program.__file__)
    command = [sys.executable, str(program), str(port), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield
        process.communicate("")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_silent_crowd_costs_little_and_keeps_nobody_out() -> None:
    """2,000 connections that say nothing, as one process may open that knows the port and nothing else."""
    coordinator = Peer("c")
    members = [Peer(f"m{index}") for index in range(8)]
    most_unproven = Limits.of(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0]).unproven
    assert most_unproven < 1500
    names = {member.name for member in members}
    before, turns, used, started = descriptors(), coordinator.loop.turns, coordinator.processor(), time.monotonic()
    with silent_crowd(coordinator.liveness.port, 2000):
        most = 0
        for member in members:
            member.liveness.follow(coordinator.record)
        while time.monotonic() < started + 8:
            most = max(most, descriptors() - before)
            time.sleep(0.02)
        assert coordinator.liveness.connected == names
        assert [member.lost for member in members] == [[] for _ in members]
        # Both ends of the members' connections are this process's, and so are the pipes of the crowd's.
        assert most_unproven // 2 < most <= most_unproven + 2 * len(members) + 8
        assert coordinator.processor() - used < 0.05 * (time.monotonic() - started)
        # Each is accepted once, and perhaps swept once; what the members say in this time is a few hundred words.
        assert coordinator.loop.turns - turns < 2 * 2000 + 2000
        eventually(lambda: descriptors() - before <= 2 * len(members) + 8)
    for peer in (coordinator, *members):
        peer.end()


def test_a_process_without_descriptors_waits_and_is_there_again() -> None:
    coordinator, member = Peer("c"), Peer("m")
    crowd = [socket.socket() for _ in range(5)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)  # The lowest number that is free: with it as the limit, there is no other one.
    os.close(free)
    turns, used = coordinator.loop.turns, coordinator.processor()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        for sock in crowd:
            sock.connect(("127.0.0.1", coordinator.liveness.port))
        time.sleep(3)
        assert coordinator.loop.turns - turns < 100
        assert coordinator.processor() - used < 0.15
        assert coordinator.liveness._server.admission.waiting == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    member.liveness.follow(coordinator.record)
    eventually(lambda: coordinator.liveness.connected == {"m"})
    assert member.lost == []
    for sock in crowd:
        sock.close()
    coordinator.end()
    member.end()


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
