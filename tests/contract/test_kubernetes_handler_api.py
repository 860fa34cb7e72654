"""What agents of the `kubernetes` backend ask of the API server, and what they say when it refuses or somebody is missing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import FaultProxy
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters, RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from rdzv.agent import narrator

ROOT = Path(__file__).parents[2]
QUIET_SECONDS = 20.0

Make = Callable[..., Any]


@pytest.fixture
def make(plane: LocalCluster, light_namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    handlers: list[Any] = []

    def made(slot: int, low: int, high: int, run_id: str = "run-1", **config: Any) -> Any:
        settings = {"slot": str(slot), "member": f"node-{slot}", "join_timeout": 60} | config
        endpoint = f"{light_namespace}/job"
        params = RendezvousParameters("kubernetes", endpoint, run_id, low, high, local_addr="127.0.0.1", **settings)
        handlers.append(get_rendezvous_handler(params))
        return handlers[-1]

    yield made
    with ThreadPoolExecutor(max(len(handlers), 1)) as pool:
        list(pool.map(lambda handler: handler.shutdown(), handlers))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rdzv-")], "threads are left"


def writes(events: list[dict[str, Any]], resource: str) -> list[int]:
    """HTTP status of each write."""
    verbs = ("create", "update", "patch", "delete")
    chosen = [event for event in events if event["verb"] in verbs and event["objectRef"]["resource"] == resource]
    return [event["responseStatus"]["code"] for event in chosen if event["stage"] == "ResponseComplete"]


def test_64_agents_write_once_each_and_are_quiet_then(plane: LocalCluster, light_namespace: str, make: Make) -> None:
    handlers = [make(slot, 64, 64) for slot in range(64)]
    # 64 agents of one process open their connections at once; in pods they do while torch starts, which takes seconds. An
    # agent that cannot make the Round for half a second is helped by others, and one of them then meets a conflict.
    time.sleep(3)
    with ThreadPoolExecutor(64) as pool:
        infos = list(pool.map(lambda handler: handler.next_rendezvous(), handlers))
    assert sorted(info.rank for info in infos) == list(range(64))
    time.sleep(2)  # The audit log is written behind.
    formed = plane.agent_requests(light_namespace)
    assert writes(formed, "rendezvousmembers") == [201] * 64
    assert len(writes(formed, "rendezvousrounds")) <= 3
    assert set(writes(formed, "rendezvousrounds")) <= {200, 201}, "a conflict"
    time.sleep(QUIET_SECONDS)
    after = [event for event in plane.agent_requests(light_namespace)[len(formed) :] if event["verb"] != "watch"]
    assert [(event["verb"], event["objectRef"]["resource"]) for event in after] == []


def test_the_role_for_use_without_the_operator_is_enough_and_a_smaller_one_is_named(
    plane: LocalCluster, light_namespace: str, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plane.kubectl("create", "serviceaccount", "agent", "-n", light_namespace)
    token = plane.kubectl("create", "token", "agent", "-n", light_namespace).strip()
    with FaultProxy(plane.kubeconfig, tmp_path) as proxy:
        kubeconfig = tmp_path / "agent.kubeconfig"
        kubeconfig.write_text(json.dumps(proxy.kubeconfig_for(f"Bearer {token}")))
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        with pytest.raises(RendezvousConnectionError, match=r"may not \w+ rendezvous\w+\.rdzv\.dev\. Add to a Role"):
            make(0, 1, 1).next_rendezvous()
        role = (ROOT / "deploy/standalone/role.yaml").read_text().replace("mnist", "job").replace("default", "agent")
        plane.kubectl("apply", "-n", light_namespace, "-f", "-", input=role)
        assert make(1, 1, 1).next_rendezvous().world_size == 1


def test_a_timeout_says_who_is_missing(plane: LocalCluster, light_namespace: str, make: Make) -> None:
    spec = {"backend": "kubernetes", "nodes": {"min": 4, "max": 4}}
    obj = {"apiVersion": "rdzv.dev/v1alpha1", "kind": "Rendezvous", "metadata": {"name": "job"}, "spec": spec}
    made = json.loads(plane.kubectl("create", "-n", light_namespace, "-o", "json", "-f", "-", input=json.dumps(obj)))
    hopeless = [{"pod": "mnist-3", "slot": 3, "reason": "Pending: Unschedulable: 0/2 nodes are available"}]
    roster = {"expected": "Dw==", "expectedCount": 4, "hopeless": hopeless, "heartbeat": 1, "heartbeatSeconds": 30}
    status = {"status": {"runID": made["metadata"]["uid"], "roster": roster}}
    plane.kubectl(
        *("patch", "rendezvous", "job", "-n", light_namespace, "--subresource=status", "--type=merge"),
        *("-p", json.dumps(status)),
    )
    handlers = [make(slot, 4, 4, run_id="none", join_timeout=6) for slot in range(2)]
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(handler.next_rendezvous) for handler in handlers]
        errors = [call.exception() for call in calls]
    assert all(isinstance(error, RendezvousTimeoutError) for error in errors), errors
    for error in errors:
        assert "2 of 4 expected pods have not joined" in str(error)
        assert "mnist-3 is Pending: Unschedulable" in str(error)
        assert "slot 2" in str(error)


def test_a_rendezvous_that_is_deleted_with_its_role_is_said_once(
    plane: LocalCluster,
    light_namespace: str,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """While it waits it says who is missing; then there is no advice to add a Role to what is gone."""

    def said(text: str) -> list[str]:
        return [record.getMessage() for record in caplog.records if text in record.getMessage()]

    def eventually(text: str) -> None:
        deadline = time.monotonic() + 60
        while not said(text):
            assert time.monotonic() < deadline, [record.getMessage() for record in caplog.records]
            time.sleep(0.05)

    def kubectl(*words: str, obj: dict[str, Any] | None = None) -> str:
        return plane.kubectl("-n", light_namespace, *words, input=None if obj is None else json.dumps(obj))

    caplog.set_level("INFO", "rdzv.agent")
    monkeypatch.setattr(narrator, "SAY_SECONDS", 1.0)
    kubectl("create", "serviceaccount", "agent")
    kubeconfig = json.loads(plane.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": kubectl("create", "token", "agent").strip()}
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    role = (ROOT / "deploy/standalone/role.yaml").read_text().replace("mnist", "job").replace("default", "agent")
    plane.kubectl("apply", "-n", light_namespace, "-f", "-", input=role)
    spec = {"backend": "kubernetes", "nodes": {"min": 2, "max": 2}}
    obj = {"apiVersion": "rdzv.dev/v1alpha1", "kind": "Rendezvous", "metadata": {"name": "job"}, "spec": spec}
    uid = json.loads(kubectl("create", "-o", "json", "-f", "-", obj=obj))["metadata"]["uid"]
    missing = [{"pod": "mnist-1", "reason": "Unschedulable: 0/2 nodes are available: Insufficient cpu"}]
    nodes = {"expected": 2, "joined": 1, "summary": "1/2", "missing": missing}
    status = json.dumps({"status": {"runID": uid, "nodes": nodes}})
    kubectl("patch", "rendezvous", "job", "--subresource=status", "--type=merge", "-p", status)

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(make(0, 2, 2, run_id=uid).next_rendezvous)
        eventually("1 of 2 joined, missing: mnist-1 (Unschedulable: 0/2 nodes are available: Insufficient cpu)")
        # As Kubernetes' garbage collector does it, which is not here.
        for what in ("rendezvous/job", "rolebinding/job-agents", "rendezvousround/job"):
            kubectl("delete", what, "--ignore-not-found")
        error = call.exception(60)
    assert isinstance(error, RendezvousConnectionError), error
    assert f"Rendezvous {light_namespace}/job was deleted" in str(error)
    assert len(said("was deleted")) == 1
    assert said("Add to a Role") == []


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"store": "redis"}, "store=redis: write one of tcp, kubernetes"),
        ({"join_timeout": "soon"}, "join_timeout=soon: write a number of seconds"),
    ],
)
def test_settings_that_cannot_be(make: Make, settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make(0, 1, 1, **settings)


def test_the_slot_is_an_index(make: Make) -> None:
    with pytest.raises(ValueError, match="slot=-1: write the index"):
        make(-1, 1, 1)


@pytest.mark.parametrize("endpoint", ["mnist-worker-0:23456", "ns/name:23456", "ns/name"])
def test_an_endpoint_as_kubeflow_writes_it_is_no_reason_to_fail(
    plane: LocalCluster,
    light_namespace: str,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    endpoint: str,
) -> None:
    """Its elasticPolicy makes HOST:PORT of `rdzvHost`, whatever that is; injection has told the pod which Rendezvous is its own."""
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    monkeypatch.setenv("RDZV_NAMESPACE", light_namespace)
    monkeypatch.setenv("RDZV_NAME", "name")
    text = endpoint.replace("ns/", f"{light_namespace}/")
    handler = get_rendezvous_handler(
        RendezvousParameters("kubernetes", text, "run-1", 1, 1, local_addr="127.0.0.1", slot=0, member="a")
    )
    try:
        handler.next_rendezvous()
        assert (
            plane.kubectl("get", "rdzvround", "-n", light_namespace, "-o", "name") == "rendezvousround.rdzv.dev/name\n"
        )
    finally:
        handler.shutdown()
    assert ("counts for nothing" in caplog.text) == (text == "mnist-worker-0:23456")


def test_the_endpoint_is_a_rendezvous(make: Make) -> None:
    params = RendezvousParameters("kubernetes", "host:29400", "run-1", 1, 1)
    with pytest.raises(ValueError, match="write NAMESPACE/NAME"):
        get_rendezvous_handler(params)


def test_store_kubernetes(plane: LocalCluster, light_namespace: str, make: Make) -> None:
    """Each round has a store of its own, which goes with the Round; those of earlier rounds are deleted."""

    def stores() -> dict[str, str]:
        """Name of each store that has objects, and whose they are."""
        found = json.loads(plane.kubectl("get", "rendezvousstores", "-n", light_namespace, "-o", "json"))["items"]
        return {
            item["metadata"]["labels"]["rdzv.dev/store"]: item["metadata"]["ownerReferences"][0]["uid"]
            for item in found
        }

    handlers = [make(slot, 2, 2, store="kubernetes") for slot in range(2)]
    assert [handler.use_agent_store for handler in handlers] == [False, False]
    names = []
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda handler: handler.next_rendezvous(), handlers)
        assert not first.store.check(["key"]), "keys of an earlier round"
        first.store.set("key", "value")
        assert second.store.get("key") == b"value"
        made = json.loads(plane.kubectl("get", "rendezvousround", "job", "-n", light_namespace, "-o", "json"))
        (found,) = stores().items()
        names.append(found[0])
        assert found[1] == made["metadata"]["uid"]
    assert len(set(names)) == 3


def test_a_round_deleted_by_hand_is_made_anew_with_a_higher_number(
    plane: LocalCluster, light_namespace: str, make: Make
) -> None:
    handlers = [make(slot, 2, 2) for slot in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda handler: handler.next_rendezvous(), handlers))
        plane.kubectl("delete", "rendezvousround", "job", "-n", light_namespace)
        deadline = time.monotonic() + 30
        while not all(handler.num_nodes_waiting() for handler in handlers):
            assert time.monotonic() < deadline, "nobody is asked to form a new round"
            time.sleep(0.05)
        again = list(pool.map(lambda handler: handler.next_rendezvous(), handlers))
    assert sorted(info.rank for info in again) == [0, 1]
    made = json.loads(plane.kubectl("get", "rendezvousround", "job", "-n", light_namespace, "-o", "json"))
    assert made["spec"]["round"] > 1
