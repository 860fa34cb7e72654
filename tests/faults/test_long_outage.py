"""API server, etcd and operator are away for ten minutes under jobs that train. In the long form only: `make faults`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from faults.tally import LONG, Tally
from support.operated import rendezvous
from support.operator_process import Kube, OperatorProcess, running_operator
from support.own_plane import API_SERVER, ETCD, OwnPlane, own_plane
from support.torchrun_fleet import Fleet, Node, install_crds

pytestmark = pytest.mark.timeout(3600)

JOBS = 4
NODES = 2
AWAY = 600.0
"""Seconds."""
LATE = 60.0
"""Seconds before the end of the outage when a node is added to each job."""
JOINED = 30.0
"""Seconds after the end within which it is in."""
TRAINED = 400.0
"""Seconds for workers to start; no measure: all of them share two processors."""
NAMESPACE = "training"


@dataclass
class Site:
    """Jobs, each of a Rendezvous of its own, which an operator serves."""

    plane: OwnPlane
    kube: Kube
    operator: OperatorProcess
    jobs: dict[str, Fleet]
    """By the name of the Rendezvous."""

    def go_away(self) -> None:
        """API server, etcd and operator end without a word."""
        self.plane.send(API_SERVER, signal.SIGKILL)
        self.plane.send(ETCD, signal.SIGKILL)
        self.operator.kill()

    def come_back(self) -> None:
        """Returns when the API server is ready; the operator starts then."""
        self.plane.start_again()
        self.operator.start()

    def world(self, name: str) -> int:
        """Nodes of the world that runs; 0 while one is formed."""
        spec = (self.kube.get("RendezvousRound", NAMESPACE, name) or {}).get("spec") or {}
        return int(spec["size"]) if spec.get("phase") == "Running" and spec["want"] <= spec["round"] else 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        plane = stack.enter_context(own_plane(tmp_path, "test-away"))
        cluster = plane.cluster
        install_crds(cluster)
        cluster.kubectl("create", "namespace", NAMESPACE)
        operator = stack.enter_context(running_operator(cluster.kubeconfig, tmp_path / "log", NAMESPACE))
        kube, jobs = Kube(cluster.kubeconfig), dict[str, Fleet]()
        for name in (f"job-{number}" for number in range(JOBS)):
            obj = rendezvous(NAMESPACE, "kubernetes", nodes={"min": NODES, "max": NODES + 1})
            obj["metadata"]["name"] = name
            uid = kube.create(obj)["metadata"]["uid"]
            directory = tmp_path / name
            directory.mkdir()
            endpoint, nnodes = f"{NAMESPACE}/{name}", f"{NODES}:{NODES + 1}"
            jobs[name] = Fleet(directory, cluster.kubeconfig, endpoint, uid, nnodes, prefix=name)
            stack.callback(jobs[name].stop)
        yield Site(plane, kube, operator, jobs)


if LONG:  # Ten minutes of waiting. What is shorter is in tests/contract/test_kubernetes_handler.py.

    def test_jobs_train_through_ten_minutes_without_api_server_and_operator(site: Site, tally: Tally) -> None:
        for job in site.jobs.values():
            for _ in range(NODES):
                job.start()
        for job in site.jobs.values():
            job.wait("its first world trains", partial(trains, job.nodes, NODES, 0.0), TRAINED)
        training = [node for job in site.jobs.values() for node in job.nodes]
        before = [worker(node) for node in training]
        with tally.injected("Agents", f"API server and operator away for {AWAY:.0f} s: no worker ends", len(training)):
            gone = time.time()
            site.go_away()
            time.sleep(AWAY - LATE)
            for job in site.jobs.values():
                job.start()
            time.sleep(LATE)
            assert trains(training, NODES, time.time() - 10), [node.steps()[-1] for node in training]
            assert [worker(node) for node in training] == before, "workers were restarted"
            assert all(node.alive() for job in site.jobs.values() for node in job.nodes)
            print(f"{len(training)} workers went on for {time.time() - gone:.0f} s")
        with tally.injected(
            "Agents", f"API server and operator away for {AWAY:.0f} s, then one more joins each of {JOBS} jobs", JOBS
        ) as joined:
            site.come_back()
            back = time.monotonic()
            waiting = set(site.jobs)
            while waiting:
                assert time.monotonic() < back + JOINED, f"not in: {sorted(waiting)}"
                waiting -= {name for name in waiting if site.world(name) == NODES + 1}
                time.sleep(0.1)
            joined.took(time.monotonic() - back)
            print(f"one more is in each world {joined.slowest:.1f} s after the return")
            came = time.time()
            for job in site.jobs.values():
                job.wait("all of it train", partial(trains, job.nodes, NODES + 1, came), TRAINED)


def trains(nodes: list[Node], size: int, since: float) -> bool:
    """Whether the last step of each was made after this moment, in a world of this size."""
    last = [steps[-1] if (steps := node.steps()) else {"at": 0.0} for node in nodes]
    return all(step["at"] > since and step["world"] == size for step in last)


def worker(node: Node) -> tuple[int, int]:
    """The process that made its last step, and how often it was restarted."""
    step = node.steps()[-1]
    return step["pid"], step["restarts"]
