"""The records survive the way through JSON, and what is not a record is refused by the name of its field."""

from __future__ import annotations

import dataclasses
import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv.pairs import Pair
from rdzv.protocol.coordinator_state import CoordinatorState, Policy
from rdzv.protocol.encoding import (
    MAX_SLOTS,
    decode_slots,
    encode_slots,
    salted_fingerprints,
)
from rdzv.protocol.events import Identity
from rdzv.protocol.fields import replace
from rdzv.protocol.records import (
    CLOSED,
    PHASES,
    RUNNING,
    STATES,
    Closure,
    Coordinator,
    Leader,
    Member,
    Round,
    incarnation,
    resource_version,
)
from rdzv.protocol.roster import Absent, Roster
from rdzv.spec import MAX_NODES


def usable(text: str) -> bool:
    address = ip_address(text)
    return not (address.is_unspecified or address.is_multicast)


slots = st.integers(0, MAX_SLOTS - 1)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
addresses = st.ip_addresses().map(str).filter(usable)
counts = st.integers(0, 2**40)
ports = st.integers(0, 65535)
keys = st.text("0123456789abcdef", max_size=64)


def through_json(obj: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(obj))
    return result


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    members = draw(st.sets(slots, max_size=20))
    ordered = tuple(sorted(members))
    salt, fingerprints = salted_fingerprints([f"uid-{slot}/0" for slot in ordered])
    phase = draw(st.sampled_from(PHASES if members else ("Forming", "Closed")))
    coordinator = draw(st.none() | st.builds(Coordinator, st.none() | slots, names, addresses, ports, counts, keys))
    return Round(
        name=draw(names),
        run_id=draw(names),
        round=draw(counts),
        phase=phase,
        slots=ordered,
        fingerprints=fingerprints,
        salt=salt,
        leader=Leader(ordered[0], draw(addresses), draw(ports)) if members else None,
        coordinator=coordinator,
        want=draw(counts),
        want_reason=draw(st.text(max_size=20)),
        members_rv=draw(counts),
        closed=draw(st.builds(Closure, names, st.text(max_size=10))) if phase == CLOSED else None,
    )


members = st.builds(
    Member,
    name=names.filter(lambda text: "/" not in text),
    rendezvous=names,
    run_id=names,
    incarnation=names,
    address=addresses,
    port=ports,
    want_round=counts,
    seen_round=counts,
    round_uid=st.text(max_size=5),
    slot=st.none() | slots,
    allotted=st.booleans(),
    state=st.sampled_from(STATES),
    node=st.text(max_size=5),
    owned=st.booleans(),
    first_rv=counts,
    pair=st.none() | st.builds(Pair, st.sampled_from(["0", "10", "worker", "g" * 63]), st.integers(0, MAX_NODES - 1)),
).map(lambda m: m if m.owned else dataclasses.replace(m, incarnation=incarnation(m.name, "", m.incarnation)))
# A pair and a slot of its own would be two places.
members = members.map(lambda m: m if m.pair is None or m.slot is None else dataclasses.replace(m, allotted=True))


def test_the_ranks_of_a_changed_round_are_those_of_its_own_members() -> None:
    agents = [f"uid-{slot}/0" for slot in range(3)]
    salt, fingerprints = salted_fingerprints(agents)
    before = Round("world", "run", slots=(0, 1, 2), fingerprints=fingerprints, salt=salt)
    assert [before.rank_of(agent) for agent in agents] == [0, 1, 2]
    after = replace(before, slots=(1, 2), fingerprints=fingerprints[1:])
    assert [after.rank_of(agent) for agent in agents] == [None, 0, 1]


@given(rounds(), st.none() | counts)
def test_round_survives_json(record: Round, version: int | None) -> None:
    obj = through_json(record.to_object("ns", version, {"kind": "Rendezvous"}))
    assert Round.from_object(obj) == record
    assert resource_version(obj) == (version or 0)


@given(members)
def test_member_survives_json(record: Member) -> None:
    obj = through_json(record.to_object("ns"))
    assert Member.from_object(obj) == record
    owner = {"apiVersion": "v1", "kind": "Pod", "name": record.name, "uid": record.pod_uid}
    assert obj["metadata"].get("ownerReferences") == ([owner] if record.owned else None)


