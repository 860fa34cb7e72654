"""Each kind of workload, made by its real controller, with each backend: a world forms, and forms again when a pod was deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster
from support.workload_controllers import LABEL, Controllers
from support.workloads import Place, pod_template, rendezvous, workload

from deploy.demo import demo
from deploy.demo.demo import Images
from deploy.demo.kube import Cluster

pytestmark = pytest.mark.cluster

Object = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs/workloads.md"
BEGIN, END = "<!-- begin of the matrix -->", "<!-- end of the matrix -->"
STAY = {"STAY": "1"}


def jobset(images: Images) -> Object:
    """Two replicated jobs, one of them twice."""

    def job(name: str, replicas: int) -> Object:
        template = pod_template(images, restart="OnFailure", env=STAY)
        spec = {"completionMode": "Indexed", "completions": 1, "parallelism": 1, "template": template}
        return {"name": name, "replicas": replicas, "template": {"spec": spec}}

    spec = {"replicatedJobs": [job("workers", 2), job("evaluator", 1)]}
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "world"}, "spec": spec}


def leaderworkerset(images: Images) -> Object:
    """Two groups of two."""
    template = pod_template(images, restart="Always", env=STAY)
    spec = {"replicas": 2, "leaderWorkerTemplate": {"size": 2, "restartPolicy": "None", "workerTemplate": template}}
    kind = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet"}
    return {**kind, "metadata": {"name": "world"}, "spec": spec}


def pytorchjob(images: Images, replicas: Mapping[str, int], **spec: Any) -> Object:
    template = pod_template(images, restart="OnFailure", env=STAY)
    template["spec"]["containers"][0]["name"] = "pytorch"
    of_kind = {
        kind: {"replicas": count, "restartPolicy": "OnFailure", "template": template}
        for kind, count in replicas.items()
    }
    spec = {"pytorchReplicaSpecs": of_kind, **spec}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "world"}, "spec": spec}


#: By name, the object, how many pods it has, and the pairs that they are told, by rank (None: no order is promised).
KINDS: dict[str, tuple[Callable[[Images], Object], int, list[list[str | None]] | None]] = {
    "Job (Indexed)": (lambda images: workload("Job", images, 2, env=STAY), 2, None),
    "StatefulSet": (lambda images: workload("StatefulSet", images, 2), 2, None),
    "Deployment": (lambda images: workload("Deployment", images, 2), 2, None),
    "JobSet, two replicated jobs": (jobset, 3, [["0", "0"], ["1", "0"], ["2", "0"]]),
    "LeaderWorkerSet, two groups": (leaderworkerset, 4, [["0", "0"], ["0", "1"], ["1", "0"], ["1", "1"]]),
    "PyTorchJob, Master and Worker": (
        lambda images: pytorchjob(images, {"Master": 1, "Worker": 1}),
        2,
        [["master", "0"], ["worker", "0"]],
    ),
    "PyTorchJob with elasticPolicy": (
        lambda images: pytorchjob(images, {"Worker": 2}, elasticPolicy={"minReplicas": 1, "maxReplicas": 2}),
        2,
        [["worker", "0"], ["worker", "1"]],
    ),
}
#: What can't be, and why.
NOT = {
    ("Deployment", "static"): "has no index",
    ("JobSet, two replicated jobs", "static"): "each group counts from 0",
    ("LeaderWorkerSet, two groups", "static"): "each group counts from 0",
}
BACKENDS = ("kubernetes", "c10d", "static")
CELLS = [(kind, backend) for kind in KINDS for backend in BACKENDS if (kind, backend) not in NOT]


@pytest.fixture(scope="module")
def images(cluster: LocalCluster) -> Iterator[Images]:
    target = Cluster(cluster.kubeconfig, cluster.dir)
    found = demo.images_for(target)
    demo.install(target, found)
    yield found
    demo.uninstall(target)


@pytest.fixture(scope="module")
def controllers(
    cluster: LocalCluster, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controllers]:
    found = Controllers(cluster, tmp_path_factory.mktemp("controllers"), images.train)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def results() -> Iterator[dict[tuple[str, str], str]]:
    """What each cell came to; written into the page, beside what earlier runs of other cells have left there."""
    found: dict[tuple[str, str], str] = {}
    yield found
    if os.environ.get("RDZV_MATRIX") == "write":
        write(found)


def write(found: Mapping[tuple[str, str], str]) -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().split("\n") if line[:2] == "| "
    ]
    earlier = {(row[0], backend): cell for row in rows for backend, cell in zip(BACKENDS, row[1:], strict=False)}
    found = {**{cell: earlier[cell] for cell in CELLS if cell in earlier}, **found}
    lines = [f"| | {' | '.join(f'`{backend}`' for backend in BACKENDS)} |", "|---" * (len(BACKENDS) + 1) + "|"]
    for kind in KINDS:
        not_run = {(kind, backend): f"– ({NOT[kind, backend]})" for backend in BACKENDS if (kind, backend) in NOT}
        cells = [found.get((kind, backend)) or not_run.get((kind, backend), "not run yet") for backend in BACKENDS]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{chr(10).join(lines)}\n{END}{rest.partition(END)[2]}")


@pytest.fixture
def place(cluster: LocalCluster, namespace: str) -> Place:
    cluster.kubectl("label", "namespace", namespace, f"{LABEL}=true")
    return Place(cluster, namespace)


@pytest.mark.parametrize(("kind", "backend"), CELLS)
def test_a_world_forms_and_forms_again_without_a_pod(
    place: Place, images: Images, controllers: Controllers, results: dict[tuple[str, str], str], kind: str, backend: str
) -> None:
    make, size, pairs = KINDS[kind]
    results[kind, backend] = "**fails**"
    try:
        place.apply(rendezvous(backend, size), make(images))
        before = place.await_world(size)
        ordered = backend != "c10d" and (pairs is None or [world["pair"] for world in before] == pairs)
        assert backend == "c10d" or ordered, before
        lost = before[-1]["pod"]
        uid = place.get(f"pod/{lost}")["metadata"]["uid"]
        place.kubectl("delete", "pod", lost, "--grace-period=1", "--wait=true")

        def again() -> bool:
            pods = [pod["metadata"]["uid"] for pod in place.pods().values()]
            return uid not in pods and len(pods) == size

        place.wait(again, 120, lambda: f"no pod in place of {lost}\n{controllers.logs()}")
        after = place.await_world(size)
        assert backend == "c10d" or pairs is None or [world["pair"] for world in after] == pairs, after
        status = place.get("rdzv/world")["status"]
        assert next(c["status"] for c in status["conditions"] if c["type"] == "Degraded") == "False", status
    except AssertionError as error:
        raise AssertionError(f"{error}\n{controllers.logs()}") from error
    results[kind, backend] = "yes" if backend == "c10d" else "yes, ranks follow the places"
