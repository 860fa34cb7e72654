"""What is near a Rendezvous: who nearly uses it, who holds its pods back, and what Events say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import builders
from support.builders import pod_object, rendezvous

from rdzv.control.children import child
from rdzv.control.events import EventToPost
from rdzv.control.inquiry import (
    AGAIN_FIRST,
    AGAIN_MAX,
    BURST,
    FRESH,
    IDLE,
    LATER,
    PATIENCE,
    Inquiry,
)
from rdzv.control.nearby import Found, is_alike, look_around, meant, warnings_of, workload_of
from rdzv.control.status import rfc3339
from rdzv.kube.api import ApiError
from rdzv.observed import Observed
from rdzv.registry import backend_registry
from rdzv.spec import LABEL, Rendezvous

Object = dict[str, Any]

NOW = 1795428000.0
CREATED = "2026-11-23T10:00:00Z"


def job(labels: Object | None = None, template: Object | None = None, *, kind: str = "Job", **spec: Any) -> Object:
    meta = {"name": "train", "uid": "uid-of-job", "labels": labels or {}}
    return {"kind": kind, "metadata": meta, "spec": {"template": {"metadata": template or {}}, **spec}}


def event(kind: str, name: str, reason: str, message: str, uid: str = "", at: str = CREATED) -> Object:
    return {
        "metadata": {"name": f"{name}.1", "creationTimestamp": at},
        "involvedObject": {"kind": kind, "name": name, "uid": uid or f"uid-of-{name}"},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
    }


def around(
    workloads: Sequence[Object] = (),
    pods: Sequence[Object] = (),
    events: Sequence[Object] = (),
    names: Sequence[str] = (),
) -> Found:
    read = [workload_of(obj, obj["kind"]) for obj in workloads]
    return look_around("mnist", {"mnist", *names}, pods, read, warnings_of(events))


@pytest.mark.parametrize(
    ("labels", "template", "said"),
    [
        ({LABEL: "mnist"}, {}, "Job train has the label rdzv.dev/rendezvous: mnist on itself"),
        (
            {},
            {"labels": {"rdvz.dev/rendezvous": "mnist"}},
            "has the label rdvz.dev/rendezvous: mnist: write rdzv.dev/rendezvous",
        ),
        ({}, {"labels": {"rendezvous": "mnist"}}, "has the label rendezvous: mnist: write"),
        ({}, {"labels": {"rdzv.dev/rendevous": "mnist"}}, "rdzv.dev/rendevous: mnist: write"),
        ({}, {"labels": {"rdzv.dev/name": "mnist"}}, "rdzv.dev/name: mnist: write"),
        ({}, {"labels": {LABEL: "mnsit"}}, "mnsit, and there is no such Rendezvous: did you mean mnist?"),
        ({}, {"labels": {LABEL: "MNIST"}}, "did you mean mnist?"),
        ({}, {"annotations": {LABEL: "mnist"}}, "as an annotation: write it as a label"),
    ],
)
def test_a_slip_is_said_with_what_to_write(labels: Object, template: Object, said: str) -> None:
    (text,) = around([job(labels, template)]).near
    assert said in text


@pytest.mark.parametrize(
    "template",
    [
        {"labels": {LABEL: "mnist"}},
        {"labels": {"app": "mnist"}},
        {"labels": {LABEL: "mnsit"}},
        {"labels": {LABEL: "entirely-different"}},
        {"labels": {"rdzv.dev/slot": "mnist"}},
        {},
    ],
)
def test_what_is_right_or_another_matter_is_no_slip(template: Object) -> None:
    assert around([job({}, template)], names=["mnsit"]).near == []


@pytest.mark.parametrize(
    "subject",
    [*map(rendezvous, ("etcd", "etcd-v2", "etcd-v3")), rendezvous("c10d", c10d={"host": "dedicated", "image": "x"})],
    ids=["etcd", "etcd-v2", "etcd-v3", "c10d"],
)
def test_the_server_that_the_operator_runs_is_no_slip(subject: Rendezvous) -> None:
    (made,) = (obj for obj in backend_registry().provision(subject).objects if obj["kind"] == "StatefulSet")
    found = around([child(made, subject), job({}, {"labels": {LABEL: "mnist"}}, suspend=True)])
    assert (found.near, found.suspended) == ([], "Job train")


def test_pods_are_told_of_unless_their_workload_is() -> None:
    slip = {"metadata": {"name": "bare", "labels": {"rdzv/rendezvous": "mnist"}}}
    owned = {"metadata": {**slip["metadata"], "ownerReferences": [{"kind": "Job", "name": "train"}]}}
    assert len(around(pods=[slip]).near) == 1
    assert around(pods=[owned]).near == []


def test_who_is_suspended_and_whose_pods_are_refused_is_found_by_the_template() -> None:
    mine = {"labels": {LABEL: "mnist"}}
    assert around([job({}, mine, suspend=True)]).suspended == "Job train"
    assert around([job({}, {}, suspend=True)]).suspended == ""
    text = 'pods "train-0-abc" is forbidden: exceeded quota: gpus'
    for kind, name in (("Job", "train"), ("StatefulSet", "train"), ("ReplicaSet", "train-5c9d7")):
        owner = "Deployment" if kind == "ReplicaSet" else kind
        found = around([job({}, mine, kind=owner)], events=[event(kind, name, "FailedCreate", text)])
        assert found.not_created == f"{kind} {name}: FailedCreate: {text}"
    assert around([job({}, mine)], events=[event("Job", "another", "FailedCreate", text)]).not_created == ""


def test_the_last_warning_about_an_object_counts() -> None:
    events = [
        event("Pod", "a", "FailedMount", "old", at="2026-11-23T09:00:00Z"),
        event("Pod", "a", "FailedMount", "new", at="2026-11-23T10:00:00Z"),
        {**event("Pod", "a", "Pulled", "normal", at="2026-11-23T11:00:00Z"), "type": "Normal"},
    ]
    for given_ in (events, events[::-1]):
        assert warnings_of(given_)["uid-of-a"].text == "FailedMount: new"


def test_what_the_operator_itself_has_said_of_a_pod_is_no_reason_why_it_waits() -> None:
    """That its Rendezvous does not exist was true before that was made."""
    own = EventToPost("v1", "Pod", "a", "uid-of-a", "team", "Warning", "RendezvousNotFound", "create it there")
    assert warnings_of([own.to_object(rfc3339(NOW))]) == {}


_labels = st.dictionaries(st.text(max_size=80), st.text(max_size=80), max_size=5)


@given(_labels, _labels, _labels, st.text(max_size=20))
def test_whatever_tenants_write_is_survived_and_bounded(own: Object, labels: Object, notes: Object, name: str) -> None:
    obj = job(own, {"labels": labels, "annotations": notes})
    found = look_around(name, {name}, [{"metadata": {"name": "a", "labels": labels}}], [workload_of(obj, "Job")], {})
    assert all(len(text) < 600 for text in found.near)


def test_names_that_are_near_are_known() -> None:
    assert meant("ckd10", ["c10d", "static"]) == ""
    assert meant("cl0d", ["c10d", "static"]) == "c10d"
    assert meant("mnsit", ["mnist", "other"]) == "mnist"
    assert is_alike("mnist-2", "mnist")
    assert not is_alike("bert", "mnist")


# When is asked.


class Server:
    """Answers lists, and counts them."""

    def __init__(self, answers: dict[str, list[Object]] | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answers = answers or {}
        self.fails = False

    def some(self, _: str, kind: str, namespace: str, **__: Any) -> list[Object]:
        self.asked.append((namespace, kind))
        if self.fails:
            raise ApiError(None, "forbidden", code=403)
        return self.answers.get(kind, [])


def subject(name: str = "mnist", namespace: str = "team") -> Rendezvous:
    return replace(rendezvous(uid=f"{namespace}/{name}"), name=name, namespace=namespace, created=CREATED)


NOBODY = Observed()


def test_nobody_is_asked_about_pods_that_run_or_say_why_they_do_not() -> None:
    server = Server()
    inquiry = Inquiry(server.some)
    running = Observed([builders.pod(pod_object(f"p{i}", phase="Running")) for i in (0, 1)])
    stuck = pod_object("p0")
    stuck["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}
    for seen in (running, Observed([builders.pod(stuck), running.pods[1]])):
        assert inquiry.about(subject(), seen, set, NOW + 1000) == (Found(), None)
    assert server.asked == []


def test_a_rendezvous_without_pods_looks_around_after_a_while_and_less_and_less_often() -> None:
    server = Server({"Job": [job({LABEL: "mnist"})]})
    inquiry, now, waits = Inquiry(server.some), NOW + 1, []
    found, wait = inquiry.about(subject(), NOBODY, set, now)
    assert (found, wait, server.asked) == (Found(), IDLE - 1, [])
    for _ in range(6):
        now += wait or 0
        found, wait = inquiry.about(subject(), NOBODY, set, now)
        waits.append(wait)
        assert len(found.near) == 1
    assert waits == [AGAIN_FIRST, 20, 40, 80, AGAIN_MAX, AGAIN_MAX]
    assert len(server.asked) == 6 * 5


def test_one_look_serves_the_whole_namespace() -> None:
    server = Server()
    inquiry = Inquiry(server.some)
    for number in range(200):
        inquiry.about(subject(f"mnist-{number}"), NOBODY, set, NOW + IDLE + FRESH / 2)
    assert len(server.asked) == 5


def test_many_namespaces_ask_no_more_than_the_api_server_should_be_asked() -> None:
    server = Server()
    inquiry = Inquiry(server.some)
    waits = [inquiry.about(subject("mnist", f"team-{n}"), NOBODY, set, NOW + IDLE)[1] for n in range(200)]
    assert len(server.asked) == BURST
    assert waits[-1] == LATER


OWNER = {"kind": "StatefulSet", "name": "set", "uid": "uid-of-set", "controller": True}


def pending(name: str, created: str = CREATED) -> Object:
    return pod_object(name, creationTimestamp=created, ownerReferences=[OWNER])


def test_a_pod_that_waits_without_a_reason_is_asked_about() -> None:
    server = Server({"Event": [event("Pod", "p0", "FailedMount", 'configmap "x" not found')]})
    inquiry = Inquiry(server.some)
    seen = Observed([builders.pod(pending("p0")), builders.pod(pending("p1"))])
    assert inquiry.about(subject(), seen, set, NOW + PATIENCE - 1) == (Found(), 1)
    found, wait = inquiry.about(subject(), seen, set, NOW + PATIENCE)
    assert found.warnings["uid-of-p0"].text == 'FailedMount: configmap "x" not found'
    assert (wait, server.asked) == (AGAIN_FIRST, [("team", "Event")])
    # Another pod is not made to wait until it is the old ones' turn.
    now = NOW + PATIENCE
    for _ in range(6):
        now += wait or 0.0
        _, wait = inquiry.about(subject(), seen, set, now)
    assert wait == AGAIN_MAX
    newer = pending("p2", rfc3339(now + 5))
    assert inquiry.about(subject(), Observed([*seen.pods, builders.pod(newer)]), set, now + 6)[1] == PATIENCE - 1


def test_a_workload_that_can_not_make_a_pod_is_heard_until_it_can() -> None:
    text = "exceeded quota: gpus"
    server = Server({"Event": [event("StatefulSet", "set", "FailedCreate", text, at="2026-11-23T10:00:05Z")]})
    inquiry = Inquiry(server.some)
    one = pending("p0")
    one["status"]["containerStatuses"][0]["state"] = {"running": {}}
    one["status"]["phase"] = "Running"
    found, _ = inquiry.about(subject(), Observed([builders.pod(one)]), set, NOW + 60)
    assert found.not_created == f"StatefulSet set: FailedCreate: {text}"
    one["metadata"]["creationTimestamp"] = "2026-11-23T10:00:20Z"
    found, _ = inquiry.about(subject("other"), Observed([builders.pod(one)]), set, NOW + 60)
    assert found.not_created == "", "it has made one since"


def test_what_may_not_be_read_is_not_known_and_stops_nothing() -> None:
    server = Server()
    server.fails = True
    found, wait = Inquiry(server.some).about(subject(), NOBODY, set, NOW + IDLE)
    assert (found, wait) == (Found(), AGAIN_FIRST)
