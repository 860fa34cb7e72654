"""API server, etcd and operator are away for ten minutes under jobs that train. In the long form only: `make faults`.

The form with a shorter outage, and with the proxy's, is in tests/contract/test_kubernetes_handler.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.tally import LONG, Tally
from support.operated import rendezvous
from support.operator_process import Kube, OperatorProcess, running_operator
from support.own_plane import API_SERVER, ETCD, OwnPlane, own_plane
from support.torchrun_fleet import Fleet, install_crds

Object = dict[str, Any]
pytestmark = pytest.mark.timeout(3600)

JOBS = 4
NODES = 2
AWAY = 600.0
"""Seconds."""
LATE = 60.0
"""Seconds before the end of the outage when a node is added to each job."""
JOINED = 30.0
"""Seconds after the end within which it is in."""
NAMESPACE = "training"


@dataclass
class Site:
    """Four jobs, each of its own Rendezvous, which an operator serves."""

    plane: OwnPlane
    operator: OperatorProcess
    jobs: list[Fleet]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        plane = stack.enter_context(own_plane(tmp_path, "test-away"))
        cluster = plane.cluster
        install_crds(cluster)
        cluster.kubectl("create", "namespace", NAMESPACE)
        operator = stack.enter_context(running_operator(cluster.kubeconfig, tmp_path / "log", NAMESPACE))
        kube, jobs = Kube(cluster.kubeconfig), []
        for number in range(JOBS):
            obj = rendezvous(NAMESPACE, "kubernetes", nodes={"min": NODES, "max": NODES + 1})
            obj["metadata"]["name"] = f"job-{number}"
            uid = kube.create(obj)["metadata"]["uid"]
            directory = tmp_path / f"job-{number}"
            directory.mkdir()
            fleet = Fleet(directory, cluster.kubeconfig, f"{NAMESPACE}/job-{number}", uid, f"{NODES}:{NODES + 1}")
            stack.callback(fleet.stop)
            jobs.append(fleet)
        yield Site(plane, operator, jobs)


def workers(steps: list[Object]) -> set[int]:
    """The processes that made these steps."""
    return {step["pid"] for step in steps}


if LONG:

    def test_jobs_train_through_ten_minutes_without_api_server_and_operator(site: Site, tally: Tally) -> None:
        for job in site.jobs:
            for _ in range(NODES):
                job.start()
        for job in site.jobs:
            job.wait("the first world", lambda job=job: in_world(job, NODES, 0.0), 600)  # type: ignore[misc]
        with (
            tally.injected(
                "Agents", f"API server and operator away for {AWAY:.0f} s: workers that go on", JOBS * NODES
            ),
            tally.injected(
                "Agents", f"API server and operator away for {AWAY:.0f} s, then one more each", JOBS
            ) as joined,
        ):
            gone = time.time()
            site.plane.send(API_SERVER, signal.SIGKILL)
            site.plane.send(ETCD, signal.SIGKILL)
            site.operator.kill()
            time.sleep(AWAY - LATE)
            for job in site.jobs:
                job.start()
            time.sleep(LATE)
            for job in site.jobs:
                for node in job.nodes[:NODES]:
                    steps = node.steps()
                    assert steps[-1]["at"] > time.time() - 10, f"{node.name} of {job.endpoint} does not train any more"
                    assert len(workers([step for step in steps if step["at"] > gone])) == 1, "workers were restarted"
                assert all(node.alive() for node in job.nodes)
            site.plane.start_again()
            back = time.time()
            site.operator.start()
            for job in site.jobs:
                job.wait("one more node is in", lambda job=job: in_world(job, NODES + 1, gone), 120)  # type: ignore[misc]
                joined.took(max(0.0, max(first(job, NODES + 1)) - back))
            print(f"one more node in each of {JOBS} jobs within {joined.slowest:.1f} s")
            assert joined.slowest is not None
            assert joined.slowest <= JOINED


def in_world(job: Fleet, size: int, since: float) -> bool:
    """Whether each of its nodes has made a step in a world of this size."""
    return all(any(step["world"] == size and step["at"] > since for step in node.steps()) for node in job.nodes)


def first(job: Fleet, size: int) -> list[float]:
    """When each of its nodes made its first step in a world of this size."""
    return [min(step["at"] for step in node.steps() if step["world"] == size) for node in job.nodes]
