from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support import builders
from support.builders import FakeNamespace, pod_object, rendezvous

from rdzv.backends.kubernetes import HEARTBEAT
from rdzv.control.plan import plan
from rdzv.observed import Observed
from rdzv.protocol.encoding import (
    salted_fingerprints,
)
from rdzv.protocol.records import (
    CLOSED,
    FORMING,
    RUNNING,
    Closure,
    Leader,
    Member,
    Roster,
    Round,
)
from rdzv.registry import backend_registry

NOW = 1795428000.0


def member(pod: dict[str, Any], **changes: Any) -> Member:
    meta = pod["metadata"]
    base = Member(meta["name"], "mnist", "uid-1", f"{meta['uid']}/1", "10.0.0.1", 29400, 1)
    return replace(base, **changes)


def running(members: list[Member], number: int = 1, **changes: Any) -> Round:
    salt, fingerprints = salted_fingerprints([each.incarnation for each in members])
    leader = Leader(0, "10.0.0.1", 29400)
    record = Round("mnist", "uid-1", number, RUNNING, tuple(range(len(members))), fingerprints, salt, leader)
    return replace(record, **changes)


def status(pods: list[dict[str, Any]], record: Round | None, members: list[Member], **previous: Any) -> dict[str, Any]:
    subject = rendezvous("kubernetes", nodes={"min": 2, "max": 3})
    observed = Observed(pods=[builders.pod(obj) for obj in pods], round=record, members=members)
    return builders.status_of(subject, observed, previous, NOW)


def formed(of: dict[str, Any]) -> tuple[str, str]:
    return next((c["status"], c["reason"]) for c in of["conditions"] if c["type"] == "Formed")


def roster(of: dict[str, Any]) -> Roster:
    """As an agent reads it."""
    obj = {"metadata": {"uid": "uid-1"}, "spec": {"nodes": {"min": 2, "max": 3}}, "status": of}
    return Roster.from_object(obj)


PODS = [pod_object(f"mnist-{index}", index=index, phase="Running") for index in range(3)]


def test_agents_read_what_the_operator_writes() -> None:
    stuck = pod_object("mnist-2", index=2)
    stuck["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] = "ImagePullBackOff"
    leaving = pod_object("old", index=1, phase="Running", deletionTimestamp="2026-01-01T00:00:00Z")
    gone = member(pod_object("gone"))
    result = roster(status([*PODS[:2], stuck, leaving], None, [gone]))
    assert result.known
    assert (result.expected, result.expected_count) == (frozenset({0, 1, 2}), 3)
    assert [(absent.pod, absent.slot) for absent in result.hopeless] == [("mnist-2", 2)]
    assert result.draining == frozenset({"uid-of-old"})
    assert result.dead == frozenset({"uid-of-gone"})


def test_an_agent_outside_of_pods_is_not_dead_for_want_of_one() -> None:
    outside = member(pod_object("host-0"), incarnation="host-0/1", owned=False)
    assert roster(status(PODS, None, [outside])).dead == frozenset()


def test_who_has_joined_is_who_asked_and_then_who_is_in_the_world() -> None:
    members = [member(pod) for pod in PODS[:2]]
    before = status(PODS, None, members)
    assert before["nodes"]["summary"] == "2/3"
    assert before["nodes"]["missing"][0]["pod"] == "mnist-2"
    assert before["nodes"]["missing"][0]["reason"].startswith("NotJoined")
    assert formed(before) == ("False", "Forming")

    after = status(PODS, running(members), [*members, member(PODS[2], want_round=2)])
    assert after["nodes"]["summary"] == "2/3", "a spare is not in the world"
    assert formed(after) == ("True", "Formed")
    assert after["round"] == 1


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, ("False", "Forming")),
        (Round("mnist", "uid-1", 1, FORMING), ("False", "Forming")),
        (running([member(pod) for pod in PODS]), ("True", "Formed")),
        (running([member(pod) for pod in PODS], want=2, want_reason="mnist-1 left"), ("False", "FormingAnew")),
        (running([member(pod) for pod in PODS], run_id="another"), ("False", "Forming")),
        (Round("mnist", "uid-1", 4, CLOSED, closed=Closure("Succeeded", "mnist-0")), ("False", "ClosedSucceeded")),
    ],
)
def test_formed_says_what_the_record_says(record: Round | None, expected: tuple[str, str]) -> None:
    assert formed(status(PODS, record, [member(pod) for pod in PODS])) == expected


def test_the_heart_beats_only_while_a_world_forms() -> None:
    members = [member(pod) for pod in PODS]
    forming = status(PODS, None, members)["roster"]["heartbeat"]
    assert forming == NOW // HEARTBEAT
    quiet = status(PODS, running(members), members, roster={"heartbeat": 7}, runID="uid-1")
    assert quiet["roster"]["heartbeat"] == 7, "nothing to write in a quiet minute"
    assert status([], None, [], roster={"heartbeat": 7})["roster"]["heartbeat"] == 7, "nobody is there to form one"


def test_the_round_never_goes_back_except_for_a_new_incarnation() -> None:
    members = [member(pod) for pod in PODS]
    assert status(PODS, None, members, round=9, runID="uid-1")["round"] == 9
    assert status(PODS, running(members, 3), members, round=9, runID="uid-0")["round"] == 3


def test_nodes_that_are_done_stay_counted_while_the_last_ones_end() -> None:
    members = [member(pod, state="succeeded") for pod in PODS]
    closed = Round("mnist", "uid-1", 1, CLOSED, closed=Closure("Succeeded", "mnist-0"))
    assert status(PODS, closed, members)["nodes"]["summary"] == "3/3"


def test_the_pods_accounts_may_take_part_and_no_others() -> None:
    pods = [pod_object("a", index=0), pod_object("b", index=1)]
    pods[1]["spec"]["serviceAccountName"] = "trainer"
    namespace = FakeNamespace(pods)
    subject = rendezvous("kubernetes")
    observed = Observed(pods=[builders.pod(obj) for obj in pods])
    namespace.execute(plan(subject, observed, backend_registry()))
    binding = namespace.children["RoleBinding", "rdzv-mnist"]
    assert [subject["name"] for subject in binding["subjects"]] == ["default", "trainer"]
    rules = namespace.children["Role", "rdzv-mnist"]["rules"]
    assert all(rule["apiGroups"] == ["rdzv.dev"] and "*" not in rule["verbs"] for rule in rules)
    unnamed = {(rule["resources"][0], verb) for rule in rules for verb in rule["verbs"] if "resourceNames" not in rule}
    assert unnamed == {("rendezvousrounds", "create")} | {
        ("rendezvousmembers", verb) for verb in ("create", "get", "list", "update", "watch")
    }
    assert namespace.hosts() == []
