"""Ranks of real torchrun agents follow the labels of the nodes that their pods run on."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster
from support.operated import rendezvous
from support.operator_process import Kube, OperatorProcess, eventually, running_operator
from support.played_kubelet import Kubelet
from support.torchrun_fleet import install_crds

Object = dict[str, Any]
INDEX = "apps.kubernetes.io/pod-index"


@pytest.fixture
def operator(control_plane: LocalCluster, light_namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    install_crds(control_plane)
    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace) as process:
        yield process


@pytest.fixture
def kubelet(
    control_plane: LocalCluster, light_namespace: str, tmp_path: Path, operator: OperatorProcess
) -> Iterator[Kubelet]:
    found = Kubelet(Kube(control_plane.kubeconfig), control_plane.kubeconfig, light_namespace, tmp_path)
    yield found
    found.stop()


@pytest.fixture
def nodes(control_plane: LocalCluster) -> Iterator[dict[str, str]]:
    """Names of nodes by where they are: block and rack."""
    kube, prefix = Kube(control_plane.kubeconfig), f"node-{secrets.token_hex(4)}"
    places = {"2-a": ("block-2", "a"), "2-b": ("block-2", "b"), "no-rack": ("block-10", "")}
    found = {}
    for place, (block, rack) in places.items():
        labels = {"example.com/block": block, **({"example.com/rack": rack} if rack else {})}
        name = found[place] = f"{prefix}-{place}"
        kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    yield found
    for name in found.values():
        control_plane.kubectl("delete", "node", name)


def wanted(kubelet: Kubelet, nodes: int, **spec: Any) -> None:
    spec = {"nodes": {"min": nodes, "max": nodes}, "nprocPerNode": 1, "kubernetes": {"minRoundDuration": 0}, **spec}
    kubelet.kube.create(rendezvous(kubelet.namespace, "kubernetes", **spec))


def degraded(kubelet: Kubelet) -> tuple[str, str]:
    found = kubelet.kube.get("Rendezvous", kubelet.namespace, "mnist") or {}
    condition: Object = next((c for c in found.get("status", {}).get("conditions", []) if c["type"] == "Degraded"), {})
    return condition.get("reason", ""), condition.get("message", "")


def test_ranks_follow_blocks_and_racks_through_a_relabelling_and_a_lost_pod(
    kubelet: Kubelet, nodes: dict[str, str], control_plane: LocalCluster
) -> None:
    keys = ["example.com/block", "example.com/rack"]
    wanted(kubelet, 3, ranks={"topologyKeys": keys})
    places = {"p-0": "no-rack", "p-1": "2-b", "p-2": "2-a"}
    for index, (name, place) in enumerate(places.items()):
        kubelet.run(name, {INDEX: str(index)}, node=nodes[place])
    kubelet.await_ranks("p-2", "p-1", "p-0")
    reason, text = eventually(lambda: degraded(kubelet) if degraded(kubelet)[0] != "AsExpected" else None)
    assert reason == "TopologyUnknown"
    assert f"node {nodes['no-rack']} has no label example.com/rack" in text

    control_plane.kubectl("label", "node", nodes["no-rack"], "example.com/block=block-0", "--overwrite")
    kubelet.delete("p-1")
    kubelet.run("again", {INDEX: "1"}, node=nodes["2-b"])
    kubelet.await_ranks("p-2", "again", "p-0")
    kubelet.end()


def test_agents_that_were_started_before_ranks_were_to_follow_nodes_keep_their_indexes_beside_new_ones(
    kubelet: Kubelet, nodes: dict[str, str]
) -> None:
    wanted(kubelet, 2)
    kubelet.run("p-0", {INDEX: "0"}, node=nodes["no-rack"])
    kubelet.run("p-1", {INDEX: "1"}, node=nodes["2-a"])
    kubelet.await_ranks("p-0", "p-1")
    asked = {"spec": {"ranks": {"topologyKeys": ["example.com/block"]}}}
    kubelet.kube.patch("Rendezvous", kubelet.namespace, "mnist", asked)

    def told() -> bool:
        return "RDZV_RANKS" in (kubelet.kube.get("ConfigMap", kubelet.namespace, "rdzv-mnist") or {})["data"]

    eventually(told)
    kubelet.delete("p-1")
    kubelet.run("again", {INDEX: "1"}, node=nodes["2-a"])
    kubelet.await_ranks("p-0", "again")
    _, text = eventually(lambda: degraded(kubelet) if degraded(kubelet)[0] == "TopologyNotFollowed" else None)
    assert "the agent of p-0 was started before spec.ranks was set" in text

    kubelet.delete("p-0")
    kubelet.run("new", {INDEX: "0"}, node=nodes["no-rack"])
    kubelet.await_ranks("again", "new")
    assert eventually(lambda: degraded(kubelet)[0] == "AsExpected")
    kubelet.end()
