"""A world that fails more often than its Rendezvous allows is ended, by operator and agents together: real torchrun, a real operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster
from support.operated import rendezvous
from support.operator_process import Kube, eventually, running_operator
from support.played_kubelet import Kubelet
from support.torchrun_fleet import install_crds

INDEX = "apps.kubernetes.io/pod-index"


@pytest.fixture
def kubelet(control_plane: LocalCluster, light_namespace: str, tmp_path: Path) -> Iterator[Kubelet]:
    install_crds(control_plane)
    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace):
        found = Kubelet(Kube(control_plane.kubeconfig), control_plane.kubeconfig, light_namespace, tmp_path)
        yield found
        found.stop()


def conditions(kubelet: Kubelet) -> dict[str, Any]:
    status = (kubelet.kube.get("Rendezvous", kubelet.namespace, "mnist") or {}).get("status") or {}
    return {condition["type"]: condition for condition in status.get("conditions", [])}


def test_a_node_that_loses_one_world_after_the_other_ends_them_and_is_named(kubelet: Kubelet) -> None:
    pace = {"minRoundDuration": 0, "replacementWait": 0, "scaleUpWindow": 0}
    spec = {"nodes": {"min": 1, "max": 2}, "nprocPerNode": 1, "kubernetes": pace}
    policy = {"maxReforms": 2, "window": 3600}
    kubelet.kube.create(rendezvous(kubelet.namespace, "kubernetes", **spec, failurePolicy=policy))
    kubelet.run("stays", {INDEX: "0"}, node="node-a")
    for number in range(3):
        name = f"fails-{number}"
        kubelet.run(name, {INDEX: "1"}, node="node-b")
        kubelet.await_ranks("stays", name)
        assert kubelet.running["stays"].poll() is None
        kubelet.delete(name)
        if number < 2:
            kubelet.await_ranks("stays")

    def ended() -> bool:
        assert conditions(kubelet)["Formed"]["reason"] == "ClosedTooManyReforms"
        return True

    eventually(ended, timeout=60)
    assert kubelet.running["stays"].wait(60) != 0
    degraded = eventually(lambda: conditions(kubelet)["Degraded"]["message"])
    assert "spec.failurePolicy allows 2" in degraded
    assert "node-b lost 3 of 3 worlds" in degraded
