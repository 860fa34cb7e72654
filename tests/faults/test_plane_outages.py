"""The API server and its etcd themselves are killed or stopped, under the operator and under agents in a world.

The proxy's outages (`test_operator_outages`) end with a server that knows all that it knew. One that starts knows no roles yet,
and its memory of versions is gone. RDZV_FAULTS=long (`make faults`): all of them, for longer.
"""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.tally import LONG, Tally
from faults.test_operator_outages import RECOVERED, SLACK, Served, serving
from support.light_agents import LightAgents
from support.operator_process import eventually
from support.own_plane import API_SERVER, ETCD, OwnPlane, own_plane

pytestmark = pytest.mark.timeout(1800)

AGENTS = 6
AWAY = 20.0 if LONG else 4.0
"""Seconds."""
FORMED = 120.0
"""Seconds for the first world; no measure."""


@dataclass
class Scene:
    """An operator with what it serves, and agents in a world, on a control plane of their own."""

    plane: OwnPlane
    served: Served
    crowd: LightAgents
    round: int = 1


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory: Path = tmp_path_factory.mktemp("plane")
    with own_plane(directory, "test-outages") as plane, serving(plane.cluster, directory) as served:
        namespace = f"test-{secrets.token_hex(4)}"
        plane.cluster.kubectl("create", "namespace", namespace)
        with LightAgents(
            plane.cluster.kubeconfig, f"{namespace}/crowd", AGENTS, processes=2, log=directory / "agents"
        ) as crowd:
            crowd.join()
            crowd.worlds(1, FORMED)
            yield Scene(plane, served, crowd)


def api_server_killed(plane: OwnPlane) -> None:
    plane.send(API_SERVER, signal.SIGKILL)
    time.sleep(AWAY)
    plane.start_again()


def etcd_killed(plane: OwnPlane) -> None:
    """The API server lives on, without anything to answer from."""
    plane.send(ETCD, signal.SIGKILL)
    time.sleep(AWAY)
    plane.start_again()


def etcd_stopped(plane: OwnPlane) -> None:
    plane.send(ETCD, signal.SIGSTOP)
    time.sleep(AWAY)
    plane.send(ETCD, signal.SIGCONT)
    plane.start_again()  # Nothing ended: waits until the API server says that it is ready.


def both_killed(plane: OwnPlane) -> None:
    plane.send(API_SERVER, signal.SIGKILL)
    plane.send(ETCD, signal.SIGKILL)
    time.sleep(AWAY)
    plane.start_again()


OUTAGES: dict[str, Callable[[OwnPlane], None]] = {
    "the API server killed": api_server_killed,
    "etcd killed": etcd_killed,
    "etcd stopped": etcd_stopped,
    "the API server and etcd killed": both_killed,
}


@pytest.mark.parametrize("outage", OUTAGES if LONG else ["the API server and etcd killed"])
def test_operator_and_agents_go_on(outage: str, scene: Scene, tally: Tally) -> None:
    """What changes as soon as the server is back is answered, by the same process; agents leave their world only when told to."""
    worlds = len(scene.crowd.reports)
    OUTAGES[outage](scene.plane)
    ended = time.monotonic()
    assert len(scene.crowd.reports) == worlds, "an agent gave up"
    with tally.injected("Operator", f"{outage} for {AWAY:.0f} s") as recovery:
        deleted = scene.served.change()
        eventually(lambda: scene.served.is_right(deleted), timeout=RECOVERED + SLACK)
        recovery.took(time.monotonic() - ended)
        print(f"{outage}: the operator is right again after {recovery.slowest:.1f} s")
    with tally.injected("Agents", f"{outage} for {AWAY:.0f} s, then all join", AGENTS) as joined:
        asked = time.monotonic()
        scene.crowd.join()
        found = scene.crowd.worlds(scene.round + 1, RECOVERED + SLACK)
        assert {world["size"] for world in found} == {AGENTS}
        (scene.round,) = {world["round"] for world in found}
        joined.took(time.monotonic() - asked)
        print(f"{outage}: all in one world after {joined.slowest:.1f} s")
