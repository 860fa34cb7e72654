"""Who made a world form anew: how the coordinator says it, how the operator counts it, and how it ends a world."""

from __future__ import annotations

import pytest
from unit.protocol.test_coordinator import WORLD, Bench, member, reform, roster, running

from rdzv.protocol import reforms
from rdzv.protocol.coordinator_state import Decision
from rdzv.protocol.failures import ASKED_AGAIN, GONE, Failure, describe, read
from rdzv.protocol.records import CLOSED, FORMING, RUNNING, Round
from rdzv.protocol.reforms import MOST, Reforms, count, due_in, exceeded, suspicion
from rdzv.protocol.roster import Roster
from rdzv.spec import FailurePolicy

POLICY = FailurePolicy(most=3, window=600)


def record(number: int, reason: str, uid: str = "u", want: int | None = None) -> Round:
    phase = RUNNING if number else FORMING
    return Round(
        "job", "run", round=number, want=number if want is None else want, want_reason=reason, uid=uid, phase=phase
    )


def history(*nodes: str, every: float = 10.0) -> Reforms:
    """One failure on each of these nodes, on slots in their order."""
    found = Reforms()
    for number, node in enumerate(nodes, start=2):
        found = count(found, record(number, f"{GONE}: slot {number} ({node})"), POLICY, 1000 + every * number)
    return found


@pytest.mark.parametrize(
    ("groups", "nodes", "text"),
    [
        ({GONE: [2]}, {}, "gone: slot 2"),
        ({GONE: [3, 2]}, {2: "node-b.zone"}, "gone: slot 2 (node-b.zone), 3"),
        ({GONE: [0], ASKED_AGAIN: [1]}, {1: "n"}, "gone: slot 0; asked to join again: slot 1 (n)"),
        ({GONE: []}, {}, ""),
        ({GONE: [1]}, {1: "x), 7 (y"}, "gone: slot 1"),
        ({GONE: range(12)}, {}, "gone: slot 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"),
    ],
)
def test_what_is_said_is_understood(groups: dict[str, list[int]], nodes: dict[int, str], text: str) -> None:
    assert describe(groups, nodes) == text
    clean = {slot: node for slot, node in nodes.items() if "(" not in node}
    expected = [Failure(slot, clean.get(slot, "")) for slots in groups.values() for slot in sorted(slots)[:10]]
    assert list(read(text)) == expected


@pytest.mark.parametrize("reason", ["", "created", "2 more joined", "4 members, at most 3 are wanted", "opened again"])
def test_other_reasons_are_no_failures(reason: str) -> None:
    assert read(reason) == ()


@pytest.mark.parametrize(
    ("why", "found"),
    [
        (describe({GONE: [2], ASKED_AGAIN: [1]}, {2: "n"}) + "; slow", reforms.LOST),
        (describe({ASKED_AGAIN: [1]}, {}), reforms.RESTARTED),
        ("2 more joined; mnist-1 leaves", reforms.GREW),
        ("4 members, at most 3 are wanted", reforms.SHRANK),
        *((why, reforms.OTHER) for why in ("", "created", "opened again", "gone", "x gone: slot 1", "gone\n: slot 1")),
    ],
)
def test_every_reason_is_one_of_a_few_kinds(why: str, found: str) -> None:
    assert reforms.kind(why) == found
    assert found in reforms.KINDS


def test_a_reason_that_is_cut_off_names_those_that_are_whole() -> None:
    assert read("gone: slot 1 (node-a), 2 (nod") == (Failure(1, "node-a"), Failure(2))
    assert read("gone: slot 1; mnist-3 can't be reached by mnist-0 at 10.0.0.7:41234") == (Failure(1),)


def test_each_round_that_a_failure_made_is_counted_once_wanted_or_formed() -> None:
    found = count(Reforms(), record(1, "created"), POLICY, 0.0)
    for now, (number, want) in enumerate([(1, 2), (1, 2), (2, 2), (2, 2)]):
        found = count(found, record(number, "gone: slot 2", want=want), POLICY, float(now))
    assert [reform.round for reform in found.recent] == [2]
    found = count(found, record(3, "1 more joined"), POLICY, 10.0)
    found = count(found, record(4, "asked to join again: slot 1"), POLICY, 20.0)
    assert [reform.failures for reform in found.recent] == [(Failure(2),), (Failure(1),)]


