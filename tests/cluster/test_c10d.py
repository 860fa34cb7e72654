"""Backend c10d in real pods when parts of it go: the training pod that hosts the store, and a store in a pod of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from support.cluster_fixtures import LocalCluster
from support.operator_process import eventually
from support.workloads import Object, Place, rendezvous, restarts, workload

from deploy.demo.demo import Images

pytestmark = pytest.mark.cluster

STORE = "rdzv-world-c10d-0"


@pytest.fixture
def torch_in_servers(cluster: LocalCluster, place: Place, images: Images) -> Iterator[None]:
    """The nodes' stand-in for an image with torch: pods of servers get the torch that training pods mount."""
    if images.torch is None:
        yield
        return
    if "policy" not in cluster.injection_modes:
        pytest.skip("this API server has no MutatingAdmissionPolicy, by which the pods of servers get torch here")
    api_version, name = "admissionregistration.k8s.io/v1", f"torch-{place.namespace}"
    mutation = f"""Object{{spec: Object.spec{{
        volumes: [Object.spec.volumes{{name: "torch", hostPath: Object.spec.volumes.hostPath{{path: "{images.torch}"}}}}],
        containers: [Object.spec.containers{{name: "store", volumeMounts: [
            Object.spec.containers.volumeMounts{{name: "torch", mountPath: "/opt/torch", readOnly: true}}]}}]}}}}"""
    policy = {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": place.namespace}},
            "objectSelector": {"matchExpressions": [{"key": "rdzv.dev/server", "operator": "Exists"}]},
            "resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
            ],
        },
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": mutation}}],
    }
    objects = [
        {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}
        for kind, spec in (
            ("MutatingAdmissionPolicy", policy),
            ("MutatingAdmissionPolicyBinding", {"policyName": name}),
        )
    ]
    documents = "\n---\n".join(map(json.dumps, objects))
    cluster.kubectl("apply", "-f", "-", input=documents)
    probe = {"name": "probe", "labels": {"rdzv.dev/server": "probe"}}
    pod = {"containers": [{"name": "store", "image": images.train}]}
    tried = json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": probe, "spec": pod})
    eventually(lambda: "/opt/torch" in place.kubectl("create", "--dry-run=server", "-o=json", "-f=-", input=tried))
    yield
    cluster.kubectl("delete", "-f", "-", input=documents)


def kill(place: Place, pod: str) -> float:
    """As when its node is lost: without a word to anybody. Returns when."""
    began = time.monotonic()
    place.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    return began


def say(what: str, began: float) -> None:
    """For docs/backends/c10d.md: the figures there are from `pytest -s`."""
    print(f"{what} {time.monotonic() - began:.1f} s after the kill")


def await_another_world(place: Place, before: list[Object], went: Callable[[], object]) -> list[Object]:
    """The world of 2 that forms after `went` says true; a process of the old one that has not noticed is none of it."""
    eventually(went, timeout=120)
    old = {(world["pod"], world["born"]) for world in before}
    place.wait(
        lambda: not old & {(world["pod"], world["born"]) for world in place.worlds()},
        240,
        lambda: f"somebody trains on in the old world: {place.worlds()}",
    )
    return place.await_world(2, timeout=240)


def conditions(place: Place) -> dict[str, str]:
    return {c["type"]: c["status"] for c in place.get("rdzv/world")["status"]["conditions"]}


def uids(place: Place) -> dict[str, str]:
    return {name: pod["metadata"]["uid"] for name, pod in place.pods().items()}


def training_restarts(place: Place) -> dict[str, int]:
    return {name: restarts(pod) for name, pod in place.pods().items() if name != STORE}


def test_when_the_pod_that_hosts_the_store_dies_the_endpoint_moves_and_all_meet_again(
    place: Place, images: Images
) -> None:
    place.apply(rendezvous("c10d", 2), workload("StatefulSet", images, 2))
    before, pods = place.await_world(2), uids(place)

    def hosts() -> list[Object]:
        slices = place.get("endpointslices")["items"]
        return [endpoint["targetRef"] for obj in slices for endpoint in obj["endpoints"] or []]

    (lost,) = hosts()
    began = kill(place, lost["name"])
    eventually(lambda: [found for found in hosts() if found["uid"] != lost["uid"]], timeout=60)
    say("endpoint moved", began)
    await_another_world(place, before, lambda: uids(place).get(lost["name"], lost["uid"]) != lost["uid"])
    say("world formed", began)
    survivors = {name for name, uid in uids(place).items() if pods.get(name) == uid}
    assert survivors == pods.keys() - {lost["name"]}
    ended = training_restarts(place)
    assert all(ended[name] for name in survivors), "torch's agents do not outlive their store, and are started again"


@pytest.mark.usefixtures("torch_in_servers")
def test_a_dedicated_store_outlives_every_training_pod_and_when_it_dies_all_meet_in_the_next(
    place: Place, images: Images
) -> None:
    store = {"host": "dedicated", "image": images.train}
    place.apply(rendezvous("c10d", 2, c10d=store), workload("StatefulSet", images, 2))
    before, pods = place.await_world(2), uids(place)
    assert STORE in pods

    began = kill(place, "world-0")
    after = await_another_world(place, before, lambda: uids(place).get("world-0", pods["world-0"]) != pods["world-0"])
    say("without a training pod: world formed", began)
    assert training_restarts(place) == {f"world-{n}": 0 for n in range(2)}, "no agent has ended"
    assert uids(place)[STORE] == pods[STORE]

    began = kill(place, STORE)
    await_another_world(place, after, lambda: uids(place).get(STORE, pods[STORE]) != pods[STORE])
    say("without the store: world formed", began)
    assert all(training_restarts(place).values()), "what was in the store is gone, and with it every agent"
    eventually(
        lambda: conditions(place) == {"Ready": "True", "Provisioned": "True", "Degraded": "False", "Formed": "Unknown"}
    )
