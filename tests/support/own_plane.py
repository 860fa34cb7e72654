"""A light control plane that is one test's own: its API server and its etcd may be killed and stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.cluster_fixtures import LocalCluster, local

API_SERVER, ETCD = "kube-apiserver", "etcd"


@dataclass(frozen=True)
class OwnPlane:
    """`cluster` is what tests use; `send` and `start_again` are what only its owner may do."""

    cluster: LocalCluster
    name: str

    def send(self, process: str, what: signal.Signals) -> None:
        """A signal to `API_SERVER` or `ETCD`."""
        state = json.loads((self.cluster.dir / "state.json").read_text())
        os.kill(state["processes"][process]["pid"], what)

    def start_again(self) -> None:
        """Starts what was killed, and returns when the API server is ready."""
        local("up", "--dir", self.cluster.dir, "--name", self.name, "--light")


@contextmanager
def own_plane(directory: Path, name: str) -> Iterator[OwnPlane]:
    """Starts one in `directory`, and takes it down."""
    place = directory / "c"
    try:
        local("up", "--dir", place, "--name", name, "--light")
        yield OwnPlane(LocalCluster.at(place), name)
    finally:
        local("down", "--dir", place)
