"""Ranks of agents whose index counts in a group: they follow the order of pairs, whoever coordinates and however sizes change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.protocol.test_coordinator import EMPTY, Bench, member, roster, running

from rdzv.pairs import Pair
from rdzv.protocol.encoding import MAX_SLOTS
from rdzv.protocol.records import Member, Round
from rdzv.spec import MAX_NODES


def paired(number: int, group: str, index: int, **changes: Any) -> Member:
    """An agent that says its pair; `number` is no more than what tells it from others."""
    return replace(member(number), slot=None, pair=Pair(group, index), **changes)


def ranking(record: Round, members: list[Member]) -> list[Member]:
    """Those who are counted, by rank."""
    ranks = {member.name: record.rank_of(member.incarnation) for member in members}
    return sorted((m for m in members if ranks[m.name] is not None), key=lambda m: ranks[m.name] or 0)


def formed(members: list[Member], most: int | None = None) -> Round:
    count = len(members) if most is None else most
    return Bench(members, EMPTY, roster(low=1, high=count, expected_count=len(members))).wrote(0.0)


CLAIMS = st.builds(Pair, st.sampled_from(["", "0", "1", "10", "master", "worker"]), st.integers(0, 7))


@given(st.lists(CLAIMS, unique=True, min_size=1, max_size=24), st.integers(0, 4))
def test_ranks_follow_the_pairs_and_those_without_one_come_in_between_or_behind(
    pairs: list[Pair], without: int
) -> None:
    members = [paired(i, p.group, p.index) if p.group else member(i, slot=p.index) for i, p in enumerate(pairs)]
    members += [member(100 + i, slot=None) for i in range(without)]
    record = formed(members)
    assert record.size == len(members)
    ranked = [m.claim for m in ranking(record, members) if m.claim is not None]
    assert ranked == sorted(ranked, key=lambda pair: pair.order)
    for each in members:
        rank = record.rank_of(each.incarnation)
        assert rank is not None
        assert each.index in (None, record.slots[rank]), "an index of its own is its slot"


@given(st.lists(CLAIMS, unique=True, min_size=3, max_size=12), st.data())
def test_a_place_is_the_same_after_any_restart_and_shifts_only_with_those_before_it(
    pairs: list[Pair], data: st.DataObject
) -> None:
    """Whatever the names, addresses and incarnations of the pods: ranks are a function of the pairs that are there."""
    there = data.draw(st.lists(st.sampled_from(pairs), unique=True, min_size=1))
    worlds = []
    for base in (0, 50):
        order = data.draw(st.permutations(there))
        members = [
            paired(base + i, p.group, p.index) if p.group else member(base + i, slot=p.index)
            for i, p in enumerate(order)
        ]
        worlds.append([m.claim for m in ranking(formed(members), members)])
    assert worlds[0] == worlds[1] == sorted(there, key=lambda pair: pair.order)


def test_of_one_group_alone_the_slot_is_the_index() -> None:
    assert formed([paired(i, "worker", i) for i in (5, 1, 3)]).slots == (1, 3, 5)


def test_groups_of_any_size_stand_one_behind_the_other() -> None:
    members = [paired(10 * g + i, str(g), i) for g, size in enumerate((3, 1, 2)) for i in range(size)]
    record = formed(members)
    assert record.slots == tuple(range(6))
    assert ranking(record, members) == members


def test_an_index_beyond_all_slots_is_no_harm() -> None:
    members = [paired(0, "a", MAX_NODES - 1), paired(1, "a", 0), member(2, slot=MAX_SLOTS - 1)]
    assert formed(members).size == 3
    assert formed(members[:2]).slots == (0, 1)


def test_thousands_of_pairs_fit_in_a_round() -> None:
    members = [paired(i, str(i // 8), i % 8) for i in range(MAX_SLOTS)]
    record = formed(members)
    assert record.size == MAX_SLOTS
    assert len(str(record.to_object("ns"))) < 30_000
    assert Round.from_object(record.to_object("ns")).slots == record.slots


def test_of_two_agents_with_one_pair_the_later_one_counts_and_of_two_groups_both() -> None:
    bench = Bench([paired(0, "a", 0), paired(1, "b", 0), paired(2, "a", 0)], EMPTY, roster(expected_count=2))
    record = bench.wrote(0.0)
    assert [record.rank_of(f"uid-{i}/0") for i in range(3)] == [None, 1, 0]


def test_who_is_in_the_world_keeps_its_pair() -> None:
    inside = [paired(0, "a", 0, want_round=1), paired(1, "b", 0, want_round=1)]
    world = replace(running([member(0), member(1)]), slots=(0, 1))
    bench = Bench([*inside, paired(2, "a", 0, want_round=2)], world, roster(expected_count=3, high=4))
    assert bench.at(100.0).write is None, "the pair is taken"


def test_all_that_are_expected_are_counted_by_number() -> None:
    members = [paired(i, "ab"[i // 2], i % 2) for i in range(4)]
    bench = Bench(members[:3], EMPTY, roster(low=2, high=4, expected_count=4))
    assert bench.silent_until(0.0) == 30.0
    assert "1 of 4 expected pods have not joined: 1 more" in bench.at(1.0).waiting_for
    bench.put(members[3])
    assert ranking(bench.wrote(2.0), members) == members


def test_an_agent_that_knows_no_pairs_is_counted_beside_those_that_do() -> None:
    """Of an earlier release: it has no index, or the one that is its slot."""
    members = [paired(0, "0", 0), paired(1, "1", 0), member(2, slot=None), member(3, slot=7)]
    record = formed(members)
    assert record.size == 4
    assert record.slots[record.rank_of("uid-3/0") or 0] == 7
    ranked = ranking(record, members)
    assert ranked.index(members[0]) < ranked.index(members[1])


def test_a_coordinator_that_knows_no_pairs_counts_agents_that_do() -> None:
    """It reads their Members without the fields that it does not know: agents without an index."""
    members = [paired(0, "0", 0), paired(1, "1", 0), paired(2, "1", 1)]
    unread = []
    for each in members:
        written = each.to_object("ns")
        for field in ("group", "index"):
            del written["spec"][field]
        written["metadata"]["resourceVersion"] = "7"
        unread.append(Member.from_object(written))
    record = formed(unread)
    assert {record.rank_of(each.incarnation) for each in members} == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"group": "-a", "index": 0}, "spec.group"),
        ({"group": "x" * 64, "index": 0}, "spec.group"),
        ({"group": 3, "index": 0}, "spec.group"),
        ({"group": "a"}, "spec.group"),
        ({"group": "a", "index": MAX_NODES}, "spec.index"),
        ({"group": "a", "index": "0"}, "spec.index"),
        ({"group": "a", "index": 0, "slot": 1}, "spec.group"),
    ],
)
def test_a_pair_that_is_none_is_refused_by_field(change: dict[str, Any], complaint: str) -> None:
    written = member(0, slot=None).to_object("ns")
    written["spec"] |= change
    with pytest.raises(ValueError, match=complaint):
        Member.from_object(written)
