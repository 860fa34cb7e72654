"""`spec.network.isolate` and the chart's policies, enforced: real connections between the network namespaces of pods.

kube-network-policies judges them. The operator is the real one, and so is what it writes; the policies are read from the API server as
in any cluster.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.accounts import RELEASE, as_the_operator, rendered
from support.cluster_fixtures import LocalCluster
from support.operated import rendezvous
from support.operator_process import Kube, eventually, running_operator
from support.pod_network import Attempt, PodNetwork

from deploy.local.cluster.tools import build_enforcer

Object = dict[str, Any]

STORE, CLIENT, PEER, METRICS, NOTEBOOK = 29400, 2379, 2380, 8000, 8888
PORTS = (STORE, CLIENT, PEER, METRICS, NOTEBOOK)


@dataclass(frozen=True)
class Played:
    """A pod that is nothing but an address: its labels, whether it is in the other namespace, and names of ports."""

    labels: Object = field(default_factory=dict)
    elsewhere: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)


MEMBER, SERVER = {"rdzv.dev/rendezvous": "mnist"}, {"rdzv.dev/server": "mnist"}
#: What the chart's pods are called, and which of the ports here are those that they serve.
OURS = {
    "operator": {"healthz": STORE, "readyz": CLIENT, "metrics": METRICS},
    "webhook": {"https": PEER, "metrics": METRICS},
}
PODS = {
    "mnist-0": Played(MEMBER),
    "mnist-1": Played(MEMBER),
    "etcd-0": Played(SERVER),
    "etcd-1": Played(SERVER),
    "other-0": Played({"rdzv.dev/rendezvous": "other"}),
    "etcd-of-other": Played({"rdzv.dev/server": "other"}),
    "stranger": Played(),
    "notebook": Played({"app": "notebook"}),
    "mnist-elsewhere": Played(MEMBER, elsewhere=True),
    "prometheus": Played({"app": "prometheus"}, elsewhere=True),
    "notebook-elsewhere": Played({"app": "notebook"}, elsewhere=True),
    **{
        name: Played(
            {
                "app.kubernetes.io/name": RELEASE,
                "app.kubernetes.io/instance": RELEASE,
                "app.kubernetes.io/component": name,
            },
            elsewhere=True,
            ports=ports,
        )
        for name, ports in OURS.items()
    },
}
MEMBERS, SERVERS = ("mnist-0", "mnist-1"), ("etcd-0", "etcd-1")
EVERY: set[Attempt] = {(source, target, port) for source, target in itertools.permutations(PODS, 2) for port in PORTS}


def admitted(attempt: Attempt) -> bool:
    """What the spec of `network` means, said once more, in another way than as rules."""
    source, target, port = attempt
    if target in SERVERS:
        return (source in MEMBERS and port == CLIENT) or (source in SERVERS and port in (CLIENT, PEER))
    if target in MEMBERS:
        return (
            source in MEMBERS
            or source == "notebook"
            or (source == "prometheus" and port == METRICS)
            or port == NOTEBOOK
        )
    return True


def network(elsewhere: str) -> Object:
    return {
        "isolate": True,
        "allow": [
            {"podSelector": {"matchLabels": {"app": "notebook"}}},
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": elsewhere}},
                "podSelector": {"matchLabels": {"app": "prometheus"}},
                "ports": [METRICS],
            },
            {"ports": [NOTEBOOK]},
        ],
    }


@dataclass(frozen=True)
class Place:
    plane: LocalCluster
    kube: Kube
    namespace: str
    elsewhere: str
    network: PodNetwork

    def isolate(self, network: Object | None) -> None:
        """Changes the spec of `mnist`, and waits until its policies are as it says."""
        self.kube.patch("Rendezvous", self.namespace, "mnist", {"spec": {"network": network}})
        for name in ("rdzv-mnist", "rdzv-mnist-etcd"):
            eventually(
                lambda name=name: (  # type: ignore[misc]
                    (self.kube.get("NetworkPolicy", self.namespace, name) is None) == (network is None)
                )
            )


def played(name: str, namespace: str, each: Played, address: str) -> Object:
    ports = [{"name": port, "containerPort": number} for port, number in each.ports.items()]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": each.labels},
        "spec": {"nodeName": "node", "containers": [{"name": "c", "image": "registry.invalid/x", "ports": ports}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }


@pytest.fixture(scope="module")
def place(plane: LocalCluster, kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    program, scratch = build_enforcer(), tmp_path_factory.mktemp("isolation")
    namespace, elsewhere = (f"test-{secrets.token_hex(4)}" for _ in range(2))
    for name in (namespace, elsewhere):
        plane.kubectl("create", "namespace", name)
    reader = f"reader-{namespace}"
    plane.kubectl("create", "serviceaccount", "enforcer", "-n", namespace)
    resources = "--resource=pods,namespaces,networkpolicies.networking.k8s.io"
    plane.kubectl("create", "clusterrole", reader, "--verb=list,watch", resources)
    plane.kubectl(
        *("create", "clusterrolebinding", reader, f"--clusterrole={reader}", f"--serviceaccount={namespace}:enforcer")
    )
    token = plane.kubectl("create", "token", "enforcer", "-n", namespace).strip()
    operator = as_the_operator(plane, namespace, scratch, "operator")
    with PodNetwork(list(PODS), PORTS) as pods, running_operator(operator, scratch / "log", namespace):
        for name, each in PODS.items():
            where = elsewhere if each.elsewhere else namespace
            kube.create(played(name, where, each, pods.addresses[name]))
        kube.create(rendezvous(namespace, "etcd-v3", etcd={"replicas": 3}))
        eventually(lambda: kube.get("StatefulSet", namespace, "rdzv-mnist-etcd"))
        pods.enforce(plane, program, token, scratch)
        yield Place(plane, kube, namespace, elsewhere, pods)
    plane.kubectl("delete", "clusterrole,clusterrolebinding", reader, f"operator-{namespace}")
    plane.kubectl("delete", "namespace", namespace, elsewhere, "--wait=false")


def test_only_members_their_etcd_and_who_is_named_come_in(place: Place) -> None:
    pods = place.network
    eventually(lambda: pods.connects(EVERY) == EVERY, timeout=60)

    place.isolate(network(place.elsewhere))
    expected = set(filter(admitted, EVERY))
    assert len(expected) < len(EVERY)
    eventually(lambda: pods.connects([("stranger", "mnist-0", STORE), ("stranger", "etcd-0", CLIENT)]) == set())
    found = pods.connects(EVERY, seconds=5)
    assert found - expected == set(), "of strangers, other namespaces and other jobs"
    # What may come in does, even if a busy machine takes longer for it.
    eventually(lambda: pods.connects(expected - found, seconds=5) == expected - found, timeout=60)
    assert all(pods.node_connects(name, METRICS) for name in (*MEMBERS, *SERVERS)), "kubelet's probes"


def test_with_nobody_named_only_the_pods_themselves_come_in(place: Place) -> None:
    pods = place.network
    place.isolate(network(place.elsewhere) | {"allow": []})

    def inside(attempt: Attempt) -> bool:
        source, target, _ = attempt
        return target not in MEMBERS or source in MEMBERS

    to_members = {attempt for attempt in EVERY if attempt[1] in MEMBERS}
    expected = set(filter(inside, to_members))
    eventually(lambda: pods.connects(to_members) == expected, timeout=60)


def test_what_is_taken_back_is_open_again(place: Place) -> None:
    place.isolate({"isolate": True})
    place.isolate(None)
    eventually(lambda: place.network.connects(EVERY) == EVERY, timeout=60)


def test_both_policies_are_owned_by_the_rendezvous(place: Place) -> None:
    place.isolate({"isolate": True})
    for name in ("rdzv-mnist", "rdzv-mnist-etcd"):
        found = place.kube.get("NetworkPolicy", place.namespace, name) or {}
        (owner,) = found["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], json.dumps(owner["controller"])) == ("Rendezvous", "mnist", "true")


def test_of_the_operator_and_the_webhook_only_the_ports_that_they_serve_are_open(place: Place) -> None:
    """Last: the policies stay."""
    chart = ("--set=networkPolicy.enabled=true", "--set=injection.mode=webhook", f"--namespace={place.elsewhere}")
    policies = [obj for obj in rendered(place.plane, *chart) if obj["kind"] == "NetworkPolicy"]
    assert {obj["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for obj in policies} == set(OURS)
    attempts = {attempt for attempt in EVERY if attempt[1] in OURS}
    assert place.network.connects(attempts) == attempts
    for obj in policies:
        place.kube.create(obj)
    expected = {(source, target, port) for source, target, port in attempts if port in OURS[target].values()}
    eventually(lambda: place.network.connects(attempts) == expected, timeout=60)
