"""Workloads of the kinds that users have, running plain `torchrun` in an unchanged image."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deploy.demo.demo import Images
from support.cluster_fixtures import LocalCluster

Object = dict[str, Any]
T = TypeVar("T")

SCRIPT = (Path(__file__).parent / "train_once.py").read_text()


def rendezvous(backend: str, nodes: int | tuple[int, int], name: str = "world", **spec: Any) -> Object:
    low, high = nodes if isinstance(nodes, tuple) else (nodes, nodes)
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "Rendezvous",
        "metadata": {"name": name},
        "spec": {"backend": backend, "nodes": {"min": low, "max": high}, "nprocPerNode": 1, **spec},
    }


def pod_template(
    images: Images,
    *,
    restart: str,
    name: str = "world",
    env: Mapping[str, str] | None = None,
    shared: Path | None = None,
) -> Object:
    """`shared`: a directory of this machine that all pods see as /shared."""
    mounts = [{"name": "script", "mountPath": "/train"}, {"name": "torch", "mountPath": "/opt/torch", "readOnly": True}]
    volumes: list[Object] = [
        {"name": "script", "configMap": {"name": "script"}},
        {"name": "torch", "hostPath": {"path": str(images.torch), "type": "Directory"}},
    ]
    if shared is not None:
        mounts.append({"name": "shared", "mountPath": "/shared"})
        volumes.append({"name": "shared", "hostPath": {"path": str(shared), "type": "Directory"}})
    return {
        "metadata": {"labels": {"app": name, "rdzv.dev/rendezvous": name}},
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
                    "env": [{"name": k, "value": v} for k, v in {"OMP_NUM_THREADS": "1", **(env or {})}.items()],
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }


def workload(
    kind: str,
    images: Images,
    pods: int,
    *,
    name: str = "world",
    env: Mapping[str, str] | None = None,
    shared: Path | None = None,
) -> Object:
    """A Job, StatefulSet or Deployment of `pods` pods that opt in to Rendezvous `name`."""
    env = {**({} if kind == "Job" else {"STAY": "1"}), **(env or {})}
    restart = "OnFailure" if kind == "Job" else "Always"
    template = pod_template(images, restart=restart, name=name, env=env, shared=shared)
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


def restarts(pod: Object) -> int:
    return sum(int(status["restartCount"]) for status in pod["status"].get("containerStatuses", []))


def read_steps(shared: Path) -> list[Object]:
    """The lines of JSON that training scripts have written to their files in a shared directory."""
    lines: list[str] = []
    for path in sorted(shared.glob("*.jsonl")):
        lines += path.read_text().split("\n")[:-1]  # the last one may be half written
    return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Place:
    """A namespace of the cluster with the script in it."""

    cluster: LocalCluster
    namespace: str
    script: str = SCRIPT

    def kubectl(self, *args: str, input: str | None = None) -> str:  # noqa: A002 - as in subprocess
        return self.cluster.kubectl("-n", self.namespace, *args, input=input)

    def apply(self, *objects: Object) -> None:
        script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "script"}}
        script["data"] = {"train.py": self.script}
        self.kubectl("apply", "-f", "-", input="\n---\n".join(json.dumps(obj) for obj in (script, *objects)))

    def get(self, what: str) -> Object:
        found: Object = json.loads(self.kubectl("get", what, "-o", "json"))
        return found

    def pods(self) -> dict[str, Object]:
        """Those that are not being deleted, by name."""
        found = self.get("pods")["items"]
        return {pod["metadata"]["name"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def worlds(self, name: str = "world") -> list[Object]:
        """What the pods of now said, the last line of each. Those that are being deleted belong to the world before."""
        said = []
        for title, pod in self.pods().items():
            if pod["metadata"]["labels"].get("app") == name and pod["status"]["phase"] in {"Running", "Succeeded"}:
                lines = self.logs(title).splitlines()
                worlds = [json.loads(line.removeprefix("WORLD ")) for line in lines if line.startswith("WORLD ")]
                said += worlds[-1:]
        return sorted(said, key=lambda world: int(world["rank"]))

    def logs(self, pod: str, *options: str) -> str:
        try:
            return self.kubectl("logs", pod, *options)
        except RuntimeError:
            return ""  # its container is just being restarted

    def await_world(self, size: int, timeout: float = 180, name: str = "world") -> list[Object]:
        """The world, once all `size` nodes are in it and agree; fails with what is there instead."""
        latest: list[Object] = []

        def formed() -> list[Object] | None:
            latest[:] = self.worlds(name)
            ranks, sums = [world["rank"] for world in latest], {world["sum"] for world in latest}
            return latest if ranks == list(range(size)) and sums == {size} else None

        return self.wait(formed, timeout, lambda: f"no world of {size}: {latest}")

    def await_summary(self, summary: str, timeout: float = 180) -> Object:
        """The status of Rendezvous `world`, once this is its STATUS."""
        latest: Object = {}

        def said() -> Object | None:
            latest.update(self.get("rdzv/world").get("status", {}))
            return latest if latest.get("summary") == summary else None

        return self.wait(said, timeout, lambda: f"STATUS is {latest.get('summary')}, not {summary},")

    def wait(self, what: Callable[[], T | None], timeout: float, problem: Callable[[], str]) -> T:
        """The first true answer of `what`, asked once a second; fails with the problem and with what is there instead."""
        deadline = time.monotonic() + timeout
        while not (answer := what()):
            if time.monotonic() > deadline:
                pods, described = self.kubectl("get", "pods", "-o", "wide"), self.kubectl("describe", "rdzv")
                raise AssertionError(f"{problem()} within {timeout:.0f} s\n{pods}\n{described}")
            time.sleep(1)
        return answer
