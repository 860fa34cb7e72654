"""Two real operators on one Lease, with the chart's own rights: one of them writes, whatever becomes of it.

RDZV_FAULTS=long (`make faults`) kills the leader 50 times.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import itertools
import json
import re
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faults.tally import LONG, Tally
from support.accounts import account, policies, rights
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import FaultProxy
from support.operated import pod, rendezvous
from support.operator_process import Kube, OperatorProcess, eventually
from support.torchrun_fleet import Fleet, install_crds

from deploy.local.cluster.control import free_ports
from rdzv.control.election import LEASE_SECONDS

Object = dict[str, Any]

KILLS = 50 if LONG else 3
PASSES = 8  # at once, as the operator makes them
TAKEOVER = 15.0  # seconds; held to in the long form only, as the short one runs beside others


@dataclass
class Replica:
    """One operator and what it says of itself. `pod`: whose token it has."""

    pod: str
    port: int
    process: OperatorProcess

    def readiness(self) -> tuple[int, str]:
        """Status and text of its readiness probe; 0 if nobody answers."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)) as connection:
            try:
                connection.request("GET", "/readyz")
                reply = connection.getresponse()
                return reply.status, reply.read().decode()
            except (OSError, http.client.HTTPException):
                return 0, ""

    def leads(self) -> bool:
        return self.readiness() == (200, "leads\n")

    def stands_by(self) -> bool:
        status, text = self.readiness()
        return status == 200 and text.startswith("stands by")


@dataclass
class Release:
    """A release whose operator has its rights in one namespace, `served`. Replicas run until the test ends."""

    cluster: LocalCluster
    kube: Kube
    directory: Path
    namespace: str
    served: str
    name: str
    replicas: list[Replica] = field(default_factory=list)

    def add(
        self, pod_name: str, *, proxy: bool = False, release: str = "", plugins: Path | None = None
    ) -> tuple[Replica, FaultProxy | None]:
        """Starts an operator with the token of a pod; `release`: of another name. Waits until it is ready."""
        whose = account(self.cluster, self.directory, self.namespace, self.name, pod=pod_name)
        kubeconfig, faults = whose.cluster.kubeconfig, None
        if proxy:
            place = self.directory / f"proxy-{pod_name}"
            place.mkdir()
            faults = FaultProxy(kubeconfig, place)
            kubeconfig = faults.kubeconfig
        (port,) = free_ports(1)
        env = {
            "RDZV_LEASE": f"{self.namespace}/{self.name}",
            "RDZV_RELEASE": f"{self.namespace}/{release or self.name}",
            "RDZV_POD_NAME": pod_name,
            "RDZV_POD_UID": whose.pod_uid,
            "RDZV_READINESS_LISTEN": f"127.0.0.1:{port}",
        }
        process = OperatorProcess(kubeconfig, self.directory / f"log-{pod_name}", self.served, plugins, env=env)
        replica = Replica(pod_name, port, process)
        self.replicas.append(replica)
        process.start()
        eventually(lambda: replica.readiness()[0] == 200)
        return replica, faults

    def leader(self) -> Replica:
        return eventually(lambda: next((replica for replica in self.replicas if replica.leads()), None))

    def lease(self) -> Object:
        return self.kube.get("Lease", self.namespace, self.name) or {}

    def make(self, name: str, backend: str = "c10d") -> None:
        """A Rendezvous."""
        obj = rendezvous(self.served, backend)
        obj["metadata"]["name"] = name
        self.kube.create(obj)

    def is_served(self, name: str) -> bool:
        """The last thing that a pass writes is the status."""
        found = self.kube.get("Rendezvous", self.served, name) or {}
        return bool((found.get("status") or {}).get("conditions"))

    def audit(self) -> list[Object]:
        """Requests of the release's operators, in order."""
        user = f"system:serviceaccount:{self.namespace}:{self.name}"
        # Whose token was refused has no name; other tests on this API server bring such.
        events = [json.loads(line) for line in self.cluster.audit_log.read_text().splitlines()]
        return sorted((e for e in events if e["user"].get("username") == user), key=lambda e: str(e["stageTimestamp"]))


def at(event: Object, stamp: str = "stageTimestamp") -> float:
    return datetime.datetime.fromisoformat(event[stamp].replace("Z", "+00:00")).timestamp()


def by(event: Object) -> str:
    (name,) = event["user"]["extra"]["authentication.kubernetes.io/pod-name"]
    return str(name)


def about(event: Object) -> tuple[str, str]:
    ref = event.get("objectRef") or {}
    return ref.get("resource", ""), ref.get("name", "")


