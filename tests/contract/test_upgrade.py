"""From a commit of the past to this one and back, while worlds train: nobody restarts, nothing is lost.

The operator, the CRDs and the agents' library of that commit come from the repository's history, which the test needs.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster, _shared
from support.operated import pod, rendezvous
from support.operator_process import ROOT, Kube, OperatorProcess, eventually
from support.torchrun_fleet import Fleet, Node, install_crds

Object = dict[str, Any]


@dataclass(frozen=True)
class Earlier:
    """A commit of the past. `made_anew`: kinds of its children that are. `meets`: its agents and those of this commit form one world."""

    commit: str
    made_anew: frozenset[str] = frozenset()
    meets: bool = True


EARLIER = [
    # Before anything of this was planned. Service rdzv-NAME had a selector: what Kubernetes made for it goes with it. On the liveness
    # port nobody proved who he was.
    Earlier("371565e172a5043562848a2deb296a15b9c2a7dc", frozenset({"Service"}), meets=False),
    # The last one before the operator had a Lease, and before conditions said more than that nodes are missing.
    Earlier("6f8de58decf3bb683e22ebfeaf60306993b1be71"),
]
CRDS = "charts/rendezvous-operator/files/crds"


@pytest.fixture(params=EARLIER, ids=lambda earlier: earlier.commit[:7])
def earlier(request: pytest.FixtureRequest) -> Earlier:
    found: Earlier = request.param
    return found


@pytest.fixture
def before(earlier: Earlier, tmp_path: Path) -> Path:
    """A checkout of it."""
    place = tmp_path / "before"
    place.mkdir()
    archive = subprocess.run(
        ["git", "-c", "safe.directory=*", "archive", earlier.commit, "src", "operator", "charts"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip(f"a clone without the history has no earlier version to come from: {archive.stderr.decode()[:200]}")
    subprocess.run(["tar", "-x"], cwd=place, input=archive.stdout, check=True)
    return place


@dataclass
class Installation:
    """A namespace that is served by the operator of one version after the other, as a release is upgraded."""

    cluster: LocalCluster
    kube: Kube
    namespace: str
    directory: Path
    running: OperatorProcess | None = None

    def upgrade(self, to: Path) -> None:
        """The CRDs, then the operator: the new one is there before the old one ends."""
        if to == ROOT:
            install_crds(self.cluster)
        else:
            self.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(to / CRDS))
        env = {"RDZV_LEASE": f"{self.namespace}/rendezvous-operator"}
        log = self.directory / f"log-{secrets.token_hex(2)}"
        started = OperatorProcess(self.cluster.kubeconfig, log, self.namespace, root=to, env=env)
        started.start()
        eventually(lambda: "backends: " in log.read_text())
        self.stop()
        self.running = started

    def stop(self) -> None:
        if self.running is not None:
            self.running.stop()
            print(f"--- an operator's log ---\n{self.running.log.read_text()[-4000:]}")
            self.running = None

    def start(self, fleet: Fleet, library: Path) -> Node:
        """An agent that runs in a pod, as far as anybody can tell; `library`: the checkout that its library is of."""
        index = len(fleet.nodes)
        obj = pod(self.namespace, f"node-{index}", index, labels={"rdzv.dev/rendezvous": "job"})
        obj["spec"]["containers"][0]["envFrom"] = [{"configMapRef": {"name": "rdzv-job"}}]
        obj["status"] = {"phase": "Running", "podIP": "127.0.0.1"}
        uid = self.kube.create(obj)["metadata"]["uid"]
        pod_env = {"RDZV_POD_NAME": f"node-{index}", "RDZV_POD_UID": uid, "RDZV_POD_IP": "127.0.0.1"}
        return fleet.start(PYTHONPATH=str(library / "src"), **pod_env)

    def serves(self) -> bool:
        """Whether a new Rendezvous gets what its pods wait for."""
        name = f"probe-{secrets.token_hex(2)}"
        obj = rendezvous(self.namespace)
        obj["metadata"]["name"] = name
        self.kube.create(obj)
        eventually(lambda: self.kube.get("ConfigMap", self.namespace, f"rdzv-{name}"), timeout=60)
        self.kube.delete("Rendezvous", self.namespace, name)
        return True

    def kept(self, made_anew: Collection[str]) -> Object:
        """What must be the same objects, with the same meaning, whatever version serves them; but for children of kinds made anew."""
        found: Object = {
            f"{field} of {obj['metadata']['name']}": value
            for obj in self.kube.list("Rendezvous", self.namespace)
            for field, value in obj["spec"].items()
        }
        for kind in {"Service", "ConfigMap", "EndpointSlice", "Role", "RoleBinding"} - set(made_anew):
            for obj in self.kube.list(kind, self.namespace):
                if obj["metadata"]["name"] in {"rdzv-mnist", "rdzv-job"}:
                    found[f"{kind} {obj['metadata']['name']}"] = obj["metadata"]["uid"]
        return found

    def still(self, first: Object) -> Object:
        """What is there now of what was there first: a newer version may have fields with defaults of their own."""
        now = self.kept(())
        return {key: now.get(key) for key in first}


@contextmanager
def untouched(nodes: list[Node]) -> Iterator[None]:
    """The agents and their workers are the same ones afterwards, and go on."""
    before = {node.name: (node.process.pid, node.workers(), node.steps()[-1]["restarts"]) for node in nodes}
    reached = {node.name: len(node.steps()) for node in nodes}
    yield
    for node in nodes:
        eventually(lambda node=node: len(node.steps()) > reached[node.name] + 5)  # type: ignore[misc]
    after = {node.name: (node.process.pid, node.workers(), node.steps()[-1]["restarts"]) for node in nodes}
    assert after == before


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """On a control plane of its own: others use the kinds of this commit meanwhile."""
    with _shared("upgrade", "--light") as plane:
        namespace = f"test-{secrets.token_hex(4)}"
        plane.kubectl("create", "namespace", namespace)
        found = Installation(plane, Kube(plane.kubeconfig), namespace, tmp_path)
        try:
            yield found
        finally:
            found.stop()


def test_worlds_train_through_an_upgrade_and_back_with_agents_of_both_versions(
    installation: Installation, earlier: Earlier, before: Path, tmp_path: Path
) -> None:
    kube, namespace = installation.kube, installation.namespace
    installation.upgrade(before)
    job = rendezvous(namespace, "kubernetes", nodes={"min": 2, "max": 3})
    job["metadata"]["name"] = "job"
    for obj in (job, rendezvous(namespace), pod(namespace, "a", 0), pod(namespace, "b", 1)):
        kube.create(obj)
    run = eventually(lambda: (kube.get("Rendezvous", namespace, "job") or {}).get("status", {}).get("runID"))
    eventually(lambda: kube.get("ConfigMap", namespace, "rdzv-mnist"))
    fleet = Fleet(tmp_path, installation.cluster.kubeconfig, f"{namespace}/job", run, "2:3")
    try:
        nodes = [installation.start(fleet, before), installation.start(fleet, before)]
        fleet.await_world(nodes, 2)
        first = installation.kept(earlier.made_anew)

        with untouched(nodes):
            installation.upgrade(ROOT)
            assert installation.serves()
        assert installation.still(first) == first

        if earlier.meets:
            nodes.append(installation.start(fleet, ROOT))
            fleet.await_world(nodes, 3)
        with untouched(nodes):
            installation.upgrade(before)
            assert installation.serves()
        assert installation.still(first) == first

        with untouched(nodes):
            installation.upgrade(ROOT)
            assert installation.serves()
        fleet.finish()
        fleet.wait("all agents end", lambda: not any(node.alive() for node in nodes))
        assert {node.process.returncode for node in nodes} == {0}, [node.output() for node in nodes]
    finally:
        fleet.stop()
    ended = json.loads(installation.cluster.kubectl("-n", namespace, "get", "rdzvround", "job", "-o", "json"))["spec"]
    assert (ended["phase"], ended["closed"]["reason"]) == ("Closed", "Succeeded")
