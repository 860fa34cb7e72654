"""deploy/samples/KIND: what is in each, and how it is made fit for the local cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deploy.demo.demo import Images
from support.cluster_fixtures import LocalCluster

Object = dict[str, Any]

SAMPLES = Path(__file__).parents[2] / "deploy/samples"
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "job": ("Job", ()),
    "statefulset": ("StatefulSet", ()),
    "deployment": ("Deployment", ()),
    "pods": ("Pod", ()),
    "jobset": ("JobSet", ("jobset",)),
    "lws": ("LeaderWorkerSet", ("lws",)),
    "pytorchjob": ("PyTorchJob", ("training-operator",)),
    "trainjob": ("TrainJob", ("jobset", "trainer")),
}
"""By folder, the kind of workload, and the controllers that it needs beside Kubernetes' own."""
CONTROLLERS = sorted({name for _, names in KINDS.values() for name in names})


def rendered(cluster: LocalCluster, folder: str) -> list[Object]:
    """The objects of one sample ("" is the one that all others are made after)."""
    return list(yaml.safe_load_all(cluster.kubectl("kustomize", str(SAMPLES / folder))))


def pod_templates(obj: Any) -> list[Object]:
    """All in an object that have containers, whatever controller they are for."""
    if isinstance(obj, list):
        return [found for each in obj for found in pod_templates(each)]
    if not isinstance(obj, dict):
        return []
    if "containers" in obj.get("spec", {}):
        return [obj]
    return [found for each in obj.values() for found in pod_templates(each)]


def fit_for(images: Images, objects: list[Object]) -> list[Object]:
    """The same with the local image, with torch from the machine, and with one thread a process."""
    for template in pod_templates(objects):
        (container,) = template["spec"]["containers"]
        container["image"] = images.train
        container["env"] = [{"name": "OMP_NUM_THREADS", "value": "1"}]
        container["volumeMounts"].append({"name": "torch", "mountPath": "/opt/torch", "readOnly": True})
        volume = {"name": "torch", "hostPath": {"path": str(images.torch), "type": "Directory"}}
        template["spec"]["volumes"].append(volume)
    return objects
