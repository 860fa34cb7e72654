"""The elastic jobs of real pods, side by side: the same pods by another backend, or by Kubeflow's PyTorchJob with its own rendezvous."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from support.workloads import Object, pod_template, rendezvous, workload

from deploy.demo.demo import Images

COUNT, LEAST = 4, 2
MAX_RESTARTS = 100
"""Of workers by one agent: what a Rendezvous has by default, and what Kubeflow's own examples of elastic jobs say."""
_ENV = {"LOGLEVEL": "INFO"}


@dataclass(frozen=True)
class ElasticJob:
    """`make`: what is applied, of images and the directory that all pods share. `pods`: their names.

    `host`: the one that hosts the store, where its controller knows no other. `most`: runs, for want of time.
    """

    make: Callable[[Images, Path], list[Object]]
    pods: list[str]
    host: str = ""
    most: int = 3


def _ours(backend: str, images: Images, shared: Path, **spec: Any) -> list[Object]:
    """A StatefulSet, and the operator."""
    job = workload("StatefulSet", images, COUNT, shared=shared, env=_ENV)
    return [rendezvous(backend, (LEAST, COUNT), maxRestarts=MAX_RESTARTS, **spec), job]


def _pytorchjob(images: Images, shared: Path) -> list[Object]:
    """Kubeflow's training operator makes the same pods, which do not opt in to a Rendezvous, and torch's c10d is at the first of them."""
    template = pod_template(images, restart="Always", env=_ENV, shared=shared)
    del template["metadata"]["labels"]["rdzv.dev/rendezvous"]
    template["spec"]["containers"][0]["name"] = "pytorch"
    spec = {
        "nprocPerNode": "1",
        "elasticPolicy": {"minReplicas": LEAST, "maxReplicas": COUNT, "maxRestarts": MAX_RESTARTS},
        "pytorchReplicaSpecs": {"Worker": {"replicas": COUNT, "restartPolicy": "Always", "template": template}},
    }
    return [{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "world"}, "spec": spec}]


def _names(prefix: str) -> list[str]:
    return [f"{prefix}-{index}" for index in range(COUNT)]


PYTORCHJOB, AT_ONCE = "pytorchjob", "kubernetes-at-once"
JOBS = {
    "kubernetes": ElasticJob(partial(_ours, "kubernetes"), _names("world")),
    # Survivors wait for nobody, and whoever comes is let in: workers start twice.
    AT_ONCE: ElasticJob(
        partial(_ours, "kubernetes", kubernetes={"replacementWait": 0, "minRoundDuration": 0}), _names("world")
    ),
    "c10d": ElasticJob(partial(_ours, "c10d"), _names("world"), most=2),
    PYTORCHJOB: ElasticJob(_pytorchjob, _names("world-worker"), host="world-worker-0"),
}
