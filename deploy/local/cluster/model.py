"""What a cluster is: where it lives and what it is called, and how that is remembered in state.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import network
from .common import digest, read_json, write_json
from .processes import namespace_members, start_time

if TYPE_CHECKING:
    from .tools import Tools

STATE_VERSION = 1


@dataclass
class Cluster:
    """One cluster: its directory, form and addresses. Nothing here starts or stops anything."""

    directory: Path
    name: str
    tools: Tools
    light: bool = False
    controllers: bool = True
    nodes: int = 2
    port: int = 6443
    etcd_ports: list[int] = field(default_factory=lambda: [2379, 2380])
    outer_address: str = ""
    inner_address: str = ""

    @property
    def id(self) -> str:
        """Eight hex digits from the directory: what a killed cluster left behind is found even when its state is lost."""
        return identity(self.directory)

    @property
    def link(self) -> str:
        """The machine's end of the cluster's network."""
        return link(self.directory)

    @property
    def cgroup(self) -> str:
        """The cgroup, in every hierarchy, of all that the cluster runs."""
        return cgroup(self.directory)

    @property
    def data(self) -> Path:
        """Certificates, configuration, etcd's and the nodes' data."""
        return self.directory / "data"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.directory / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log: JSON lines, level Metadata, one per answered request."""
        return self.directory / "logs/audit.log"

    @property
    def server(self) -> str:
        """The API server's URL, from the machine."""
        return f"https://{'127.0.0.1' if self.light else self.inner_address}:{self.port}"

    @property
    def inner_server(self) -> str:
        """The API server's URL for the cluster's own parts."""
        return f"https://{'127.0.0.1' if self.light else network.CONTROL}:{self.port}"

    def node_names(self) -> list[str]:
        """Return the names of the nodes that the cluster has."""
        return [] if self.light else [f"node-{index}" for index in range(1, self.nodes + 1)]

    def save(self, supervisor: int, processes: dict[str, int | None], *, ready: bool) -> None:
        """Write state.json: all that is needed to use, inspect and remove the cluster; pids as the machine sees them."""
        pids = namespace_members(supervisor)
        running = {name: pids[pid] for name, pid in processes.items() if pid in pids}
        state: dict[str, Any] = {
            "version": STATE_VERSION,
            "name": self.name,
            "id": self.id,
            "ready": ready,
            "light": self.light,
            "controllers": self.controllers,
            "server": self.server,
            "kubeconfig": str(self.kubeconfig),
            "audit_log": str(self.audit_log),
            "logs": str(self.directory / "logs"),
            "tools": self.tools.as_dict(),
            "port": self.port,
            "etcd_ports": self.etcd_ports,
            "supervisor": {"pid": supervisor, "start": start_time(supervisor)},
            "processes": {name: {"pid": pid, "start": start_time(pid)} for name, pid in running.items()},
            "cgroup": self.cgroup,
            "mounts": "all in the supervisor's mount namespace, none outside",
            "nodes": [
                {"name": name, "address": network.node_address(index), "pods": network.node_subnet(index)}
                for index, name in enumerate(self.node_names(), 1)
            ],
        }
        if not self.light:
            state |= {
                "link": self.link,
                "outer_address": self.outer_address,
                "inner_address": self.inner_address,
                "pod_subnet": network.PODS,
                "service_subnet": network.SERVICES,
                "dns": network.CONTROL,
            }
        write_json(self.directory / "state.json", state)


def load(directory: Path, tools: Tools) -> tuple[Cluster, bool] | None:
    """Read the cluster in `directory` from its state.json, with whether it had been started completely; None if there is none."""
    state = read_json(directory / "state.json")
    if state.get("version") != STATE_VERSION:
        return None
    cluster = Cluster(
        directory=directory,
        name=state["name"],
        tools=tools,
        light=state["light"],
        controllers=state["controllers"],
        nodes=len(state["nodes"]),
        port=state["port"],
        etcd_ports=state["etcd_ports"],
        outer_address=state.get("outer_address", ""),
        inner_address=state.get("inner_address", ""),
    )
    return cluster, bool(state["ready"])


def identity(directory: Path) -> str:
    """Return eight hex digits that stand for a cluster's directory."""
    return digest(str(directory.resolve()))[:8]


def link(directory: Path) -> str:
    """Return the name of the network link of the cluster in `directory` (at most 15 characters)."""
    return f"rdzv{identity(directory)}"


def cgroup(directory: Path) -> str:
    """Return the name of the cgroup of the cluster in `directory`."""
    return f"rdzv-{identity(directory)}"
