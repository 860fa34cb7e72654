"""The servers that are measured: Kubernetes' light control plane with the CRDs, and two etcds. None waits for the disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.etcd_servers import EtcdServer

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "deploy/local/main.py"
CRDS = ROOT / "charts/rendezvous-operator/files/crds"
NAME = "bench"


_SIZES = ("apiserver_request_body_size_bytes_sum", "apiserver_response_sizes_sum", "apiserver_watch_events_sizes_sum")


@dataclass(frozen=True)
class Servers:
    cluster: Path
    """Directory of the control plane."""
    etcd: str
    """host:port of one that has the v2 API, which torch's backends need: later ones than 3.5 have not."""
    current_etcd: str
    """host:port"""

    @property
    def _state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.cluster / "state.json").read_text())
        return found

    @property
    def kubeconfig(self) -> Path:
        return Path(self._state["kubeconfig"])

    @property
    def audit_log(self) -> Path:
        return self.cluster / "logs/audit.log"

    def kubectl(self, *words: str) -> str:
        return _run([self._state["tools"]["kubectl"], "--kubeconfig", str(self.kubeconfig), *words])

    def bytes_of(self, group: str) -> int:
        """Bodies of writes, objects read and events of watches so far, from the API server's metrics."""
        lines = self.kubectl("get", "--raw", "/metrics").splitlines()
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in lines
            if line.startswith(_SIZES) and f'group="{group}"' in line
        )

    def processor(self) -> float:
        """Seconds of processor time of the API server and its etcd so far."""
        return sum(processor_seconds(pid) for pid in self.pids().values())

    def pids(self) -> dict[str, int]:
        """Of the processes of the control plane, by name."""
        return {name: process["pid"] for name, process in self._state["processes"].items()}

    def kill_api_server(self) -> None:
        os.kill(self._state["processes"]["kube-apiserver"]["pid"], signal.SIGKILL)

    def start_again(self) -> None:
        """What of the control plane was killed."""
        _local("up", "--dir", self.cluster, "--name", NAME, "--light")


def processor_seconds(pid: int) -> float:
    """Seconds of processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Servers]:
    """All, fresh, in `directory`; taken down at the end."""
    with (
        control_plane(directory) as found,
        EtcdServer(directory, "3.4", "--enable-v2") as etcd,
        EtcdServer(directory) as current,
    ):
        yield Servers(found.cluster, etcd.endpoint, current.endpoint)


@contextlib.contextmanager
def control_plane(directory: Path, name: str = NAME) -> Iterator[Servers]:
    """Kubernetes' alone."""
    cluster = directory / "c"
    try:
        _local("up", "--dir", cluster, "--name", name, "--light")
        found = Servers(cluster, "", "")
        found.kubectl("apply", "-f", str(CRDS))
        found.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield found
    finally:
        _local("down", "--dir", cluster)


def _local(*words: str | Path) -> None:
    _run([sys.executable, str(LOCAL), *map(str, words)])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}")
    return done.stdout
