from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from support import builders
from support.builders import FakeNamespace, member, pod_object, rendezvous, running

from rdzv.backends import World
from rdzv.backends.kubernetes import BACKEND, HEARTBEAT
from rdzv.control.plan import plan
from rdzv.observed import Observed
from rdzv.protocol.records import CLOSED, FORMING, Closure, LeftOut, Member, Round
from rdzv.protocol.roster import Roster
from rdzv.registry import backend_registry

NOW = 1795428000.0


def status(
    pods: list[dict[str, Any]],
    record: Round | None,
    members: list[Member],
    now: float = NOW,
    policy: Mapping[str, int] | None = None,
    **previous: Any,
) -> dict[str, Any]:
    more: dict[str, Any] = {} if policy is None else {"failurePolicy": policy}
    subject = rendezvous("kubernetes", nodes={"min": 2, "max": 3}, **more)
    seen = [builders.pod(obj) for obj in pods]
    gone = frozenset(each.pod_uid for each in members) - {pod.uid for pod in seen}
    observed = Observed(pods=seen, round=record, members=members, gone=gone)
    return builders.status_of(subject, observed, previous, now)


def formed(of: dict[str, Any]) -> tuple[str, str]:
    return next((c["status"], c["reason"]) for c in of["conditions"] if c["type"] == "Formed")


def degraded(of: dict[str, Any]) -> tuple[str, str]:
    return next((c["status"], c["reason"]) for c in of["conditions"] if c["type"] == "Degraded")


def message(of: dict[str, Any], condition: str) -> str:
    return next(str(c["message"]) for c in of["conditions"] if c["type"] == condition)


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


def test_who_cannot_be_reached_is_a_problem_by_name() -> None:
    members = [member(pod) for pod in PODS[:2]]
    reason = "mnist-2 can't be reached by mnist-0 at 10.0.0.7:41234"
    (degraded,) = (
        condition
        for condition in status(PODS, running(members, left_out=(LeftOut("mnist-2", reason),)), members)["conditions"]
        if condition["type"] == "Degraded"
    )
    assert (degraded["status"], degraded["reason"], degraded["message"]) == ("True", "Unreachable", reason)


def failing(rounds: int, policy: Mapping[str, int] | None = None) -> tuple[dict[str, Any], Round]:
    """The status, and the Round, of a world that slot 1 on node-b makes form anew every ten seconds."""
    members, found = [member(pod) for pod in PODS], dict[str, Any]()
    for number in range(1, rounds + 2):
        reason = "gone: slot 1 (node-b)" if number > 1 else "created"
        record = replace(running(members), round=number, want=number, want_reason=reason, uid="u")
        found = status(PODS, record, members, now=NOW + 10 * number, policy=policy, **found)
    return found, record


def test_a_node_that_most_failures_are_on_is_a_problem_by_name() -> None:
    found, _ = failing(2)
    assert degraded(found) == ("False", "AsExpected")
    found, _ = failing(3)
    assert degraded(found)[:2] == ("True", "NodeSuspect")
    assert "node-b lost 3 of 3 worlds of the last 3600 s" in message(found, "Degraded")
    assert roster(found).ended == ""


def test_a_world_that_fails_more_often_than_its_policy_allows_is_ended_and_says_why() -> None:
    policy = {"maxReforms": 3, "window": 600}
    assert roster(failing(3, policy)[0]).ended == ""
    found, record = failing(4, policy)
    assert (roster(found).ended_uid, record.uid) == ("u", "u")
    assert roster(found).ended.startswith("it was formed anew 4 times within 600 s")
    closed = replace(record, phase=CLOSED, closed=Closure("TooManyReforms", "mnist-0"))
    found = status(PODS, closed, [member(pod) for pod in PODS], now=NOW + 60, policy=policy, **found)
    assert formed(found) == ("False", "ClosedTooManyReforms")
    assert "spec.failurePolicy allows 3; node-b lost 4 of 4 worlds" in message(found, "Degraded")


def test_failures_that_are_long_ago_count_no_more() -> None:
    found, record = failing(4, {"maxReforms": 4, "window": 600})
    later = status(PODS, record, [member(pod) for pod in PODS], now=NOW + 10_000, **found)
    assert "reforms" not in later
    assert degraded(later)[0] == "False"


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


def test_an_agent_is_dead_only_when_the_api_server_says_that_its_pod_is_gone() -> None:
    subject, late = rendezvous("kubernetes"), member(pod_object("late"))
    unseen = Observed(pods=[builders.pod(obj) for obj in PODS], members=[late])
    assert roster(builders.status_of(subject, unseen, {}, NOW)).dead == frozenset()
    asked = replace(unseen, gone=frozenset({"uid-of-late", "uid-of-nobody"}))
    assert roster(builders.status_of(subject, asked, {}, NOW)).dead == frozenset({"uid-of-late"})


def world(
    pods: list[dict[str, Any]], record: Round | None, members: list[Member], now: float, **previous: Any
) -> World:
    observed = Observed(pods=[builders.pod(obj) for obj in pods], round=record, members=members)
    return BACKEND.observe(rendezvous("kubernetes"), observed, previous, now)


def test_the_heart_beats_only_while_agents_wait() -> None:
    members, before = [member(pod) for pod in PODS], {"roster": {"heartbeat": 7, "heartbeatSeconds": 80}}
    for record, waiting in ((running(members), members), (None, []), (None, [member(PODS[0], state="failed")])):
        quiet = world(PODS, record, waiting, NOW, **before)
        assert (quiet.again, quiet.status["roster"]["heartbeat"]) == (None, 7), "nothing to write in a quiet minute"
        assert quiet.status["roster"]["heartbeatSeconds"] == HEARTBEAT, "who waits next soon knows"
    for record in (None, running(members, want=2)):
        assert world(PODS, record, members, NOW, **before).status["roster"]["heartbeat"] == int(NOW)


def test_it_beats_less_often_the_longer_they_wait_and_says_how_long_each_beat_holds() -> None:
    members, now, periods = [member(pod) for pod in PODS[:1]], NOW, []
    status: Mapping[str, Any] = {}
    for _ in range(8):
        seen = world(PODS, None, members, now, **status)
        beat, status = seen.status["roster"], seen.status
        assert beat["heartbeat"] == int(now)
        assert seen.again == beat["heartbeatSeconds"]
        again = world(PODS, None, members, now + beat["heartbeatSeconds"] - 1, **status)
        assert again.status["roster"]["heartbeat"] == beat["heartbeat"], "not before it is due"
        periods.append(beat["heartbeatSeconds"])
        now += beat["heartbeatSeconds"] + 0.3
    assert periods == [5, 10, 20, 40, 80, 80, 80, 80]


@pytest.mark.parametrize("gap", [-1000.0, 400.0])
def test_after_a_pause_or_when_the_clock_went_back_it_begins_anew(gap: float) -> None:
    members = [member(pod) for pod in PODS[:1]]
    seen = world(PODS, None, members, NOW + gap, roster={"heartbeat": int(NOW), "heartbeatSeconds": 80})
    assert (seen.status["roster"]["heartbeat"], seen.again) == (int(NOW + gap), HEARTBEAT)


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
