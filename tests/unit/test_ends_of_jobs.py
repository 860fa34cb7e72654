"""How a Job has ended: it says so itself, where its pods alone do not tell."""

from __future__ import annotations

from typing import Any

import pytest
from support import builders
from support.builders import pod_object
from support.story import NOW, Story

from rdzv.control.inquiry import AGAIN_FIRST, JOB_PATIENCE, Inquiry
from rdzv.control.nearby import Found, look_around, workload_of
from rdzv.control.status import Beside, rfc3339
from rdzv.kube.api import ApiError
from rdzv.observed import Observed
from rdzv.spec import LABEL

Object = dict[str, Any]

TRUE = {"status": "True", "lastTransitionTime": rfc3339(NOW + 1)}
LEAVES = {"deletionTimestamp": rfc3339(NOW)}


def job(*conditions: str, uid: str = "uid-of-job", **spec: Any) -> Object:
    meta = {"name": "mnist", "namespace": "team", "uid": uid}
    template = {"metadata": {"labels": {LABEL: "mnist"}}}
    status = {"conditions": [{"type": condition, **TRUE} for condition in conditions]}
    return {"kind": "Job", "metadata": meta, "spec": {"template": template, **spec}, "status": status}


def of_job(phase: str, index: int = 0, name: str = "", kind: str = "Job", **meta: Any) -> Object:
    owner = {"apiVersion": "batch/v1", "kind": kind, "name": "mnist", "uid": "uid-of-job", "controller": True}
    found = pod_object(name or f"mnist-{index}", index=index, phase=phase, ownerReferences=[owner], **meta)
    if phase in {"Succeeded", "Failed"}:
        ended = {"exitCode": 1 if phase == "Failed" else 0, "finishedAt": rfc3339(NOW)}
        found["status"]["containerStatuses"][0]["state"] = {"terminated": ended}
    return found


def knowing(word: str | None, suspended: str = "") -> Beside:
    return Beside(found=Found(jobs={"uid-of-job": word}, suspended=suspended))


FAILED_EARLIER = of_job("Failed", name="mnist-0-earlier", creationTimestamp="2026-11-23T09:00:00Z")


@pytest.mark.parametrize("backend", ["kubernetes", "c10d"])
def test_a_suspended_job_that_keeps_an_earlier_failed_pod_has_not_failed(backend: str) -> None:
    story, held = Story(backend, 2), knowing("", "Job mnist")
    now = [of_job("Running", 0), of_job("Running", 1)]
    assert story.moment([FAILED_EARLIER, *now])[0] in {"Running 2/2", "Forming 0/2"}
    leaving = [of_job("Running", 0, **LEAVES), of_job("Running", 1, **LEAVES)]
    assert story.moment([FAILED_EARLIER, *leaving])[0] == "Waiting: no pod left", "nobody has been asked yet"
    assert story.moment([FAILED_EARLIER, *leaving], beside=held)[0] == "Suspended: Job mnist"
    assert story.moment([FAILED_EARLIER], beside=held)[0] == "Suspended: Job mnist"
    assert story.reasons() == {"every pod": "Suspended: by Job mnist"}
    assert story.moment([FAILED_EARLIER, *now])[0] in {"Running 2/2", "Forming 0/2"}, "it is resumed"


@pytest.mark.parametrize("backend", ["kubernetes", "c10d"])
def test_pods_that_end_well_when_they_are_told_to_are_no_job_that_succeeded(backend: str) -> None:
    story, held = Story(backend, 2), knowing("", "Job mnist")
    story.moment([of_job("Running", 0), of_job("Running", 1)])
    one_went_first = [of_job("Succeeded", 0, **LEAVES)]
    for beside in (Beside(), held, held):
        assert story.moment(one_went_first, beside=beside)[0] != "Succeeded"
    assert story.status["summary"] == "Suspended: Job mnist"
    assert story.moment([], beside=held)[0] == "Suspended: Job mnist"


def test_pods_that_end_well_when_they_are_told_to_have_succeeded_if_their_job_says_so() -> None:
    """Its controller may have counted them before it took them away."""
    story = Story("c10d", 1)
    story.moment([of_job("Running", 0)])
    assert story.moment([of_job("Succeeded", 0, **LEAVES)])[0] != "Succeeded"
    assert story.moment([of_job("Succeeded", 0, **LEAVES)], beside=knowing("Succeeded"))[0] == "Succeeded"
    gone = Story("c10d", 1)
    assert gone.moment([], beside=knowing("Succeeded"))[0] == "Succeeded", "before anybody had asked"


@pytest.mark.parametrize(
    ("word", "expected"),
    [("Failed", "Failed"), ("", "Waiting: no pod left"), (None, "Failed")],
    ids=["it has failed", "it makes another pod in a while", "it can't be read: its pods' word counts"],
)
def test_a_failed_pod_is_a_failed_job_if_that_says_so(word: str | None, expected: str) -> None:
    story = Story("c10d", 1)
    story.moment([of_job("Running")])
    story.moment([of_job("Failed")])
    assert story.status["summary"] != "Failed", "nobody has been asked yet"
    for beside in (knowing(word), Beside()):
        assert story.moment([of_job("Failed")], beside=beside)[0] == expected


