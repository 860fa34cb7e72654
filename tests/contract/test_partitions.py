"""Real torchrun agents, one of which can't connect to the others, nor they to it, while all of them have the API server."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.cluster_fixtures import LocalCluster
from support.peer_network import BOTH, BY_IT, BY_OTHERS, PeerNetwork
from support.torchrun_fleet import Fleet, Node

ADDRESS, GROUP = "127.0.0.9", 54321
WATCHED_SECONDS = 25.0
ROUNDS = 4


@pytest.fixture
def fleet(plane: LocalCluster, light_namespace: str, tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path, plane.kubeconfig, f"{light_namespace}/job", "run-1", "2:4")
    yield found
    found.stop()


@pytest.fixture
def network(plane: LocalCluster) -> Iterator[PeerNetwork]:
    server = plane.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
    with PeerNetwork(ADDRESS, GROUP, urlsplit(server).port or 443) as found:
        yield found


def record(plane: LocalCluster, fleet: Fleet) -> dict[str, Any]:
    namespace = fleet.endpoint.partition("/")[0]
    found: dict[str, Any] = json.loads(plane.kubectl("get", "rendezvousround", "job", "-n", namespace, "-o", "json"))
    spec: dict[str, Any] = found["spec"]
    return spec


def start(fleet: Fleet, victim: int) -> list[Node]:
    return [fleet.start(address=ADDRESS, group=GROUP) if slot == victim else fleet.start() for slot in range(4)]


def check_left_out(
    plane: LocalCluster, fleet: Fleet, nodes: list[Node], victim: int, since: float, before: int, ways: str = BOTH
) -> None:
    """The others train on and are not disturbed; the Round and their logs say who is missing and why, and which way is cut."""
    others = [node for node in nodes if node is not nodes[victim]]
    fleet.await_world(others, 3, since=since)
    time.sleep(WATCHED_SECONDS)
    settled = record(plane, fleet)
    assert settled["round"] - before <= ROUNDS
    (left_out,) = settled["unreachable"]
    assert left_out["name"] == f"node-{victim}"
    pattern = rf"node-{victim} can't be reached by node-\d at {re.escape(ADDRESS)}:\d+"
    if ways == BY_IT:
        pattern = rf"node-\d can't be reached by node-{victim} at 127\.0\.0\.1:\d+"
    assert re.fullmatch(pattern, left_out["reason"]), left_out
    for node in nodes:
        assert f"goes on without node-{victim}: {left_out['reason']}" in node.output(), node.name
    at = time.time()
    fleet.await_world(others, 3, since=at)
    assert record(plane, fleet)["round"] == settled["round"], "it does not settle"
    assert all(node.alive() for node in nodes)


@pytest.mark.parametrize("how", ["refused", "silent"])
@pytest.mark.parametrize("victim", [3, 0], ids=["a member", "the coordinator and rank 0"])
def test_one_that_is_cut_off_is_left_out_by_name_and_let_in_again(
    plane: LocalCluster, fleet: Fleet, network: PeerNetwork, victim: int, how: str
) -> None:
    nodes = start(fleet, victim)
    fleet.await_world(nodes, 4)
    before, at = record(plane, fleet)["round"], time.time()
    network.cut(how)
    check_left_out(plane, fleet, nodes, victim, at, before)
    network.heal()
    fleet.await_world(nodes, 4, since=time.time())
    assert "unreachable" not in record(plane, fleet)
    assert all(node.alive() for node in nodes)


@pytest.mark.parametrize(
    ("victim", "ways"),
    [(3, BOTH), (3, BY_IT), (0, BY_OTHERS)],
    ids=["both ways", "it reaches nobody", "nobody reaches it, the coordinator and rank 0"],
)
def test_one_that_was_cut_off_from_the_start_does_not_keep_the_others(
    plane: LocalCluster, fleet: Fleet, network: PeerNetwork, victim: int, ways: str
) -> None:
    """Cut one way, it coordinates or leads nobody who can't reach it, and follows nobody whom it can't reach."""
    network.cut("refused", ways)
    nodes, at = start(fleet, victim), time.time()
    check_left_out(plane, fleet, nodes, victim, at, 0, ways)


def test_one_that_reached_no_store_is_let_in_soon_after_it_can(
    plane: LocalCluster, fleet: Fleet, network: PeerNetwork
) -> None:
    """Its connection to the coordinator is from before, so that only this agent itself can find out."""
    nodes = start(fleet, 3)
    fleet.await_world(nodes, 4)
    network.cut("refused", BY_IT)
    at = time.time()
    os.kill(nodes[1].workers()[0], signal.SIGKILL)
    fleet.await_world(nodes[:3], 3, since=at)
    fleet.wait("node-3 is left out", lambda: "unreachable" in record(plane, fleet))
    network.heal()
    at = time.time()
    fleet.wait("it is let in", lambda: "unreachable" not in record(plane, fleet), seconds=60)
    fleet.await_world(nodes, 4, since=at)


def test_the_time_of_one_that_is_left_out_ends_with_the_reason(fleet: Fleet, network: PeerNetwork) -> None:
    fleet.config = {"join_timeout": "25"}
    nodes = [fleet.start() for _ in range(3)]
    fleet.await_world(nodes, 3)
    network.cut("refused")
    alone = fleet.start(address=ADDRESS, group=GROUP)
    fleet.wait("it gives up", lambda: not alone.alive())
    assert re.search(r"within 25 s: node-3 (can't be reached by|can't connect to)", alone.output()), alone.output()
    assert all(node.alive() for node in nodes)
    assert len({step["pid"] for step in nodes[0].steps()}) == 1, "its workers were restarted"
