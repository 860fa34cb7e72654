"""Who is dead, suspected or unreachable, as time passes: both sides on loops that are turned by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.clocked_loop import KEY, Agent, Clock, clocked

from rdzv.agent import liveness_client, liveness_server
from rdzv.agent.liveness import listen, silence_of
from rdzv.agent.liveness_server import SILENCE_SECONDS, LivenessServer, Peer, judge
from rdzv.env import SILENCE
from rdzv.protocol.records import Coordinator, Endpoint


@pytest.fixture
def clock() -> Iterator[Clock]:
    with clocked() as found:
        yield found


@pytest.fixture
def pair(clock: Clock) -> tuple[Agent, Agent]:
    """A coordinator, and a member that is connected to it."""
    listening: dict[int, Agent] = {}
    coordinator, member = Agent(clock, listening, "c"), Agent(clock, listening, "m")
    coordinator.liveness.expect(["m"])
    member.liveness.follow(coordinator.record)
    clock.run(0.5)
    assert coordinator.liveness.connected == {"m"}
    return coordinator, member


def verdict(coordinator: Agent) -> tuple[list[str], list[str]]:
    """Who is dead, and who is suspected."""
    return sorted(coordinator.liveness.dead), sorted(coordinator.liveness.suspected)


DEAD, SUSPECTED, DOUBTED = range(3)


@pytest.mark.parametrize(
    ("peer", "verdicts"),
    [
        (Peer(since=0, heard=98, connected=True), set()),
        (Peer(since=0, heard=97.5, connected=True), {DOUBTED}),
        (Peer(since=0, heard=95, connected=True), {SUSPECTED, DOUBTED}),
        (Peer(since=0, heard=90, connected=True), {DEAD, DOUBTED}),
        (Peer(since=0, heard=100, connected=True, asked=True), {DOUBTED}),
        (Peer(since=0, heard=98, gone=100), {DOUBTED}),
        (Peer(since=0, heard=98, gone=99), {DEAD, DOUBTED}),
        (Peer(since=98, heard=98), set()),
        (Peer(since=97, heard=97), {DOUBTED}),
        (Peer(since=85, heard=85), {DEAD, DOUBTED}),
    ],
    ids=[
        "heard",
        "silent 2.5 s",
        "silent 5 s",
        "silent 10 s",
        "asked",
        "broke",
        "broke 1 s ago",
        "never came",
        "never came for 3 s",
        "never came for 15 s",
    ],
)
def test_judging(peer: Peer, verdicts: set[int]) -> None:
    found = judge({"m": peer}, 100, most=10)
    assert {number for number, who in enumerate(found) if who} == verdicts


def test_who_is_asked_for_a_sign_of_life_gives_it_at_once_and_is_asked_once(
    pair: tuple[Agent, Agent], clock: Clock
) -> None:
    coordinator, member = pair
    clock.loops.remove(member.loop)
    coordinator.liveness.ask(frozenset({"m", "a stranger"}))
    clock.settle()
    assert coordinator.liveness.doubted == {"m"}
    coordinator.liveness.ask(frozenset({"m", "a stranger"}))
    clock.loops.append(member.loop)
    clock.settle()
    assert coordinator.liveness.doubted == frozenset()
    clock.run(60)
    assert coordinator.liveness.doubted == frozenset()
    assert (member.liveness.announced, len(member.dialled)) == (0, 1)
    clock.loops.remove(member.loop)
    clock.run(3.5)
    assert coordinator.liveness.doubted == {"m"}, "it is silent, whether it is asked again or not"


def test_who_was_asked_and_connects_again_has_answered(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    clock.loops.remove(member.loop)
    coordinator.liveness.ask(frozenset({"m"}))
    coordinator.loop.call(lambda: coordinator.loop.forget(coordinator.liveness._server._connected["m"]))
    clock.settle()
    clock.loops.append(member.loop)
    clock.run(0.5)
    assert coordinator.liveness.connected == {"m"}
    assert coordinator.liveness.doubted == frozenset()


def test_a_broken_connection_is_a_doubt_until_it_is_made_again(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    member.end()
    clock.settle()
    assert coordinator.liveness.doubted == {"m"}
    assert coordinator.liveness.dead == frozenset()


def test_a_question_and_news_in_one_word_are_both_understood(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    (sock,) = coordinator.liveness._server._connected.values()
    coordinator.liveness._server._expected["m"].asked = True
    for part in (b"!12", b"?34;?"):
        sock.send(part)
        clock.settle()
    assert member.liveness.announced == 1234
    coordinator.liveness._server.judge()
    assert coordinator.liveness.doubted == frozenset()


def test_two_that_talk_are_never_suspected(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    clock.run(60)
    assert verdict(coordinator) == ([], [])
    assert (member.lost, member.liveness.unreachable, len(member.dialled)) == ([], None, 1)


def test_a_member_that_falls_silent_is_suspected_then_dead_and_is_back_with_its_next_word(
    pair: tuple[Agent, Agent], clock: Clock
) -> None:
    coordinator, member = pair
    clock.loops.remove(member.loop)  # Its machine is gone: nothing is said, nothing closed.
    clock.run(SILENCE_SECONDS / 2 + 1)
    assert verdict(coordinator) == ([], ["m"])
    clock.run(SILENCE_SECONDS / 2 + 1)
    assert verdict(coordinator) == (["m"], [])
    clock.loops.append(member.loop)
    clock.run(2)
    assert verdict(coordinator) == ([], [])


def test_the_replaced_coordinator_keeps_its_members_until_they_connect_to_the_next_one(
    pair: tuple[Agent, Agent], clock: Clock
) -> None:
    coordinator, member = pair
    other = Agent(clock, coordinator.listening, "o")
    member.liveness.follow(other.record)
    clock.run(0.05)
    assert coordinator.liveness.connected == {"m"}
    clock.run(0.5)
    assert not coordinator.liveness.connected
    assert other.liveness.connected == {"m"}


def test_a_coordinator_that_is_back_in_a_later_term_has_its_members_still(
    pair: tuple[Agent, Agent], clock: Clock
) -> None:
    coordinator, member = pair
    other, again = Agent(clock, coordinator.listening, "o"), replace(coordinator.record, term=3)
    member.liveness.follow(other.record)
    clock.run(0.05)
    member.liveness.follow(again)
    clock.run(1)
    assert coordinator.liveness.connected == {"m"}
    assert (member.found[-1], member.lost, len(member.dialled)) == (again, [], 1)


def test_a_coordinator_that_is_lost_is_so_in_its_later_term(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    again = replace(coordinator.record, term=3)
    coordinator.end()
    clock.run(1)
    member.liveness.follow(again)
    clock.settle()
    assert member.lost == [replace(again, term=1), again]


def test_who_is_expected_anew_has_been_silent_for_as_long_as_before(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    clock.loops.remove(member.loop)
    clock.run(SILENCE_SECONDS - 1)
    coordinator.liveness.expect([])
    clock.settle()
    coordinator.liveness.expect(["m"])
    clock.run(2)
    assert verdict(coordinator) == (["m"], [])


def test_stores_are_tried_until_they_can_be_connected_to(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    nowhere = 1
    coordinator.liveness.probe({"m": Endpoint("10.0.0.1", nowhere)})
    clock.run(1)
    assert coordinator.liveness.probes == {"m": False}
    coordinator.listening[nowhere] = member
    clock.run(3)
    assert coordinator.liveness.probes == {"m": True}
    coordinator.liveness.probe({})
    clock.settle()
    assert coordinator.liveness.probes == {}


def test_a_member_that_ends_is_dead_a_second_later(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    member.end()
    clock.run(0.9)
    assert coordinator.liveness.dead == frozenset()
    clock.run(0.3)
    assert coordinator.liveness.dead == {"m"}
    coordinator.liveness.expect([])
    clock.settle()
    assert coordinator.liveness.dead == frozenset()


def test_a_connection_that_breaks_is_made_again_at_once_and_nobody_is_told(
    pair: tuple[Agent, Agent], clock: Clock
) -> None:
    coordinator, member = pair
    coordinator.loop.forget(coordinator.liveness._server._connected["m"])
    clock.run(3)
    assert coordinator.liveness.connected == {"m"}
    assert (coordinator.liveness.dead, member.lost, len(member.dialled)) == (frozenset(), [], 2)


def test_a_coordinator_that_ends_is_lost_once_tried_each_second_and_found_when_it_is_back(
    pair: tuple[Agent, Agent], clock: Clock
) -> None:
    coordinator, member = pair
    at, target = clock.now, coordinator.record
    assert member.liveness.linked
    coordinator.end()
    clock.run(3.5)
    assert member.lost == [target]
    assert not member.liveness.linked
    gone = member.liveness.unreachable
    assert gone is not None
    assert (gone.target, gone.why, gone.since) == (target, "Connection refused", at)
    assert str(gone) == f"10.0.0.1 port {target.port}: Connection refused"
    assert len(member.dialled) == 5
    back = Agent(clock, coordinator.listening, "c")
    coordinator.listening[target.port] = back
    clock.run(2)
    assert (member.lost, member.found, member.liveness.unreachable) == ([target], [target, target], None)


def test_a_coordinator_that_falls_silent_is_lost(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    clock.loops.remove(coordinator.loop)
    clock.run(SILENCE_SECONDS - 1)
    assert member.lost == []
    clock.run(5)
    assert member.lost == [coordinator.record]
    assert member.liveness.unreachable is not None
    assert member.liveness.unreachable.why == "no answer"


def test_a_process_that_was_stopped_blames_nobody(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    clock.run(3)
    clock.now += 300
    clock.run(3)
    assert verdict(coordinator) == ([], [])
    assert (member.lost, len(member.dialled)) == ([], 1)


def test_being_asked_often_whom_to_expect_does_not_keep_it_from_noticing_silence(
    pair: tuple[Agent, Agent], clock: Clock
) -> None:
    coordinator, member = pair
    clock.loops.remove(member.loop)
    for _ in range(60):
        coordinator.liveness.expect(["m"])
        clock.run(0.25, step=0.25)
    assert coordinator.liveness.dead == {"m"}
    clock.loops.append(member.loop)


def test_who_follows_another_leaves_the_one_before(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    other = Agent(clock, coordinator.listening, "d")
    member.liveness.follow(other.record)
    clock.run(1)
    assert other.liveness.connected == {"m"}
    assert coordinator.liveness.connected == frozenset()
    member.liveness.follow(None)
    clock.run(1)
    assert other.liveness.connected == frozenset()
    assert member.lost == []


def test_who_does_not_serve_sends_its_members_away_until_it_does_again(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    coordinator.liveness.serve(False)
    clock.run(3)
    assert (coordinator.liveness.connected, verdict(coordinator)) == (frozenset(), ([], []))
    assert member.lost == [coordinator.record]
    coordinator.liveness.serve(True)
    clock.run(1.5)
    assert coordinator.liveness.connected == {"m"}
    assert member.found == [coordinator.record, coordinator.record]


def test_a_round_with_the_same_coordinator_and_nobody_to_tell_does_not_wake_the_loop(
    pair: tuple[Agent, Agent], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As most are: each agent sees each of them, and wakes of a thread are most of what that costs."""
    coordinator, member = pair
    asked: list[object] = []
    monkeypatch.setattr(member.loop, "call", asked.append)
    member.liveness.follow(coordinator.record)
    member.liveness.announce(7)
    assert asked == []
    member.liveness.follow(replace(coordinator.record, term=2))
    assert len(asked) == 1
    monkeypatch.setattr(coordinator.loop, "call", asked.append)
    coordinator.liveness.announce(7)
    assert len(asked) == 2


