"""The operator in a namespace that refuses its objects: a quota that is used up, and a namespace that is being deleted.

There is no controller: the tests write what the controllers of quotas and namespaces would.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from faults.tally import Tally
from faults.test_operator_outages import RECOVERED, SLACK, Served, serving
from support.cluster_fixtures import LocalCluster
from support.operated import rendezvous
from support.operator_process import Kube, eventually

Object = dict[str, Any]
pytestmark = pytest.mark.timeout(900)

LASTS = 8.0
"""Seconds in which requests are counted."""
MOST = 40
"""Writes that are refused in that time, of all that the operator serves there: more would be a loop."""


@pytest.fixture(scope="module")
def served(control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(control_plane, tmp_path_factory.mktemp("refused")) as found:
        yield found


def message_of(kube: Kube, namespace: str, name: str) -> str:
    """What all conditions of a Rendezvous say."""
    status = (kube.get("Rendezvous", namespace, name) or {}).get("status") or {}
    return " ".join(condition.get("message", "") for condition in status.get("conditions", []))


def writes(served: Served, began: float) -> list[str]:
    """That the operator has asked for since then, but for Events and its status."""
    methods = {"POST", "PUT", "PATCH", "DELETE"}
    return [
        f"{seen.method} {seen.target}"
        for seen in served.proxy.requests
        if seen.method in methods and seen.at >= began and "/events" not in seen.target and "/status" not in seen.target
    ]


def test_a_quota_that_is_used_up_is_said_and_when_there_is_room_all_is_made(served: Served, tally: Tally) -> None:
    kube, namespace = served.kube, served.namespace
    none = {"count/configmaps": "0"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": namespace}}
    with tally.injected("Operator", "a quota that refuses what it makes") as recovery:
        kube.create({**quota, "spec": {"hard": none}, "status": {"hard": none, "used": none}})
        late = rendezvous(namespace)
        late["metadata"]["name"] = "refused"
        kube.create(late)
        eventually(lambda: "exceeded quota" in message_of(kube, namespace, "refused"))
        began = time.monotonic()
        time.sleep(LASTS)
        assert len(writes(served, began)) <= MOST
        assert served.config_map("refused") == {}
        ended = time.monotonic()
        kube.delete("ResourceQuota", namespace, "full")
        eventually(partial(served.config_map, "refused"), timeout=RECOVERED + SLACK)
        recovery.took(time.monotonic() - ended)
        eventually(lambda: "exceeded quota" not in message_of(kube, namespace, "refused"))
        print(f"there is room: all is made after {recovery.slowest:.1f} s")


def test_in_a_namespace_that_is_being_deleted_it_neither_loops_nor_ends(
    served: Served, control_plane: LocalCluster, tally: Tally
) -> None:
    kube, namespace = served.kube, served.namespace
    with tally.injected("Operator", "a namespace that is being deleted, with everything in it"):
        control_plane.kubectl("delete", "namespace", namespace, "--wait=false")
        began = time.monotonic()
        for obj in served.children():  # As the controller of namespaces does, in any order.
            kube.delete(obj["kind"], namespace, obj["metadata"]["name"])
        time.sleep(LASTS)
        assert len(writes(served, began)) <= MOST
        for obj in kube.list("Pod", namespace) + kube.list("Rendezvous", namespace):
            kube.delete(obj["kind"], namespace, obj["metadata"]["name"])
        eventually(lambda: kube.list("Rendezvous", namespace) == [])
        time.sleep(1.0)
        began = time.monotonic()
        time.sleep(LASTS / 2)
        assert writes(served, began) == []
        assert served.children() == []
        assert served.operator.running