def writes(release: Release) -> list[Object]:
    """All that was sent to change something, but for the Lease."""
    verbs = {"create", "update", "patch", "delete"}
    return [event for event in release.audit() if event["verb"] in verbs and about(event)[0] != "leases"]


def holders(release: Release) -> list[tuple[float, str]]:
    """When the Lease was written, and by whom (empty: given back)."""
    return [
        (at(event), "" if event["verb"] == "delete" else by(event))
        for event in release.audit()
        if about(event)[0] == "leases" and event["responseStatus"]["code"] in {200, 201} and event["verb"] != "get"
    ]


def written_without_the_lease(release: Release) -> list[str]:
    """Writes of a process that did not hold the Lease at the time when the API server got them."""
    held = holders(release)
    wrong = []
    for event in writes(release):
        when = at(event, "requestReceivedTimestamp")
        since, who = max(((since, who) for since, who in held if since <= when), default=(0.0, ""))
        if who != by(event) or when - since > LEASE_SECONDS:
            wrong.append(
                f"{by(event)} {event['verb']} {about(event)} at {when}, which {who or 'nobody'} held since {since}"
            )
    return wrong


@pytest.fixture
def release(control_plane: LocalCluster, tmp_path: Path) -> Iterator[Release]:
    install_crds(control_plane)
    namespace, served = (f"test-{secrets.token_hex(4)}" for _ in range(2))
    for each in (namespace, served):
        control_plane.kubectl("create", "namespace", each)
    arguments = (f"--namespace={namespace}", f"--set=watchNamespaces={{{served}}}")
    with (
        policies(control_plane, [namespace, served], *arguments) as name,
        rights(control_plane, name, *arguments),
    ):
        found = Release(control_plane, Kube(control_plane.kubeconfig), tmp_path, namespace, served, name)
        try:
            yield found
        finally:
            for replica in found.replicas:
                replica.process.kill()
                print(f"--- {replica.pod} ---\n{replica.process.log.read_text()[-6000:]}")
    for each in (namespace, served):
        control_plane.kubectl("delete", "namespace", each, "--wait=false")


@pytest.mark.timeout(3600 if LONG else 600)
def test_whenever_the_leader_is_killed_the_other_one_goes_on_and_nothing_is_written_twice(
    release: Release, tally: Tally
) -> None:
    release.add("a")
    release.add("b")
    with tally.injected("Operator", "the leader of two killed", KILLS) as recovery:
        took = []
        for n in range(KILLS):
            leader = release.leader()
            other = next(replica for replica in release.replicas if replica is not leader)
            assert other.stands_by()
            assert release.lease()["spec"]["holderIdentity"].startswith(f"{leader.pod}_")
            leader.process.kill()
            began = time.monotonic()
            release.make(f"w{n}")
            eventually(lambda n=n: release.is_served(f"w{n}"), timeout=60)  # type: ignore[misc]
            took.append(time.monotonic() - began)
            leader.process.start()
            eventually(leader.stands_by)
        print(f"{KILLS} kills: served after {sorted(took)[len(took) // 2]:.1f} s (median), {max(took):.1f} s (worst)")

        assert written_without_the_lease(release) == []
        for n in range(KILLS):
            # Everything is written once, by one of them, and a leader that comes later finds nothing to do.
            mine = [event for event in writes(release) if about(event)[1] in {f"w{n}", f"rdzv-w{n}"}]
            created = [about(event)[0] for event in mine if event["verb"] == "create"]
            assert sorted(created) == ["configmaps", "services"], created
            assert {event["verb"] for event in mine} == {"create", "patch"}
            assert len({by(event) for event in mine}) == 1
        recovery.took(max(took))
        assert not LONG or max(took) <= TAKEOVER


def test_a_leader_that_was_stopped_in_the_middle_of_a_pass_writes_nothing_when_it_goes_on(release: Release) -> None:
    frozen, proxy = release.add("a", proxy=True)
    other, _ = release.add("b")
    assert proxy is not None
    with proxy:
        assert frozen.leads()
        fault = proxy.inject("delay", method="POST", path="/services", seconds=1.0)
        release.make("w")
        assert fault.hit.wait(30)
        frozen.process.send(
            signal.SIGSTOP
        )  # The reply comes while it is stopped; the ConfigMap and the status are still to be written.
        eventually(other.leads, timeout=60)
        eventually(lambda: release.is_served("w"))
        stopped = len([event for event in writes(release) if by(event) == "a"])
        frozen.process.send(signal.SIGCONT)
        eventually(frozen.stands_by)
        release.make("v")
        eventually(lambda: release.is_served("v"))
        assert len([event for event in writes(release) if by(event) == "a"]) == stopped
        assert written_without_the_lease(release) == []
        assert "nothing is written" in frozen.process.log.read_text(), "its pass did go on"