def test_news_of_a_round_reach_members_also_in_pieces(pair: tuple[Agent, Agent], clock: Clock) -> None:
    coordinator, member = pair
    clock.run(30)
    assert member.liveness.announced == 0
    for rv in (7, 12345678901, 8):
        coordinator.liveness.announce(rv)
        clock.run(0.1)
        assert member.liveness.announced == rv
        clock.run(30)
        assert member.liveness.announced == rv
    (sock,) = coordinator.liveness._server._connected.values()
    for byte in b"..!99999999;.":
        sock.send(bytes([byte]))
        clock.settle()
    assert member.liveness.announced == 99999999
    sock.send(b"!" + b"9" * 4000 + b";")
    clock.settle()
    assert member.liveness.announced == 99999999
    member.liveness.follow(None)
    clock.settle()
    assert member.liveness.announced == 0


@pytest.mark.parametrize("address", ["localhost", "trainer-0.svc", "", "10.0.0.1.", "1"])
def test_an_address_that_is_a_name_is_refused_without_being_looked_up(
    clock: Clock, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_up(*_: object) -> None:
        raise AssertionError("it was looked up")

    monkeypatch.setattr("socket.getaddrinfo", looked_up)
    member = Agent(clock, {}, "m", connect=liveness_client.dial)
    target = Coordinator(0, "c", address, 1, 1, "key")
    member.liveness.follow(target)
    clock.run(1)
    assert member.lost == [target]
    assert member.liveness.unreachable is not None
    assert member.liveness.unreachable.why == "not an IP address"


def test_who_does_not_answer_for_the_one_that_was_asked_for_is_not_taken_for_it(
    pair: tuple[Agent, Agent], clock: Clock
) -> None:
    coordinator, member = pair
    gone = replace(coordinator.record, incarnation="the one before")
    member.liveness.follow(gone)
    clock.run(1)
    assert member.lost == [gone]


@pytest.mark.parametrize(
    ("environ", "seconds"), [({}, SILENCE_SECONDS), ({SILENCE: "7"}, 7.0), ({SILENCE: ""}, SILENCE_SECONDS)]
)
def test_the_environment_says_how_long_a_silence_is_a_death(environ: dict[str, str], seconds: float) -> None:
    assert silence_of(environ) == seconds


@pytest.mark.parametrize("text", ["2", "121", "4.5", "-4", "4s", "٤", "4" * 5000])
def test_a_limit_on_silence_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"^RDZV_SILENCE_TIMEOUT=.{1,80}: write seconds as a whole number, 3 to 120$"):
        silence_of({SILENCE: text})


