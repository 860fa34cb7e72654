"""Agents at an address that is not their pod's, as the operator says: who is refused, who stays, and that no Round leads there."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.protocol.test_coordinator import EMPTY, Bench, member, roster, running

from rdzv.protocol.records import RUNNING, Leader, Member
from rdzv.protocol.roster import Absent, Misplaced, Roster

FORGED = "10.9.9.9"


def forged(number: int, want: int = 1) -> Member:
    return member(number, want, address=FORGED)


def told(*expected: int, of: tuple[int, ...] = (1,)) -> Roster:
    """What an operator writes that has seen them at another address."""
    hopeless = tuple(Absent(f"pod-{number}", number, "Misplaced: …") for number in of)
    return roster(*expected, hopeless=hopeless, misplaced=frozenset(Misplaced(f"uid-{n}", FORGED) for n in of))


def test_who_is_at_another_address_is_refused_and_the_others_form_a_world() -> None:
    bench = Bench([member(0), forged(1), member(2)], EMPTY, told(0, 1, 2))
    decision = bench.at(0.0)
    assert decision.refused_members == {"pod-1": "it says that it is at 10.9.9.9, which is not an address of its pod"}
    assert "pod-1 is Misplaced" in decision.waiting_for
    # As for a pod that can't start: should the operator have learnt its address late, it says otherwise by then.
    assert bench.silent_until(0.0) == 2.0
    assert bench.wrote(2.0).slots == (0, 2)


def test_who_would_lead_from_another_address_does_not() -> None:
    bench = Bench([member(0), forged(1), member(2), member(3)], EMPTY, told(0, 1, 2, 3))
    bench.members["pod-0"] = (forged(0), 101)
    bench.roster = told(0, 1, 2, 3, of=(0, 1))
    bench.at(0.0)
    assert bench.wrote(2.0).leader == Leader(2, "10.0.0.2", 1102)


def test_who_says_its_own_address_at_last_is_counted_at_once_whatever_was_said_before() -> None:
    bench = Bench([member(0), forged(1)], EMPTY, told(0, 1))
    assert bench.at(0.0).write is None
    bench.put(member(1))
    assert bench.wrote(0.5).slots == (0, 1)


def test_whom_the_operator_takes_back_its_word_of_is_counted() -> None:
    """It had learnt the pod's address late."""
    bench = Bench([member(0), forged(1)], EMPTY, told(0, 1))
    assert bench.at(0.0).write is None
    bench.roster = roster(0, 1)
    assert bench.wrote(0.5).slots == (0, 1)


def test_who_is_in_the_world_stays_until_it_asks_for_another_one() -> None:
    world = [member(0), forged(1), member(2)]
    bench = Bench(world, running(world), told(0, 1, 2))
    decision = bench.at(100.0)
    assert (decision.write, decision.refused_members) == (None, {})
    bench.put(forged(1, 2))
    bench.put(member(0, 2), member(2, 2))
    assert bench.silent_until(200.0) <= 202.0
    assert bench.wrote(202.0).slots == (0, 2)


def test_an_agent_that_is_no_pods_and_one_of_another_pod_are_not_meant() -> None:
    outside = replace(forged(1), owned=False)
    bench = Bench([member(0), outside, forged(2)], EMPTY, roster(0, misplaced=frozenset({Misplaced("uid-1", FORGED)})))
    bench.at(0.0)
    assert bench.wrote(30.0).slots == (0, 1, 2)


def test_an_operator_that_says_nothing_of_addresses_has_nobody_refused_and_the_next_world_is_without() -> None:
    """An older operator, or an older agent that coordinates, and then the newer one beside it."""
    bench = Bench([member(0), forged(1), member(2)], EMPTY, roster(0, 1, 2))
    assert bench.wrote(0.0).slots == (0, 1, 2)
    bench.roster = told(0, 1, 2)
    bench.put(member(0, 2), forged(1, 2), member(2, 2))
    bench.at(100.0)
    assert bench.wrote(102.0).slots == (0, 2)


def test_the_word_is_read_as_it_was_written_and_an_older_reader_knows_the_rest() -> None:
    written = told(0, 1, 2, of=(1, 2)).to_status()
    obj = {"metadata": {"uid": "run"}, "spec": {"nodes": {"min": 2, "max": 4}}, "status": {"roster": written}}
    read = Roster.from_object(obj)
    assert read.misplaced == {Misplaced("uid-1", FORGED), Misplaced("uid-2", FORGED)}
    del written["misplaced"]
    assert Roster.from_object(obj) == replace(read, misplaced=frozenset())


AGENTS = st.lists(
    st.builds(member, st.integers(0, 5), st.integers(0, 3), address=st.sampled_from(["10.0.0.7", "10.0.0.8", FORGED])),
    max_size=6,
    unique_by=lambda each: each.name,
)
TOLD = st.frozensets(
    st.builds(Misplaced, st.integers(0, 5).map("uid-{}".format), st.sampled_from(["10.0.0.7", "10.0.0.8", FORGED]))
)


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(AGENTS, TOLD, st.integers(0, 3), st.booleans())
def test_no_new_round_has_anybody_who_asks_from_an_address_that_is_not_its_pods(
    agents: list[Member], misplaced: frozenset[Misplaced], inside: int, with_me: bool
) -> None:
    world = sorted({each.name: each for each in agents}.values(), key=lambda each: each.slot or 0)[:inside]
    bench = Bench([*agents, *([member(0, 2)] if with_me else [])], running(world) if world else EMPTY)
    bench.roster = roster(*range(6), high=6, misplaced=misplaced)
    before = bench.round
    for now in (0.0, 3.0, 40.0, 80.0):
        written = bench.at(now).write
        if written is None:
            continue
        bench.round, bench.round_rv = written, (bench.round_rv or 0) + 1
        if written.phase != RUNNING or before is None or written.round == before.round:
            continue
        counted = {
            rank: each for each, _ in bench.members.values() if (rank := written.rank_of(each.incarnation)) is not None
        }
        assert not {Misplaced(each.pod_uid, each.address) for each in counted.values()} & misplaced
        assert written.leader == Leader(written.slots[0], counted[0].address, counted[0].port)
        return
