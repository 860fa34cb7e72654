"""What several modules here need: the project's kinds on the API server, and a proxy before it that makes faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import FaultProxy
from support.operator_process import Kube, running_operator
from support.played_kubelet import Kubelet
from support.torchrun_fleet import install_crds


@pytest.fixture(scope="module")
def plane(control_plane: LocalCluster) -> LocalCluster:
    """The control plane, which serves the project's kinds."""
    install_crds(control_plane)
    return control_plane


@pytest.fixture(scope="module")
def kube(plane: LocalCluster) -> Kube:
    """Asks it."""
    return Kube(plane.kubeconfig)


@pytest.fixture
def proxy(control_plane: LocalCluster, tmp_path: Path) -> Iterator[FaultProxy]:
    """Before it."""
    with FaultProxy(control_plane.kubeconfig, tmp_path) as proxy:
        yield proxy


@pytest.fixture
def kubelet(control_plane: LocalCluster, light_namespace: str, tmp_path: Path) -> Iterator[Kubelet]:
    """Runs pods of Rendezvous `mnist` in a namespace of its own, which the operator serves."""
    install_crds(control_plane)
    found = Kubelet(Kube(control_plane.kubeconfig), control_plane.kubeconfig, light_namespace, tmp_path)
    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace):
        yield found
        found.stop()
