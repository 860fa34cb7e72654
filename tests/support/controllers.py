"""The labels that each controller puts on its pods, as far as they say which place a pod has: seen on pods of the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COMPLETION = "batch.kubernetes.io/job-completion-index"
_POD_INDEX = "apps.kubernetes.io/pod-index"
_GLOBAL = "jobset.sigs.k8s.io/job-global-index"
_LWS = "leaderworkerset.sigs.k8s.io"
_KUBEFLOW = "training.kubeflow.org"


def alone(label: str) -> dict[str, str]:
    """What a pod is told whose index is its place."""
    return {"RDZV_SLOT": label, "PET_NODE_RANK": label}


def in_group(group: str, index: str) -> dict[str, str]:
    """What a pod is told whose index counts in a group."""
    return {"RDZV_GROUP": group, "RDZV_INDEX": index, "PET_NODE_RANK": index}


def job(index: int) -> dict[str, str]:
    return {_COMPLETION: str(index), "batch.kubernetes.io/job-name": "mnist"}


def jobset(global_index: int, index: int) -> dict[str, str]:
    """Of a JobSet: its pods belong to Jobs."""
    return {**job(index), "jobset.sigs.k8s.io/jobset-name": "mnist", _GLOBAL: str(global_index)}


def lws(group: int, worker: int) -> dict[str, str]:
    """Of a LeaderWorkerSet, once its webhook has set all: leaders are of one StatefulSet, workers of one for each group."""
    pod_index = group if worker == 0 else worker
    labels = {f"{_LWS}/name": "mnist", f"{_LWS}/group-index": str(group), f"{_LWS}/worker-index": str(worker)}
    return {**labels, _POD_INDEX: str(pod_index)}


def pytorchjob(kind: str, index: int) -> dict[str, str]:
    labels = {f"{_KUBEFLOW}/job-name": "mnist", f"{_KUBEFLOW}/operator-name": "pytorchjob-controller"}
    return {**labels, f"{_KUBEFLOW}/replica-type": kind, f"{_KUBEFLOW}/replica-index": str(index)}


#: By kind, the labels of one pod, and the labels that its variables refer to.
CONTROLLERS: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "Job": (job(1), alone(_COMPLETION)),
    "StatefulSet": ({_POD_INDEX: "1", "statefulset.kubernetes.io/pod-name": "web-1"}, alone(_POD_INDEX)),
    "Deployment": ({"pod-template-hash": "5d4f"}, {}),
    "JobSet": (jobset(1, 0), in_group(_GLOBAL, _COMPLETION)),
    "LeaderWorkerSet": (lws(1, 1), in_group(f"{_LWS}/group-index", f"{_LWS}/worker-index")),
    # The rest is set by a webhook, which may run after injection.
    "LeaderWorkerSet, a new leader": (
        {f"{_LWS}/name": "mnist", f"{_LWS}/worker-index": "0", _POD_INDEX: "1"},
        in_group(f"{_LWS}/group-index", f"{_LWS}/worker-index"),
    ),
    "LeaderWorkerSet, a new worker": (
        {f"{_LWS}/name": "mnist", f"{_LWS}/group-index": "1", _POD_INDEX: "2"},
        in_group(f"{_LWS}/group-index", f"{_LWS}/worker-index"),
    ),
    "PyTorchJob": (pytorchjob("worker", 0), in_group(f"{_KUBEFLOW}/replica-type", f"{_KUBEFLOW}/replica-index")),
    "Volcano Job": (
        {"volcano.sh/task-spec": "worker", "volcano.sh/task-index": "1"},
        in_group("volcano.sh/task-spec", "volcano.sh/task-index"),
    ),
    "the user's slot": ({"rdzv.dev/slot": "1", **jobset(0, 1)}, alone("rdzv.dev/slot")),
    "the user's group of a Job": (
        {"rdzv.dev/group": "b", **job(1)},
        {"RDZV_GROUP": "rdzv.dev/group", "RDZV_INDEX": _COMPLETION},
    ),
    "the user's group of a JobSet": (
        {"rdzv.dev/group": "b", **jobset(1, 0)},
        {"RDZV_GROUP": "rdzv.dev/group", "RDZV_INDEX": _COMPLETION},
    ),
    "the user's group and slot": (
        {"rdzv.dev/group": "b", "rdzv.dev/slot": "3"},
        {"RDZV_GROUP": "rdzv.dev/group", "RDZV_INDEX": "rdzv.dev/slot"},
    ),
    "the user's group of a Deployment": ({"rdzv.dev/group": "b"}, {"RDZV_GROUP": "rdzv.dev/group"}),
}

#: Environments as controllers make them, by kind: the pod's labels, its user's variables, what the controller adds, and which of them
#: yield to a Rendezvous.
_KUBEFLOW_OWN: list[dict[str, Any]] = [
    {"name": "PYTHONUNBUFFERED", "value": "1"},
    {"name": "MASTER_ADDR", "value": "mnist-master-0"},
    {"name": "PET_MASTER_ADDR", "value": "mnist-master-0"},
    {"name": "PET_MASTER_PORT", "value": "23456"},
    {"name": "WORLD_SIZE", "value": "2"},
    {"name": "RANK", "value": "1"},
    {"name": "PET_NODE_RANK", "value": "1"},
]
_ELASTIC: list[dict[str, Any]] = [
    {"name": "PET_RDZV_ENDPOINT", "value": "mnist-worker-0:23456"},
    {"name": "PET_RDZV_BACKEND", "value": "c10d"},
    {"name": "PET_NNODES", "value": "1:2"},
]
_TRAINER: list[dict[str, Any]] = [
    {"name": "PET_NNODES", "value": "2"},
    {"name": "PET_NPROC_PER_NODE", "value": "auto"},
    {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{_COMPLETION}']"}}},
    {"name": "PET_MASTER_ADDR", "value": "mnist-node-0-0.mnist"},
    {"name": "PET_MASTER_PORT", "value": "29400"},
]
_AUTO, _TWO = {"name": "PET_NPROC_PER_NODE", "value": "auto"}, {"name": "PET_NPROC_PER_NODE", "value": "2"}
_NNODES = {"name": "PET_NNODES", "value": "2"}
_PYTORCHJOB = pytorchjob("worker", 0)

Entries = list[dict[str, Any]]
ENVIRONMENTS: Mapping[str, tuple[Mapping[str, str], Entries, Entries, list[str]]] = {
    "PyTorchJob": (
        _PYTORCHJOB,
        [],
        [*_KUBEFLOW_OWN, _AUTO, _NNODES],
        ["PET_MASTER_ADDR", "PET_MASTER_PORT", "PET_NPROC_PER_NODE", "PET_NNODES"],
    ),
    "PyTorchJob that says how many processes": (_PYTORCHJOB, [], [_KUBEFLOW_OWN[0], _TWO, _NNODES], ["PET_NNODES"]),
    "elastic PyTorchJob": (
        _PYTORCHJOB,
        [],
        [_KUBEFLOW_OWN[0], _AUTO, *_ELASTIC],
        ["PET_NPROC_PER_NODE", "PET_RDZV_ENDPOINT", "PET_RDZV_BACKEND", "PET_NNODES"],
    ),
    "elastic PyTorchJob that says twice how many processes": (
        _PYTORCHJOB,
        [],
        [_KUBEFLOW_OWN[0], _AUTO, *_ELASTIC, _TWO],
        ["PET_RDZV_ENDPOINT", "PET_RDZV_BACKEND", "PET_NNODES"],
    ),
    "PyTorchJob whose user writes some of it": (
        _PYTORCHJOB,
        [_NNODES, _KUBEFLOW_OWN[0], {"name": "PET_RDZV_ID", "value": "mine"}],
        [_KUBEFLOW_OWN[0], _AUTO, _NNODES],
        ["PET_NPROC_PER_NODE"],
    ),
    "TrainJob": (
        jobset(0, 1),
        [],
        _TRAINER,
        ["PET_NNODES", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT"],
    ),
    "JobSet": (jobset(0, 1), [*_ELASTIC, *_TRAINER[:1], {"name": "PET_MASTER_ADDR", "value": "10.0.0.1"}], [], []),
    "Job": (job(1), [*_KUBEFLOW_OWN, *_ELASTIC], [], []),
}
