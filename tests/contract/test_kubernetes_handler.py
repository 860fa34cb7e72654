"""Real torchrun agents on the backends of this project: no operator, a real API server or etcd, real deaths."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster
from support.etcd_servers import EtcdServer
from support.fault_proxy import EtcdProxy, FaultProxy
from support.torchrun_fleet import Fleet

from rdzv.etcd.config import parse


@dataclass
class Site:
    """Where the agents of `fleet` meet.

    `get`: a record, by its kind and name. `route`: who starts from now on goes through this proxy, or directly.
    """

    fleet: Fleet
    get: Callable[[str, str], dict[str, Any]]
    proxy: Callable[[], FaultProxy]
    route: Callable[[FaultProxy | None], None]


def on_kubernetes(request: pytest.FixtureRequest, directory: Path) -> Site:
    plane: LocalCluster = request.getfixturevalue("plane")
    namespace: str = request.getfixturevalue("light_namespace")
    fleet = Fleet(directory, plane.kubeconfig, f"{namespace}/job", "run-1", "2:3")

    def get(kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(plane.kubectl("get", kind, name, "-n", namespace, "-o", "json"))
        return found

    def route(proxy: FaultProxy | None) -> None:
        fleet.kubeconfig = proxy.kubeconfig if proxy else plane.kubeconfig

    return Site(fleet, get, lambda: FaultProxy(plane.kubeconfig, directory), route)


def on_etcd(request: pytest.FixtureRequest, directory: Path) -> Site:
    etcd: EtcdServer = request.getfixturevalue("etcd")
    run = f"run-{secrets.token_hex(4)}"
    fleet = Fleet(directory, Path("none"), etcd.endpoint, run, "2:3", backend="etcd-v3")

    def get(kind: str, name: str) -> dict[str, Any]:
        return etcd.values()[f"/rdzv/{run}/{kind}s/{run if name == 'job' else name}"]

    def route(proxy: FaultProxy | None) -> None:
        fleet.endpoint = proxy.server.removeprefix("https://") if proxy else etcd.endpoint
        fleet.config = {"cacert": str(proxy.ca_file)} if proxy else {}

    return Site(fleet, get, lambda: EtcdProxy(parse(etcd.endpoint, {}).servers[0], directory), route)


@pytest.fixture(params=[on_kubernetes, on_etcd])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    found: Site = request.param(request, tmp_path)
    yield found
    found.fleet.stop()


@pytest.fixture
def fleet(site: Site) -> Fleet:
    return site.fleet


def asked(site: Site, name: str) -> bool:
    """Whether this agent has asked to be counted."""
    with contextlib.suppress(KeyError, RuntimeError):
        return bool(site.get("rendezvousmember", name))
    return False


def test_a_job_forms_trains_and_ends(site: Site, fleet: Fleet) -> None:
    # The last one may need many seconds to start, and two would begin without it.
    fleet.config["last_call_timeout"] = "60"
    nodes = [fleet.start() for _ in range(3)]
    fleet.await_world(nodes, 3)
    assert [node.steps()[-1]["rank"] for node in nodes] == [0, 1, 2], "ranks follow slots"
    fleet.finish()
    fleet.wait("all agents end", lambda: not any(node.alive() for node in nodes))
    assert [node.process.returncode for node in nodes] == [0, 0, 0], [node.output() for node in nodes]
    assert {node.steps()[-1]["restarts"] for node in nodes} == {0}
    record = site.get("rendezvousround", "job")["spec"]
    assert (record["phase"], record["closed"]["reason"], record["round"]) == ("Closed", "Succeeded", 1)
    key = record["coordinator"]["key"]
    assert len(key) == 64
    assert not [node.name for node in nodes if key in node.output()], "what lets agents in is nobody else's to read"


@pytest.mark.parametrize("victim", [2, 0], ids=["a member", "the coordinator and rank 0"])
def test_survivors_go_on_when_an_agent_is_killed(fleet: Fleet, victim: int) -> None:
    nodes = [fleet.start() for _ in range(3)]
    fleet.await_world(nodes, 3)
    at = time.time()
    nodes[victim].kill()
    survivors = [node for node in nodes if node is not nodes[victim]]
    fleet.await_world(survivors, 2, since=at)
    assert all(node.alive() for node in survivors)
    fleet.finish()
    fleet.wait("the survivors end", lambda: not any(node.alive() for node in survivors))
    assert [node.process.returncode for node in survivors] == [0, 0], [node.output() for node in survivors]


def test_a_replacement_is_let_in(fleet: Fleet) -> None:
    nodes = [fleet.start() for _ in range(3)]
    fleet.await_world(nodes, 3)
    nodes[1].kill()
    at = time.time()
    fleet.await_world([nodes[0], nodes[2]], 2, since=at)
    again = fleet.start()
    fleet.await_world([nodes[0], nodes[2], again], 3, since=at)
    assert nodes[0].alive()
    assert nodes[2].alive()


def test_sigterm_is_announced_before_the_workers_have_stopped(site: Site, fleet: Fleet) -> None:
    nodes = [fleet.start(), fleet.start(), fleet.start(SLOW_EXIT="15")]
    fleet.await_world(nodes, 3)
    worker = nodes[2].steps()[-1]["pid"]
    nodes[2].process.send_signal(signal.SIGTERM)

    def leaving() -> bool:
        return bool(site.get("rendezvousmember", "node-2")["spec"]["state"] == "leaving")

    fleet.wait("node-2 says that it leaves", leaving, 10)
    assert nodes[2].alive()
    assert os.path.exists(f"/proc/{worker}"), "its worker had ended before"
    at = time.time()
    fleet.await_world(nodes[:2], 2, since=at)
    assert [node.alive() for node in nodes[:2]] == [True, True]


def test_the_server_is_away_while_training(site: Site, fleet: Fleet) -> None:
    with site.proxy() as proxy:
        site.route(proxy)
        nodes = [fleet.start() for _ in range(2)]
        fleet.await_world(nodes, 2)
        proxy.down()
        at = time.time()
        time.sleep(20)
        fleet.await_world(nodes, 2, since=at + 19)
        proxy.up()
        late = fleet.start()
        fleet.await_world([*nodes, late], 3, since=at)
        assert all(node.alive() for node in nodes)
        before = [[step for step in node.steps() if step["world"] == 2] for node in nodes]
        assert [{step["pid"] for step in steps} for steps in before] == [{steps[0]["pid"]} for steps in before]


def test_the_server_is_away_while_forming(site: Site, fleet: Fleet) -> None:
    with site.proxy() as proxy:
        site.route(proxy)
        first = fleet.start()
        fleet.wait("the first waits", lambda: asked(site, "node-0"))
        proxy.down()
        second = fleet.start()
        time.sleep(20)
        assert first.alive()
        assert second.alive()
        proxy.up()
        fleet.await_world([first, second], 2)


@pytest.mark.parametrize("nnodes", ["3:3", "2:3"], ids=["waits", "trains"])
@pytest.mark.parametrize("deaf", [0, 1], ids=["the coordinator", "a member"])
def test_an_agent_whose_connections_to_the_server_went_deaf_is_in_the_next_world(
    site: Site, fleet: Fleet, deaf: int, nnodes: str
) -> None:
    """Something between it and the server keeps its connections open, and lets nothing through any more."""
    fleet.nnodes = nnodes
    with site.proxy() as proxy:
        nodes = []
        for index in range(2):
            site.route(proxy if index == deaf else None)
            nodes.append(fleet.start())
        site.route(None)
        if nnodes == "2:3":
            fleet.await_world(nodes, 2)
        else:
            fleet.wait("both have asked", lambda: all(asked(site, node.name) for node in nodes))
            time.sleep(2)
        proxy.freeze()
        at = time.time()
        nodes.append(fleet.start())
        fleet.wait("the third has asked", lambda: asked(site, "node-2"))
        wanted = time.monotonic()
        fleet.await_world(nodes, 3, since=at)
        # 30 s until it has noticed, and what the workers take to start.
        assert time.monotonic() - wanted < 55
        assert all(node.alive() for node in nodes)


@pytest.mark.parametrize("site", [on_kubernetes], indirect=True)
def test_min_and_max_are_read_live(plane: LocalCluster, site: Site, fleet: Fleet) -> None:
    namespace = fleet.endpoint.partition("/")[0]
    spec = {"backend": "kubernetes", "nodes": {"min": 1, "max": 2}}
    obj = {"apiVersion": "rdzv.dev/v1alpha1", "kind": "Rendezvous", "metadata": {"name": "job"}, "spec": spec}
    plane.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(obj))
    fleet.run_id = site.get("rendezvous", "job")["metadata"]["uid"]
    nodes = [fleet.start() for _ in range(3)]
    fleet.wait("a world of 2", lambda: sum(bool(node.steps()) for node in nodes) == 2)

    def scale(maximum: int) -> float:
        at = time.time()
        plane.kubectl(
            *("patch", "rendezvous", "job", "-n", namespace, "--type=merge"),
            *("-p", json.dumps({"spec": {"nodes": {"max": maximum}}})),
        )
        return at

    fleet.await_world(nodes, 3, since=scale(3))
    fleet.await_world(nodes[:2], 2, since=scale(2))
    assert all(node.alive() for node in nodes)
    fleet.finish()
    fleet.wait("all end, the spare too", lambda: not any(node.alive() for node in nodes))
    assert [node.process.returncode for node in nodes] == [0, 0, 0], [node.output() for node in nodes]
