"""Each kind of workload, made by its real controller, with each backend: a world forms, and forms again when a pod was deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from support import matrix_table, queues
from support.cluster_fixtures import LocalCluster, new_namespace
from support.workload_controllers import LABEL, Controllers
from support.workloads import Place, pod_template, rendezvous, workload

from deploy.demo.demo import Images
from rdzv.pairs import SLOT_LABEL

pytestmark = pytest.mark.cluster

Object = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs/workloads.md"
STAY = {"STAY": "1"}
#: Seconds, for "never": torch's own backends wait for a lost node, and on a busy machine a pod imports torch for minutes.
LONG = 600.0


def job(images: Images) -> list[Object]:
    return [workload("Job", images, 2, env=STAY)]


def job_in_a_queue(images: Images) -> list[Object]:
    return [queues.queued(found) for found in job(images)]


def admitted(place: Place) -> None:
    """By Kueue, once its queue has room for both pods. Until then the status says who is held back."""
    queues.give_room(place, 1)
    place.wait(
        lambda: "insufficient quota for pods" in queues.why_it_waits(place),
        LONG,
        lambda: f"Kueue says {queues.why_it_waits(place)!r}",
    )
    assert place.await_summary("Suspended: Job world", LONG)["nodes"] == {
        "expected": 2,
        "joined": 0,
        "summary": "0/2",
        "missing": [{"pod": "every pod", "reason": "Suspended: by Job world"}],
    }
    queues.give_room(place, 2)


def job_without_indexes(images: Images) -> list[Object]:
    found = workload("Job", images, 2, env=STAY)
    return [{**found, "spec": {**found["spec"], "completionMode": "NonIndexed"}}]


def bare_pods(images: Images, *, slots: bool) -> list[Object]:
    """Two pods that belong to no controller, with `rdzv.dev/slot` or without."""
    template = pod_template(images, restart="OnFailure", env=STAY)
    found = []
    for number in ("0", "1"):
        labels = {**template["metadata"]["labels"], **({SLOT_LABEL: number} if slots else {})}
        metadata = {"name": f"world-{number}", "labels": labels}
        found.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    return found


def jobset(images: Images) -> list[Object]:
    """Two replicated jobs, one of them twice."""

    def replicated(name: str, replicas: int) -> Object:
        template = pod_template(images, restart="OnFailure", env=STAY)
        spec = {"completionMode": "Indexed", "completions": 1, "parallelism": 1, "template": template}
        return {"name": name, "replicas": replicas, "template": {"spec": spec}}

    spec = {"replicatedJobs": [replicated("workers", 2), replicated("evaluator", 1)]}
    return [of("jobset.x-k8s.io/v1alpha2", "JobSet", spec)]


def leaderworkerset(images: Images, groups: int) -> list[Object]:
    """Groups of two."""
    template = pod_template(images, restart="Always", env=STAY)
    spec = {
        "replicas": groups,
        "leaderWorkerTemplate": {"size": 2, "restartPolicy": "None", "workerTemplate": template},
    }
    return [of("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", spec)]


def pytorchjob(images: Images, replicas: Mapping[str, int], **spec: Any) -> list[Object]:
    template = pod_template(images, restart="OnFailure", env=STAY)
    template["spec"]["containers"][0]["name"] = "pytorch"
    of_kind = {
        kind: {"replicas": count, "restartPolicy": "OnFailure", "template": template}
        for kind, count in replicas.items()
    }
    return [of("kubeflow.org/v1", "PyTorchJob", {"pytorchReplicaSpecs": of_kind, **spec})]


def trainjob(images: Images) -> list[Object]:
    """The label is in the runtime: that of a TrainJob does not reach its pods."""
    template = pod_template(images, restart="OnFailure", env=STAY)
    template["spec"]["containers"][0]["name"] = "node"
    labels = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    replicated = {"name": "node", "template": {"metadata": {"labels": labels}, "spec": {"template": template}}}
    policy = {"numNodes": 2, "torch": {"numProcPerNode": "auto"}}
    runtime = {"mlPolicy": policy, "template": {"spec": {"replicatedJobs": [replicated]}}}
    group = "trainer.kubeflow.org/v1alpha1"
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": "world"}
    return [of(group, "TrainingRuntime", runtime), of(group, "TrainJob", {"runtimeRef": reference})]


def of(api_version: str, kind: str, spec: Object) -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "world"}, "spec": spec}


@dataclass(frozen=True)
class Kind:
    """How a kind of workload is made, how many pods it has, the pairs that they are told, by rank (none: it has no places), and by whom.

    `admit`: what has to happen before its pods are made. `by_hand`: nobody makes a lost pod again but its user, who applies all once more.
    """

    make: Callable[[Images], list[Object]]
    pods: int
    pairs: list[list[str | None]]
    controllers: tuple[str, ...] = ()
    admit: Callable[[Place], None] = lambda place: None
    by_hand: bool = False


def places(*of_group: tuple[str | None, int]) -> list[list[str | None]]:
    """Each group with its indexes from 0."""
    return [[group, str(index)] for group, size in of_group for index in range(size)]


KINDS = {
    "Job (Indexed)": Kind(job, 2, places((None, 2))),
    "Job (Indexed) under Kueue": Kind(job_in_a_queue, 2, places((None, 2)), ("kueue",), admitted),
    "Job (NonIndexed)": Kind(job_without_indexes, 2, []),
    "StatefulSet": Kind(lambda images: [workload("StatefulSet", images, 2)], 2, places((None, 2))),
    "Deployment": Kind(lambda images: [workload("Deployment", images, 2)], 2, []),
    "Bare pods with `rdzv.dev/slot`": Kind(
        lambda images: bare_pods(images, slots=True), 2, places((None, 2)), by_hand=True
    ),
    "Bare pods": Kind(lambda images: bare_pods(images, slots=False), 2, [], by_hand=True),
    "JobSet, two replicated jobs": Kind(jobset, 3, places(("0", 1), ("1", 1), ("2", 1)), ("jobset",)),
    "LeaderWorkerSet, one group": Kind(lambda images: leaderworkerset(images, 1), 2, places(("0", 2)), ("lws",)),
    "LeaderWorkerSet, two groups": Kind(
        lambda images: leaderworkerset(images, 2), 4, places(("0", 2), ("1", 2)), ("lws",)
    ),
    "PyTorchJob, Master and Worker": Kind(
        lambda images: pytorchjob(images, {"Master": 1, "Worker": 1}),
        2,
        places(("master", 1), ("worker", 1)),
        ("training-operator",),
    ),
    "PyTorchJob with elasticPolicy": Kind(
        lambda images: pytorchjob(images, {"Worker": 2}, elasticPolicy={"minReplicas": 1, "maxReplicas": 2}),
        2,
        places(("worker", 2)),
        ("training-operator",),
    ),
    "TrainJob": Kind(trainjob, 2, places(("0", 2)), ("jobset", "trainer")),
}
BACKENDS = ("kubernetes", "etcd-v3", "c10d", "static", "etcd", "etcd-v2")
#: torch's own, which give ranks in no order.
UNORDERED = {"c10d", "etcd", "etcd-v2"}
_COUNTS, _NO_INDEX = "each group counts from 0", "has no index"
#: What can't be, and why.
NOT = {
    ("Job (NonIndexed)", "static"): _NO_INDEX,
    ("Deployment", "static"): _NO_INDEX,
    ("Bare pods", "static"): _NO_INDEX,
    ("JobSet, two replicated jobs", "static"): _COUNTS,
    ("LeaderWorkerSet, two groups", "static"): _COUNTS,
}
CELLS = [(kind, backend) for kind in KINDS for backend in BACKENDS if (kind, backend) not in NOT]


_WRITING, _STARTING = Lock(), Lock()


def record(kind: str, backend: str, outcome: str) -> None:
    """Writes a cell into the page at once: the run may be interrupted in the next one."""
    if os.environ.get("RDZV_MATRIX") == "write":
        with _WRITING:
            page = matrix_table.written(PAGE.read_text(), list(KINDS), BACKENDS, NOT, {(kind, backend): outcome})
            PAGE.write_text(page)


def told(worlds: list[Object]) -> list[list[str | None]]:
    """The pairs of nodes; an index without a group is a slot."""
    return [[world["pair"][0], world["pair"][1] or world["slot"]] for world in worlds]


def run(place: Place, images: Images, kind: Kind, backend: str) -> str:
    """What a cell comes to. Fails with what is there instead of a world."""
    ordered = bool(kind.pairs) and backend not in UNORDERED
    objects = [rendezvous(backend, kind.pods), *kind.make(images)]
    place.apply(*objects)
    kind.admit(place)
    before = place.await_world(kind.pods, LONG)
    assert not ordered or told(before) == kind.pairs, before
    lost = before[-1]["pod"]
    uid = place.get(f"pod/{lost}")["metadata"]["uid"]
    place.kubectl("delete", "pod", lost, "--grace-period=1", "--wait=true")
    if kind.by_hand:
        place.apply(*objects)

    def again() -> bool:
        pods = [pod["metadata"]["uid"] for pod in place.pods().values() if "app" in pod["metadata"]["labels"]]
        return uid not in pods and len(pods) == kind.pods

    place.wait(again, LONG, lambda: f"no pod in place of {lost}")
    after = place.await_world(kind.pods, LONG)
    assert not ordered or told(after) == kind.pairs, after
    place.kubectl("wait", "--for=condition=Degraded=False", "rdzv/world", "--timeout=30s")
    return "yes, ranks follow the places" if ordered else "yes"


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, cluster: LocalCluster, images: Images, controllers: Controllers
) -> Iterator[dict[tuple[str, str], Future[None]]]:
    """Of all cells that are to be run, some at once, as each waits most of the time."""

    def outcome(kind: str, backend: str) -> None:
        with _STARTING:
            controllers.start(*KINDS[kind].controllers)
        with new_namespace(cluster) as namespace:
            cluster.kubectl("label", "namespace", namespace, f"{LABEL}=true")
            record(kind, backend, run(Place(cluster, namespace), images, KINDS[kind], backend))

    of_cells = test_a_world_forms_and_forms_again_without_a_pod
    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    params = [item.callspec.params for item in tests if item.function is of_cells]
    wanted = [(str(each["kind"]), str(each["backend"])) for each in params]
    pool = ThreadPoolExecutor(int(os.environ.get("RDZV_MATRIX_AT_ONCE", "2")))
    yield {cell: pool.submit(outcome, *cell) for cell in wanted}
    pool.shutdown(wait=False, cancel_futures=True)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "backend"), CELLS)
def test_a_world_forms_and_forms_again_without_a_pod(
    outcomes: dict[tuple[str, str], Future[None]], controllers: Controllers, kind: str, backend: str
) -> None:
    try:
        outcomes[kind, backend].result()
    except (AssertionError, RuntimeError) as error:
        # Only here: an interrupted run does not come here, and its cells have not failed.
        record(kind, backend, "**fails**")
        raise AssertionError(f"{error}\n{controllers.logs()}") from error
