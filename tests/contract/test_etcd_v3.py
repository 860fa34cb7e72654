"""Agents of backend `etcd-v3`: what they ask of etcd, what etcd's faults do to a world, and what refusals are answered with.

What they have in common with agents of `kubernetes` is tested for both: test_handler_contract.py, test_kubernetes_handler.py,
test_store.py.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.etcd_servers import EtcdCluster, EtcdServer
from support.torchrun_fleet import Fleet
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from rdzv.etcd import leases as leases_module

AWAY_SECONDS = 20.0
QUIET_SECONDS = 20.0

Make = Callable[..., Any]


@pytest.fixture
def run() -> str:
    return f"run-{secrets.token_hex(4)}"


@pytest.fixture
def make(run: str) -> Iterator[Make]:
    handlers: list[Any] = []

    def made(endpoint: str, slot: int, low: int, high: int, run_id: str = run, **config: Any) -> Any:
        settings = {"slot": str(slot), "member": f"node-{slot}", "join_timeout": 60} | config
        params = RendezvousParameters("etcd-v3", endpoint, run_id, low, high, local_addr="127.0.0.1", **settings)
        handlers.append(get_rendezvous_handler(params))
        return handlers[-1]

    yield made
    with ThreadPoolExecutor(max(len(handlers), 1)) as pool:
        list(pool.map(lambda handler: handler.shutdown(), handlers))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rdzv-")], "threads are left"


def form(handlers: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(len(handlers)) as pool:
        infos = list(pool.map(lambda handler: handler.next_rendezvous(), handlers))
    assert sorted(info.rank for info in infos) == list(range(len(handlers)))
    return infos


def eventually(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


def form_until(handlers: list[Any], size: int) -> None:
    """As torch's agents do: whoever is in a smaller world joins again when nodes wait."""

    def attend(handler: Any) -> None:
        while handler.next_rendezvous().world_size < size:
            eventually(handler.num_nodes_waiting, "a larger round is asked for")

    with ThreadPoolExecutor(len(handlers)) as pool:
        list(pool.map(attend, handlers))


def revision(etcd: EtcdServer) -> int:
    """Grows by one with each write."""
    return int(etcd.call("/v3/kv/range", {"key": "YQ=="})["header"]["revision"])


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path) as found:
        yield found


# What it costs.


def test_64_agents_write_once_each_and_are_quiet_then(own_etcd: EtcdServer, make: Make) -> None:
    etcd = own_etcd
    before = revision(etcd)
    handlers = [make(etcd.endpoint, slot, 64, 64) for slot in range(64)]
    # 64 agents of one process open their connections at once; in pods they do while torch starts, which takes seconds.
    time.sleep(3)
    infos = form(handlers)
    after = revision(etcd)
    assert len(etcd.values()) == 65
    assert after - before <= 64 + 3, "one write each, and a few of the Round"
    time.sleep(2)
    formed = etcd.requests()
    time.sleep(QUIET_SECONDS)
    quiet = etcd.requests()
    assert {name for name in quiet if quiet[name] != formed.get(name, 0)} <= {"Check", "Status"}
    assert revision(etcd) == after
    del infos  # Their store is served by rank 0's agent.


# Leases.


def test_a_lost_lease_of_a_living_agent_is_healed(etcd: EtcdServer, make: Make, run: str) -> None:
    handlers = [make(etcd.endpoint, slot, 2, 3, last_call_timeout=1) for slot in range(3)]
    form(handlers)
    lost = etcd.values(f"/rdzv/{run}/")[f"/rdzv/{run}/rendezvousmembers/node-1"]["lease"]
    etcd.call("/v3/lease/revoke", {"ID": lost})
    eventually(lambda: all(handler.num_nodes_waiting() for handler in handlers), "a new round is asked for")
    form_until(handlers, 3)
    found = etcd.values(f"/rdzv/{run}/")
    assert found[f"/rdzv/{run}/rendezvousmembers/node-1"]["lease"] not in (None, "0", lost)


