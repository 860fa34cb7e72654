"""Pytest plugin: the chart on the cluster, as the demo installs it, once for the whole session, and a namespace to use it in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.demo import demo
from deploy.demo.demo import Images
from deploy.demo.kube import Cluster
from support.cluster_fixtures import LocalCluster
from support.workloads import Place


@pytest.fixture(scope="session")
def installation(cluster: LocalCluster) -> Iterator[tuple[Cluster, Images]]:
    """The chart, installed as the demo installs it."""
    target = Cluster(cluster.kubeconfig, cluster.dir if (cluster.dir / "state.json").exists() else None)
    images = demo.images_for(target)
    demo.install(target, images)
    yield target, images
    demo.uninstall(target)


@pytest.fixture(scope="session")
def images(installation: tuple[Cluster, Images]) -> Images:
    return installation[1]


@pytest.fixture
def place(cluster: LocalCluster, namespace: str) -> Place:
    return Place(cluster, namespace)
