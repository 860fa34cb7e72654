"""Real pods on real nodes: every kind of workload, both orders of apply, and what happens when parts go away."""

from __future__ import annotations

import json

import pytest
from support.operator_process import eventually
from support.workloads import Place, rendezvous, workload

from deploy.demo import demo
from deploy.demo.demo import Images
from deploy.demo.kube import Cluster

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("backend", "kind", "order"),
    [
        ("c10d", "Job", "pods first"),
        ("c10d", "StatefulSet", "rendezvous first"),
        ("c10d", "Deployment", "pods first"),
        ("kubernetes", "Job", "pods first"),
        ("kubernetes", "Deployment", "rendezvous first"),
        ("static", "Job", "rendezvous first"),
        ("static", "StatefulSet", "pods first"),
    ],
)
def test_plain_torchrun_meets(place: Place, images: Images, backend: str, kind: str, order: str) -> None:
    objects = [rendezvous(backend, 2), workload(kind, images, 2)]
    if order == "pods first":
        place.apply(objects[1])
        # They wait for the environment, and say for which Rendezvous.
        eventually(lambda: "RendezvousNotFound" in place.kubectl("get", "events"), timeout=60)
        place.apply(objects[0])
    else:
        place.apply(objects[0])
        place.apply(objects[1])
    worlds = place.await_world(2)
    if backend == "static" or (backend == "kubernetes" and kind == "Job"):
        assert [world["slot"] for world in worlds] == ["0", "1"], "the rank is the index"
    status = place.get("rdzv/world")["status"]
    assert status["nodes"]["summary"] == "2/2"
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    assert (conditions["Ready"], conditions["Degraded"]) == ("True", "False")
    if kind == "Job":
        place.kubectl("wait", "--for=condition=complete", "job/world", "--timeout=60s")


def test_an_elastic_world_starts_with_fewer_than_max(place: Place, images: Images) -> None:
    place.apply(rendezvous("c10d", (1, 4), config={"last_call_timeout": "5"}), workload("Deployment", images, 2))
    place.await_world(2)


def test_the_operator_may_be_killed_while_pods_meet(
    place: Place, images: Images, installation: tuple[Cluster, Images]
) -> None:
    place.apply(rendezvous("c10d", 2), workload("Job", images, 2))
    installation[0].kubectl("delete", "pod", "-n", demo.SYSTEM, "--all", "--grace-period=0", "--force")
    place.await_world(2)


def test_a_deleted_rendezvous_lets_running_pods_go_on(place: Place, images: Images) -> None:
    place.apply(rendezvous("static", 2), workload("StatefulSet", images, 2))
    before = place.await_world(2)
    place.kubectl("delete", "rdzv", "world")
    eventually(lambda: "rdzv-world" not in place.kubectl("get", "configmaps,services"), timeout=60)
    assert place.worlds() == before
    assert {pod["status"]["phase"] for pod in place.get("pods")["items"]} == {"Running"}


@pytest.mark.parametrize("backend", ["kubernetes", "c10d"])
def test_a_job_that_is_suspended_while_it_runs_says_so_and_meets_again_when_it_is_resumed(
    place: Place, images: Images, backend: str
) -> None:
    place.apply(rendezvous(backend, 2), workload("Job", images, 2, env={"STAY": "1"}))
    before = place.await_world(2)
    place.kubectl("patch", "job", "world", "-p", '{"spec": {"suspend": true}}')
    place.await_summary("Suspended: Job world")
    place.kubectl("patch", "job", "world", "-p", '{"spec": {"suspend": false}}')
    after = place.await_world(2)
    assert {world["pod"] for world in before}.isdisjoint(world["pod"] for world in after)


