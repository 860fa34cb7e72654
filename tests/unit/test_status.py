from __future__ import annotations

from typing import Any

import pytest
from support import builders
from support.builders import pod_object, rendezvous

from rdzv.backends import BackendError
from rdzv.control.events import events_for, events_without_rendezvous
from rdzv.control.plan import Plan
from rdzv.observed import Observed
from rdzv.spec import Rendezvous

NOW = 1795428000.0
NOW_TEXT = "2026-11-23T10:00:00Z"


def status_of(
    subject: Rendezvous, pods: list[dict[str, Any]], previous: dict[str, Any] | None = None, error: str = ""
) -> dict[str, Any]:
    observed = Observed(pods=[builders.pod(obj) for obj in pods])
    return builders.status_of(subject, observed, previous or {}, NOW, error)


def condition(status: dict[str, Any], type_: str) -> dict[str, Any]:
    return next(dict(c) for c in status["conditions"] if c["type"] == type_)


def test_nodes_names_who_is_missing_and_why() -> None:
    stuck = pod_object("mnist-3", index=3)
    stuck["status"] = {
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}
        ],
    }
    pods = [pod_object(f"mnist-{i}", index=i, phase="Running") for i in (0, 1)] + [stuck]
    status = status_of(rendezvous("static", nodes={"min": 4, "max": 4}), pods)
    assert status["nodes"] == {
        "expected": 4,
        "joined": 2,
        "summary": "2/4",
        "missing": [
            {"pod": "mnist-3", "reason": "Unschedulable: 0/2 nodes are available"},
            {"pod": "index 2", "reason": "NotCreated: no pod with this index exists"},
        ],
    }
    assert condition(status, "Ready")["reason"] == "NodesMissing"
    assert condition(status, "Degraded")["reason"] == "PodsStuck"


@pytest.mark.parametrize(
    ("pods", "low", "high", "summary"),
    [(0, 2, 4, "0/2"), (3, 2, 4, "3/3"), (6, 2, 4, "6/4"), (2, 2, 2, "2/2")],
)
def test_an_elastic_world_expects_the_pods_that_exist(pods: int, low: int, high: int, summary: str) -> None:
    seen = [builders.pod(pod_object(f"p{i}", phase="Running")) for i in range(pods)]
    assert (
        builders.status_of(rendezvous(nodes={"min": low, "max": high}), Observed(seen), {}, NOW)["nodes"]["summary"]
        == summary
    )


def test_a_finished_job_keeps_its_count() -> None:
    pods = [pod_object(f"p{i}", index=i, phase="Succeeded") for i in range(2)]
    assert status_of(rendezvous(), pods)["nodes"]["summary"] == "2/2"


def test_every_condition_is_there_from_the_first_visit() -> None:
    status = status_of(rendezvous(), [])
    assert [c["type"] for c in status["conditions"]] == ["Provisioned", "Ready", "Formed", "Degraded"]
    assert all(c["observedGeneration"] == 1 and c["reason"] for c in status["conditions"])
    assert condition(status, "Ready")["reason"] == "NodesMissing"
    assert status["endpoint"] == "rdzv-mnist.team.svc:29400"


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = status_of(rendezvous(), [])
    for entry in first["conditions"]:
        entry["lastTransitionTime"] = "2020-01-01T00:00:00Z"
    again = status_of(rendezvous(), [pod_object("a", phase="Running")], previous=first)
    assert condition(again, "Ready")["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    failed = status_of(rendezvous(), [], previous=first, error="500 Internal Server Error: etcd is away")
    assert condition(failed, "Ready")["lastTransitionTime"] == NOW_TEXT
    assert condition(failed, "Ready")["message"] == "500 Internal Server Error: etcd is away"


def test_an_unknown_backend_is_answered_with_what_is_registered() -> None:
    status = status_of(rendezvous("tpyo"), [])
    ready = condition(status, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "UnknownBackend")
    assert "registered: c10d" in ready["message"]
    assert "endpoint" not in status


@pytest.mark.parametrize(
    ("backend", "pods", "reason"),
    [
        ("c10d", [pod_object("a", index=0), pod_object("b", index=0)], "DuplicateIndex"),
        ("static", [pod_object("a")], "NoIndex"),
        ("c10d", [pod_object(f"p{i}") for i in range(3)], "TooManyPods"),
        ("c10d", [{**pod_object("a"), "spec": {"containers": [{"name": "train"}]}}], "NotInjected"),
        ("c10d", [pod_object("a", index=0), pod_object("b", index=1)], "AsExpected"),
    ],
)
def test_what_is_wrong_with_the_pods_is_said(backend: str, pods: list[dict[str, Any]], reason: str) -> None:
    assert condition(status_of(rendezvous(backend), pods), "Degraded")["reason"] == reason


def test_events_name_the_object_the_cause_and_the_fix_and_do_not_repeat() -> None:
    waiting, running = builders.pod(pod_object("a")), builders.pod(pod_object("b", phase="Running"))
    (event,) = events_without_rendezvous("team", "mnsit", [waiting, running])
    assert "Rendezvous mnsit, which does not exist in namespace team" in event.message
    assert event.to_object(NOW_TEXT)["metadata"] == event.to_object("2027-01-01T00:00:00Z")["metadata"]

    refusal = Plan(refused=BackendError("EndpointRequired", "backend etcd needs spec.endpoint"))
    (event,) = events_for(rendezvous("etcd"), refusal, [], {})
    assert (event.type, event.reason, event.kind) == ("Warning", "EndpointRequired", "Rendezvous")
    (event,) = events_for(rendezvous(), Plan(), [waiting], {"a": ["PET_NNODES in container train"]})
    assert "PET_NNODES in container train" in event.message
