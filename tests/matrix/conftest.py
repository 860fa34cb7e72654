"""The cluster with the chart, and real controllers of workloads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.cluster_fixtures import LocalCluster
from support.workload_controllers import LABEL, Controllers
from support.workloads import Place

from deploy.demo import demo
from deploy.demo.demo import Images
from deploy.demo.kube import Cluster


@pytest.fixture(scope="session")
def images(cluster: LocalCluster) -> Iterator[Images]:
    target = Cluster(cluster.kubeconfig, cluster.dir)
    found = demo.images_for(target)
    demo.install(target, found)
    yield found
    demo.uninstall(target)


@pytest.fixture(scope="session")
def controllers(
    cluster: LocalCluster, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controllers]:
    found = Controllers(cluster, tmp_path_factory.mktemp("controllers"), images.train)
    yield found
    found.stop()


@pytest.fixture
def place(cluster: LocalCluster, namespace: str) -> Place:
    cluster.kubectl("label", "namespace", namespace, f"{LABEL}=true")
    return Place(cluster, namespace)