def test_a_job_that_is_suspended_and_keeps_a_pod_that_failed_before_has_not_failed(
    place: Place, images: Images
) -> None:
    job = workload("Job", images, 2, env={"STAY": "1"})
    job["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    place.apply(rendezvous("kubernetes", 2), job)
    lost = place.await_world(2)[1]["pod"]
    place.kubectl("exec", lost, "--", "sh", "-c", "kill 1")
    place.wait(lambda: place.get(f"pod/{lost}")["status"]["phase"] == "Failed", 60, lambda: f"{lost} goes on")
    assert lost not in {world["pod"] for world in place.await_world(2)}
    place.kubectl("patch", "job", "world", "-p", '{"spec": {"suspend": true}}')
    status = place.await_summary("Suspended: Job world", 60)
    assert status["nodes"]["missing"][-1] == {"pod": "every pod", "reason": "Suspended: by Job world"}
    place.wait(lambda: list(place.pods()) == [lost], 60, lambda: f"not only {lost} is left")
    place.await_summary("Suspended: Job world", 60)
    assert said_of_its_end(place) == set()


@pytest.mark.parametrize("code", ["$JOB_COMPLETION_INDEX", "0"], ids=["one of them well", "all of them well"])
def test_pods_that_handle_their_end_while_their_job_is_suspended_have_the_job_s_own_outcome(
    place: Place, images: Images, code: str
) -> None:
    job = workload("Job", images, 2, env={"STAY": "1"})
    handles = f"trap 'kill $torchrun; wait; exit {code}' TERM; torchrun /train/train.py & torchrun=$!; wait"
    job["spec"]["template"]["spec"] |= {"restartPolicy": "Never"}
    job["spec"]["template"]["spec"]["containers"][0]["command"] = ["sh", "-c", handles]
    place.apply(rendezvous("c10d", 2), job)
    place.await_world(2)
    place.kubectl("patch", "job", "world", "-p", '{"spec": {"suspend": true}}')
    place.wait(lambda: not place.get("pods")["items"], 60, lambda: "pods are left")
    place.await_summary("Suspended: Job world", 60)
    status = place.get("job/world")["status"]
    assert {c["type"] for c in status["conditions"] if c["status"] == "True"} == {"Suspended"}, status
    assert said_of_its_end(place) == set()


def said_of_its_end(place: Place) -> set[str]:
    """What Events of the Rendezvous have ever said of how its job ended."""
    events = place.get("events")["items"]
    of_it = {event["reason"] for event in events if event["involvedObject"]["kind"] == "Rendezvous"}
    return of_it & {"Succeeded", "Failed"}


@pytest.mark.parametrize("delivery", ["image-volume", "init"])
def test_the_library_comes_into_an_unchanged_image(place: Place, images: Images, delivery: str) -> None:
    if delivery == "image-volume":
        place.cluster.needs_image_volumes()
    place.kubectl("label", "namespace", place.namespace, "pod-security.kubernetes.io/enforce=restricted")
    script = "import rdzv, os; print('RDZV', rdzv.__file__, os.environ['PET_RDZV_BACKEND'])"
    secure = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "one",
            "labels": {"rdzv.dev/rendezvous": "world"},
            "annotations": {"rdzv.dev/library": delivery},
        },
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 12345, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {"name": "main", "image": images.train, "command": ["python3", "-c", script], "securityContext": secure}
            ],
        },
    }
    place.apply(rendezvous("static", 1), pod)
    eventually(
        lambda: (
            "RDZV" in place.kubectl("logs", "one") if place.get("pod/one")["status"]["phase"] == "Succeeded" else None
        ),
        timeout=60,
    )
    assert place.kubectl("logs", "one").split() == ["RDZV", "/opt/rdzv/rdzv/__init__.py", "static"]


def test_uninstalling_leaves_nothing_but_the_objects_of_users(
    place: Place, images: Images, installation: tuple[Cluster, Images]
) -> None:
    target, _ = installation
    place.apply(rendezvous("static", 2))
    demo.uninstall(target)
    kinds = target.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    kinds = [kind for kind in kinds if not kind.startswith("events")]
    left = json.loads(
        target.kubectl("get", ",".join(kinds), "-A", "-l", "app.kubernetes.io/name=rendezvous-operator", "-o", "json")
    )
    assert {item["kind"] for item in left["items"]} <= {"CustomResourceDefinition"}
    assert place.get("rdzv/world")["spec"]["backend"] == "static"
    demo.install(target, images)
    eventually(lambda: place.get("rdzv/world").get("status", {}).get("endpoint"), timeout=60)