def test_a_round_that_was_lost_is_made_anew_with_a_higher_number(etcd: EtcdServer, make: Make, run: str) -> None:
    handlers = [make(etcd.endpoint, slot, 2, 2) for slot in range(2)]
    form(handlers)
    etcd.call("/v3/lease/revoke", {"ID": etcd.values()[f"/rdzv/{run}/rendezvousrounds/{run}"]["lease"]})
    eventually(lambda: all(handler.num_nodes_waiting() for handler in handlers), "a new round is asked for")
    form(handlers)
    assert etcd.values()[f"/rdzv/{run}/rendezvousrounds/{run}"]["spec"]["round"] > 1


def test_nothing_of_a_run_stays_behind(etcd: EtcdServer, make: Make, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LEASE_SECONDS", 2)
    monkeypatch.setattr(leases_module, "KEEP_ALIVE_SECONDS", (0.3, 0.5))
    handlers = [make(etcd.endpoint, slot, 2, 2, store="etcd") for slot in range(2)]
    infos = form(handlers)
    infos[0].store.set("key", "value")
    time.sleep(5)
    assert infos[1].store.get("key") == b"value"
    assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0]
    kinds = {key.split("/")[3] for key in etcd.values(f"/rdzv/{run}/")}
    assert kinds == {"rendezvousmembers", "rendezvousrounds", "rendezvousstores"}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda handler: handler.shutdown(), handlers))
    eventually(lambda: not etcd.values(f"/rdzv/{run}/"), "all keys are gone")


def test_a_run_can_follow_another_one_of_its_name(etcd: EtcdServer, make: Make) -> None:
    for _ in range(2):
        handlers = [make(etcd.endpoint, slot, 2, 2) for slot in range(2)]
        form(handlers)
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(lambda handler: handler.shutdown(), handlers)) == [True, True]


def test_runs_do_not_meet(etcd: EtcdServer, make: Make, run: str) -> None:
    one, other = make(etcd.endpoint, 0, 1, 1), make(etcd.endpoint, 0, 1, 1, run_id=f"{run}-2")
    assert [info.world_size for info in (one.next_rendezvous(), other.next_rendezvous())] == [1, 1]
    assert {key.split("/")[2] for key in etcd.values(f"/rdzv/{run}")} == {run, f"{run}-2"}


# etcd is away.


@pytest.fixture
def fleet(own_etcd: EtcdServer, tmp_path: Path, run: str) -> Iterator[Fleet]:
    found = Fleet(tmp_path, Path("none"), own_etcd.endpoint, run, "2:3", backend="etcd-v3")
    yield found
    found.stop()


def test_etcd_is_killed_while_training_and_back_after_20_s(own_etcd: EtcdServer, fleet: Fleet) -> None:
    nodes = [fleet.start() for _ in range(2)]
    fleet.await_world(nodes, 2)
    own_etcd.kill()
    at = time.time()
    time.sleep(AWAY_SECONDS)
    fleet.await_world(nodes, 2, since=at + AWAY_SECONDS - 1)
    own_etcd.start()
    late = fleet.start()
    fleet.await_world([*nodes, late], 3, since=at)
    before = [[step for step in node.steps() if step["world"] == 2] for node in nodes]
    assert [{step["pid"] for step in steps} for steps in before] == [{steps[0]["pid"]} for steps in before]
    assert {node.steps()[-1]["restarts"] for node in nodes} == {0}


def test_etcd_is_killed_while_a_world_forms_and_back_after_20_s(own_etcd: EtcdServer, fleet: Fleet, run: str) -> None:
    first = fleet.start()
    key = f"/rdzv/{run}/rendezvousmembers/node-0"
    fleet.wait("the first waits", lambda: key in own_etcd.values())
    own_etcd.kill()
    second = fleet.start()
    time.sleep(AWAY_SECONDS)
    assert first.alive()
    assert second.alive()
    own_etcd.start()
    fleet.await_world([first, second], 2)


