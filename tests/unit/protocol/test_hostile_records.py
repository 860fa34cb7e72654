"""Records of every kind with anything in them: they are read, or refused with ValueError, and what was read can be used.

An etcd checks nothing of what is written into it. RDZV_FAULTS=long (`make faults`) tries a hundred times as much.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.hostile_replies import changed

from rdzv.protocol.encoding import fingerprint
from rdzv.protocol.records import RUNNING, Coordinator, Endpoint, Leader, LeftOut, Member, Round
from rdzv.protocol.roster import Absent, Roster
from rdzv.spec import LABEL
from rdzv.store import records as store
from rdzv.store.records import Malformed, Op

T = TypeVar("T")
many = settings(
    max_examples=10_000 if os.environ.get("RDZV_FAULTS") == "long" else 200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
MEMBER = {
    **Member("m", "job", "run", "uid/1", "10.0.0.1", 1, 2, 1, "u", 0, unreachable=Endpoint("10.0.0.2", 3)).to_object(
        "ns", 7
    )
}
ROUND = Round(
    "job",
    "run",
    1,
    RUNNING,
    (0, 1),
    ("00aabb", "11ccdd"),
    leader=Leader(0, "10.0.0.1", 1),
    coordinator=Coordinator(0, "uid/1", "10.0.0.1", 2, 3, "key"),
    left_out=(LeftOut("m", "far"),),
).to_object("ns", 7)
ROSTER = {
    "metadata": {"name": "job", "uid": "run"},
    "spec": {"nodes": {"min": 1, "max": 4}, "kubernetes": {}},
    "status": {
        "runID": "run",
        "round": 1,
        "roster": Roster(
            "run",
            1,
            4,
            True,
            frozenset({0, 1}),
            2,
            (Absent("m", 1, "no"),),
            frozenset({"a"}),
            frozenset({"b"}),
            ended="x",
            ended_uid="u",
        ).to_status(),
    },
}
ENTRY = store.entry_of("ab", 1, [Op("set", "k", b"v"), Op("add", "n", amount=1)])
SHARD = store.new_shard("job-1", "job-1-0", store.prepared(store.entry_of("ab", 1, [Op("set", "k", b"v")]), "d", 1))
LETTER = store.letter("job-1", store.shard_of("k"), store.entry_of("ab", 1, [Op("set", "k", b"v")]), 1)
DECISION = store.new_decision("job-1", "job-1-decision-ab-1", store.COMMIT)


def read(function: Callable[[Any], T], found: Any, refusal: type[ValueError] = ValueError) -> T | None:
    """What the function makes of it, None when it refuses it in not too many words."""
    try:
        return function(json.loads(json.dumps(found)))
    except refusal as caught:
        error = caught
    assert len(str(error)) < 1024
    return None


@many
@given(changed(MEMBER))
@example({**MEMBER, "spec": {**MEMBER["spec"], "incarnation": "uid/\ud800"}})
def test_a_member(found: Any) -> None:
    member = read(Member.from_object, found)
    if member is None:
        return
    assert len(fingerprint(0, member.incarnation)) == 6
    assert json.dumps(member.to_object("ns")).encode()


@many
@given(changed(ROUND))
def test_a_round(found: Any) -> None:
    record = read(Round.from_object, found)
    if record is None:
        return
    assert len(json.dumps(record.to_object("ns")).encode()) < 1 << 20


@many
@given(changed(ROSTER))
@example({**ROSTER, "status": {"roster": {"heartbeatSeconds": math.nan}}})
@example({**ROSTER, "status": {"roster": {"heartbeatSeconds": 10**400}}})
def test_a_roster(found: Any) -> None:
    roster = read(Roster.from_object, found)
    if roster is None:
        return
    assert math.isfinite(roster.heartbeat_seconds)
    assert json.dumps(roster.to_status()).encode()


@many
@given(st.one_of(changed(SHARD), changed(LETTER), changed(DECISION)))
@example({**LETTER, "spec": {**LETTER["spec"], "log": [{**ENTRY, "ops": [{**ENTRY["ops"][0], "key": "\ud800"}]}]}})
def test_a_record_of_a_store(found: Any) -> None:
    for check in (store.checked_shard, lambda obj: store.checked_letter(obj, 0), store.checked_decision):
        read(check, found, Malformed)


@pytest.mark.parametrize("depth", [100, 400, 900])
def test_what_is_nested_deeply_is_refused_like_anything_else(depth: int) -> None:
    nested: Any = "x"
    for _ in range(depth):
        nested = [nested]
    with pytest.raises(ValueError, match=r"spec\.incarnation"):
        Member.from_object({**MEMBER, "spec": {**MEMBER["spec"], "incarnation": nested}})
    with pytest.raises(Malformed):
        store.checked_decision({"spec": {"decision": nested}})


def test_what_is_changed_here_is_good_before() -> None:
    assert MEMBER["metadata"]["labels"] == {LABEL: "job"}
    assert Member.from_object(MEMBER).name == "m"
    assert Round.from_object(ROUND).size == 2
    assert Roster.from_object(ROSTER).expected_count == 2
