"""Bring a cluster up and take it down; both start from whatever an earlier one, killed at any point, has left."""

from __future__ import annotations

import os
import shutil
import time
from datetime import datetime, timezone
from pathlib import Path

from . import cgroups, control, images, model, network, node
from .common import Command, LocalError, locked, read_json, run, say, seconds, wait_for
from .model import Cluster
from .processes import Supervisor
from .tools import Tools, build_all, missing_packages

OURS = (
    "kubeconfig",
    "state.json",
    "supervisor.json",
    "data",
    "logs",
    "bin",
)  # what a cluster writes into its directory


def lock_name(directory: Path) -> str:
    """Return the name of the lock under which the cluster in `directory` is changed."""
    return f"cluster-{model.identity(directory)}"


def running(directory: Path, tools: Tools | None = None) -> tuple[Cluster, Supervisor]:
    """Return the cluster that runs in `directory`.

    Raises:
        LocalError: there is none, or it is not complete.
    """
    supervisor, known = Supervisor.find(directory), model.load(directory, tools or build_all())
    if supervisor is None or known is None or not known[1] or not supervisor.answers():
        raise LocalError(
            f"no cluster runs in {directory}; start one with: python3 deploy/local/main.py up --dir {directory}"
        )
    return known[0], supervisor


def up(directory: Path, name: str, *, nodes: int, light: bool, controllers: bool) -> None:
    """Start the cluster in `directory`, or finish or repair it; says so when there is nothing to do."""
    _need_root()
    if missing := missing_packages():
        raise LocalError(f"missing Debian packages: {' '.join(missing)}; run: python3 deploy/local/main.py tools")
    tools = build_all()
    if not light and tools.api_server.parent != tools.kubernetes:
        raise LocalError(
            "of this Kubernetes there is only the API server here, and kubelets must not be newer than it; add --light"
        )
    directory = directory.resolve()
    with locked(lock_name(directory)):
        begun = time.monotonic()
        supervisor, known = Supervisor.find(directory), model.load(directory, tools)
        if supervisor and known and known[1] and supervisor.answers():
            cluster = known[0]
            if (cluster.light, cluster.controllers, cluster.nodes) != (
                light,
                controllers or not light,
                0 if light else nodes,
            ):
                raise LocalError(
                    f"another form of cluster runs in {directory}; take it down first, or use another --dir"
                )
            _resume(cluster, supervisor, begun)
            return
        cluster = Cluster(
            directory, name, tools, light=light, controllers=controllers or not light, nodes=0 if light else nodes
        )
        for again in (True, True, False):
            _clear(directory)
            try:
                _create(cluster)
                break
            except (LocalError, KeyboardInterrupt) as error:
                # The logs stay for whoever asks why; everything that runs or is mounted goes.
                _stop_everything(directory)
                # The light form's ports are the machine's: one that was free may have been taken meanwhile.
                if not (again and "address already in use" in str(error)):
                    raise
        say(
            f"cluster {name} is ready after {seconds(time.monotonic() - begun)}: export KUBECONFIG={cluster.kubeconfig}"
        )


def _need_root() -> None:
    if os.geteuid() != 0:
        raise LocalError("a cluster's namespaces, network and cgroups need root: run this as root")


