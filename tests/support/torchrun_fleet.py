"""Real torchrun agents on this machine, each training with gloo over loopback, and what they did, step by step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.cluster_fixtures import LocalCluster

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "charts/rendezvous-operator/files/crds"


def install_crds(plane: LocalCluster) -> None:
    """Installs the project's CRDs and waits until they are served; several test processes may do so at once."""
    for attempt in range(5):
        try:
            plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
            break
        except RuntimeError as error:
            if attempt == 4 or "AlreadyExists" not in str(error):
                raise
    plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CRDS))


TRAIN = """
import json, os, signal, sys, time
import torch, torch.distributed as dist

slow = float(os.environ.get("SLOW_EXIT", "0"))
if slow:
    def leave(*_):
        time.sleep(slow)
        sys.exit(1)
    signal.signal(signal.SIGTERM, leave)
dist.init_process_group("gloo")
directory, node = os.environ["FLEET_DIR"], os.environ["FLEET_NODE"]
with open(f"{directory}/{node}.jsonl", "a", buffering=1) as log:
    for step in range(100000):
        total = torch.ones(1) * (1 if not os.path.exists(f"{directory}/stop") else 1001)
        dist.all_reduce(total)
        end = total.item() > 1000
        record = {"at": time.time(), "rank": dist.get_rank(), "world": dist.get_world_size(), "step": step}
        record |= {"pid": os.getpid(), "restarts": int(os.environ["TORCHELASTIC_RESTART_COUNT"])}
        log.write(json.dumps(record) + chr(10))
        if end:
            break
        time.sleep(0.05)
dist.destroy_process_group()
"""


@dataclass
class Node:
    """One torchrun agent."""

    name: str
    process: subprocess.Popen[bytes]
    directory: Path

    def steps(self) -> list[dict[str, Any]]:
        path = self.directory / f"{self.name}.jsonl"
        # The last line may be half written.
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []

    def output(self) -> str:
        return (self.directory / f"{self.name}.out").read_text(errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None

    def workers(self) -> list[int]:
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        try:
            return [int(pid) for pid in Path(children).read_text().split()]
        except OSError:
            return []

    def kill(self) -> None:
        """As when its machine's memory is full, or its container is killed: the agent and its workers, without a word."""
        workers = self.workers()
        for pid in (self.process.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Fleet:
    """Starts agents of one Rendezvous; `stop` ends whatever is left. `prefix`: of their names, which no others in a namespace may have."""

    directory: Path
    kubeconfig: Path
    endpoint: str
    run_id: str
    nnodes: str
    nodes: list[Node] = field(default_factory=list)
    config: dict[str, str] = field(default_factory=dict)
    backend: str = "kubernetes"
    prefix: str = "node"

    def start(self, *, address: str = "127.0.0.1", group: int | None = None, **environment: str) -> Node:
        """At this address, and in this group, of loopback; with further variables."""
        index = len(self.nodes)
        name = f"{self.prefix}-{index}"
        script = self.directory / "train.py"
        script.write_text(TRAIN)
        config = {"slot": str(index), "last_call_timeout": "2", "join_timeout": "150", **self.config}
        if "RDZV_POD_NAME" not in environment:
            config["member"] = name
        command = [
            *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run"),
            *(f"--rdzv-backend={self.backend}", f"--rdzv-endpoint={self.endpoint}", f"--rdzv-id={self.run_id}"),
            *(f"--nnodes={self.nnodes}", "--nproc-per-node=1", "--max-restarts=20", "--monitor-interval=0.1"),
            *(f"--local-addr={address}", "--rdzv-conf=" + ",".join(f"{key}={value}" for key, value in config.items())),
            str(script),
        ]
        base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "KUBECONFIG": str(self.kubeconfig)}
        base |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "LOGLEVEL": "INFO"}
        base |= {"FLEET_DIR": str(self.directory), "FLEET_NODE": name, "TORCH_ELASTIC_WORKER_IDENTICAL": "1"}
        with (self.directory / f"{name}.out").open("wb") as out:
            process = subprocess.Popen(
                command, env=base | environment, stdout=out, stderr=subprocess.STDOUT, group=group
            )
        node = Node(name, process, self.directory)
        self.nodes.append(node)
        return node

    def finish(self) -> None:
        """Lets the training end by itself."""
        (self.directory / "stop").touch()

    def stop(self) -> None:
        """Ends what still runs."""
        for node in self.nodes:
            if node.alive():
                node.kill()

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                outputs = "\n".join(f"--- {node.name}\n{node.output()[-3000:]}" for node in self.nodes)
                raise AssertionError(f"{what}: not within {seconds:g} s\n{outputs}")
            time.sleep(0.05)

    def await_world(self, nodes: list[Node], size: int, since: float = 0.0) -> None:
        """Until each of these nodes has made a step, after `since`, in a world of this size."""

        def there() -> bool:
            steps = [[s for s in node.steps() if s["at"] > since and s["world"] == size] for node in nodes]
            return all(steps) and len({s[-1]["rank"] for s in steps}) == len(nodes)

        self.wait(f"a world of {size} with {[node.name for node in nodes]}", there)
