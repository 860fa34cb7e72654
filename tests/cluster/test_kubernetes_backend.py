"""The `kubernetes` backend in real pods: worlds that lose and gain nodes, and what is used again."""

from __future__ import annotations

import json

import pytest
from support.operator_process import eventually
from support.workloads import Place, rendezvous, restarts, workload

from deploy.demo import demo
from deploy.demo.demo import Images
from deploy.demo.kube import Cluster

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("victim", ["world-0", "world-1"])
def test_survivors_form_a_new_world_and_no_agent_exits(place: Place, images: Images, victim: str) -> None:
    """world-0 has rank 0, serves the round's store and coordinates."""
    place.apply(rendezvous("kubernetes", (2, 4)), workload("StatefulSet", images, 3))
    place.await_world(3)
    before = place.pods()
    # The one that goes does not come back until it is asked for: the survivors are a world of their own.
    place.kubectl("delete", "statefulset", "world", "--cascade=orphan")
    place.kubectl("delete", "pod", victim, "--wait=false")
    place.await_world(2)
    after = place.pods()
    assert set(after) == set(before) - {victim}
    assert {name: (pod["metadata"]["uid"], restarts(pod)) for name, pod in after.items()} == {
        name: (before[name]["metadata"]["uid"], 0) for name in after
    }
    # A new controller takes the pods over and makes the missing one: the world grows back, with the same ranks.
    place.apply(workload("StatefulSet", images, 3))
    grown = place.await_world(3)
    assert [world["pod"] for world in grown] == ["world-0", "world-1", "world-2"]
    assert all(restarts(pod) == 0 for pod in place.pods().values())
    status = place.get("rdzv/world")["status"]
    formed = next(c for c in status["conditions"] if c["type"] == "Formed")
    assert formed["status"] == "True"
    assert status["round"] >= 3


def test_a_spec_edited_while_it_trains_takes_effect(place: Place, images: Images) -> None:
    place.apply(rendezvous("kubernetes", (1, 2)), workload("StatefulSet", images, 3))
    place.await_world(2)
    place.kubectl("patch", "rdzv", "world", "--type=merge", "-p", json.dumps({"spec": {"nodes": {"max": 3}}}))
    place.await_world(3)
    assert all(restarts(pod) == 0 for pod in place.pods().values())


def test_a_second_job_meets_on_the_same_rendezvous_and_on_a_new_one_of_its_name(place: Place, images: Images) -> None:
    for attempt in range(3):
        place.apply(rendezvous("kubernetes", 2), workload("Job", images, 2))
        place.await_world(2)
        place.kubectl("wait", "--for=condition=complete", "job/world", "--timeout=90s")
        place.kubectl("delete", "job", "world", "--cascade=foreground")
        if attempt == 1:
            place.kubectl("delete", "rdzv", "world")


def test_two_jobs_side_by_side_do_not_meet(place: Place, images: Images) -> None:
    for name in ("left", "right"):
        place.apply(rendezvous("kubernetes", 2, name), workload("Job", images, 2, name=name))
    for name in ("left", "right"):
        worlds = place.await_world(2, name=name)
        assert all(world["pod"].startswith(name) for world in worlds)


def test_without_the_operator_worlds_form_anew(
    place: Place, images: Images, installation: tuple[Cluster, Images]
) -> None:
    place.apply(rendezvous("kubernetes", (2, 3), config={"last_call_timeout": "5"}), workload("StatefulSet", images, 3))
    place.await_world(3)
    target = installation[0]
    target.kubectl("scale", "-n", demo.SYSTEM, "deployment", demo.RELEASE, "--replicas=0")
    try:
        # Before 1.36 the webhook has pods of its own there, which stay.
        of_it = ("-n", demo.SYSTEM, "-l", "app.kubernetes.io/component=operator", "-o", "name")
        eventually(lambda: not target.kubectl("get", "pods", *of_it).strip(), 60)
        survivors = {name: pod for name, pod in place.pods().items() if name != "world-0"}
        place.kubectl("delete", "pod", "world-0", "--wait=false")
        place.await_world(3)
        after = place.pods()
        assert all(restarts(after[name]) == 0 for name in survivors)
    finally:
        target.kubectl("scale", "-n", demo.SYSTEM, "deployment", demo.RELEASE, "--replicas=2")
        target.kubectl("rollout", "status", "-n", demo.SYSTEM, f"deployment/{demo.RELEASE}", "--timeout=60s")
