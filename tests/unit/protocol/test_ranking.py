"""Ranks that follow where nodes are: the order of sites, then that of indexes; who stays in the world is moved by nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.protocol.test_coordinator import EMPTY, Bench, member, roster
from unit.protocol.test_pairs import paired, ranking

from rdzv.protocol.encoding import MAX_SLOTS
from rdzv.protocol.ranking import slots_of
from rdzv.protocol.records import Member, Round
from rdzv.protocol.roster import Roster, Site


def movable(number: int, **changes: Any) -> Member:
    """An agent that has an index and takes any slot."""
    return paired(number, "", number, **changes)


def sites(*places: Sequence[int]) -> tuple[Site, ...]:
    """The first place has these pods, and so on."""
    return tuple(Site((f"rack-{i}",), tuple(f"uid-{number}" for number in numbers)) for i, numbers in enumerate(places))


def told(count: int, *places: Sequence[int], **changes: Any) -> Roster:
    return roster(low=1, high=count, expected_count=count, sites=sites(*places), **changes)


def numbers(record: Round, members: Sequence[Member]) -> list[int]:
    """Of the pods, by rank."""
    return [int(each.name.removeprefix("pod-")) for each in ranking(record, [*members])]


def again(members: Sequence[Member], record: Round) -> list[Member]:
    """The same agents, asking for the next round."""
    return [
        replace(each, want_round=record.round + 1, seen_round=record.round, port=each.port + 100, round_uid=record.uid)
        for each in members
    ]


def formed(members: Sequence[Member], who: Roster, before: Round = EMPTY) -> Round:
    """The world after `before`, once failures have settled."""
    bench = Bench(again(members, before), replace(before, want=before.round + 1), who)
    if bench.at(0.0).write is None:
        return bench.wrote(100.0)
    return bench.wrote(0.0)


def test_ranks_follow_sites_then_indexes_and_whose_site_is_unknown_comes_last() -> None:
    members = [movable(i) for i in range(6)]
    record = formed(members, told(6, (3, 1), (4, 0)))
    assert numbers(record, members) == [1, 3, 0, 4, 2, 5]
    assert record.slots == tuple(range(6))
    assert record.leader is not None
    assert record.leader.address == members[1].address


def test_without_a_word_of_sites_ranks_are_the_indexes() -> None:
    members = [movable(i) for i in (0, 2, 3)]
    assert formed(members, roster(low=1, high=3, expected_count=3)).slots == (0, 2, 3)
    assert numbers(formed(members, told(3)), members) == [0, 2, 3]


def test_a_replacement_in_the_same_site_takes_the_rank_of_the_lost_one() -> None:
    members = [movable(i) for i in range(4)]
    first = formed(members, told(4, (1, 3), (0, 2)))
    new = replace(movable(3), name="pod-30", incarnation="uid-30/0")
    now = [*members[:3], new]
    second = formed(now, told(4, (1, 30), (0, 2)), first)
    assert numbers(first, members) == [1, 3, 0, 2]
    assert numbers(second, now) == [1, 30, 0, 2]


@pytest.mark.parametrize(
    "later", [told(4, (0, 2), (1, 3)), told(4), told(4, (0,), (1,), (2,), (3,))], ids=["swapped", "nothing", "others"]
)
def test_labels_that_change_move_nobody_who_stays(later: Roster) -> None:
    members = [movable(i) for i in range(4)]
    first = formed(members, told(4, (1, 3), (0, 2)))
    assert numbers(formed(members, later, first), members) == [1, 3, 0, 2]


def test_a_newcomer_stands_by_its_neighbours_though_the_labels_of_others_changed() -> None:
    members = [movable(i) for i in range(4)]
    first = formed(members, told(4, (3,), (1,), (0, 2)))
    new = replace(movable(1), name="pod-10", incarnation="uid-10/0")
    now = [members[0], *members[2:], new]
    assert numbers(first, members) == [3, 1, 0, 2]
    assert numbers(formed(now, told(4, (0,), (3,), (10,), (2,)), first), now) == [3, 10, 0, 2]


def test_an_operator_that_went_silent_changes_no_rank() -> None:
    """Its word about who is expected is out of date then; where the nodes are is not."""
    members = [movable(i) for i in range(4)]
    stale = told(4, (1, 3), (0, 2), heartbeat_seconds=0.01, heartbeat=7)
    bench = Bench(members, EMPTY, stale)
    bench.at(0.0)
    assert numbers(bench.wrote(100.0), members) == [1, 3, 0, 2]


@given(st.data())
@settings(max_examples=40)
def test_who_stays_keeps_its_order_whatever_is_told_and_who_comes_stands_by_its_site(data: st.DataObject) -> None:
    count = 10
    lists = st.permutations(range(count)).map(lambda drawn: (drawn[:4], drawn[4:8]))
    members = {i: movable(i) for i in range(count)}
    pool = st.sets(st.sampled_from(range(count)), min_size=1)
    before: Round = EMPTY
    order: list[int] = []
    for _ in range(3):
        there = sorted(data.draw(pool))
        places = data.draw(lists)
        chosen = [members[i] for i in there]
        before = formed(chosen, told(count, *places), before)
        now = numbers(before, chosen)
        assert sorted(now) == there
        assert [i for i in now if i in order] == [i for i in order if i in now]
        if not set(order) & set(now):
            site = {i: position for position, pods in enumerate(places) for i in pods}
            assert now == sorted(now, key=lambda i: (site.get(i, 2), i))
        order = now


def test_a_newcomer_stands_behind_those_of_its_site() -> None:
    members = [movable(i) for i in range(5)]
    first = formed(members[:4], told(5, (2, 3), (0, 1)))
    second = formed(members, told(5, (2, 3, 4), (0, 1)), first)
    assert numbers(first, members) == [2, 3, 0, 1]
    assert numbers(second, members) == [2, 3, 4, 0, 1]


def test_with_an_agent_that_can_not_be_moved_all_ranks_are_the_indexes() -> None:
    """It was started before ranks were to follow sites, or is of an earlier release: it takes no slot but its index."""
    members = [movable(0), member(1), movable(2), movable(3)]
    record = formed(members, told(4, (3, 1), (2, 0)))
    assert record.slots == (0, 1, 2, 3)
    assert numbers(record, members) == [0, 1, 2, 3]


def test_an_agent_that_can_not_be_moved_is_given_no_cause_to_think_itself_replaced_while_it_is_a_spare() -> None:
    """Its slot is nobody else's, also in a world that has no room for it."""
    spare = [movable(0), movable(2), movable(3), member(1)]
    first = formed(spare[:3], told(3, (3,), (2, 0)))
    assert 1 in first.slots, "before it asks"
    assert 1 not in formed(spare, told(3, (3,), (2, 0)), first).slots