def test_a_job_all_of_whose_pods_ended_well_by_themselves_has_succeeded_at_once() -> None:
    story = Story("c10d", 2)
    story.moment([of_job("Running", 0), of_job("Running", 1)])
    assert (
        story.moment([FAILED_EARLIER, of_job("Succeeded", 0, creationTimestamp=rfc3339(NOW)), of_job("Succeeded", 1)])[
            0
        ]
        == "Succeeded"
    )


def test_one_of_two_that_ended_well_is_no_job_that_succeeded() -> None:
    story = Story("c10d", 2)
    story.moment([of_job("Running", 0), of_job("Running", 1)])
    done = [of_job("Succeeded", 0)]
    assert story.moment(done)[0] != "Succeeded"
    assert story.moment(done, beside=knowing("", "Job mnist"))[0] == "Suspended: Job mnist"


def test_of_several_jobs_all_have_to_succeed_and_one_can_fail() -> None:
    other = of_job("Failed", 1)
    other["metadata"]["ownerReferences"][0]["uid"] = "uid-of-other"
    for words, expected in (
        (("Succeeded", "Failed"), "Failed"),
        (("", "Failed"), "Failed"),
        (("Succeeded", "Succeeded"), "Succeeded"),
        (("Succeeded", ""), "Waiting: no pod left"),
    ):
        story = Story("c10d", 2)
        story.moment([of_job("Running")])
        jobs = dict(zip(("uid-of-job", "uid-of-other"), words, strict=True))
        assert story.moment([of_job("Failed"), other], beside=Beside(found=Found(jobs=jobs)))[0] == expected


def test_pods_of_other_controllers_and_bare_ones_speak_for_themselves() -> None:
    for pod in (of_job("Failed", kind="PyTorchJob"), pod_object("mnist-0", phase="Failed")):
        assert Story("c10d", 1).moment([pod])[0] == "Failed"


@pytest.mark.parametrize(
    ("made", "word", "suspended"),
    [
        (job(), "", False),
        (job(suspend=True), "", True),
        (job("Complete"), "Succeeded", False),
        (job("SuccessCriteriaMet"), "Succeeded", False),
        (job("Complete", suspend=True), "Succeeded", False),
        (job("Failed"), "Failed", False),
        (job("FailureTarget"), "Failed", False),
        (job("Suspended", suspend=True), "", True),
    ],
    ids=str,
)
def test_what_a_job_says_of_itself(made: Object, word: str, *, suspended: bool) -> None:
    read = workload_of(made, "Job")
    assert (read.ended, read.suspended) == (word, suspended)
    found = look_around("mnist", ["mnist"], [], [read], {}, since=NOW)
    assert (found.jobs, bool(found.suspended)) == ({"uid-of-job": word}, suspended)


def test_a_job_that_ended_before_its_rendezvous_was_made_is_not_its_own() -> None:
    ended = workload_of(job("Complete"), "Job")
    assert look_around("mnist", ["mnist"], [], [ended], {}, since=NOW + 2).jobs == {}
    assert look_around("another", ["another"], [], [ended], {}, since=NOW).jobs == {}


# When is asked.


class Server:
    def __init__(self, *jobs: Object) -> None:
        self.jobs = list(jobs)
        self.asked: list[str] = []

    def some(self, _: str, kind: str, namespace: str, **__: Any) -> list[Object]:
        self.asked.append(kind)
        if not self.jobs:
            raise ApiError(None, "forbidden", code=403)
        return self.jobs if kind == "Job" else []


def asked(server: Server, *pods: Object, at: float = JOB_PATIENCE) -> tuple[Found, float | None]:
    subject = builders.rendezvous("c10d")
    return Inquiry(server.some).about(subject, Observed([builders.pod(obj) for obj in pods]), set, NOW + at)


def test_the_job_is_asked_soon_after_its_pods_ended_and_says_who_holds_them_back() -> None:
    server = Server(job(suspend=True), job("Complete", uid="another"))
    assert asked(server, of_job("Failed"), at=JOB_PATIENCE - 1) == (Found(), 1)
    assert server.asked == []
    found, wait = asked(server, of_job("Failed"))
    assert (found.jobs, found.suspended, wait) == ({"uid-of-job": ""}, "Job mnist", AGAIN_FIRST)
    assert server.asked == ["Event", "Job"]


def test_nobody_asks_while_a_pod_lives_or_where_all_is_known() -> None:
    server = Server(job())
    asked(server, of_job("Failed"), of_job("Running", 1), of_job("Running", 2))
    asked(server, of_job("Succeeded", 0), of_job("Succeeded", 1))
    assert "Job" not in server.asked


@pytest.mark.parametrize("server", [Server(), Server(job(uid="another"))], ids=["forbidden", "not among those read"])
def test_of_a_job_that_can_not_be_read_nothing_is_known(server: Server) -> None:
    assert asked(server, of_job("Failed"))[0].jobs == {"uid-of-job": None}
