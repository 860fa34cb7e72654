"""Real controllers of workloads beside the cluster, and namespaces that their webhooks serve."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.cluster_fixtures import LocalCluster
from support.workload_controllers import LABEL, Controllers
from support.workloads import Place

from deploy.demo.demo import Images


@pytest.fixture(scope="session")
def controllers(
    cluster: LocalCluster, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controllers]:
    found = Controllers(cluster, tmp_path_factory.mktemp("controllers"), images.train)
    yield found
    found.stop()


@pytest.fixture
def place(place: Place) -> Place:
    place.cluster.kubectl("label", "namespace", place.namespace, f"{LABEL}=true")
    return place
