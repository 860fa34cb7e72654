"""Who an agent is, what a join that cannot succeed says, and what a handler leaves behind: on a real API server."""

from __future__ import annotations

import gc
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from rdzv.agent import handler as handler_module
from rdzv.kube import http_client

Make = Callable[..., Any]


@pytest.fixture
def make(plane: LocalCluster, light_namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    handlers: list[Any] = []

    def made(name: str = "job", low: int = 1, high: int = 1, local_addr: str = "127.0.0.1", **config: Any) -> Any:
        endpoint = f"{light_namespace}/{name}"
        settings = {"join_timeout": 60, "last_call_timeout": 2} | config
        params = RendezvousParameters("kubernetes", endpoint, "run-1", low, high, local_addr=local_addr, **settings)
        handlers.append(get_rendezvous_handler(params))
        return handlers[-1]

    yield made
    with ThreadPoolExecutor(max(len(handlers), 1)) as pool:
        list(pool.map(lambda handler: handler.shutdown(), handlers))
    eventually(lambda: not agent_threads(), f"the end of all threads, such as {agent_threads()},")


def agent_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rdzv-")]


def eventually(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)
    return found


def members(plane: LocalCluster, namespace: str) -> dict[str, dict[str, Any]]:
    found = json.loads(plane.kubectl("get", "rendezvousmembers", "-n", namespace, "-o", "json"))["items"]
    return {item["metadata"]["name"]: item for item in found}


def kubeconfig(plane: LocalCluster, path: Path, user: dict[str, Any], server: str = "") -> Path:
    document = json.loads(plane.kubeconfig.read_text())
    document["users"][0]["user"] = user
    if server:
        document["clusters"][0]["cluster"]["server"] = server
    path.write_text(json.dumps(document))
    return path


# Names.


def test_two_rendezvous_on_one_host_with_the_same_slot_do_not_disturb_each_other(
    plane: LocalCluster, light_namespace: str, make: Make
) -> None:
    handlers = [make(name, slot="0") for name in ("a", "b")]
    for _ in range(2):
        assert [handler.next_rendezvous().world_size for handler in handlers] == [1, 1]
    assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0]
    owners = {
        name: item["metadata"]["labels"]["rdzv.dev/rendezvous"]
        for name, item in members(plane, light_namespace).items()
    }
    assert sorted(owners.values()) == ["a", "b"]
    assert all(name.startswith(f"{rendezvous}.") for name, rendezvous in owners.items())


def test_a_name_that_an_agent_of_another_rendezvous_has_is_refused_at_once(make: Make) -> None:
    first = make("a", member="node-0")
    first.next_rendezvous()
    second = make("b", member="node-0", join_timeout=600)
    with pytest.raises(
        RendezvousConnectionError, match=r"RendezvousMember node-0 in namespace .* belongs to Rendezvous a"
    ):
        second.next_rendezvous()
    assert first.num_nodes_waiting() == 0
    assert first.next_rendezvous().world_size == 1


def test_a_name_as_long_as_kubernetes_allows_is_one(make: Make) -> None:
    assert make(member=("n" * 62 + ".") * 4 + "n").next_rendezvous().world_size == 1


