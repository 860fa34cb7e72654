"""Pods on a control plane without nodes: the test plays the kubelet, and runs what a pod's container would run, on this machine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdzv.control.inject import InjectionSettings, inject
from rdzv.spec import LABEL
from support.operated import rendezvous
from support.operator_process import ROOT, Kube, eventually

Object = dict[str, Any]

SETTINGS = InjectionSettings(delivery="none", library_image="", init_image="")
ADDRESS = "127.0.0.1"
SCRIPT = """
import json, os, time
import torch, torch.distributed as dist

dist.init_process_group("gloo")
said = {"rank": dist.get_rank(), "world": dist.get_world_size(), "local": os.environ["LOCAL_RANK"]}
# One write: torchrun starts workers with -u, where print writes the line and its end apart, and another's line may come between.
print("WORLD " + json.dumps(said) + "\\n", end="", flush=True)
total = torch.zeros(1)
while not total.item():  # all of them end in the same step
    total = torch.ones(1) * os.path.exists(os.environ["END"])
    dist.all_reduce(total)
    time.sleep(0.1)
dist.destroy_process_group()
"""


def environment(pod: Object, config_maps: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The variables of the pod's first container, as the kubelet makes them.

    Of one name the last one counts; a label that is not there is empty.
    """
    container, found = pod["spec"]["containers"][0], dict[str, str]()
    for source in container.get("envFrom", []):
        found |= config_maps[source["configMapRef"]["name"]]
    fields = {"metadata": pod["metadata"], "spec": pod["spec"], "status": pod["status"]}
    for entry in container.get("env", []):
        source = entry.get("valueFrom", {})
        path = source.get("fieldRef", {}).get("fieldPath", "")
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            value = config_maps.get(reference["name"], {}).get(reference["key"])
            assert value is not None or reference.get("optional"), reference
            if value is not None:
                found[entry["name"]] = value
        elif "resourceFieldRef" in source:
            assert source["resourceFieldRef"] == {"resource": "limits.cpu", "divisor": "1"}
            found[entry["name"]] = str(math.ceil(float(container["resources"]["limits"]["cpu"])))
        elif path.startswith("metadata.labels["):
            found[entry["name"]] = fields["metadata"]["labels"].get(path.split("'")[1], "")
        elif path:
            part, name = path.split(".")
            found[entry["name"]] = str(fields[part].get(name, ""))
        else:
            found[entry["name"]] = entry.get("value", "")
    return found


@dataclass
class Kubelet:
    """Starts pods of Rendezvous `mnist`, and ends whatever is left with `stop`. `launcher`: Python's arguments before the script."""

    kube: Kube
    kubeconfig: Path
    namespace: str
    directory: Path
    launcher: tuple[str, ...] = ("-m", "torch.distributed.run")
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def wants(self, nodes: int, backend: str = "kubernetes", **spec: Any) -> None:
        """Makes the Rendezvous."""
        spec = {"nodes": {"min": nodes, "max": nodes}, "nprocPerNode": 1, **spec}
        self.kube.create(rendezvous(self.namespace, backend, **spec))

    def run(
        self,
        name: str,
        early: Mapping[str, str],
        later: Mapping[str, str] | None = None,
        node: str = "",
        **more: Any,
    ) -> None:
        """Makes a pod with the labels of its controller, and runs `train.py` in it. `later`: what a webhook adds after injection.

        `node`: where the pod is said to run; `more`: of its container.
        """
        container = {"name": "train", "image": "registry.invalid/train", "command": ["torchrun", "train.py"]}
        metadata: Object = {"name": name, "namespace": self.namespace, "labels": {LABEL: "mnist", **early}}
        pod: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        pod = inject({**pod, "spec": {"containers": [{**container, **more}]}}, SETTINGS)
        pod["metadata"]["labels"] |= later or {}
        pod["spec"] |= {"nodeName": node} if node else {}
        started = {"name": "train", "ready": True, "image": "", "imageID": "", "restartCount": 0}
        started["state"] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        status = {"phase": "Running", "podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}], "containerStatuses": [started]}
        self.kube.create({**pod, "status": status})
        self.start(name)

    def told(self, name: str) -> dict[str, str]:
        """The variables that the pod's container gets if it is started now, once the operator has written what it waits for."""
        eventually(lambda: self.kube.get("ConfigMap", self.namespace, "rdzv-mnist"), timeout=60)
        pod = self.kube.get("Pod", self.namespace, name)
        assert pod is not None
        names = ("rdzv-mnist", "rdzv-mnist-ranks")
        found = {name: self.kube.get("ConfigMap", self.namespace, name) for name in names}
        return environment(pod, {name: obj["data"] for name, obj in found.items() if obj is not None})

    def start(self, name: str) -> None:
        """The pod's container."""
        told = self.told(name)
        script = self.directory / "train.py"
        script.write_text(SCRIPT)
        base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "KUBECONFIG": str(self.kubeconfig)}
        base |= {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "LOGLEVEL": "INFO",
            "END": str(self.directory / "end"),
        }
        command = [sys.executable, "-W", "ignore", *self.launcher, str(script)]
        with (self.directory / f"{name}.out").open("ab") as out:
            self.running[name] = subprocess.Popen(command, env=base | told, stdout=out, stderr=subprocess.STDOUT)

    def delete(self, name: str) -> None:
        """The pod and what runs in it, at once."""
        self._kill(self.running.pop(name))
        (self.directory / f"{name}.out").unlink()
        self.kube.delete("Pod", self.namespace, name)

    def world(self) -> dict[str, tuple[int, int]]:
        """By pod, the rank and the size of the world that it said last."""
        found = {}
        for name in self.running:
            lines = (self.directory / f"{name}.out").read_text(errors="replace").splitlines()
            said = [json.loads(line.removeprefix("WORLD ")) for line in lines if line.startswith("WORLD ")]
            if said:
                found[name] = (said[-1]["rank"], said[-1]["world"])
        return found

    def await_ranks(self, *names: str, timeout: float = 120) -> None:
        """Until these pods, in this order, are the ranks of one world."""
        expected = {name: (rank, len(names)) for rank, name in enumerate(names)}

        def formed() -> bool:
            assert self.world() == expected, "\n".join(self._output(name) for name in names)
            return True

        eventually(formed, timeout=timeout)

    def end(self) -> None:
        """Lets the training end, with success."""
        (self.directory / "end").touch()
        for name, process in self.running.items():
            assert process.wait(60) == 0, self._output(name)

    def stop(self) -> None:
        for process in self.running.values():
            self._kill(process)

    def _output(self, name: str) -> str:
        path = self.directory / f"{name}.out"
        return f"--- {name}\n{path.read_text(errors='replace')[-2500:] if path.exists() else ''}"

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        for pid in (process.pid, *pids):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        process.wait()
