"""How long a world waits before it is formed anew: for replacements of who is lost, and for newcomers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.protocol.clusters import cluster, run_until_formed
from unit.protocol.test_coordinator import WORLD, Bench, member, reform, roster, running

from rdzv.pairs import Pair
from rdzv.protocol.coordinator_state import Decision
from rdzv.protocol.fields import Fields
from rdzv.protocol.pace import Pace
from rdzv.protocol.roster import Absent, Roster

PACE = Pace(replacement_wait=10.0, min_round=20.0, scale_up_window=30.0)
GONE = "uid-2/0"


def lost(who: Roster, connected: bool = False) -> Bench:
    """Slot 2 of three is lost at 100 s, and both others have asked for the next round."""
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2, pace=who.pace))
    bench.at(0.0)
    bench.roster = who
    bench.dead.add(GONE)
    bench.connected = {"uid-1/0", GONE} if connected else {"uid-1/0"}
    bench.at(100.0)
    bench.wrote(100.3)
    reform(bench, 0, 1)
    return bench


def test_survivors_wait_for_a_replacement_whose_pod_exists() -> None:
    bench = lost(roster(0, 1, 2, pace=PACE))
    decision = bench.at(101.0)
    assert (decision.write, decision.look_again) == (None, 110.0)
    assert decision.waiting_for == "1 of 3 expected pods have not joined: slot 2"
    bench.put(member(2, 2, name="pod-9", incarnation="uid-9/0"))
    bench.connected = {"uid-1/0", "uid-9/0"}
    assert bench.wrote(104.0).slots == (0, 1, 2)


def test_survivors_go_on_without_one_that_does_not_come_in_time() -> None:
    bench = lost(roster(0, 1, 2, pace=PACE))
    bench.silent_until(109.0)
    assert bench.wrote(110.0).slots == (0, 1)


def test_a_pod_that_is_yet_to_be_made_is_waited_for_shortly() -> None:
    bench = lost(roster(0, 1, pace=PACE))
    assert bench.silent_until(101.0) == 102.0
    bench.roster = roster(0, 1, 2, pace=PACE)
    assert bench.silent_until(101.9) == 110.0


def test_a_pod_that_can_be_made_only_once_the_lost_one_is_gone_is_waited_for_from_then_on() -> None:
    """A StatefulSet does that."""
    bench = lost(roster(0, 1, pace=PACE, draining=frozenset({"uid-2"})))
    assert bench.silent_until(104.0) == 110.0
    bench.roster = roster(0, 1, pace=PACE)
    assert bench.silent_until(105.0) == 107.0
    assert bench.silent_until(106.9) == 107.0
    assert bench.wrote(107.0).slots == (0, 1)


def test_a_pod_that_does_not_stop_is_not_waited_for_longer_than_replacements_are() -> None:
    bench = lost(roster(0, 1, pace=PACE, draining=frozenset({"uid-2"})))
    bench.silent_until(109.0)
    assert bench.wrote(110.0).slots == (0, 1)
    bench = lost(roster(0, 1, pace=PACE, draining=frozenset({"uid-2"})))
    bench.silent_until(109.0)
    bench.roster = roster(0, 1, pace=PACE)
    assert bench.silent_until(109.5) == 110.0


@pytest.mark.parametrize(
    "who",
    [
        roster(0, 1, 2, pace=replace(PACE, replacement_wait=0.0)),
        roster(0, 1, 2, pace=PACE, hopeless=(Absent("pod-9", 2, "Unschedulable"),)),
        roster(0, 1, 2, pace=PACE, high=2),
        replace(roster(0, 1, 2, pace=PACE), known=False),
    ],
    ids=["not wanted", "hopeless", "no room", "nobody knows"],
)
def test_survivors_do_not_wait_for_who_will_not_come(who: Roster) -> None:
    assert lost(who).wrote(100.4).slots == (0, 1)


def test_the_pod_of_a_silent_agent_is_no_replacement() -> None:
    assert lost(roster(0, 1, 2, pace=PACE), connected=True).wrote(100.4).slots == (0, 1)


def test_the_pod_of_a_silent_agent_is_no_replacement_where_places_are_pairs_either() -> None:
    """The roster counts such pods, and does not list them."""
    world = [replace(member(number), slot=None, pair=Pair("", number)) for number in range(3)]
    bench = Bench(world, running([member(number) for number in range(3)]), roster(pace=PACE, expected_count=3))
    bench.at(0.0)
    bench.dead.add(GONE)
    bench.at(100.0)
    bench.wrote(100.3)
    bench.put(*(replace(each, want_round=2, port=each.port + 1) for each in world[:2]))
    assert bench.wrote(100.4).size == 2


def test_agents_outside_of_pods_are_not_waited_for() -> None:
    bench = lost(roster(0, 1, 2, pace=PACE))
    bench.put(member(1, 2, owned=False, incarnation="uid-1/0"))
    assert bench.wrote(100.4).slots == (0, 1)


def test_further_losses_do_not_prolong_the_wait() -> None:
    world = [member(number) for number in range(4)]
    bench = Bench(world, running(world), roster(0, 1, 2, 3, pace=PACE))
    bench.at(0.0)
    bench.connected = {"uid-1/0", "uid-2/0"}
    bench.dead.add("uid-3/0")
    bench.at(100.0)
    bench.wrote(100.3)
    reform(bench, 0, 1, 2)
    bench.silent_until(105.0)
    bench.dead.add(GONE)
    assert bench.silent_until(106.0) == 110.0
    assert bench.wrote(110.0).slots == (0, 1)


def test_a_worker_that_fails_has_nobody_wait() -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2, 3, pace=PACE))
    bench.at(0.0)
    reform(bench, 1)
    bench.at(100.0)
    bench.wrote(100.3)
    reform(bench, 0, 2)
    assert bench.wrote(100.4).slots == (0, 1, 2)


def test_newcomers_leave_a_new_world_alone_for_a_while() -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2, 3, pace=PACE))
    assert bench.at(0.0) == Decision()
    bench.put(member(3, 2))
    assert bench.silent_until(5.0) == 20.0
    assert bench.wrote(20.0).want_reason == "1 more joined"


def test_a_new_world_that_loses_somebody_takes_newcomers_in_with_the_next_one() -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2, 3, pace=PACE))
    bench.at(0.0)
    bench.put(member(3, 2))
    bench.at(5.0)
    bench.dead.add(GONE)
    bench.at(6.0)
    assert bench.wrote(6.3).want_reason == "gone: slot 2"
    reform(bench, 0, 1)
    assert bench.wrote(6.4).slots == (0, 1, 3)


def test_newcomers_that_others_may_follow_are_let_in_together() -> None:
    bench = Bench(WORLD, running(WORLD), roster(0, 1, 2, 3, 4, pace=PACE, high=5))
    bench.at(0.0)
    bench.at(100.0)
    bench.put(member(3, 2))
    assert bench.silent_until(100.0) == 130.0


def test_what_the_rendezvous_says_holds() -> None:
    spec = {"kubernetes": {"replacementWait": 0, "minRoundDuration": 7}}
    assert Pace.of(Fields({"spec": spec}, "spec").child("kubernetes")) == Pace(0.0, 7.0)
    assert Pace.of(Fields({"spec": {}}, "spec").child("kubernetes")) == Pace()
    found = Roster.from_object({"metadata": {"uid": "u"}, "spec": {"nodes": {"min": 2}, **spec}})
    assert found.pace == Pace(0.0, 7.0)


@pytest.mark.parametrize("value", ["7", -1, True, [1]])
def test_what_is_no_number_of_seconds_is_refused_by_name(value: object) -> None:
    spec = {"kubernetes": {"scaleUpWindow": value}}
    with pytest.raises(ValueError, match=r"spec\.kubernetes\.scaleUpWindow"):
        Pace.of(Fields({"spec": spec}, "spec").child("kubernetes"))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("takes", "rounds"), [(6.0, 1), (30.0, 2)], ids=["in time", "too late"])
def test_workers_start_once_for_each_loss_when_the_replacement_comes_in_time(
    seed: int, takes: float, rounds: int
) -> None:
    """A pod is deleted; its replacement is made at once, and its agent starts after so many seconds."""
    sim = cluster(seed, 4, 2, 4)
    run_until_formed(sim, 4)
    while sim.now < 40:
        sim.step()
    process, formed = sim.pods[2].process, len(sim.committed)
    assert process is not None
    sim.pods[2].gone = True
    sim.kill(process)
    sim.at(takes, sim.start, sim.add_pod(2))
    run_until_formed(sim, 4, after=1)
    assert len(sim.committed) == formed + rounds
