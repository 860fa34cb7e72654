"""The servers that are measured: Kubernetes' light control plane with the CRDs, and an etcd that still has the v2 API."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "deploy/local/main.py"
CRDS = ROOT / "charts/rendezvous-operator/files/crds"
NAME = "bench"
ETCD_V2 = "/usr/bin/etcd"


_SIZES = ("apiserver_request_body_size_bytes_sum", "apiserver_response_sizes_sum", "apiserver_watch_events_sizes_sum")


@dataclass(frozen=True)
class Servers:
    cluster: Path
    """Directory of the control plane."""
    etcd: str
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

    def kill_api_server(self) -> None:
        os.kill(self._state["processes"]["kube-apiserver"]["pid"], signal.SIGKILL)

    def start_again(self) -> None:
        """What of the control plane was killed."""
        _local("up", "--dir", self.cluster, "--name", NAME, "--light")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Servers]:
    """Both, fresh, in `directory`; taken down at the end."""
    with control_plane(directory) as found, etcd_v2(directory) as endpoint:
        yield Servers(found.cluster, endpoint)


@contextlib.contextmanager
def control_plane(directory: Path, name: str = NAME) -> Iterator[Servers]:
    """Kubernetes' alone."""
    cluster = directory / "c"
    try:
        _local("up", "--dir", cluster, "--name", name, "--light")
        found = Servers(cluster, "")
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


@contextlib.contextmanager
def etcd_v2(directory: Path) -> Iterator[str]:
    """Debian's etcd 3.4: later ones have no v2 API, which torch's backends need. No waiting for the disk, as the other one."""
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = [ETCD_V2, "--enable-v2", "--unsafe-no-fsync", "--data-dir", str(directory / "etcd-v2")]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
    command += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
    log = (directory / "etcd-v2.log").open("wb")
    # A signal to the group of a terminal, Ctrl-C, is for the benchmark, which then ends it.
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{client}/v2/keys", timeout=1).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd did not start, see {directory / 'etcd-v2.log'}")
            time.sleep(0.1)
        yield client.removeprefix("http://")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