def test_what_is_too_old_is_forgotten_and_looked_at_when_it_is() -> None:
    found = history("a", "b")
    assert due_in(found, POLICY, 1030.0) == 590.0
    found = count(found, record(3, "gone: slot 3 (b)"), POLICY, 1620.0)
    assert [reform.round for reform in found.recent] == [3]
    assert due_in(Reforms(), POLICY, 0.0) is None


def test_a_round_that_was_deleted_and_made_again_begins_anew() -> None:
    found = count(history("a", "b"), None, POLICY, 1040.0)
    assert len(found.recent) == 2, "there is none: nothing is known"
    assert count(found, record(5, "round numbers had gone back", uid="v"), POLICY, 1041.0).recent == ()


def test_more_than_the_policy_allows_end_the_world_in_words() -> None:
    assert exceeded(history("a", "a", "b"), POLICY) == ""
    assert exceeded(history("a", "a", "b", "a"), POLICY) == (
        "it was formed anew 4 times within 600 s because of failures, and spec.failurePolicy allows 3; a lost 3 of 4 worlds"
    )
    assert exceeded(history("a", "b", "c", "d"), POLICY).endswith("spec.failurePolicy allows 3")
    assert exceeded(history("a", "b", "c", "d"), FailurePolicy()) == ""


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (["a", "a"], ""),
        (["a", "a", "a"], "a lost 3 of 3 worlds"),
        (["a", "b", "a", "c", "a"], "a lost 3 of 5 worlds"),
        (["a", "b", "a", "b", "a", "b"], ""),
        (["a", "b", "c", "d", "a", "a"], ""),
    ],
)
def test_a_node_is_suspected_when_it_lost_most_worlds(nodes: list[str], says: str) -> None:
    assert suspicion(history(*nodes)) == says


def test_without_nodes_the_slot_is_suspected() -> None:
    found = Reforms()
    for number in range(2, 6):
        found = count(found, record(number, "gone: slot 7"), POLICY, float(number))
    assert suspicion(found) == "slot 7 lost 4 of 4 worlds"


def test_all_that_fail_together_are_no_suspicion() -> None:
    found = Reforms()
    for number in range(2, 6):
        found = count(found, record(number, "asked to join again: slot 1 (a), 2 (b)"), POLICY, float(number))
    assert suspicion(found) == ""


def test_it_is_kept_in_the_status_and_bounded() -> None:
    found = history(*["a"] * (MOST + 20), every=0.1)
    assert len(found.recent) == MOST + 1
    assert Reforms.from_status({"reforms": found.to_status()}) == found
    assert Reforms.from_status({}) == Reforms()


def test_the_coordinator_names_nodes_and_keeps_the_reason_with_the_round() -> None:
    world = [member(number, node=f"node-{number}") for number in range(3)]
    bench = Bench(world, running(world), roster(0, 1, 2))
    bench.at(0.0)
    del bench.members["pod-2"]
    bench.at(1.0)
    assert bench.wrote(1.3).want_reason == "gone: slot 2 (node-2)"
    reform(bench, 0, 1)
    record = bench.wrote(1.4)
    assert (record.round, record.want, record.want_reason) == (2, 2, "gone: slot 2 (node-2)")


def test_the_coordinator_closes_the_round_that_the_operator_ends() -> None:
    bench = Bench(WORLD, running(WORLD, uid="u"), roster(0, 1, 2, ended="4 times", ended_uid="u"))
    record = bench.wrote(0.0)
    assert record.closed is not None
    assert (record.phase, record.closed.reason, record.closed.by) == (CLOSED, "TooManyReforms", "pod-0")
    assert bench.at(1.0) == Decision()


def test_another_round_is_not_closed_for_it() -> None:
    bench = Bench(WORLD, running(WORLD, uid="v"), roster(0, 1, 2, ended="4 times", ended_uid="u"))
    assert bench.at(0.0) == Decision()


def test_what_the_operator_writes_is_what_agents_read() -> None:
    status = roster(0, 1, ended="4 times", ended_uid="u").to_status()
    obj = {"metadata": {"uid": "run"}, "spec": {"nodes": {"min": 2}}, "status": {"runID": "run", "roster": status}}
    found = Roster.from_object(obj)
    assert (found.ended, found.ended_uid) == ("4 times", "u")
