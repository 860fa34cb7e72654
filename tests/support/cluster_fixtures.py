"""Pytest plugin: a real cluster, or only its control plane, for the whole session.

`cluster` is the full form (two nodes), `control_plane` the light one (etcd and API server, seconds to start), both taken down at the end.
With pytest-xdist all workers share one of each. Environment:

- KUBECONFIG: `cluster` is that cluster.
- RDZV_KUBERNETES: both are of this minor version, an older one that deploy/local can build; `cluster` only of the oldest (1.34).
- RDZV_TEST_CLUSTER_DIR: `cluster` is the one in that directory, started if need be, and kept: for working on the tests.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

MAIN = Path(__file__).resolve().parents[2] / "deploy/local/main.py"


def local(*words: str | Path) -> str:
    """Run deploy/local/main.py; returns what it printed on both outputs.

    Raises:
        RuntimeError: it failed; with what it printed.
    """
    command = [sys.executable, str(MAIN), *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}")
    return done.stdout


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster; `dir` is where it lives (that of its kubeconfig for a cluster that is not ours)."""

    dir: Path
    kubeconfig: Path
    kubectl_path: str

    @classmethod
    def at(cls, directory: Path) -> LocalCluster:
        """Return the one that deploy/local has started in `directory`."""
        state = json.loads((directory / "state.json").read_text())
        return cls(directory, Path(state["kubeconfig"]), state["tools"]["kubectl"])

    @property
    def version(self) -> str:
        """The API server's, like v1.37.2."""
        return str(json.loads(self.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"])

    def needs_image_volumes(self) -> None:
        """Skips the test where they are behind a feature gate: the chart takes them from 1.35 on, too."""
        if self.version.startswith("v1.34."):
            pytest.skip("Kubernetes 1.34 has no image volumes unless a feature gate says so")

    @property
    def injection_modes(self) -> list[str]:
        """The chart's ways to inject that this API server has: by policy from 1.36 on."""
        by_policy = '"mutatingadmissionpolicies"' in self.kubectl(
            "get", "--raw", "/apis/admissionregistration.k8s.io/v1"
        )
        return ["policy", "webhook"] if by_policy else ["webhook"]

    @property
    def audit_log(self) -> Path:
        """The API server's audit log; tests that read it are skipped on a cluster that is not ours."""
        path = self.dir / "logs/audit.log"
        if not path.exists():
            pytest.skip("the audit log of this cluster is out of reach")
        return path

    def agent_requests(self, namespace: str) -> list[dict[str, Any]]:
        """Requests of agents of the `kubernetes` backend in one namespace, from the audit log."""
        events = [json.loads(line) for line in self.audit_log.read_text().splitlines()]
        return [
            event
            for event in events
            if (event.get("objectRef") or {}).get("namespace") == namespace
            and event.get("userAgent") == "rdzv"
            and event["stage"] in ("ResponseComplete", "ResponseStarted")
        ]

    def kubectl(self, *args: str, input: str | None = None, timeout: float = 180) -> str:  # noqa: A002  as in subprocess
        """Run kubectl and return its standard output.

        Raises:
            RuntimeError: it failed; with its standard error.
        """
        command = [self.kubectl_path, "--kubeconfig", str(self.kubeconfig), *args]
        done = subprocess.run(command, input=input, capture_output=True, text=True, check=False, timeout=timeout)
        if done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout


@contextmanager
def _shared(kind: str, *flags: str) -> Iterator[LocalCluster]:
    """Start a cluster that all workers of this session use; the last one to leave takes it down."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid()}-{secrets.token_hex(4)}"
    place = Path(tempfile.gettempdir()) / f"rdzv-test-{kind}-{session}"
    users, mine = place / "users", place / "users" / str(os.getpid())
    with _exclusive():
        users.mkdir(parents=True, exist_ok=True)
        mine.touch()
    try:
        local("up", "--dir", place / "c", "--name", f"test-{kind}", *flags)  # at most one starts it: `up` holds a lock
        yield LocalCluster.at(place / "c")
    finally:
        with _exclusive():
            mine.unlink()
            if not any(users.iterdir()):
                local("down", "--dir", place / "c")
                shutil.rmtree(place)


@contextmanager
def _exclusive() -> Iterator[None]:
    with Path(tempfile.gettempdir(), "rdzv-test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def control_plane() -> Iterator[LocalCluster]:
    """Return etcd and an API server: no controllers, no nodes; pods can be created and will stay Pending."""
    with _shared("light", "--light") as found:
        yield found


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Return a cluster with two nodes that run pods."""
    given, kept = os.environ.get("KUBECONFIG"), os.environ.get("RDZV_TEST_CLUSTER_DIR")
    if given:
        directory, kubectl = Path(given).parent, shutil.which("kubectl")
        if (directory / "state.json").exists():
            yield LocalCluster.at(directory)
            return
        if kubectl is None:
            pytest.fail("KUBECONFIG is set, but there is no kubectl on the PATH")
        yield LocalCluster(directory, Path(given), kubectl)
    elif kept:
        local("up", "--dir", kept)
        yield LocalCluster.at(Path(kept))
    else:
        with _shared("full") as found:
            yield found


@contextmanager
def _namespace(of: LocalCluster) -> Iterator[str]:
    name = f"test-{secrets.token_hex(4)}"
    of.kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        of.kubectl("delete", "namespace", name, "--wait=false")


@contextmanager
def new_namespace(cluster: LocalCluster) -> Iterator[str]:
    """A namespace of `cluster`, ready for pods, deleted at the end."""
    with _namespace(cluster) as name:
        cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
        yield name


@pytest.fixture
def namespace(cluster: LocalCluster) -> Iterator[str]:
    """Return a new namespace of `cluster`, ready for pods, deleted after the test."""
    with new_namespace(cluster) as name:
        yield name


@pytest.fixture
def light_namespace(control_plane: LocalCluster) -> Iterator[str]:
    """Return a new namespace of `control_plane`. Without controllers it stays Terminating after the test."""
    with _namespace(control_plane) as name:
        yield name