def test_a_leader_that_ends_in_order_gives_the_lease_back(release: Release) -> None:
    first, _ = release.add("a")
    second, _ = release.add("b")
    release.make("w")
    eventually(lambda: release.is_served("w"))
    first.process.stop()
    assert "the Lease is given back" in first.process.log.read_text()
    eventually(second.leads)
    held = holders(release)
    (given, _), (taken, by_whom) = next((a, b) for a, b in itertools.pairwise(held) if not a[1])
    assert by_whom == "b"
    assert taken - given < LEASE_SECONDS
    second.process.stop()
    assert release.lease() == {}, "an uninstalled release leaves none behind"


def test_a_second_release_stands_by_and_says_why(release: Release) -> None:
    release.add("a")
    second, _ = release.add("b", release="another")
    status, text = second.readiness()
    assert status == 200
    why = rf"'a_[0-9a-f]{{8}}' \(release {release.namespace}/{release.name}, version [0-9.]+\) leads"
    assert re.fullmatch(rf"stands by: {why}\n", text), text
    assert re.search(rf"stands by: {why}", second.process.log.read_text())


def test_a_leader_that_gets_nothing_done_is_not_ready_and_loses_the_lease(release: Release, tmp_path: Path) -> None:
    """A request ends after seconds, whatever the API server does. What can hang is the code of a plug-in."""
    plugins = tmp_path / "plugins"
    info = plugins / "hanging-1.0.dist-info"
    info.mkdir(parents=True)
    (plugins / "hanging.py").write_text(
        "import time\ndef provision(rendezvous): time.sleep(3600)\ndef backend(): return provision\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hanging\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rdzv.backends]\nhanging = hanging:backend\n")
    stuck, _ = release.add("a", plugins=plugins)
    other, _ = release.add("b")
    assert stuck.leads()
    release.make("hangs-0", "hanging")
    release.make("w")
    eventually(lambda: release.is_served("w"))
    for n in range(1, PASSES + 1):  # One for each thread, and one that waits.
        release.make(f"hangs-{n}", "hanging")
    eventually(lambda: stuck.readiness()[0] == 503, timeout=120)
    assert "none has ended" in stuck.readiness()[1]
    eventually(other.leads)
    eventually(lambda: release.is_served("hangs-0"))
    assert written_without_the_lease(release) == []
    stuck.process.kill()


def test_after_an_outage_of_the_api_server_one_leads_again(release: Release) -> None:
    only, proxy = release.add("a", proxy=True)
    assert proxy is not None
    with proxy:
        proxy.down()
        proxy.cut()
        release.make("w")
        eventually(lambda: only.readiness()[0] == 503, timeout=60)
        assert "the API server has not answered" in only.readiness()[1]
        proxy.up()
        eventually(only.leads)
        eventually(lambda: release.is_served("w"))
        assert written_without_the_lease(release) == []


def test_with_rights_in_one_namespace_only_a_world_forms_there_and_nobody_looks_elsewhere(
    release: Release, light_namespace: str, tmp_path: Path
) -> None:
    release.add("a")
    kube = release.kube
    for namespace in (light_namespace, release.served):
        for obj in (rendezvous(namespace, "kubernetes"), pod(namespace, "x", 0)):
            kube.create(obj)
    made = eventually(lambda: (kube.get("Rendezvous", release.served, "mnist") or {}).get("status", {}).get("runID"))
    kube.delete("Pod", release.served, "x")
    fleet = Fleet(tmp_path, release.cluster.kubeconfig, f"{release.served}/mnist", made, "2:2")
    try:
        nodes = [fleet.start() for _ in range(2)]
        fleet.await_world(nodes, 2)
        eventually(lambda: rounds(release) == 1)
        fleet.finish()
        fleet.wait("all agents end", lambda: not any(node.alive() for node in nodes))
    finally:
        fleet.stop()
    assert kube.get("ConfigMap", release.served, "rdzv-mnist")
    assert kube.get("ConfigMap", light_namespace, "rdzv-mnist") is None
    assert "status" not in (kube.get("Rendezvous", light_namespace, "mnist") or {})
    asked = [event for event in release.audit() if event.get("objectRef")]
    assert [event for event in asked if event["responseStatus"]["code"] == 403] == []
    assert {event["objectRef"].get("namespace", "") for event in asked} == {release.served, release.namespace}


def rounds(release: Release) -> int:
    """The highest round that the operator has seen."""
    status = (release.kube.get("Rendezvous", release.served, "mnist") or {}).get("status") or {}
    return int(status.get("round") or 0)