@given(st.sets(slots), counts, st.sets(names, max_size=3))
def test_roster_survives_json(expected: set[int], heartbeat: int, uids: set[str]) -> None:
    roster = Roster(
        "uid",
        2,
        4,
        known=True,
        expected=frozenset(expected),
        expected_count=len(expected),
        hopeless=(Absent("a-1", 1, "Unschedulable"), Absent("b", None, "ErrImagePull")),
        draining=frozenset(uids),
        dead=frozenset(uids),
        round=7,
        heartbeat=heartbeat,
        heartbeat_seconds=5.0,
    )
    obj = {
        "metadata": {"uid": "uid"},
        "spec": {"nodes": {"min": 2, "max": 4}},
        "status": {"runID": "uid", "round": 7, "roster": roster.to_status()},
    }
    assert Roster.from_object(through_json(obj)) == roster


def test_roster_without_operator_or_of_another_run() -> None:
    obj: dict[str, Any] = {"metadata": {"uid": "new"}, "spec": {"nodes": {"min": 2, "max": 4}}}
    assert Roster.from_object(obj) == Roster("new", 2, 4)
    obj["status"] = {"runID": "old", "roster": {"expectedCount": 3}}
    assert Roster.from_object(obj) == Roster("new", 2, 4)


@given(st.sets(slots))
def test_bitmap(members: set[int]) -> None:
    assert decode_slots(encode_slots(members)) == tuple(sorted(members))


def test_size_of_a_round_is_bounded() -> None:
    everyone = tuple(range(1000))
    salt, fingerprints = salted_fingerprints([f"uid-{slot}/0" for slot in everyone])
    record = Round("n", "r", slots=everyone, fingerprints=fingerprints, salt=salt)
    assert len(json.dumps(record.to_object("ns"))) < 5000


def test_the_key_of_a_round_is_never_printed() -> None:
    coordinator = Coordinator(0, "uid-0/0", "10.0.0.1", 1, 1, key="5ec2e7")
    record = Round("n", "r", coordinator=coordinator)
    assert record.to_object("ns")["spec"]["coordinator"]["key"] == "5ec2e7"
    assert "5ec2e7" not in f"{record} {record!r} {coordinator}"
    me = Identity("n", "r", "pod", "uid-0/0", "10.0.0.1", 1, key="5ec2e7")
    assert "5ec2e7" not in f"{me} {CoordinatorState(me, Policy(1, 1))}"


def test_rank_is_the_number_of_slots_below() -> None:
    incarnations = ["a/0", "b/0", "c/0"]
    salt, fingerprints = salted_fingerprints(incarnations)
    record = Round("n", "r", slots=(1, 4, 9), fingerprints=fingerprints, salt=salt)
    assert [record.rank_of(i) for i in incarnations] == [0, 1, 2]
    assert record.rank_of("b/1") is None


def test_fingerprints_of_one_round_differ() -> None:
    # 4096 of 2^24: about every second salt has a collision, so that both cases occur here.
    salts = {salted_fingerprints([f"{prefix}-{slot}/0" for slot in range(MAX_SLOTS)])[0] for prefix in "abcdef"}
    assert max(salts) > 0


GOOD_ROUND = dataclasses.replace(
    Round("n", "r", round=1, phase=RUNNING), slots=(0,), fingerprints=("abcdef",), leader=Leader(0, "10.0.0.1", 1)
).to_object("ns")
COORDINATOR = {"incarnation": "i", "address": "10.0.0.1", "port": 1, "term": 1}
GOOD_MEMBER = Member("n", "r", "u", "uid/1", "10.0.0.1", 1, 1).to_object("ns", 7)
GOOD_RENDEZVOUS = {"metadata": {"uid": "u"}, "spec": {"nodes": {"min": 1, "max": 2}}, "status": {"roster": {}}}


