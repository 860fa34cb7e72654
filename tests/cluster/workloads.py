"""Workloads of the kinds that users have, running plain `torchrun` in an unchanged image."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster_fixtures import LocalCluster

from deploy.demo.demo import Images

Object = dict[str, Any]

SCRIPT = (Path(__file__).parent / "train_once.py").read_text()


def rendezvous(backend: str, nodes: int | tuple[int, int], name: str = "world", **spec: Any) -> Object:
    low, high = nodes if isinstance(nodes, tuple) else (nodes, nodes)
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "Rendezvous",
        "metadata": {"name": name},
        "spec": {"backend": backend, "nodes": {"min": low, "max": high}, "nprocPerNode": 1, **spec},
    }


def pod_template(images: Images, *, stay: bool, restart: str, name: str = "world", **meta: Any) -> Object:
    env = [{"name": "OMP_NUM_THREADS", "value": "1"}, *([{"name": "STAY", "value": "1"}] if stay else [])]
    mounts = [{"name": "script", "mountPath": "/train"}, {"name": "torch", "mountPath": "/opt/torch", "readOnly": True}]
    return {
        "metadata": {"labels": {"app": name, "rdzv.dev/rendezvous": name}, **meta},
        "spec": {
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 5,
            "topologySpreadConstraints": [
                {
                    "topologyKey": "kubernetes.io/hostname",
                    "maxSkew": 1,
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"app": name}},
                }
            ],
            "containers": [
                {
                    "name": "train",
                    "image": images.train,
                    "command": ["torchrun", "/train/train.py"],
                    "env": env,
                    "volumeMounts": mounts,
                }
            ],
            "volumes": [
                {"name": "script", "configMap": {"name": "script"}},
                {"name": "torch", "hostPath": {"path": str(images.torch), "type": "Directory"}},
            ],
        },
    }


def workload(kind: str, images: Images, pods: int, *, stay: bool | None = None, name: str = "world") -> Object:
    """A Job, StatefulSet or Deployment of `pods` pods that opt in to Rendezvous `name`."""
    stay = kind != "Job" if stay is None else stay
    template = pod_template(images, stay=stay, restart="OnFailure" if kind == "Job" else "Always", name=name)
    selector = {"matchLabels": {"app": name}}
    specs: dict[str, tuple[str, Object]] = {
        "Job": (
            "batch/v1",
            {"completionMode": "Indexed", "completions": pods, "parallelism": pods, "template": template},
        ),
        "StatefulSet": (
            "apps/v1",
            {
                "replicas": pods,
                "podManagementPolicy": "Parallel",
                "serviceName": "none",
                "selector": selector,
                "template": template,
            },
        ),
        "Deployment": ("apps/v1", {"replicas": pods, "selector": selector, "template": template}),
    }
    api_version, spec = specs[kind]
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}


@dataclass(frozen=True)
class Place:
    """A namespace of the cluster with the script in it."""

    cluster: LocalCluster
    namespace: str

    def kubectl(self, *args: str, input: str | None = None) -> str:  # noqa: A002 - as in subprocess
        return self.cluster.kubectl("-n", self.namespace, *args, input=input)

    def apply(self, *objects: Object) -> None:
        script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "script"}, "data": {"train.py": SCRIPT}}
        self.kubectl("apply", "-f", "-", input="\n---\n".join(json.dumps(obj) for obj in (script, *objects)))

    def get(self, what: str) -> Object:
        found: Object = json.loads(self.kubectl("get", what, "-o", "json"))
        return found

    def worlds(self, name: str = "world") -> list[Object]:
        """What the pods of now said, the last line of each."""
        said = []
        for pod in self.get("pods")["items"]:
            if pod["metadata"]["labels"].get("app") == name and pod["status"]["phase"] in {"Running", "Succeeded"}:
                lines = self._logs(pod["metadata"]["name"]).splitlines()
                worlds = [json.loads(line.removeprefix("WORLD ")) for line in lines if line.startswith("WORLD ")]
                said += worlds[-1:]
        return sorted(said, key=lambda world: int(world["rank"]))

    def _logs(self, pod: str) -> str:
        try:
            return self.kubectl("logs", pod)
        except RuntimeError:
            return ""  # its container is just being restarted

    def await_world(self, size: int, timeout: float = 180, name: str = "world") -> list[Object]:
        """The world, once all `size` nodes are in it and agree; fails with what is there instead."""
        deadline = time.monotonic() + timeout
        while True:
            worlds = self.worlds(name)
            if [world["rank"] for world in worlds] == list(range(size)) and {world["sum"] for world in worlds} == {
                size
            }:
                return worlds
            if time.monotonic() > deadline:
                pods = self.kubectl("get", "pods", "-o", "wide")
                raise AssertionError(
                    f"no world of {size} within {timeout:.0f} s: {worlds}\n{pods}\n{self.kubectl('describe', 'rdzv')}"
                )
            time.sleep(1)