def _create(cluster: Cluster) -> None:
    cluster.directory.mkdir(parents=True, exist_ok=True)
    for folder in ("data", "logs", "bin"):
        (cluster.directory / folder).mkdir(mode=0o700 if folder == "data" else 0o755)
    for program in ("kubectl", "helm"):
        (cluster.directory / "bin" / program).symlink_to(cluster.tools.as_dict()[program])
    cgroups.create(f"{cluster.cgroup}/cluster", everywhere=False)
    supervisor = Supervisor.launch(cluster.directory, f"{cluster.cgroup}/cluster", network=not cluster.light)
    if cluster.light:
        cluster.port, *cluster.etcd_ports = control.free_ports(3)
    else:
        network.load_modules()
        cluster.outer_address, cluster.inner_address = network.connect(supervisor, cluster.link, cluster.nodes)
    cluster.save(supervisor.pid, {}, ready=False)
    control.write_files(cluster)
    control.start_etcd(cluster, supervisor)
    control.start_api_server(cluster, supervisor)
    nodes = cluster.node_names()
    for name in nodes:
        node.write_files(cluster, name)
        node.start_runtime(cluster, supervisor, name)
    for name in nodes:
        node.await_runtime(supervisor, name)
    if nodes:
        images.load(cluster, supervisor, [images.pause_image(cluster.tools)])
    control.await_api_server(cluster, supervisor)
    _finish(cluster, supervisor)


def _finish(cluster: Cluster, supervisor: Supervisor) -> None:
    """Start what needs an API server, and wait until everything works."""
    nodes, since = cluster.node_names(), _now()
    if cluster.controllers:
        control.start_controllers(cluster, supervisor)
    for name in nodes:
        node.start_kubelet(cluster, supervisor, name)
    if nodes:
        control.start_rest(cluster, supervisor)
        control.grant(cluster)
        images.load(cluster, supervisor, [images.base_image()])
    if cluster.controllers:
        control.await_default_account(cluster, supervisor)
    await_nodes(cluster, supervisor, nodes, since)
    cluster.save(supervisor.pid, supervisor.processes(), ready=True)


def _resume(cluster: Cluster, supervisor: Supervisor, begun: float) -> None:
    """Start again what has ended in a cluster whose namespaces are still there."""
    healthy = control.healthy(cluster)  # asked first: a server that was killed just now may still be ending
    ended = [name for name, pid in supervisor.processes().items() if pid is None]
    if healthy and not ended:
        say(f"cluster {cluster.name} runs already: export KUBECONFIG={cluster.kubeconfig}")
        return
    say(f"starting again: {', '.join(ended)}" if ended else "waiting for the API server")
    control.start_etcd(cluster, supervisor)
    control.start_api_server(cluster, supervisor)
    for name in cluster.node_names():
        node.resume(cluster, supervisor, name)
    control.await_api_server(cluster, supervisor)
    _finish(cluster, supervisor)
    say(f"cluster {cluster.name} is ready again after {seconds(time.monotonic() - begun)}")


def await_nodes(cluster: Cluster, supervisor: Supervisor, names: list[str], since: str) -> None:
    """Wait until nodes are Ready and have shown life after `since` (UTC): the API server remembers a lost one as Ready for a while.

    Raises:
        LocalError: after 90 s, or as soon as a component has ended; names it, with its log.
    """
    if not names:
        return
    get: Command = [cluster.tools.kubernetes / "kubectl", "--kubeconfig", cluster.kubeconfig, "get"]
    conditions = (
        "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=='Ready')].status}{'\\n'}{end}"
    )
    renewals = "jsonpath={range .items[*]}{.metadata.name}={.spec.renewTime}{'\\n'}{end}"

    def ready() -> bool:
        leases = dict(
            line.split("=") for line in run([*get, "leases", "-n", "kube-node-lease", "-o", renewals]).split()
        )
        alive = all(leases.get(name, "") >= since for name in names)
        return alive and set(run([*get, "nodes", "-o", conditions]).split()) >= {f"{name}=True" for name in names}

    parts = [f"{name}-{part}" for name in names for part in ("kubelet", "containerd")]
    rest = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns"]
    logs = ", ".join(str(supervisor.log(f"{name}-kubelet")) for name in names)
    wait_for(f"{', '.join(names)} Ready (logs: {logs})", ready, 90, lambda: supervisor.check(*parts, *rest))


