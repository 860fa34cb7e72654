"""Members that anybody may have written: the coordinator and the operator survive any set of them."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import builders
from support.builders import pod_object, rendezvous
from support.crd_schemas import complaints, schema_of

from rdzv.observed import Observed
from rdzv.protocol import coordinator, sifting
from rdzv.protocol import member as members_side
from rdzv.protocol.coordinator_state import CoordinatorState, Policy, View
from rdzv.protocol.encoding import MAX_SLOTS, salted_fingerprints
from rdzv.protocol.events import Identity, Join, RoundSeen, Written
from rdzv.protocol.member_state import MemberState
from rdzv.protocol.records import (
    CLOSED,
    MAX_AHEAD,
    RUNNING,
    STATES,
    Closure,
    Coordinator,
    Leader,
    Member,
    Round,
    resource_version,
)
from rdzv.protocol.roster import Roster

RUN = "uid-1"
ME = Identity("mnist", RUN, "mnist-0", "uid-of-mnist-0/a", "10.0.0.1", 7000, slot=0)
MINE = Coordinator(0, ME.incarnation, ME.address, ME.port, 1)
ROUND_SCHEMA, STATUS_SCHEMA = schema_of("rendezvousround.yaml", "spec"), schema_of("rendezvous.yaml", "status")
SECONDS = 1.0
"""The longest that one step may take."""

NUMBERS = [0, 1, 2, 3, MAX_AHEAD, MAX_AHEAD + 1, MAX_AHEAD + 2, 2**52, 2**53 - 1, 2**53, 2**63 - 1, -1]
LONG = "x" * 100
JUNK: list[Any] = [None, "", "x" * 300, -1, 1.5, True, [], {}, "²", "\x00", 2**63, float("inf")]
FIELDS: dict[str, list[Any]] = {
    "runID": [RUN, RUN, RUN, "other"],
    "incarnation": [ME.incarnation, "uid-of-mnist-0/b", "uid-of-mnist-1/a", "evil/1", LONG, f"gone/{LONG}", "/", ""],
    "address": ["10.0.0.9", "10.0.0.1", "fd00::1", "0.0.0.0", "attacker.example", "127.0.0.1", "x" * 200],
    "port": [0, 1, 65535, 65536, -1],
    "wantRound": NUMBERS,
    "seenRound": NUMBERS,
    "roundUID": ["", "round", "x" * 128, "x" * 129],
    "state": [*STATES, "live", "live", "asleep"],
    "node": ["", "n" * 300],
    "slot": [None, 0, 1, MAX_SLOTS - 1, MAX_SLOTS, 4_000_000_000],
    "allotted": [False, True],
    "group": ["", "", "0", "a", "-a", "a b", "x" * 64],
    "index": [None, 0, 1, 9999, 10_000, -1],
    "firstRV": ["", "1", "100", "9" * 19, "x"],
}
NAMES = ["mnist-0", "mnist-1", "evil", "evil-2", "uid-of-mnist-1", "z" * 253]
SETS = st.integers(0, 2**32).map(lambda seed: hostile_set(random.Random(seed)))
"""One draw for a set: hypothesis would take a hundred times as long to draw each field."""


def hostile_set(rnd: random.Random) -> list[dict[str, Any]]:
    return [hostile_member(rnd) for _ in range(rnd.randint(0, 8))]


def hostile_member(rnd: random.Random) -> dict[str, Any]:
    """The object of one Member as some agent of the namespace may write it, also with an older CRD or none."""
    name = rnd.choice(NAMES)
    spec: dict[str, Any] = {field: rnd.choice(values) for field, values in FIELDS.items()}
    if rnd.random() < 0.7:
        # What is near to being right gets further.
        spec |= {"address": "10.0.0.9", "port": 1, "roundUID": "round", "node": "", "state": rnd.choice(STATES)}
        spec |= {"wantRound": rnd.choice(NUMBERS[:7]), "seenRound": rnd.choice(NUMBERS[:7]), "firstRV": ""}
        spec |= {"incarnation": rnd.choice([f"{name}/1", spec["incarnation"]]), "slot": rnd.choice([None, 0, 1, 5])}
        spec |= rnd.choice([{"group": ""}, {"group": "0", "index": rnd.choice([0, 1]), "slot": None}])
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {"rdzv.dev/rendezvous": "mnist"},
        "resourceVersion": str(rnd.randint(1, 200)),
        "creationTimestamp": f"2026-01-01T00:00:{rnd.randint(10, 59)}Z",
    }
    uid = str(spec["incarnation"]).partition("/")[0]
    if rnd.random() < 0.5:
        metadata["ownerReferences"] = [{"kind": "Pod", "name": rnd.choice([name, name, "mnist-0"]), "uid": uid}]
    if rnd.random() < 0.1:
        spec[rnd.choice(sorted(FIELDS))] = rnd.choice(JUNK)
    return {"metadata": metadata, "spec": spec}


def honest(slot: int, want: int) -> Member:
    name, rv = f"mnist-{slot}", slot + 1
    incarnation = f"uid-of-{name}/a"
    member = Member(name, "mnist", RUN, incarnation, f"10.0.0.{slot + 1}", 2000 + want, want, want - 1, "round", slot)
    return replace(member, first_rv=rv, created="2026-01-01T00:00:00Z")


def running(members: Sequence[Member], **changes: Any) -> Round:
    salt, fingerprints = salted_fingerprints([each.incarnation for each in members])
    slots = tuple(each.slot or 0 for each in members)
    leader = Leader(slots[0], members[0].address, members[0].port)
    record = Round(
        "mnist", RUN, 1, RUNNING, slots, fingerprints, salt, leader, MINE, want=1, members_rv=50, uid="round"
    )
    return replace(record, **changes)


FORMING = Round("mnist", RUN, 1, coordinator=MINE, want=2, uid="round")
ROUNDS = {
    "none": None,
    "forming": FORMING,
    "running": running([honest(0, 1), honest(1, 1)]),
    "forming anew": running([honest(0, 1), honest(1, 1)], want=2),
    "closed": running([honest(0, 1), honest(1, 1)], phase=CLOSED, closed=Closure("Succeeded", "mnist-0")),
    "of another run": replace(FORMING, run_id="other", coordinator=None),
}
ROSTER = Roster(RUN, 2, 3, known=True, expected=frozenset({0, 1}), expected_count=2)
PODS = [builders.pod(pod_object(f"mnist-{index}", index=index, phase="Running")) for index in range(2)]


def readable(objects: Sequence[dict[str, Any]]) -> dict[str, tuple[Member, int]]:
    found = {}
    for obj in objects:
        with suppress(ValueError):
            found[obj["metadata"]["name"]] = (Member.from_object(obj), resource_version(obj))
    return found


def settle(members: dict[str, tuple[Member, int]], record: Round | None, roster: Roster | None) -> Round | None:
    """Steps of one coordinator until it writes no more; what it wrote last."""
    state, rv = CoordinatorState(ME, Policy(2, 3)), 300
    for now in (0.0, 0.4, 40.0, 80.0):
        began = time.process_time()
        view = View(members, 250, roster, record, rv if record else None)
        state, decision = coordinator.step(state, view, now)
        assert time.process_time() - began < SECONDS
        if decision.write is None:
            continue
        obj = decision.write.to_object("team")
        assert complaints(obj["spec"], ROUND_SCHEMA, "spec") == []
        obj["metadata"]["uid"] = record.uid if record else "round"
        record, rv = Round.from_object(obj), rv + 1
    return record


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    SETS,
    st.sampled_from([ROSTER, replace(ROSTER, known=False), None]),
    st.booleans(),
)
@pytest.mark.parametrize("kind", ROUNDS)
def test_the_coordinator_survives_any_set(
    kind: str, objects: list[dict[str, Any]], roster: Roster | None, with_honest: bool
) -> None:
    others = {m.name: (m, rv) for rv, m in enumerate([honest(0, 2), honest(1, 2)], 210)} if with_honest else {}
    record = settle(readable(objects) | others, ROUNDS[kind], roster)
    if record is not None:
        agent = MemberState(ME)
        for event in (
            RoundSeen(record, 400),
            Join(5000),
            Written(401),
            RoundSeen(replace(record, want=record.want + 1), 402),
        ):
            agent, _ = members_side.step(agent, event, 0.0)


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(SETS, st.sampled_from([None, ROUNDS["running"]]))
def test_the_operators_status_stays_valid(objects: list[dict[str, Any]], record: Round | None) -> None:
    members = [member for member, _ in readable(objects).values()]
    subject = rendezvous("kubernetes", nodes={"min": 2, "max": 3})
    began = time.process_time()
    status = builders.status_of(subject, Observed(pods=PODS, round=record, members=members), {}, 1795428000.0)
    assert time.process_time() - began < SECONDS
    assert complaints(status, STATUS_SCHEMA, "status") == []
    assert not set(status["roster"]["dead"]) & {pod.uid for pod in PODS}


@settings(max_examples=2500, deadline=None, suppress_health_check=list(HealthCheck))
@given(SETS)
def test_a_world_forms_of_pods_whose_members_were_there_before(objects: list[dict[str, Any]]) -> None:
    """Nobody but an agent in a pod of its own with one of their indexes can take a place of theirs.

    Who speaks of later rounds can make them ask again (`test_numbers_stay_writable_whatever_a_member_says`).
    """
    pods = [honest(0, 2), honest(1, 2)]
    hostile = {
        m.name: (m, rv)
        for m, rv in readable(objects).values()
        if not (m.owned and m.index in (0, 1)) and max(m.seen_round, m.want_round) < 2
    }
    record = settle(hostile | {m.name: (m, rv) for rv, m in enumerate(pods, 210)}, ROUNDS["forming"], ROSTER)
    assert record is not None
    assert record.phase == RUNNING
    assert {0, 1} <= set(record.slots)
    assert all(record.rank_of(pod.incarnation) == pod.slot for pod in pods)


def test_the_largest_sets_are_decided_within_a_second() -> None:
    rnd = random.Random(1)
    members = {}
    for number in range(20_000):
        slot = rnd.choice((None, rnd.randrange(MAX_SLOTS)))
        owned = rnd.random() < 0.5
        uid = f"uid-{number if rnd.random() < 0.9 else 0}"
        name = f"evil-{number}"
        incarnation = f"{uid if owned else name}/1"
        member = Member(name, "mnist", RUN, incarnation, "10.0.0.9", 1, 2, 1, "round", slot, owned=owned)
        members[name] = (member, number)
    big = replace(ROSTER, max_nodes=100_000)
    record = settle(members, FORMING, big)
    assert record is not None
    assert record.size == MAX_SLOTS
    gone = [member for member, _ in members.values()]
    status = builders.status_of(
        rendezvous("kubernetes", nodes={"min": 2, "max": 3}), Observed(pods=PODS, members=gone), {}, 1795428000.0
    )
    assert complaints(status, STATUS_SCHEMA, "status") == []


def test_what_is_refused_is_named_with_its_reason() -> None:
    real, later = honest(1, 2), "2026-01-01T00:00:09Z"
    copy = replace(real, name="evil", created=later)
    ahead = replace(honest(2, 2), name="far", incarnation="uid-far/1", seen_round=MAX_AHEAD + 2)
    other = replace(copy, name="other-run", run_id="other")
    entries = {m.name: (m, rv) for rv, m in enumerate([copy, real, ahead, other])}
    sifted = sifting.sift(entries, RUN, known=1)
    assert set(sifted.usable) == {"mnist-1", "other-run"}
    assert sifted.refused == {
        "evil": "mnist-1 was there before it with the same incarnation",
        "far": f"it speaks of round {MAX_AHEAD + 2}, the highest that is known otherwise is 1",
    }


def test_a_success_that_somebody_else_says_is_none() -> None:
    pods = [honest(0, 1), honest(1, 1)]
    liars = [replace(pod, name=f"evil-{pod.slot}", state="succeeded", created="2026-01-01T00:00:09Z") for pod in pods]
    entries = {m.name: (m, rv) for rv, m in enumerate([*pods, *liars], 210)}
    assert settle(entries, ROUNDS["running"], ROSTER) == ROUNDS["running"]


@pytest.mark.parametrize("written", [MAX_AHEAD, 2**53 - 1])
def test_numbers_stay_writable_whatever_a_member_says(written: int) -> None:
    far = replace(honest(1, 2), name="evil", incarnation="uid-evil/1", seen_round=written, round_uid="gone")
    record: Round | None = ROUNDS["forming"]
    for _ in range(3):
        record = settle({m.name: (m, 210) for m in (honest(0, 2), far)}, record, None)
        assert record is not None
        assert record.want <= 2 * MAX_AHEAD
