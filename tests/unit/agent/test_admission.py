"""The liveness port's door: who proves what, who is sent away, and what a crowd costs."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.clocked_loop import KEY, Agent, Clock, clocked
from support.hostile_replies import GARBAGE, changed

from rdzv.agent import admission
from rdzv.agent.admission import Limits
from rdzv.agent.proof import COORDINATOR, MEMBER, Exchange, decode, encode, proves


@pytest.fixture
def clock() -> Iterator[Clock]:
    with clocked() as found:
        yield found


@pytest.fixture
def coordinator(clock: Clock) -> Agent:
    return Agent(clock, {}, "c")


class Stranger:
    """A connection to the coordinator's door, spoken by hand."""

    def __init__(self, clock: Clock, coordinator: Agent) -> None:
        self.clock = clock
        self.sock, theirs = clock.pair()
        coordinator.liveness._server.admission.enter(theirs, "10.9.9.9")

    def says(self, data: bytes) -> bytes | None:
        """What it gets for that; None: nothing, and it stays connected; b"": it was sent away."""
        try:
            self.sock.send(data)
        except BrokenPipeError:
            return b""
        return self.gets()

    def gets(self) -> bytes | None:
        self.clock.settle()
        try:
            return self.sock.recv(4096)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""


def hello(sender: str = "m", target: str = "c", nonce: str = "1") -> bytes:
    return encode(**{"from": sender, "to": target, "nonce": nonce})


def answer(challenge: bytes | None, key: str = KEY, sender: str = "m", nonce: str = "1") -> bytes:
    theirs, proof = decode(challenge or b"", "nonce", "proof")
    exchange = Exchange(sender, "c", nonce, theirs)
    assert proves(exchange, KEY, COORDINATOR, proof)
    return encode(proof=exchange.proof(key, MEMBER))


def test_who_knows_the_key_is_let_in(clock: Clock, coordinator: Agent) -> None:
    member = Stranger(clock, coordinator)
    assert member.says(answer(member.says(hello()))) == b"+"
    assert coordinator.liveness.connected == {"m"}


def test_a_line_may_come_in_pieces(clock: Clock, coordinator: Agent) -> None:
    member = Stranger(clock, coordinator)
    for byte in hello()[:-1]:
        assert member.says(bytes([byte])) is None
    assert member.says(answer(member.says(b"\n"))) == b"+"


def test_who_only_knows_a_name_is_not_let_in_and_replaces_nobody(
    clock: Clock, coordinator: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    member, thief = Stranger(clock, coordinator), Stranger(clock, coordinator)
    assert member.says(answer(member.says(hello()))) == b"+"
    with caplog.at_level(logging.WARNING):
        assert thief.says(answer(thief.says(hello()), key="guessed")) == b""
    assert coordinator.liveness.connected == {"m"}
    assert member.says(b".") == b"."
    assert "10.9.9.9 says that it is 'm', and can't prove it" in caplog.text
    assert KEY not in caplog.text


def test_what_was_heard_on_one_connection_proves_nothing_on_another(clock: Clock, coordinator: Agent) -> None:
    member, thief = Stranger(clock, coordinator), Stranger(clock, coordinator)
    said = answer(member.says(hello()))
    assert member.says(said) == b"+"
    assert thief.says(hello())
    assert thief.says(said) == b""


def test_the_coordinators_own_proof_is_no_members(clock: Clock, coordinator: Agent) -> None:
    thief = Stranger(clock, coordinator)
    _, proof = decode(thief.says(hello()) or b"", "nonce", "proof")
    assert thief.says(encode(proof=proof)) == b""


def test_a_proof_is_for_one_name(clock: Clock, coordinator: Agent) -> None:
    thief = Stranger(clock, coordinator)
    assert thief.says(answer(thief.says(hello("m")), sender="m")) == b"+"
    other = Stranger(clock, coordinator)
    challenge = other.says(hello("n"))
    nonce, _ = decode(challenge or b"", "nonce", "proof")
    assert other.says(encode(proof=Exchange("m", "c", "1", nonce).proof(KEY, MEMBER))) == b""


def test_without_a_key_nobody_can_prove_anything() -> None:
    exchange = Exchange("m", "c", "1", "2")
    assert not proves(exchange, "", MEMBER, exchange.proof("", MEMBER))


def test_a_member_does_not_take_somebody_without_the_key_for_its_coordinator(clock: Clock) -> None:
    listening: dict[int, Agent] = {}
    impostor, member = Agent(clock, listening, "c", key="guessed"), Agent(clock, listening, "m")
    member.liveness.follow(replace(impostor.record, key=KEY))
    clock.run(1)
    assert member.found == []
    assert len(member.lost) == 1
    assert member.liveness.unreachable is not None
    assert member.liveness.unreachable.why == "it can't prove that it is the coordinator"


@pytest.mark.parametrize("line", [b"+", b"+\n", b"x" * 5000, b'{"nonce": 1, "proof": 2}\n', b"[]\n", b"\xff\n"])
def test_a_member_does_not_take_noise_for_an_answer(clock: Clock, line: bytes) -> None:
    ours, theirs = clock.pair()
    member = Agent(clock, {}, "m", connect=lambda *_: ours)
    coordinator = Agent(clock, {}, "c")
    member.liveness.follow(coordinator.record)
    clock.run(0.5)
    theirs.send(line)
    clock.run(2.5)
    assert len(member.lost) == 1
    assert theirs.recv(4096).startswith(b'{"from": "m", "to": "c"')


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 1024,
        b"\n",
        b"[]\n",
        b'{"from": 1, "to": "c", "nonce": "1"}\n',
        b'{"from": "", "to": "c", "nonce": "1"}\n',
        b'{"from": "m", "to": "c"}\n',
        hello(target="another"),
        b"[" * 900 + b"\n",
        b'{"from": "\xff", "to": "c", "nonce": "1"}\n',
    ],
)
def test_noise_is_sent_away(clock: Clock, coordinator: Agent, data: bytes) -> None:
    assert Stranger(clock, coordinator).says(data) == b""
    assert coordinator.liveness._server.admission.waiting == 0