def _now() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _stop_everything(directory: Path) -> None:
    """End all processes of the cluster in `directory` and remove its cgroups and network, in any state, also none."""
    if supervisor := Supervisor.find(directory):
        supervisor.kill()
    cgroup = model.cgroup(directory)
    cgroups.kill(cgroup)  # what ran without a supervisor, if it was killed while its children were being started
    cgroups.remove(cgroup)
    network.disconnect(model.link(directory))


def _clear(directory: Path) -> None:
    _stop_everything(directory)
    for mount in Path("/proc/self/mounts").read_text().splitlines():
        if mount.split()[1].startswith(f"{directory}/"):
            raise LocalError(
                f"{mount.split()[1]} is mounted; unmount it first: deleting {directory} would delete what is in there"
            )
    for entry in OURS:
        path = directory / entry
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def down(directory: Path) -> None:
    """Take the cluster in `directory` down, whatever is left of it; nothing of it remains."""
    _need_root()
    directory = directory.resolve()
    with locked(lock_name(directory)):
        begun, there = time.monotonic(), (directory / "state.json").exists()
        _clear(directory)
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
    say(
        f"the cluster in {directory} is gone, in {seconds(time.monotonic() - begun)}"
        if there
        else f"there is no cluster in {directory}"
    )


def stop_node(directory: Path, name: str) -> None:
    """Lose a node, as if its machine had lost power."""
    directory = directory.resolve()
    with locked(lock_name(directory)):
        cluster, supervisor = running(directory)
        _known(cluster, name)
        node.stop(cluster, supervisor, name)
        cluster.save(supervisor.pid, supervisor.processes(), ready=True)
    say(f"{name} is lost; bring it back with start-node {name}")


def start_node(directory: Path, name: str) -> None:
    """Bring a lost node back and wait until it is Ready."""
    directory = directory.resolve()
    with locked(lock_name(directory)):
        cluster, supervisor = running(directory)
        _known(cluster, name)
        since = _now()
        node.resume(cluster, supervisor, name)
        await_nodes(cluster, supervisor, [name], since)
        cluster.save(supervisor.pid, supervisor.processes(), ready=True)
    say(f"{name} is back")


def _known(cluster: Cluster, name: str) -> None:
    if name not in cluster.node_names():
        raise LocalError(f"there is no node {name}; this cluster has {', '.join(cluster.node_names()) or 'no nodes'}")


def load_images(directory: Path, archives: list[Path]) -> None:
    """Load image archives into all nodes."""
    directory = directory.resolve()
    begun = time.monotonic()
    with locked(lock_name(directory)):
        cluster, supervisor = running(directory)
        loads = images.load(cluster, supervisor, archives)
    names = ", ".join(archive.name for archive in archives)
    say(f"{names}: loaded in {seconds(time.monotonic() - begun)}" if loads else f"{names}: all nodes have it already")


def status(directory: Path) -> str:
    """Describe the cluster in `directory` for people."""
    directory = directory.resolve()
    state, supervisor = read_json(directory / "state.json"), Supervisor.find(directory)
    if not state:
        return f"no cluster in {directory}"
    if supervisor is None or not supervisor.answers():
        return f"the cluster in {directory} was killed; `up` starts a new one, `down` clears what it left"
    lines = [f"cluster     {state['name']} ({'control plane only' if state['light'] else 'full'}), in {directory}"]
    lines += [
        f"API server  {state['server']}",
        f"kubeconfig  {state['kubeconfig']}",
        f"audit log   {state['audit_log']}",
    ]
    for name, pid in supervisor.processes().items():
        known = state["processes"].get(name, {}).get("pid", "?")
        lines.append(f"  {name:<26}{f'runs, pid {known}' if pid else f'ENDED, log: {supervisor.log(name)}'}")
    if not state["light"]:
        kubectl = [state["tools"]["kubectl"], "--kubeconfig", state["kubeconfig"]]
        lines.append(run([*kubectl, "get", "nodes", "-o", "wide"]).rstrip())
    return "\n".join(lines)