def test_agents_without_an_index_and_those_of_groups_follow_sites_too() -> None:
    members = [member(0, slot=None), paired(1, "b", 0), paired(2, "a", 0), member(3, slot=None)]
    assert numbers(formed(members, told(4, (3, 2), (1, 0))), members) == [2, 3, 1, 0]


def test_an_agent_that_can_be_moved_still_claims_its_index() -> None:
    """Of two with one index, movable or not, the later one counts."""
    two = [movable(1), replace(member(1), name="pod-10", incarnation="uid-10/0")]
    record = formed([movable(0), *two], told(2, (0, 1, 10)))
    assert record.rank_of("uid-10/0") == 1
    assert record.size == 2


def test_a_coordinator_that_knows_no_sites_counts_agents_that_can_be_moved() -> None:
    """Of an earlier release: what it reads of them is agents without an index."""
    unread = []
    for each in (movable(1), movable(0)):
        written = each.to_object("ns")
        del written["spec"]["index"]
        written["metadata"]["resourceVersion"] = "7"
        unread.append(Member.from_object(written))
    assert formed(unread, roster(low=1, high=2, expected_count=2)).size == 2


def test_a_member_that_can_be_moved_reads_as_it_was_written() -> None:
    written = movable(3).to_object("ns")
    assert "group" not in written["spec"]
    assert Member.from_object(written) == movable(3)


def test_thousands_are_ranked_and_half_of_them_stay() -> None:
    members, had = [movable(i) for i in range(MAX_SLOTS)], dict.fromkeys((f"pod-{i}" for i in range(MAX_SLOTS)), None)
    places = sites(*(range(i, MAX_SLOTS, 64) for i in range(64)))
    first = slots_of(members, had, places)
    assert [each.name for each in (first[0], first[1], first[64])] == ["pod-0", "pod-64", "pod-1"]
    slots = {each.name: slot for slot, each in first.items() if slot % 2}
    assert slots_of(members, {**had, **slots}, places) == first


def rendezvous(asked: object, status: object) -> dict[str, Any]:
    spec = {"nodes": {"min": 1}, "ranks": {"topologyKeys": asked}}
    return {"metadata": {"uid": "run"}, "spec": spec, "status": {"roster": {"sites": status}}}


def test_the_roster_reads_sites_only_where_the_spec_asks_for_them() -> None:
    written = told(2, (1,), (0,)).to_status()["sites"]
    assert Roster.from_object(rendezvous(["rack"], written)).sites == sites((1,), (0,))
    assert Roster.from_object(rendezvous([], written)).sites is None
    assert Roster.from_object(rendezvous(["rack"], [])).sites == ()
    assert "sites" not in roster(0, 1).to_status()


@pytest.mark.parametrize(
    ("asked", "status", "complaint"),
    [
        ("rack", [], "spec.ranks.topologyKeys"),
        (["rack"], {"labels": ["a"]}, "status.roster.sites"),
        (["rack"], [{"labels": "a", "pods": []}], "status.roster.sites.labels"),
        (["rack"], [{"labels": ["a"], "pods": [1]}], "status.roster.sites.pods"),
        (["rack"], [{"labels": ["a"], "pods": ["x"] * 2100}] * 2, "more than 4096 pods"),
    ],
)
def test_sites_that_are_none_are_refused_by_field(asked: object, status: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Roster.from_object(rendezvous(asked, status))