def test_both_sides_wait_for_as_long_as_they_are_told(pair: tuple[Agent, Agent], clock: Clock) -> None:
    listening = pair[0].listening
    coordinator, member = Agent(clock, listening, "c2", silence=20.0), Agent(clock, listening, "m2", silence=20.0)
    member.liveness.follow(coordinator.record)
    coordinator.liveness.expect(["m2"])
    clock.run(1)
    clock.loops.remove(member.loop)
    clock.run(18)
    assert verdict(coordinator) == ([], ["m2"])
    clock.run(3)
    assert verdict(coordinator) == (["m2"], [])
    clock.loops.append(member.loop)
    clock.run(3)
    clock.loops.remove(coordinator.loop)
    clock.run(18)
    assert member.lost == []
    clock.run(5)
    assert member.lost == [coordinator.record]


def test_many_that_connect_or_end_at_one_time_are_judged_together(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each judgement goes through all of them: one for each would be quadratic."""
    judged: list[int] = []

    def counting(peers: dict[str, Peer], *rest: float) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        judged.append(len(peers))
        return judge(peers, *rest)

    monkeypatch.setattr(liveness_server, "judge", counting)
    members = [f"m{number}" for number in range(100)]
    sockets = {member: clock.pair() for member in members}
    server = LivenessServer(clock.loop(), listen("127.0.0.1"), "c", KEY, lambda: None)
    server.expect(frozenset(members))
    for member, (ours, _) in sockets.items():
        server.admit(member, ours)
    clock.settle()
    assert server.verdict.connected == set(members)
    server.ask(frozenset(members))
    clock.settle()
    assert server.verdict.doubted == set(members)
    for _, theirs in sockets.values():
        theirs.close()
    clock.run(1.0)
    assert server.verdict.dead == set(members)
    assert len(judged) < 10