def test_one_of_three_members_is_killed_under_a_job_of_4(tmp_path: Path, run: str) -> None:
    with EtcdCluster(tmp_path) as cluster:
        fleet = Fleet(tmp_path, Path("none"), cluster.endpoint, run, "3:4", backend="etcd-v3")
        try:
            nodes = [fleet.start() for _ in range(3)]
            fleet.await_world(nodes, 3)
            for member in cluster.members:
                member.kill()
                at = time.time()
                time.sleep(5)
                fleet.await_world(nodes, 3, since=at + 4)
                if member is cluster.members[-1]:
                    break
                member.start()
            # With one of the members away a fourth node is let in.
            late = fleet.start()
            fleet.await_world([*nodes, late], 4, since=at)
            before = [{step["pid"] for step in node.steps() if step["world"] == 3} for node in nodes]
            assert [len(pids) for pids in before] == [1, 1, 1], "a worker was started anew"
            assert {node.steps()[-1]["restarts"] for node in nodes} == {0}
        finally:
            fleet.stop()


@pytest.mark.parametrize("version", ["3.7", "3.4"])
def test_with_certificates_on_both_sides(tmp_path: Path, make: Make, version: str) -> None:
    with EtcdServer(tmp_path, version, tls=True) as etcd:
        handlers = [make(etcd.endpoint, slot, 2, 2, **etcd.settings) for slot in range(2)]
        form(handlers)
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(lambda handler: handler.shutdown(), handlers)) == [True, True]


# Refusals.


def test_a_run_without_a_name_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="set --rdzv-id=NAME"):
        make("127.0.0.1:1", 0, 1, 1, run_id="none")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"store": "kubernetes"}, "store=kubernetes: write one of tcp, etcd"),
        ({"protocol": "grpc"}, "protocol=grpc: write http or https"),
    ],
)
def test_settings_that_cannot_be(make: Make, settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make("127.0.0.1:1", 0, 1, 1, **settings)


def test_an_etcd_that_is_not_there_is_named_when_the_time_is_up(make: Make) -> None:
    with pytest.raises(RendezvousConnectionError, match=r"cannot connect to 127\.0\.0\.1:1 .*refused"):
        make("127.0.0.1:1", 0, 1, 1, join_timeout=3).next_rendezvous()


def test_an_etcd_without_its_gateway_ends_the_wait(tmp_path: Path, make: Make) -> None:
    with EtcdServer(tmp_path, "3.7", "--enable-grpc-gateway=false") as etcd:
        began = time.monotonic()
        with pytest.raises(RendezvousConnectionError, match="has no JSON gateway: start it without"):
            make(etcd.endpoint, 0, 1, 1).next_rendezvous()
        assert time.monotonic() - began < 45, "the join timeout was waited for"


def test_a_password_comes_from_a_file_and_a_missing_permission_ends_the_wait(
    tmp_path: Path, make: Make, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    (tmp_path / "username").write_text("agent")
    (tmp_path / "password").write_text("s3cret-word")
    with EtcdServer(tmp_path) as etcd:
        etcd.enable_users("agent", "s3cret-word", f"/rdzv/{run}/")
        handlers = [make(etcd.endpoint, slot, 2, 2, credentials=str(tmp_path), protocol="http") for slot in range(2)]
        form(handlers)
        with pytest.raises(RendezvousConnectionError, match="etcdctl role grant-permission") as refused:
            make(etcd.endpoint, 2, 1, 1, run_id="another", credentials=str(tmp_path), protocol="http").next_rendezvous()
        with pytest.raises(RendezvousConnectionError, match="set user and password_file"):
            make(etcd.endpoint, 3, 1, 1).next_rendezvous()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda handler: handler.shutdown(), handlers))
    assert "s3cret-word" not in f"{refused.value} {caplog.text}"