def test_a_pod_without_the_variables_is_known_by_its_token(
    plane: LocalCluster, light_namespace: str, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with hostNetwork, where the host's name is the node's."""

    def admin(*words: str, **options: Any) -> str:
        return plane.kubectl("-n", light_namespace, *words, **options)

    admin("create", "serviceaccount", "trainer")
    verbs = "--verb=create,get,list,update,watch"
    resources = "--resource=rendezvousmembers.rdzv.dev,rendezvousrounds.rdzv.dev,rendezvous.rdzv.dev"
    admin("create", "role", "agents", verbs, resources)
    admin("create", "rolebinding", "agents", "--role=agents", f"--serviceaccount={light_namespace}:trainer")
    uids, handlers = {}, []
    for name in ("train-0", "train-1"):
        spec = {"serviceAccountName": "trainer", "hostNetwork": True, "containers": [{"name": "c", "image": "x"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        uids[name] = admin("create", "-o", "jsonpath={.metadata.uid}", "-f", "-", input=json.dumps(pod))
        bound = ("--bound-object-kind=Pod", f"--bound-object-name={name}", f"--bound-object-uid={uids[name]}")
        token = tmp_path / f"{name}.token"
        token.write_text(admin("create", "token", "trainer", *bound).strip())
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(plane, tmp_path / name, {"tokenFile": str(token)})))
        handlers.append(make("job", 2, 2))
    with ThreadPoolExecutor(2) as pool:
        assert [info.world_size for info in pool.map(lambda handler: handler.next_rendezvous(), handlers)] == [2, 2]
    found = members(plane, light_namespace)
    assert {name: item["metadata"]["ownerReferences"][0]["uid"] for name, item in found.items()} == uids
    assert all(item["spec"]["incarnation"].startswith(f"{uids[name]}/") for name, item in found.items())


# What a join that cannot succeed says.


def test_a_token_that_nobody_accepts_ends_the_join(
    plane: LocalCluster, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(http_client, "UNAUTHORIZED_SECONDS", 2.0)
    secret = secrets.token_hex(16)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(plane, tmp_path / "kubeconfig", {"token": secret})))
    with pytest.raises(RendezvousConnectionError, match="401 Unauthorized") as caught:
        make(join_timeout=600).next_rendezvous()
    assert secret not in str(caught.value)


def test_an_api_server_that_cannot_be_reached_is_named(
    plane: LocalCluster, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = kubeconfig(plane, tmp_path / "kubeconfig", {"token": "x"}, server="https://127.0.0.1:9")
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(RendezvousConnectionError) as caught:
        make(join_timeout=2).next_rendezvous()
    assert f"cannot connect to 127.0.0.1:9 (kubeconfig {path}, context " in str(caught.value)
    assert "Connection refused" in str(caught.value)


def test_a_store_that_cannot_be_reached_is_named_when_the_time_is_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler_module, "_CONNECT_SECONDS", 1.0)
    # An address of nobody (RFC 5737): the first one hosts the store there, so that the second can't reach it.
    first = make(low=2, high=2, slot="0", member="node-0", local_addr="192.0.2.1", join_timeout=600)
    second = make(low=2, high=2, slot="1", member="node-1", join_timeout=8)
    stop = threading.Event()

    def lead() -> None:
        while not stop.is_set():
            try:
                first.next_rendezvous()
            except RendezvousError:  # Shut down, at the end of the test.
                return
            while not (first.num_nodes_waiting() or stop.wait(0.05)):
                pass

    thread = threading.Thread(target=lead)
    thread.start()
    try:
        began = time.monotonic()
        with pytest.raises(RendezvousTimeoutError) as caught:
            second.next_rendezvous()
        assert time.monotonic() - began < 60
        text = str(caught.value)
        assert "within 8 s" in text
        assert "at 192.0.2.1 port " in text
        assert "could not be reached from 127.0.0.1: " in text
    finally:
        stop.set()
        first.shutdown()
        thread.join(30)


@pytest.mark.parametrize("trouble", ["never answers", "fails in a way that nobody foresaw"])
def test_who_cannot_connect_to_the_store_of_one_round_is_in_the_next_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    connect, first_try, release = handler_module._tcp_store, threading.Event(), threading.Event()

    def connected(address: str, port: int, **options: Any) -> Any:
        if options["is_master"] or first_try.is_set():
            return connect(address, port, **options)
        first_try.set()
        if trouble == "never answers":
            assert release.wait(60)
        raise ValueError("not an error of torch's network")

    monkeypatch.setattr(handler_module, "_tcp_store", connected)
    first, second = (make(low=2, high=2, slot=str(slot), member=f"node-{slot}") for slot in range(2))
    with ThreadPoolExecutor(2) as pool:
        theirs = pool.submit(second.next_rendezvous)
        assert first.next_rendezvous().rank == 0
        assert first_try.wait(30)
        # The one that never answers is left as soon as somebody asks for another round.
        ours = pool.submit(first.next_rendezvous)
        assert sorted(each.result(30).rank for each in (ours, theirs)) == [0, 1]
    assert ("not an error of torch's network" in caplog.text) == (trouble != "never answers")
    release.set()


# What is left behind.


def test_a_handler_that_is_dropped_ends_its_threads_and_connections(
    plane: LocalCluster, light_namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    params = RendezvousParameters(
        "kubernetes", f"{light_namespace}/job", "run-1", 1, 1, local_addr="127.0.0.1", slot="0", member="node-0"
    )

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def use() -> None:
        get_rendezvous_handler(params).next_rendezvous()

    before = descriptors()
    use()
    gc.collect()
    eventually(lambda: not agent_threads(), "the end of its threads")
    # The two of the pipe that Python writes signals to stay: only the main thread may give that back.
    eventually(lambda: descriptors() <= before + 2, "the end of its connections")
