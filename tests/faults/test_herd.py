"""A herd: very many agents start at one moment, and come back at one moment when the API server does.

RDZV_FAULTS=long (`make faults`): 1,000 of them, how even their requests are, and how much slower another tenant's reads get.
"""

from __future__ import annotations

import json
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from faults.tally import LONG, Tally
from support.cluster_fixtures import LocalCluster
from support.light_agents import LightAgents
from support.own_plane import API_SERVER, OwnPlane, own_plane
from support.torchrun_fleet import install_crds

from rdzv.kube.api import ApiError, Resource
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig

Object = dict[str, Any]
pytestmark = pytest.mark.timeout(1800)

AGENTS = 1000 if LONG else 40
AWAY = 20.0 if LONG else 4.0
"""Seconds of an outage; the agents ask for a new world in the middle of it."""
FORMED = 300.0
"""Seconds for a world of all; no measure: agents and server share two processors."""
BURST = 3.0
"""How many times the mean a second may have, from the server's return until all are in a world again."""
PAIRS = 3
"""Outages with and without the herd that are compared."""
WATCHED = 20.0
"""Seconds after the server's return in which the reads of the other tenant are compared."""
MAPS = Resource("v1", "configmaps")
_RIGHTS = {"agent": "rendezvousrounds.rdzv.dev,rendezvousmembers.rdzv.dev,rendezvous.rdzv.dev", "tenant": "configmaps"}


@dataclass
class Ground:
    """Two tenants of one API server: the herd, and another one. Each has a service account, so that API Priority and Fairness counts it."""

    plane: OwnPlane
    directory: Path

    def account(self, name: str) -> Path:
        """A kubeconfig of a service account in a namespace of the same name, with what it needs there."""
        cluster: LocalCluster = self.plane.cluster
        cluster.kubectl("create", "namespace", name)
        cluster.kubectl("create", "serviceaccount", name, "-n", name)
        verbs = "--verb=get,list,watch,create,update,patch,delete"
        cluster.kubectl("create", "role", name, verbs, f"--resource={_RIGHTS[name]}", "-n", name)
        cluster.kubectl("create", "rolebinding", name, f"--role={name}", f"--serviceaccount={name}:{name}", "-n", name)
        document = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
        document["users"][0]["user"] = {"token": cluster.kubectl("create", "token", name, "-n", name).strip()}
        found = self.directory / f"{name}.kubeconfig"
        found.write_text(json.dumps(document))
        return found

    def outage(self, crowd: LightAgents, *, herd: bool) -> tuple[float, float]:
        """The API server is killed; without `herd` the agents are stopped until it has been back for a while.

        Returns when it was started again, and when it was ready: under a herd it answers for 10 s and more before that.
        """
        self.plane.send(API_SERVER, signal.SIGKILL)
        if not herd:
            crowd.send(signal.SIGSTOP)
        time.sleep(AWAY / 2)
        if herd:
            crowd.join()
        time.sleep(AWAY / 2)
        started = time.time()
        self.plane.start_again()
        return started, time.time()

    def requests_of_agents(self, since: float) -> list[float]:
        """When each came to the API server, in order."""
        found = []
        for event in self.plane.cluster.agent_requests("agent"):
            # A watch has a line when it begins, or is refused, and one when it ends.
            if event["verb"] != "watch" or event["stage"] == "ResponseStarted":
                at = datetime.fromisoformat(event["requestReceivedTimestamp"].replace("Z", "+00:00")).timestamp()
                found.append(at)
        return sorted(at for at in found if at >= since)


class Tenant:
    """Reads one object over and over, at an even pace."""

    def __init__(self, kubeconfig: Path) -> None:
        self._client = Client(from_kubeconfig(str(kubeconfig)))
        self._client.create(MAPS, "tenant", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.reads: list[tuple[float, float]] = []
        """When each that succeeded began, and how long it took."""

    def __enter__(self) -> Tenant:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _read(self) -> None:
        while not self._stop.wait(0.02):
            began = time.time()
            try:
                self._client.get(MAPS, "tenant", "a")
            except ApiError:
                continue
            self.reads.append((began, time.time() - began))

    def median(self, since: float) -> float:
        """Seconds of a read that began within `WATCHED` of then."""
        return statistics.median(took for at, took in self.reads if since <= at < since + WATCHED)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    directory = tmp_path_factory.mktemp("herd")
    with own_plane(directory, "test-herd") as plane:
        install_crds(plane.cluster)
        yield Ground(plane, directory)


def evenness(requests: list[float]) -> tuple[float, int, float]:
    """How many requests the busiest second has, how many it is at an even pace, and the seconds from first to last."""
    by_second = Counter(int(at - requests[0]) for at in requests)
    seconds = int(requests[-1] - requests[0]) + 1
    return len(requests) / seconds, max(by_second.values()), seconds


def test_all_of_a_herd_join_at_the_start_and_after_an_outage(ground: Ground, tally: Tally) -> None:
    agents, tenant = ground.account("agent"), Tenant(ground.account("tenant"))
    with (
        LightAgents(agents, "agent/job", AGENTS, processes=16 if LONG else 2, log=ground.directory / "log") as crowd,
        tenant,
    ):
        with tally.injected("Herd", f"{AGENTS} agents start within a second", AGENTS) as started:
            assert crowd.join() < 1.0 or not LONG
            began = time.time()
            is_one_world(crowd.worlds(1, FORMED))
            started.took(time.time() - began)
        slower = [outages(ground, crowd, tenant, tally, number + 1) for number in range(PAIRS if LONG else 1)]
    if LONG:
        print(f"another tenant's read takes {statistics.median(slower):.2f} times as long with the herd")


def outages(ground: Ground, crowd: LightAgents, tenant: Tenant, tally: Tally, number: int) -> float:
    """One outage with the herd and, in the long form, one without; how many times as long the other tenant's reads take with it."""
    with tally.injected("Herd", f"{AGENTS} agents join while the API server is away", AGENTS) as joined:
        started, back = ground.outage(crowd, herd=True)
        is_one_world(found := crowd.worlds(number + 1, FORMED))
        joined.took(max(0.0, max(world["at"] for world in found) - back))
    print(f"outage {number}: all in one world {joined.slowest:.1f} s after the server was ready")
    if not LONG:
        return 1.0
    requests = ground.requests_of_agents(started)
    mean, most, seconds = evenness(requests)
    print(f"{len(requests)} requests in {seconds} s: {mean:.0f} a second, {most} at most")
    assert most <= BURST * mean
    time.sleep(max(0.0, back + WATCHED - time.time()))
    with_herd = tenant.median(back)
    _, back = ground.outage(crowd, herd=False)
    time.sleep(WATCHED)
    without = tenant.median(back)
    crowd.send(signal.SIGCONT)
    time.sleep(WATCHED)
    print(f"another tenant's read: {with_herd * 1e3:.2f} ms with the herd, {without * 1e3:.2f} ms without")
    return with_herd / without


def is_one_world(worlds: list[Object]) -> None:
    """All of them have a rank of their own in one round."""
    assert sorted(world["rank"] for world in worlds) == list(range(AGENTS))
    assert {world["size"] for world in worlds} == {AGENTS}
    assert len({world["round"] for world in worlds}) == 1
