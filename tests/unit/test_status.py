from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from support import builders
from support.builders import pod_object, rendezvous

from rdzv.backends import BackendError
from rdzv.control.events import RECENT, EventToPost, events_for, events_of_status, events_without_rendezvous
from rdzv.control.nearby import Found, Warned
from rdzv.control.plan import Failure, Plan, plan
from rdzv.control.status import Beside, look_again
from rdzv.observed import Observed
from rdzv.registry import backend_registry
from rdzv.spec import Rendezvous

NOW = 1795428000.0
NOW_TEXT = "2026-11-23T10:00:00Z"


def status_of(
    subject: Rendezvous,
    pods: list[dict[str, Any]],
    previous: dict[str, Any] | None = None,
    failures: Sequence[Failure] = (),
) -> dict[str, Any]:
    observed = Observed(pods=[builders.pod(obj) for obj in pods])
    return builders.status_of(subject, observed, previous or {}, NOW, failures)


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
    ready = condition(status, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "PodsStuck"), "without help there will be no world of four"
    assert condition(status, "Degraded")["reason"] == "PodsStuck"


@pytest.mark.parametrize(
    ("pods", "low", "high", "summary"),
    [(0, 2, 4, "0/2"), (3, 2, 4, "3/3"), (6, 2, 4, "4/4"), (2, 2, 2, "2/2")],
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
    failed = status_of(
        rendezvous(), [], previous=first, failures=[Failure("APIError", "500 Internal Server Error: etcd is away")]
    )
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
        ("c10d", [pod_object("a", index=4_000_000_000)], "UnusableIndex"),
        ("static", [pod_object("a", index=10_000)], "UnusableIndex"),
        ("kubernetes", [pod_object("a", index=4096)], "UnusableIndex"),
        ("c10d", [pod_object("a", index=4096)], "AsExpected"),
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
    (event,) = events_for(rendezvous("etcd"), refusal, [], [], {})
    assert (event.type, event.reason, event.kind) == ("Warning", "EndpointRequired", "Rendezvous")
    (event,) = events_for(rendezvous(), Plan(), [], [waiting], {"a": ["PET_NNODES in container train"]})
    assert "PET_NNODES in container train" in event.message


def test_the_host_is_told_from_what_is_so_that_a_new_process_tells_it_too() -> None:
    namespace = builders.FakeNamespace([pod_object("a", index=0)])

    def seen() -> Observed:
        return Observed([builders.pod(pod_object("a", index=0))], list(namespace.children.values()))

    decided = plan(rendezvous(), seen(), backend_registry())
    assert events_for(rendezvous(), decided, [], seen().pods, {}) == [], "the Service does not lead there yet"

    namespace.execute(decided)
    decided = plan(rendezvous(), seen(), backend_registry())
    assert not decided.apply
    (event,) = events_for(rendezvous(), decided, [], seen().pods, {})
    assert (event.reason, "pod a hosts the store" in event.message) == ("HostChosen", True)


def test_every_failure_is_named_and_a_taken_name_before_the_others() -> None:
    failures = [Failure("APIError", "PUT role: 500"), Failure("NameTaken", "Service rdzv-mnist exists")]
    failures += [Failure("APIError", "x" * 10_000) for _ in range(100)]
    status = status_of(rendezvous(), [], failures=failures)
    for type_ in ("Ready", "Provisioned"):
        found = condition(status, type_)
        assert (found["status"], found["reason"]) == ("False", "NameTaken")
        assert found["message"].startswith("PUT role: 500; Service rdzv-mnist exists; xxx")
        assert len(found["message"]) < 10_000
    (event,) = events_for(rendezvous(), Plan(), failures, [], {})
    assert event.reason == "NameTaken"


@pytest.mark.parametrize(("taken_for", "wait"), [(0, 2), (100, 10), (10_000, 30)])
def test_a_name_that_is_taken_is_looked_at_again_less_and_less_often(taken_for: int, wait: float) -> None:
    previous = status_of(rendezvous(), [], failures=[Failure("NameTaken", "Service rdzv-mnist exists")])
    assert look_again(previous, NOW + taken_for) == wait


def test_what_was_only_now_found_taken_is_looked_at_soon() -> None:
    previous = status_of(rendezvous(), [], failures=[Failure("APIError", "500")])
    assert look_again(previous, NOW + 10_000) == look_again({}, NOW) == 2


def told(status: dict[str, Any], after: float = 1.0) -> list[EventToPost]:
    return events_of_status(rendezvous(), status, NOW + after)


def test_a_transition_is_told_once_and_only_for_a_while() -> None:
    pods = [pod_object(f"p{i}") for i in range(3)]
    first = status_of(rendezvous(), pods)
    (event,) = told(first)
    assert (event.type, event.reason) == ("Warning", "TooManyPods")
    assert "raise spec.nodes.max" in event.message
    # More of the same is the same story, whatever the message counts.
    more = status_of(rendezvous(), [*pods, pod_object("p3")], previous=first)
    (again,) = told(more)
    assert again.message != event.message
    assert again.digest == event.digest
    assert told(more, after=RECENT) == [], "a new process does not tell old stories"
    later = dict(more, conditions=[dict(c, lastTransitionTime="2026-11-23T10:05:00Z") for c in more["conditions"]])
    (anew,) = told(later, after=301)
    assert anew.digest != event.digest, "it was well in between"


def test_what_passes_by_itself_or_is_told_elsewhere_is_no_event_of_the_status() -> None:
    for failure in (Failure("APIError", "500"), Failure("NameTaken", "Service rdzv-mnist exists")):
        assert told(status_of(rendezvous(), [], failures=[failure])) == []
    assert told(status_of(rendezvous(), [])) == []


def test_a_world_and_the_end_of_a_job_are_told() -> None:
    pods = [pod_object(f"mnist-{i}", index=i, phase="Running") for i in (0, 1)]
    subject, members = rendezvous("kubernetes"), [builders.member(obj) for obj in pods]
    seen = Observed([builders.pod(obj) for obj in pods], round=builders.running(members), members=members)
    up = builders.status_of(subject, seen, {}, NOW)
    assert [(event.type, event.reason) for event in told(up)] == [("Normal", "Formed")]
    looping = builders.status_of(subject, seen, {}, NOW, beside=Beside(rounds_lately=50))
    assert [event.reason for event in told(looping)] == ["ReformingLoop"], "not each of its rounds"
    for phase, type_ in (("Succeeded", "Normal"), ("Failed", "Warning")):
        ended = status_of(rendezvous(), [pod_object(f"p{i}", index=i, phase=phase) for i in (0, 1)])
        assert [(event.type, event.reason) for event in told(ended)] == [(type_, phase)]


def test_a_pod_that_waits_without_a_reason_has_that_of_its_event() -> None:
    waiting = pod_object("a")
    warned = Warned("Pod", "a", "FailedMount", 'FailedMount: secret "s3" not found', NOW)
    beside = Beside(found=Found(warnings={"uid-of-a": warned}))
    status = builders.status_of(rendezvous(), Observed([builders.pod(waiting)]), {}, NOW, beside=beside)
    assert status["nodes"]["missing"][0] == {"pod": "a", "reason": 'FailedMount: secret "s3" not found'}
    assert condition(status, "Degraded")["message"].startswith('a: FailedMount: secret "s3" not found')
    # Once it says itself why it waits, the Event is an old one.
    waiting["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ErrImagePull", "message": "no"}}
    status = builders.status_of(rendezvous(), Observed([builders.pod(waiting)]), {}, NOW, beside=beside)
    assert status["nodes"]["missing"][0]["reason"] == "ErrImagePull: no"
