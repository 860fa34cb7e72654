"""When a round is complete, who is in it, and when it is formed anew: the coordinator's decisions one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rdzv.protocol.coordinator import step
from rdzv.protocol.coordinator_state import CoordinatorState, Decision, Policy, View
from rdzv.protocol.encoding import (
    salted_fingerprints,
)
from rdzv.protocol.events import Identity
from rdzv.protocol.pace import Pace
from rdzv.protocol.records import (
    CLOSED,
    FORMING,
    RUNNING,
    SUCCEEDED,
    SUCCESS,
    Closure,
    Coordinator,
    Leader,
    Member,
    Round,
)
from rdzv.protocol.roster import Absent, Roster

ME = Identity("job", "run", "pod-0", "uid-0/0", "10.0.0.0", 7000, slot=0, key="mine")
MINE = Coordinator(0, "uid-0/0", "10.0.0.0", 7000, 1, "mine")
AT_ONCE = Pace(replacement_wait=0.0, min_round=0.0)
POLICY = Policy(min_nodes=2, max_nodes=4, pace=AT_ONCE)


def member(number: int, want: int = 1, **changes: Any) -> Member:
    record = Member(
        name=f"pod-{number}",
        rendezvous="job",
        run_id="run",
        incarnation=f"uid-{number}/0",
        address=f"10.0.0.{number}",
        port=1000 + 100 * want + number,
        want_round=want,
        seen_round=max(0, want - 1),
        slot=number,
    )
    return replace(record, **changes)


def running(members: Sequence[Member], number: int = 1, **changes: Any) -> Round:
    ordered = sorted(members, key=lambda m: m.slot or 0)
    salt, fingerprints = salted_fingerprints([m.incarnation for m in ordered])
    slots = tuple(m.slot or 0 for m in ordered)
    record = Round(
        "job",
        "run",
        round=number,
        phase=RUNNING,
        slots=slots,
        fingerprints=fingerprints,
        salt=salt,
        leader=Leader(slots[0], ordered[0].address, ordered[0].port),
        coordinator=MINE,
        want=number,
    )
    return replace(record, **changes)


def roster(*expected: int, low: int = 2, high: int = 4, **changes: Any) -> Roster:
    found = Roster(
        "run", low, high, known=True, expected=frozenset(expected), expected_count=len(expected), pace=AT_ONCE
    )
    return replace(found, **changes)


class Bench:
    """A coordinator on a table: change the view, look what it decides at a time."""

    def __init__(self, members: Sequence[Member], round_: Round | None, who: Roster | None = None) -> None:
        self.state = CoordinatorState(ME, POLICY)
        self.members: dict[str, tuple[Member, int]] = {}
        self.rv = 100
        self.round, self.round_rv = round_, 50 if round_ else None
        self.roster = who
        self.dead: set[str] = set()
        self.suspected: set[str] = set()
        self.doubted: set[str] = set()
        self.connected: set[str] | None = None
        """None: all of them."""
        self.highest_seen = 0
        self.met = False
        self.probes: dict[str, bool] = {}
        self.put(*members)

    def put(self, *members: Member) -> None:
        for record in members:
            self.rv += 1
            self.members[record.name] = (record, self.rv)

    def at(self, now: float) -> Decision:
        view = View(
            self.members,
            self.rv,
            self.roster,
            self.round,
            self.round_rv,
            frozenset(self.dead),
            frozenset(self.suspected),
            frozenset((m.incarnation for m, _ in self.members.values()) if self.connected is None else self.connected),
            self.highest_seen,
            self.met,
            self.probes,
            frozenset(self.doubted),
        )
        self.state, decision = step(self.state, view, now)
        return decision

    def wrote(self, now: float) -> Round:
        """The Round that is written at this time, taken over as the present one."""
        decision = self.at(now)
        assert decision.write is not None, decision
        assert decision.rv == self.round_rv
        self.round, self.round_rv = decision.write, (self.round_rv or 0) + 1
        return decision.write

    def silent_until(self, now: float) -> float:
        """Nothing is written; when it looks again."""
        decision = self.at(now)
        assert decision.write is None, decision
        assert decision.look_again is not None
        return decision.look_again


EMPTY = Round("job", "run", coordinator=MINE)


def test_a_full_world_forms_at_once() -> None:
    bench = Bench([member(i) for i in range(4)], EMPTY)
    record = bench.wrote(0.0)
    assert (record.phase, record.round, record.slots, record.want) == (RUNNING, 1, (0, 1, 2, 3), 1)
    assert record.leader == Leader(0, "10.0.0.0", 1100)
    assert record.members_rv == bench.rv
    assert [record.rank_of(f"uid-{i}/0") for i in range(4)] == [0, 1, 2, 3]


def test_one_below_the_minimum_waits_for_ever() -> None:
    bench = Bench([member(0)], EMPTY)
    assert bench.at(0.0).write is None
    assert bench.at(1e6).write is None


def test_without_operator_the_last_call_is_thirty_seconds_from_the_minimum() -> None:
    bench = Bench([member(0)], EMPTY)
    bench.at(0.0)
    bench.put(member(1))
    assert bench.silent_until(5.0) == 35.0
    bench.put(member(2))
    assert bench.silent_until(20.0) == 35.0
    assert bench.wrote(35.0).slots == (0, 1, 2)


def test_last_call_begins_again_when_the_minimum_was_lost() -> None:
    bench = Bench([member(0), member(1)], EMPTY)
    bench.silent_until(0.0)
    bench.dead.add("uid-1/0")
    assert bench.at(10.0).write is None
    bench.put(member(2))
    assert bench.silent_until(20.0) == 50.0


def test_all_expected_are_enough_below_the_maximum() -> None:
    bench = Bench([member(0), member(1)], EMPTY, roster(0, 1, 2))
    assert bench.silent_until(0.0) == 30.0
    bench.put(member(2))
    assert bench.wrote(1.0).slots == (0, 1, 2)


def test_fewer_expected_than_the_minimum_do_not_form() -> None:
    bench = Bench([member(0)], EMPTY, roster(0))
    assert bench.at(0.0).write is None
    assert bench.at(100.0).write is None


def test_hopeless_pods_are_waited_for_two_seconds() -> None:
    stuck = (Absent("pod-2", 2, "Pending: Unschedulable: 0/2 nodes are available"),)
    bench = Bench([member(0), member(1)], EMPTY, roster(0, 1, 2, hopeless=stuck))
    assert bench.silent_until(0.0) == 2.0
    assert "1 of 3 expected pods have not joined: pod-2 is Pending: Unschedulable" in bench.at(1.0).waiting_for
    assert bench.wrote(2.0).slots == (0, 1)


def test_the_short_wait_begins_when_the_last_hope_goes() -> None:
    bench = Bench([member(0), member(1)], EMPTY, roster(0, 1, 2))
    bench.silent_until(0.0)
    bench.roster = roster(0, 1, 2, hopeless=(Absent("pod-2", 2, "ErrImagePull"),))
    assert bench.silent_until(10.0) == 12.0


def test_a_roster_without_heartbeat_is_not_believed() -> None:
    bench = Bench([member(0), member(1)], EMPTY, roster(0, 1, heartbeat=1, heartbeat_seconds=5.0))
    bench.put(member(2, state="leaving"))
    bench.roster = roster(0, 1, 2, heartbeat=1, heartbeat_seconds=5.0)
    assert bench.silent_until(0.0) == 30.0
    bench.roster = roster(0, 1, heartbeat=1, heartbeat_seconds=5.0)
    # Stale since 15.0: it would have said that all are there.
    assert bench.silent_until(16.0) == 30.0


def test_pods_without_a_slot_are_counted() -> None:
    bench = Bench([member(0, slot=None), member(1, slot=None)], EMPTY, roster(expected_count=3))
    assert bench.silent_until(0.0) == 30.0
    bench.put(member(2, slot=None))
    record = bench.wrote(1.0)
    assert record.slots == (0, 1, 2)
    assert sorted(filter(None, (record.rank_of(f"uid-{i}/0") for i in range(3)))) == [1, 2]


def test_a_pod_keeps_the_slot_it_had() -> None:
    first = [member(i, slot=None) for i in range(3)]
    bench = Bench(first, EMPTY, roster(expected_count=3, high=3))
    one = bench.wrote(0.0)
    slot = one.slots[one.rank_of("uid-2/0") or 0]
    bench.dead.add("uid-0/0")
    bench.put(member(1, 2, slot=None), member(2, 2, slot=None), member(9, 2, slot=None))
    bench.at(1.0)
    two = bench.wrote(1.3)
    assert two.slots[two.rank_of("uid-2/0") or 0] == slot
    assert two.size == 3


def test_who_was_not_asked_for_this_round_is_not_counted() -> None:
    bench = Bench([member(0, 3), member(1, 2), member(2, 3)], replace(EMPTY, round=2))
    bench.at(0.0)
    assert bench.wrote(30.0).slots == (0, 2)


def test_members_of_another_run_are_nobody() -> None:
    bench = Bench([member(0), member(1, run_id="old"), member(2, run_id="old")], EMPTY)
    assert bench.at(1e3).write is None


WORLD = [member(i) for i in range(3)]


def reform(bench: Bench, *numbers: int) -> None:
    bench.put(*[member(i, 2) for i in numbers])


@pytest.mark.parametrize("how", ["dead", "leaving", "failed", "deleted", "draining", "restarted"])
def test_a_lost_member_makes_a_new_round(how: str) -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2))
    assert bench.at(0.0) == Decision()
    if how == "dead":
        bench.dead.add("uid-2/0")
    elif how == "deleted":
        del bench.members["pod-2"]
    elif how == "draining":
        bench.roster = roster(0, 1, 2, draining=frozenset({"uid-2"}))
    elif how == "restarted":
        bench.put(member(2, 2, incarnation="uid-2/1"))
    else:
        bench.put(replace(WORLD[2], state=how))
    assert bench.silent_until(10.0) == pytest.approx(10.3)
    record = bench.wrote(10.3)
    assert (record.want, record.round, record.phase) == (2, 1, RUNNING)
    assert record.want_reason == "gone: slot 2"
    bench.put(member(0, 2))
    assert bench.at(10.4).write is None
    # Those who are left go on at once, although a third pod is expected.
    bench.put(member(1, 2))
    last = bench.wrote(10.5)
    assert last.slots == ((0, 1, 2) if how == "restarted" else (0, 1))
    assert last.want == last.round == 2


def test_correlated_failures_are_one_round() -> None:
    world = [member(i) for i in range(4)]
    bench = Bench(world, running(world), roster(0, 1, 2, 3))
    bench.at(0.0)
    bench.dead.add("uid-2/0")
    assert bench.silent_until(1.0) == pytest.approx(1.3)
    bench.dead.add("uid-3/0")
    assert bench.silent_until(1.2) == pytest.approx(1.5)
    assert bench.wrote(1.5).want_reason == "gone: slot 2, 3"


def test_survivors_below_the_minimum_wait_for_replacements() -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2, low=3))
    bench.at(0.0)
    bench.dead |= {"uid-1/0", "uid-2/0"}
    bench.at(1.0)
    bench.wrote(6.0)  # It has lost all the others: perhaps it is cut off, and they take over.
    reform(bench, 0)
    assert bench.at(100.0).write is None
    bench.put(member(1, 2, incarnation="new-1/0"), member(2, 2, incarnation="new-2/0"))
    assert bench.wrote(101.0).slots == (0, 1, 2)


def test_a_worker_failure_asks_everybody_to_join_again() -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2))
    bench.at(0.0)
    bench.put(member(1, 2))
    bench.at(1.0)
    assert bench.wrote(1.3).want_reason == "asked to join again: slot 1"
    reform(bench, 0, 2)
    assert bench.wrote(1.4).slots == (0, 1, 2)


def test_all_join_again_by_themselves_with_one_write() -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2))
    bench.at(0.0)
    reform(bench, 0, 1, 2)
    record = bench.wrote(1.0)
    assert (record.round, record.phase) == (2, RUNNING)


def test_previous_members_come_before_spares() -> None:
    world = [member(i) for i in range(4)]
    bench = Bench(world, running(world), roster(*range(8)))
    bench.put(*[member(i, 2) for i in (4, 5, 6, 7)])
    assert bench.at(0.0).write is None
    bench.dead.add("uid-3/0")
    bench.at(1.0)
    bench.wrote(1.3)
    # Four spares would fill the world; the survivors are on their way.
    assert bench.at(1.4).write is None
    reform(bench, 0, 1)
    assert bench.at(1.5).write is None
    reform(bench, 2)
    assert bench.wrote(1.6).slots == (0, 1, 2, 4)


def test_a_survivor_that_does_not_come_is_left_after_the_last_call() -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2))
    bench.at(0.0)
    bench.put(member(0, 2))
    bench.at(1.0)
    bench.wrote(1.3)
    bench.put(member(1, 2))
    assert bench.silent_until(2.0) == 32.0
    bench.suspected.add("uid-2/0")
    assert bench.silent_until(3.0) == 5.0
    assert bench.wrote(5.0).slots == (0, 1)


def test_late_joiners_are_taken_in_together() -> None:
    world = WORLD[:2]
    bench = Bench(world, running(world), roster(0, 1, 2, 3))
    bench.at(0.0)
    bench.put(member(2, 2))
    assert bench.silent_until(10.0) == 40.0
    bench.put(member(3, 2))
    assert bench.wrote(11.0).want_reason == "2 more joined"


def test_late_joiners_wait_a_window_for_others() -> None:
    world = WORLD[:2]
    bench = Bench(world, running(world))
    bench.put(member(2, 2))
    assert bench.silent_until(0.0) == 30.0
    assert bench.wrote(30.0).want == 2


def test_spares_do_not_disturb_a_full_world() -> None:
    world = [member(i) for i in range(4)]
    bench = Bench(world, running(world), roster(0, 1, 2, 3, 4))
    bench.put(member(4, 2))
    assert bench.at(0.0) == Decision()
    assert bench.at(1e5) == Decision()


def test_bounds_are_read_live() -> None:
    world = [member(i) for i in range(4)]
    bench = Bench(world, running(world), roster(0, 1, 2, 3))
    assert bench.at(0.0) == Decision()
    bench.roster = roster(0, 1, 2, 3, high=3)
    assert bench.wrote(1.0).want_reason == "4 members, at most 3 are wanted"
    reform(bench, 0, 1, 2, 3)
    assert bench.wrote(1.1).slots == (0, 1, 2)
    bench.put(member(3, 3))
    assert bench.at(2.0) == Decision()
    bench.roster = roster(0, 1, 2, 3, high=4)
    assert bench.wrote(3.0).want == 3


def test_closes_only_when_all_have_succeeded() -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2))
    bench.put(*[replace(m, state=SUCCEEDED) for m in WORLD[:2]])
    assert bench.at(0.0) == Decision()
    # The pod of one that is done may be deleted before the others are done.
    del bench.members["pod-0"]
    assert bench.at(1.0) == Decision()
    bench.put(replace(WORLD[2], state=SUCCEEDED))
    record = bench.wrote(2.0)
    assert record.phase == CLOSED
    assert record.closed is not None
    assert (record.closed.reason, record.closed.by) == ("Succeeded", "pod-0")
    assert bench.at(3.0) == Decision()


def test_a_failed_member_never_closes_for_the_others() -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2))
    bench.put(replace(WORLD[2], state="failed"), replace(WORLD[1], state=SUCCEEDED))
    bench.at(0.0)
    assert bench.wrote(0.3).phase == RUNNING


def test_of_two_pods_on_one_slot_the_newer_is_counted() -> None:
    old, new = member(1), member(1, name="pod-7", incarnation="uid-7/0")
    bench = Bench([member(0), old, new], EMPTY, roster(0, 1))
    record = bench.wrote(0.0)
    assert record.slots == (0, 1)
    assert record.rank_of("uid-7/0") == 1
    assert record.rank_of("uid-1/0") is None


def test_who_is_in_the_world_is_asked_for_a_sign_of_life_when_a_later_agent_asks_for_its_slot() -> None:
    bench = Bench(WORLD, running(WORLD))
    assert bench.at(0.0).ask == frozenset()
    bench.put(member(1, 2, name="pod-7", incarnation="uid-7/0"))
    assert bench.at(1.0).ask == {"uid-1/0"}
    assert bench.at(60.0).write is None


def test_who_gives_no_sign_of_life_is_replaced_after_settling() -> None:
    bench = Bench(WORLD, running(WORLD))
    bench.doubted.add("uid-1/0")
    assert bench.at(0.0) == Decision()
    bench.put(member(1, 2, name="pod-7", incarnation="uid-7/0"))
    assert bench.silent_until(1.0) == pytest.approx(1.3)
    record = bench.wrote(1.3)
    assert (record.want, record.want_reason) == (2, "gone: slot 1")
    bench.put(*(member(i, 2) for i in (0, 2)))
    record = bench.wrote(1.4)
    assert (record.slots, record.rank_of("uid-7/0")) == ((0, 1, 2), 1)


def test_who_answers_while_it_settles_keeps_its_slot() -> None:
    bench = Bench(WORLD, running(WORLD))
    bench.put(member(1, 2, name="pod-7", incarnation="uid-7/0"))
    bench.doubted.add("uid-1/0")
    bench.at(0.0)
    bench.doubted.clear()
    assert bench.at(0.2).look_again is None
    assert bench.at(60.0).write is None


@pytest.mark.parametrize(
    "rival",
    [
        member(1, 2, name="old", incarnation="uid-7/0", first_rv=1),
        member(1, 2, name="host", incarnation="host/0", owned=False),
        member(1, 1, name="pod-7", incarnation="uid-7/0"),
        member(1, 2, name="pod-7", incarnation="uid-7/0", allotted=True),
        member(1, 2, name="pod-7", incarnation="uid-7/0", round_uid="another"),
    ],
    ids=["an earlier agent", "one outside of pods", "one that does not ask", "a wish", "one that asks another Round"],
)
def test_nobody_is_replaced_by(rival: Member) -> None:
    bench = Bench(WORLD, running(WORLD))
    bench.put(rival)
    bench.doubted.add("uid-1/0")
    assert bench.at(0.0).ask == frozenset()
    written = bench.at(60.0).write
    assert written is None or "gone: slot" not in written.want_reason


def test_an_older_agent_that_makes_its_member_again_does_not_displace_its_replacement() -> None:
    old, new = member(1, first_rv=90), member(1, name="pod-7", incarnation="uid-7/0")
    bench = Bench([member(0), new, old], EMPTY, roster(0, 1))
    assert bench.wrote(0.0).rank_of("uid-7/0") == 1


def test_an_agent_outside_of_pods_does_not_displace_a_pod() -> None:
    outside = member(1, name="host", incarnation="host/0", owned=False)
    record = Bench([member(0), member(1), outside], EMPTY, roster(0, 1)).wrote(0.0)
    assert record.rank_of("uid-1/0") == 1


def test_agents_outside_of_pods_are_waited_for_until_the_last_call() -> None:
    outside = [member(i, name=f"host-{i}", incarnation=f"host-{i}/0", owned=False) for i in range(2)]
    bench = Bench(outside, EMPTY, roster())
    assert bench.silent_until(0.0) == 30.0
    assert "more agents outside of pods" in bench.at(0.0).waiting_for
    assert bench.wrote(30.0).slots == (0, 1)


def test_a_missing_round_is_made_beyond_every_number_known() -> None:
    bench = Bench([member(0, 5), member(1, 8, state="leaving"), member(2, 9, run_id="old")], None)
    record = bench.wrote(0.0)
    assert (record.round, record.phase, record.want) == (8, FORMING, 9)
    assert record.coordinator == MINE


def test_numbers_that_went_back_are_raised_again() -> None:
    bench = Bench([member(0, 1), member(1, 4, seen_round=6)], EMPTY)
    record = bench.wrote(0.0)
    assert (record.round, record.phase, record.want) == (6, FORMING, 7)
    bench = Bench([member(0, 1), member(1, 1)], EMPTY, roster(0, 1, round=3))
    assert bench.wrote(0.0).round == 3


def test_the_claim_goes_with_the_first_write() -> None:
    bench = Bench([member(0)], Round("job", "run"))
    assert bench.wrote(0.0).coordinator == MINE
    bench = Bench([member(i) for i in range(4)], Round("job", "run"))
    record = bench.wrote(0.0)
    assert (record.coordinator, record.round) == (MINE, 1)


def test_only_the_lost_coordinator_is_replaced() -> None:
    other = Coordinator(1, "uid-1/0", "10.0.0.1", 7001, 4)
    bench = Bench(WORLD, running(WORLD, coordinator=other))
    assert bench.at(0.0) == Decision(step_down=True)
    bench.state = replace(bench.state, lost=other)
    assert bench.wrote(0.0).coordinator == replace(MINE, term=5)
    bench.round = running(WORLD, coordinator=replace(other, term=6))
    assert bench.at(1.0).step_down


def test_the_replaced_coordinator_is_dead_until_it_connects() -> None:
    other = Coordinator(1, "uid-1/0", "10.0.0.1", 7001, 4)
    bench = Bench(WORLD, running(WORLD, coordinator=other))
    bench.state = replace(bench.state, lost=other)
    bench.connected = {"uid-2/0"}
    assert bench.wrote(0.0).want == 1
    assert bench.silent_until(0.1) == pytest.approx(0.3)
    bench.connected.add("uid-1/0")
    assert bench.at(0.2) == Decision()
    bench.connected.discard("uid-1/0")
    bench.at(1.0)
    assert bench.wrote(1.3).want_reason == "gone: slot 1"


def test_numbers_go_on_from_what_this_agent_has_seen() -> None:
    bench = Bench([member(0), member(1)], None)
    bench.highest_seen = 5
    assert bench.wrote(0.0).round == 5
    bench.highest_seen = 9
    assert bench.wrote(1.0).round == 9


def test_a_request_to_a_deleted_round_is_taken_for_a_membership() -> None:
    made_again = replace(EMPTY, uid="second")
    bench = Bench([member(i, round_uid="second") for i in range(2)], made_again)
    bench.put(member(2, round_uid="first"), member(3, round_uid="first"))
    record = bench.wrote(0.0)
    assert (record.round, record.phase, record.want, record.uid) == (1, FORMING, 2, "second")


def test_allotted_slots_are_wishes() -> None:
    asked = [member(i, slot=slot, allotted=True) for i, slot in ((0, 2), (1, 2), (2, 5))]
    bench = Bench([*asked, member(3, slot=5)], EMPTY)
    record = bench.wrote(0.0)
    assert [record.slots[record.rank_of(f"uid-{i}/0") or 0] for i in range(4)] == [2, 0, 1, 5]


def test_the_round_of_another_run_is_replaced_when_the_rendezvous_says_so() -> None:
    old = Round("job", "old", round=7, coordinator=replace(MINE, incarnation="x/0", term=3))
    bench = Bench([member(0), member(1, run_id="old")], old)
    assert bench.at(0.0).write is None
    bench.roster = roster(0)
    record = bench.wrote(1.0)
    assert (record.run_id, record.round) == ("run", 1)


@pytest.mark.parametrize("closed", [Closure(SUCCESS, "x"), Closure("Closed", "x"), None])
def test_without_a_rendezvous_a_run_takes_over_from_one_that_is_over(closed: Closure | None) -> None:
    """It is over when it is closed, or when nobody of it is live."""
    left = [member(1, run_id="old", state=SUCCEEDED), member(2, run_id="old", state="failed")]
    living = [member(3, run_id="old")] if closed else []
    phase = CLOSED if closed else FORMING
    bench = Bench([member(0), *left, *living], Round("job", "old", round=7, phase=phase, closed=closed))
    record = bench.wrote(0.0)
    assert (record.run_id, record.round) == ("run", 1)


def test_without_a_rendezvous_a_run_that_was_overtaken_does_not_take_over_again() -> None:
    bench = Bench([member(0)], Round("job", "later", round=7, phase=CLOSED, closed=Closure(SUCCESS, "x")))
    bench.met = True
    assert bench.at(0.0).waiting_for == "run later has taken Rendezvous job over from run run"
    assert bench.at(10.0).refused


def test_without_a_rendezvous_a_run_is_told_of_the_one_that_has_the_name() -> None:
    bench = Bench([member(0), member(1, run_id="old"), member(2, run_id="old")], Round("job", "old", round=7))
    text = "run old uses Rendezvous job (round 7, 2 members, pod-1 is one), this agent is of run run"
    assert bench.silent_until(5.0) == 15.0
    assert bench.at(6.0).waiting_for.startswith(text)
    assert bench.at(6.0).foreign
    decision = bench.at(15.0)
    assert decision.refused.startswith(text)
    assert decision.look_again is None
    bench.members = {"pod-0": bench.members["pod-0"]}
    assert bench.wrote(16.0).run_id == "run"


def test_a_run_that_the_rendezvous_does_not_know_makes_no_round() -> None:
    bench = Bench([member(0)], None, replace(roster(0), run_id="new"))
    assert bench.at(0.0).write is None
    assert bench.at(10.0).refused.startswith("Rendezvous job is of run new, this agent of run run")


def test_a_round_closed_with_an_error_is_never_opened_again() -> None:
    old = running(WORLD, phase=CLOSED, closed=Closure("Requested", "pod-1"))
    bench = Bench([member(0, 2, incarnation=ME.incarnation)], old)
    assert bench.at(0.0) == Decision()
    bench.round = replace(old, coordinator=None)
    assert bench.at(1.0) == Decision()


def test_a_round_closed_with_success_is_opened_by_who_joined_after_it() -> None:
    for closed_at, opened in ((200, False), (100, True)):
        old = running(WORLD, phase=CLOSED, closed=Closure(SUCCESS, "pod-1"), members_rv=closed_at)
        bench = Bench([member(0, 2, incarnation=ME.incarnation)], old)
        assert (bench.at(0.0).write is not None) is opened


def test_a_world_that_ended_without_a_coordinator_is_closed_and_opened_again() -> None:
    world = [member(i, incarnation=f"old-{i}/0", state=SUCCEEDED) for i in range(3)]
    bench = Bench(world, running(world))
    bench.put(member(0, 2, name="new-0", incarnation=ME.incarnation), member(1, 2, name="new-1", incarnation="new-1/0"))
    assert bench.wrote(0.0).phase == CLOSED
    assert bench.wrote(0.1).phase == FORMING
    bench.put(member(2, 2, name="new-2", incarnation="new-2/0"), member(3, 2, name="new-3", incarnation="new-3/0"))
    assert bench.wrote(0.2).size == 4