@pytest.mark.parametrize(
    ("kind", "good", "path", "value"),
    [
        (Round, GOOD_ROUND, "spec", []),
        (Round, GOOD_ROUND, "spec.runID", ""),
        (Round, GOOD_ROUND, "spec.round", -1),
        (Round, GOOD_ROUND, "spec.round", "1"),
        (Round, GOOD_ROUND, "spec.round", True),
        (Round, GOOD_ROUND, "spec.phase", "Dancing"),
        (Round, GOOD_ROUND, "spec.slots", "!"),
        (Round, GOOD_ROUND, "spec.slots", "A" * 8000),
        (Round, GOOD_ROUND, "spec.size", 2),
        (Round, GOOD_ROUND, "spec.checks", "AAAA" * 2),
        (Round, GOOD_ROUND, "spec.checks", "AA=="),
        (Round, GOOD_ROUND, "spec.leader", None),
        (Round, GOOD_ROUND, "spec.leader.slot", 1),
        (Round, GOOD_ROUND, "spec.leader.port", 70000),
        (Round, GOOD_ROUND, "spec.membersRV", "x"),
        (Round, GOOD_ROUND, "spec.membersRV", "²"),
        (Round, GOOD_ROUND, "spec.coordinator", {"incarnation": ""}),
        (Round, GOOD_ROUND, "spec.coordinator", {**COORDINATOR, "key": "0" * 65}),
        (Round, GOOD_ROUND, "spec.coordinator", {**COORDINATOR, "key": 1}),
        (Round, GOOD_ROUND, "metadata.name", ""),
        (Member, GOOD_MEMBER, "spec.slot", MAX_SLOTS),
        (Member, GOOD_MEMBER, "spec.state", "asleep"),
        (Member, GOOD_MEMBER, "spec.address", ""),
        (Member, GOOD_MEMBER, "spec.address", "attacker.example"),
        (Member, GOOD_MEMBER, "spec.address", "0.0.0.0"),
        (Member, GOOD_MEMBER, "spec.address", "ff02::1"),
        (Member, GOOD_MEMBER, "spec.address", "1" * 300),
        (Member, GOOD_MEMBER, "spec.incarnation", "uid/" + "1" * 125),
        (Member, GOOD_MEMBER, "spec.runID", "u" * 254),
        (Member, GOOD_MEMBER, "spec.roundUID", "u" * 129),
        (Member, GOOD_MEMBER, "spec.node", "n" * 254),
        (Member, GOOD_MEMBER, "spec.seenRound", 2**63 - 1),
        (Member, GOOD_MEMBER, "spec.firstRV", "8"),
        (Member, GOOD_MEMBER, "spec.firstRV", "1" * 21),
        (Member, GOOD_MEMBER, "metadata.ownerReferences", [{"kind": "Pod", "name": "n", "uid": "another"}]),
        (Member, GOOD_MEMBER, "metadata.ownerReferences", [{"kind": "Pod", "name": "another", "uid": "uid"}]),
        (Member, GOOD_MEMBER, "spec.allotted", "yes"),
        (Member, GOOD_MEMBER, "spec.wantRound", 1.5),
        (Member, GOOD_MEMBER, "metadata.labels", {}),
        (Roster, GOOD_RENDEZVOUS, "spec.nodes", {"min": 3, "max": 2}),
        (Roster, GOOD_RENDEZVOUS, "metadata.uid", ""),
        (Roster, GOOD_RENDEZVOUS, "status.roster", {"dead": "x"}),
        (Roster, GOOD_RENDEZVOUS, "status.roster", {"hopeless": [1]}),
        (Roster, GOOD_RENDEZVOUS, "status.roster", {"hopeless": {}}),
        (Roster, GOOD_RENDEZVOUS, "status.roster", {"heartbeatSeconds": -1}),
    ],
)
def test_malformed_is_refused_by_the_name_of_the_field(
    kind: type[Round] | type[Member] | type[Roster], good: dict[str, Any], path: str, value: object
) -> None:
    kind.from_object(good)
    obj = through_json(good)
    *parents, last = path.split(".")
    target = obj
    for parent in parents:
        target = target[parent]
    target[last] = value
    expected = {"spec.leader.slot": "spec.leader", "spec.coordinator": "spec.coordinator.(incarnation|key)"}.get(
        path, path
    )
    if expected == "spec.checks" and value == "AAAAAAAA":
        expected = "spec.size"  # the length is right for two members, the bitmap has one
    with pytest.raises(ValueError, match=expected):
        kind.from_object(obj)


def test_a_member_without_a_pod_has_an_incarnation_of_its_own_name() -> None:
    outside = Member("host-0", "r", "u", incarnation("host-0", "", "1"), "10.0.0.1", 1, 1, owned=False)
    obj = outside.to_object("ns")
    assert Member.from_object(obj) == outside
    assert outside.pod_uid == ""
    obj["spec"]["incarnation"] = "host-1/1"
    with pytest.raises(ValueError, match=r"spec.incarnation: 'host-1/1' does not begin with the name, 'host-0'"):
        Member.from_object(obj)


def test_the_incarnation_of_a_long_name_fits() -> None:
    name = "n" * 253
    outside = Member(name, "r", "u", incarnation(name, "", "1"), "10.0.0.1", 1, 1, owned=False)
    assert Member.from_object(outside.to_object("ns")) == outside


def test_a_member_written_before_there_was_first_rv_is_readable() -> None:
    assert Member.from_object(GOOD_MEMBER).first_rv == 0