def test_a_name_that_cannot_be_printed_does_no_harm(
    clock: Clock, coordinator: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Stranger(clock, coordinator)
    assert stranger.says(hello("\ud800\n" + "x" * 500))
    assert stranger.says(encode(proof="\ud800")) == b""
    assert json.loads(json.dumps(caplog.text)) == caplog.text


def test_each_line_has_two_seconds(clock: Clock, coordinator: Agent) -> None:
    silent, halfway, whole = (Stranger(clock, coordinator) for _ in range(3))
    clock.run(1.5)
    assert halfway.says(hello())
    challenge = whole.says(hello())
    clock.run(0.6)
    assert silent.gets() == b""
    assert whole.says(answer(challenge)) == b"+"
    assert halfway.gets() is None
    clock.run(1.5)
    assert halfway.gets() == b""
    assert coordinator.liveness.connected == {"m"}


def test_of_a_crowd_the_oldest_that_has_said_nothing_makes_room(
    clock: Clock, coordinator: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator.liveness._server.admission, "_limits", Limits.of(8, descriptors=1024))
    halfway = Stranger(clock, coordinator)
    challenge = halfway.says(hello("half"))
    crowd = [Stranger(clock, coordinator) for _ in range(600)]
    assert coordinator.liveness._server.admission.waiting == 256
    member = Stranger(clock, coordinator)
    assert member.says(answer(member.says(hello()))) == b"+"
    assert halfway.says(answer(challenge, sender="half")) == b"+"
    assert coordinator.liveness.connected == {"half", "m"}
    assert crowd[0].gets() == b""
    assert crowd[-1].gets() is None
    clock.run(2.1)
    assert coordinator.liveness._server.admission.waiting == 0


@pytest.mark.parametrize(
    ("expected", "descriptors", "limits"),
    [
        (0, 1 << 20, Limits(1024, (1 << 20) - 256)),
        (4000, 1 << 20, Limits(4000, (1 << 20) - 256)),
        (4000, 1024, Limits(256, 768)),
        (8, 296, Limits(74, 148)),
        (8, 1, Limits(1, 1)),
    ],
)
def test_limits_follow_the_members_expected_and_the_process(expected: int, descriptors: int, limits: Limits) -> None:
    assert Limits.of(expected, descriptors) == limits


def test_members_are_no_more_than_the_process_can_have(
    clock: Clock, coordinator: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = coordinator.liveness._server.admission
    monkeypatch.setattr(door, "_limits", Limits(unproven=2, total=3))
    members = [Stranger(clock, coordinator) for _ in range(3)]
    assert members[0].gets() == b"", "two at the door, and no more"
    for number, member in enumerate(members[1:]):
        assert member.says(answer(member.says(hello(f"m{number}")), sender=f"m{number}")) == b"+"
    waiting = [Stranger(clock, coordinator) for _ in range(2)]
    assert waiting[0].gets() == b"", "two inside leave one place at the door"
    last = waiting[1]
    assert last.says(answer(last.says(hello("m2")), sender="m2")) == b"+"
    assert Stranger(clock, coordinator).gets() == b""
    assert coordinator.liveness.connected == {"m0", "m1", "m2"}


class Exhausted(socket.socket):
    """A listener whose process, or machine, has no descriptor left."""

    accepts = 0
    code = errno.EMFILE

    def accept(self) -> tuple[socket.socket, object]:
        self.accepts += 1
        raise OSError(self.code, "Too many open files")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_without_descriptors_it_pauses_and_does_not_spin(clock: Clock, code: int) -> None:
    reader, writer = clock.pair()
    listener = Exhausted(fileno=reader.detach())
    listener.code = code
    writer.send(b"x")  # From now on it is always readable, as with a full queue.
    loop = clock.loop()
    admission.Admission(loop, listener, "c", KEY, lambda *_: None, lambda: 0)
    clock.settle()
    assert listener.accepts == 1
    clock.run(0.4)
    assert listener.accepts == 1
    clock.run(1.6)
    assert listener.accepts <= 5


@settings(
    max_examples=10_000 if os.environ.get("RDZV_FAULTS") == "long" else 100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        changed({"from": "m", "to": "c", "nonce": "1", "proof": "2"}).map(json.dumps).map(str.encode) | GARBAGE,
        max_size=3,
    )
)
@example([hello(), encode(proof="\ud800")])
@example([hello(sender="\ud800"), encode(proof="0")])
def test_whatever_is_said_at_the_door_lets_nobody_in(clock: Clock, coordinator: Agent, lines: list[bytes]) -> None:
    stranger = Stranger(clock, coordinator)
    said = [reply for line in lines if (reply := stranger.says(line[: 1 << 16].replace(b"\n", b" ") + b"\n"))]
    assert len(said) <= 1, "a challenge, and no more"
    assert b"+" not in said
    assert not coordinator.liveness._server.verdict.connected
    clock.run(admission.LINE_SECONDS + 0.1, step=1)
    assert coordinator.liveness._server.admission.waiting == 0
