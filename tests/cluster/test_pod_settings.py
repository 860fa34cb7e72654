"""What users set in their pods, on real nodes: no launcher, limits of CPUs, the node's network, sidecars, no privilege."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.cluster_fixtures import LocalCluster
from support.operator_process import eventually
from support.workloads import Object, Place, pod_template, rendezvous, workload

from deploy.demo.demo import Images

pytestmark = pytest.mark.cluster

RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
#: A user that no image knows.
ANYBODY = {"runAsNonRoot": True, "runAsUser": 12345, "seccompProfile": {"type": "RuntimeDefault"}}
#: Seconds, for "never": on a busy machine pods import torch for minutes.
LONG = 400.0


def test_plain_python_trains_without_a_launcher(place: Place, images: Images) -> None:
    job = workload("Job", images, 2)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["command"] = ["python3", "/train/train.py"]
    place.apply(rendezvous("static", 2, launcher="none"), job)
    assert [world["slot"] for world in place.await_world(2, LONG)] == ["0", "1"], "the rank is the index"
    place.kubectl("wait", "--for=condition=complete", "job/world", "--timeout=60s")


@pytest.mark.parametrize(("wanted", "processes", "threads"), [("auto", 3, "1"), (1, 1, "3")])
def test_processes_and_threads_follow_the_limit_of_cpus(
    place: Place, images: Images, wanted: int | str, processes: int, threads: str
) -> None:
    job = workload("Job", images, 1)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container |= {"env": [], "resources": {"limits": {"cpu": "3"}, "requests": {"cpu": "100m"}}}
    place.apply(rendezvous("kubernetes", 1, nprocPerNode=wanted), job)
    eventually(place.worlds, timeout=LONG)
    (world,) = place.worlds()
    assert (world["world"], world["threads"]) == (processes, threads)


def on_the_network_of_the_node(template: Object) -> Object:
    template["spec"] |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return template


def test_a_c10d_store_on_the_network_of_a_node_is_reached_from_there_and_from_pods(
    place: Place, images: Images
) -> None:
    """One pod of two, as the local cluster's nodes share one network, in which both would listen on one port."""
    pods = []
    for index in (0, 1):
        template = pod_template(images, restart="OnFailure")
        template["metadata"] |= {"name": f"world-{index}"}
        template["metadata"]["labels"]["rdzv.dev/slot"] = str(index)
        pods.append({"apiVersion": "v1", "kind": "Pod", **template})
    place.apply(rendezvous("c10d", 2), on_the_network_of_the_node(pods[0]), pods[1])
    assert {world["pod"] for world in place.await_world(2, LONG)} == {"world-0", "world-1"}
    node = place.get("pod/world-0")["status"]
    assert node["podIP"] == node["hostIP"]
    (hosting,) = place.get("endpointslices")["items"]
    assert hosting["endpoints"][0]["addresses"] == [node["podIP"]]


def test_a_world_of_backend_kubernetes_meets_on_the_network_of_nodes(place: Place, images: Images) -> None:
    job = workload("Job", images, 2)
    on_the_network_of_the_node(job["spec"]["template"])
    place.apply(rendezvous("kubernetes", 2), job)
    assert [world["slot"] for world in place.await_world(2, LONG)] == ["0", "1"]


@pytest.fixture
def torch_claim(cluster: LocalCluster, place: Place, images: Images) -> Iterator[str]:
    """The torch of the nodes by a claim: Pod Security `restricted` admits no volume of the node's disk."""
    size, name = "10Gi", f"torch-{place.namespace}"
    access = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    volume = {**access, "capacity": {"storage": size}, "hostPath": {"path": str(images.torch)}}
    claim = {**access, "volumeName": name, "resources": {"requests": {"storage": size}}}
    volume["claimRef"] = {"name": "torch", "namespace": place.namespace}
    for kind, called, spec in (("PersistentVolume", name, volume), ("PersistentVolumeClaim", "torch", claim)):
        place.kubectl(
            "apply",
            "-f",
            "-",
            input=json.dumps({"apiVersion": "v1", "kind": kind, "metadata": {"name": called}, "spec": spec}),
        )
    yield "torch"
    cluster.kubectl("delete", "persistentvolume", name, "--wait=false")


def test_a_user_without_privilege_trains_and_init_container_and_sidecar_have_the_environment(
    place: Place, images: Images, torch_claim: str
) -> None:
    """Pod Security `restricted`, a user without a name, a read-only root, and the annotation that names all three containers."""
    place.kubectl("label", "namespace", place.namespace, "pod-security.kubernetes.io/enforce=restricted")
    job = workload("Job", images, 2)
    template = job["spec"]["template"]
    pod = template["spec"]
    template["metadata"]["annotations"] = {"rdzv.dev/containers": "setup,watch,train"}
    say = {"image": images.train, "securityContext": RESTRICTED}
    script = "import os, rdzv; print(os.environ['PET_RDZV_BACKEND'], os.environ['RDZV_SLOT'], flush=True)"
    pod["initContainers"] = [
        {"name": "setup", **say, "command": ["python3", "-c", script]},
        {
            "name": "watch",
            **say,
            "restartPolicy": "Always",
            "command": ["python3", "-c", f"{script}\nimport time; time.sleep(3600)"],
        },
    ]
    pod["securityContext"] = ANYBODY
    pod["containers"][0]["securityContext"] = RESTRICTED
    pod["containers"][0]["volumeMounts"].append({"name": "tmp", "mountPath": "/tmp"})
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "torch"]
    pod["volumes"] += [
        {"name": "torch", "persistentVolumeClaim": {"claimName": torch_claim, "readOnly": True}},
        {"name": "tmp", "emptyDir": {}},
    ]
    place.apply(rendezvous("kubernetes", 2), job)
    worlds = place.await_world(2, LONG)
    for world in worlds:
        for container in ("setup", "watch"):
            assert place.logs(world["pod"], "-c", container).split() == ["kubernetes", world["slot"]]
    place.kubectl("wait", "--for=condition=complete", "job/world", "--timeout=60s")
