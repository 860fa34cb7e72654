"""Two coordinators that can't reach each other, and agents that can't be reached: the coordinator's decisions one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.protocol.test_coordinator import MINE, Bench, member, running

from rdzv.protocol.records import FORMING, Coordinator, Endpoint, LeftOut, Member, Round

WORLD = [member(number) for number in range(4)]
RIVAL = Coordinator(3, "uid-3/0", "10.0.0.3", 7003, 2)
REST = {"uid-1/0", "uid-2/0"}


def coordinating(connected: set[str], members: list[Member] = WORLD) -> Bench:
    """A bench whose agent has coordinated this world for a while, with these connected to it."""
    bench = Bench(members, running(members))
    bench.connected = connected
    bench.at(0.0)
    return bench


def claimed(bench: Bench, rival: Coordinator = RIVAL) -> Round:
    assert bench.round is not None
    bench.round = replace(bench.round, coordinator=rival)
    return bench.round


def test_who_is_connected_to_others_takes_the_round_back() -> None:
    bench = coordinating(REST)
    before = claimed(bench)
    assert bench.at(1.0).write == replace(before, coordinator=replace(MINE, term=3))


def test_who_is_alone_against_several_steps_down() -> None:
    bench = coordinating(set())
    claimed(bench)
    assert bench.at(1.0).step_down


def test_those_who_are_taken_for_dead_may_be_the_rivals() -> None:
    bench = coordinating(set())
    bench.dead = {"uid-1/0", "uid-2/0", "uid-3/0"}
    claimed(bench)
    assert bench.at(1.0).step_down


def test_of_two_the_coordinator_stays() -> None:
    bench = coordinating(set(), [member(0), member(3)])
    claimed(bench)
    assert not bench.at(1.0).step_down


def test_who_is_too_few_yields_to_the_larger_part() -> None:
    members = [member(number) for number in range(5)]
    bench = Bench(members, running(members))
    bench.state = replace(bench.state, policy=replace(bench.state.policy, min_nodes=3))
    bench.connected = {"uid-1/0"}
    bench.at(0.0)
    claimed(bench)
    assert bench.at(1.0).step_down


def test_a_rival_that_has_acted_is_not_answered() -> None:
    bench = coordinating(REST)
    bench.round = replace(claimed(bench), want=2, want_reason="gone: slot 0")
    assert bench.at(1.0).step_down


def test_a_rival_that_claims_again_at_once_is_not_answered() -> None:
    bench = coordinating(REST)
    claimed(bench)
    bench.round = bench.at(1.0).write
    bench.at(1.1)
    claimed(bench, replace(RIVAL, term=4))
    assert bench.at(3.0).step_down


def test_a_claim_changes_nothing_else_and_a_claimant_acts_once_it_was_found() -> None:
    gone = Coordinator(1, "uid-1/0", "10.0.0.1", 7001, 4)
    record = running(WORLD, coordinator=gone)
    bench = Bench(WORLD, record)
    bench.connected = set()
    bench.state = replace(bench.state, lost=gone)
    claim = bench.at(0.0).write
    assert claim == replace(record, coordinator=replace(MINE, term=5))
    bench.round = claim
    assert bench.at(5.0).write is None, "perhaps it is cut off from all"
    bench.connected = {"uid-2/0"}
    write = bench.at(5.1).write
    assert write is not None
    assert write.want_reason == "gone: slot 1"


def test_a_claimant_yields_to_whom_it_replaced_by_mistake() -> None:
    gone = Coordinator(1, "uid-1/0", "10.0.0.1", 7001, 4)
    bench = Bench(WORLD, running(WORLD, coordinator=gone))
    bench.connected = set(REST)
    bench.state = replace(bench.state, lost=gone)
    bench.round = bench.at(0.0).write
    bench.at(0.1)
    claimed(bench, replace(gone, term=6))
    assert bench.at(0.2).step_down


def test_a_coordinator_that_lost_all_of_several_gives_them_time_to_take_over() -> None:
    bench = coordinating({"uid-1/0", "uid-2/0", "uid-3/0"})
    bench.connected, bench.dead = set(), {"uid-1/0", "uid-2/0", "uid-3/0"}
    assert bench.at(1.0).look_again == 6.0
    assert bench.at(5.9).write is None
    write = bench.at(6.0).write
    assert write is not None
    assert write.want == 2


def test_who_comes_late_is_counted_once_it_is_connected() -> None:
    bench = coordinating({"uid-1/0", "uid-2/0"}, WORLD[:3])
    bench.put(member(3, want=2))
    assert bench.at(1.0).write is None
    bench.connected = {"uid-1/0", "uid-2/0", "uid-3/0"}
    write = bench.at(2.0).write
    assert write is not None
    assert write.want_reason == "1 more joined"


@pytest.mark.parametrize(
    ("reached", "reason"),
    [
        (None, "pod-3 can't be reached by pod-0 at 10.0.0.3:1203"),
        (False, "pod-3 can't be reached by pod-0 at 10.0.0.3:1203"),
        (True, "pod-0 can't be reached by pod-3 at 10.0.0.0:7000"),
    ],
)
def test_who_is_not_connected_for_long_is_named(reached: bool | None, reason: str) -> None:
    bench = coordinating({"uid-1/0", "uid-2/0"}, WORLD[:3])
    bench.put(member(3, want=2))
    first = bench.at(1.0)
    assert (first.look_again, first.probe) == (6.0, {})
    tried = bench.at(6.0)
    assert (tried.look_again, tried.write) == (10.0, None)
    assert tried.probe == {"uid-3/0": Endpoint("10.0.0.3", 1203)}, "which way is cut is found out before"
    if reached is not None:
        bench.probes = {"uid-3/0": reached}
    decision = bench.at(10.0)
    assert decision.write is not None
    assert decision.write.left_out == (LeftOut("pod-3", reason),)
    assert decision.write.want == 1, "the others are not disturbed"
    assert decision.probe == {"uid-3/0": Endpoint("10.0.0.3", 1203)}
    bench.round = decision.write
    assert bench.at(100.0).write is None


def test_nobody_is_named_while_the_first_round_forms() -> None:
    bench = Bench([member(0), member(1)], Round("job", "run", want=1, phase=FORMING, coordinator=MINE))
    bench.connected = set()
    assert bench.at(0.0).probe == {}
    later = bench.at(20.0)
    assert later.probe == {}
    assert "can't be reached" not in later.waiting_for


def rejoining(bench: Bench, *blaming: int, leader: int = 1) -> None:
    """All of world 2 .. ask again, these because they could not connect to the store of its leader."""
    assert bench.round is not None
    assert bench.round.leader is not None
    store = Endpoint(bench.round.leader.address, bench.round.leader.port)
    number = bench.round.round + 1
    for slot in range(leader, 5):
        bench.put(member(slot, want=number, unreachable=store if slot in blaming else None))


def led_by_another() -> Bench:
    """World 1 .. 4, which slot 0 coordinates as a spare."""
    bench = Bench([member(0)], running([member(number) for number in range(1, 5)]))
    bench.members.clear()
    rejoining(bench)
    return bench


def decided(bench: Bench, now: float) -> Round:
    """The round that is formed in the end."""
    for _ in range(6):
        decision = bench.at(now)
        if decision.write is not None and decision.write.round > (bench.round.round if bench.round else 0):
            bench.round = decision.write
            return decision.write
        if decision.write is not None:
            bench.round = decision.write
        now += 0.4
    raise AssertionError(decision)


def test_a_leader_whom_most_cannot_reach_is_left_out_at_once_if_the_coordinator_cannot_either() -> None:
    bench = led_by_another()
    rejoining(bench, 2, 3, 4)
    bench.probes = {"uid-1/0": False}
    assert decided(bench, 1.0).slots == (2, 3, 4)


def test_a_leader_whom_the_coordinator_reaches_is_left_out_the_second_time() -> None:
    bench = led_by_another()
    rejoining(bench, 2, 3, 4)
    bench.probes = {"uid-1/0": True}
    assert decided(bench, 1.0).slots == (1, 2, 3, 4)
    rejoining(bench, 2, 3)
    assert decided(bench, 20.0).slots == (2, 3, 4)


def test_the_few_who_cannot_reach_the_leader_are_left_out_the_second_time() -> None:
    bench = led_by_another()
    rejoining(bench, 4)
    assert decided(bench, 1.0).slots == (1, 2, 3, 4)
    rejoining(bench, 4)
    third = decided(bench, 20.0)
    assert third.slots == (1, 2, 3)
    assert third.left_out == (LeftOut("pod-4", "pod-1 can't be reached by pod-4 at 10.0.0.1:1201"),)
    bench.put(member(4, want=4, unreachable=Endpoint("10.0.0.1", 1201)))
    assert bench.at(100.0).write is None
    bench.at(150.0)
    write = bench.at(180.0).write
    assert write is not None
    assert write.want_reason == "1 more joined", "after two minutes it is tried again"


def test_who_cannot_reach_the_store_of_the_coordinator_is_left_out_the_second_time_too() -> None:
    """Its connection to the coordinator may be from before a firewall, or to a port that one lets through."""
    bench = Bench([], running([member(number) for number in range(4)]))
    rejoining(bench, 3, leader=0)
    assert decided(bench, 1.0).slots == (0, 1, 2, 3), "the store may have been late"
    rejoining(bench, 3, leader=0)
    third = decided(bench, 20.0)
    assert third.slots == (0, 1, 2, 4), "a spare has its place"
    assert third.left_out == (LeftOut("pod-3", "pod-0 can't be reached by pod-3 at 10.0.0.0:1200"),)


def test_one_that_reaches_the_store_of_the_others_by_now_is_let_in_soon() -> None:
    bench = led_by_another()
    rejoining(bench, 4)
    decided(bench, 1.0)
    rejoining(bench, 4)
    assert decided(bench, 20.0).slots == (1, 2, 3)
    bench.put(member(4, want=4))
    waits = bench.at(25.0)
    assert (waits.write, waits.look_again) == (None, 30.0)
    write = bench.at(30.5).write
    assert write is not None
    assert write.want_reason == "1 more joined"


def test_one_that_was_in_a_world_since_then_may_fail_once_again() -> None:
    bench = led_by_another()
    rejoining(bench, 4)
    assert decided(bench, 1.0).slots == (1, 2, 3, 4)
    rejoining(bench)
    assert decided(bench, 20.0).slots == (1, 2, 3, 4)
    rejoining(bench, 4)
    assert decided(bench, 40.0).slots == (1, 2, 3, 4), "the next time is a first one"
    rejoining(bench, 4)
    assert decided(bench, 60.0).slots == (1, 2, 3)


def test_a_leader_is_let_in_when_the_coordinator_can_connect_to_its_store() -> None:
    bench = led_by_another()
    rejoining(bench, 2, 3, 4)
    bench.probes = {"uid-1/0": False}
    decided(bench, 1.0)
    bench.put(member(1, want=3))
    assert bench.at(10.0).write is None
    bench.probes = {"uid-1/0": True}
    write = bench.at(11.0).write
    assert write is not None
    assert (write.left_out, write.want_reason) == ((), "1 more joined")
