"""The operator when the API server is away, refuses, is silent, or its watches tell nothing: soon after, all is right again.

RDZV_FAULTS=long (`make faults`): every outage for 20 s, one for five minutes, and changes of every kind that no watch tells of.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults.operator_bugs import BUGS, HIDDEN, plugin
from faults.tally import LONG, Tally
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import FaultProxy
from support.operated import pod, rendezvous
from support.operator_process import Kube, OperatorProcess, eventually, running_operator
from support.torchrun_fleet import install_crds

from rdzv.control.cache import CHILDREN, KINDS

Object = dict[str, Any]
pytestmark = pytest.mark.timeout(3600)

#: Seconds within which all is right again after an outage, and within which what no watch told of is found.
RECOVERED, FOUND = 30.0, 60.0
#: Added on a machine that others use too: nothing is measured in the short form.
SLACK = 0.0 if LONG else 30.0
#: Rendezvous by backend: together they have children of every kind.
NAMES = {"c10d": "mnist", "kubernetes": "world", "etcd-v3": "tank"}


@dataclass
class Served:
    """Rendezvous of several backends with their pods, behind a proxy; `change` and what is to come of it."""

    kube: Kube
    namespace: str
    proxy: FaultProxy
    operator: OperatorProcess
    changes: int = 0

    def set_up(self) -> None:
        for backend, name in NAMES.items():
            more = {"etcd": {"replicas": 3}} if backend == "etcd-v3" else {}
            obj = rendezvous(self.namespace, backend, **more)
            obj["metadata"]["name"] = name
            self.kube.create(obj)
            for index in range(2):
                self.kube.create(pod(self.namespace, f"{name}-{index}", index, labels={"rdzv.dev/rendezvous": name}))
        found = eventually(partial(self.kube.get, "StatefulSet", self.namespace, "rdzv-tank-etcd"))
        ready = {"replicas": 3, "readyReplicas": 3}
        self.kube.patch("StatefulSet", self.namespace, found["metadata"]["name"], {"status": ready}, status=True)
        eventually(lambda: all(self.is_up_to_date(name) and self.config_map(name) for name in NAMES.values()))

    def status(self, name: str) -> Object:
        return (self.kube.get("Rendezvous", self.namespace, name) or {}).get("status") or {}

    def is_up_to_date(self, name: str) -> bool:
        found = self.kube.get("Rendezvous", self.namespace, name) or {}
        return bool((found.get("status") or {}).get("observedGeneration") == found["metadata"]["generation"])

    def config_map(self, name: str) -> Object:
        return (self.kube.get("ConfigMap", self.namespace, f"rdzv-{name}") or {}).get("data") or {}

    def children(self) -> list[Object]:
        found = [obj for kind in CHILDREN for obj in self.kube.list(kind.kind, self.namespace)]
        return [obj for obj in found if obj["metadata"]["name"].startswith("rdzv-")]

    def change(self) -> list[Object]:
        """Something of every kind that the operator watches; returns the children that were deleted."""
        self.changes += 1
        for name in NAMES.values():
            self.kube.patch("Rendezvous", self.namespace, name, {"spec": {"maxRestarts": self.changes}})
            status = {"podIP": f"10.9.{self.changes}.1"}
            self.kube.patch("Pod", self.namespace, f"{name}-0", {"status": status}, status=True)
        late = rendezvous(self.namespace)
        late["metadata"]["name"] = f"late-{self.changes}"
        self.kube.create(late)
        gone = self.children()
        for obj in gone:
            if obj["kind"] != "StatefulSet":  # A server that is made anew is not ready, and its pods wait.
                self.kube.delete(obj["kind"], self.namespace, obj["metadata"]["name"])
        return [obj for obj in gone if obj["kind"] != "StatefulSet"]

    def is_right(self, deleted: list[Object]) -> bool:
        """Whether all that `change` did has been answered."""
        present = {(obj["kind"], obj["metadata"]["name"]): obj["metadata"]["uid"] for obj in self.children()}
        for obj in deleted:
            uid = present.get((obj["kind"], obj["metadata"]["name"]))
            assert uid not in (None, obj["metadata"]["uid"]), f"{obj['kind']} {obj['metadata']['name']} is not back"
        for name in NAMES.values():
            assert self.config_map(name)["PET_MAX_RESTARTS"] == str(self.changes), name
            assert self.is_up_to_date(name), name
        (endpoint,) = (self.kube.get("EndpointSlice", self.namespace, "rdzv-mnist") or {})["endpoints"]
        assert endpoint["addresses"] == [f"10.9.{self.changes}.1"]
        assert self.config_map(f"late-{self.changes}")
        assert self.operator.running
        return True


@contextmanager
def serving(plane: LocalCluster, directory: Path, plugins: Path | None = None) -> Iterator[Served]:
    install_crds(plane)
    kube, namespace = Kube(plane.kubeconfig), f"test-{secrets.token_hex(4)}"
    plane.kubectl("create", "namespace", namespace)
    with (
        FaultProxy(plane.kubeconfig, directory) as proxy,
        running_operator(proxy.kubeconfig, directory / "log", namespace, plugins) as operator,
    ):
        found = Served(kube, namespace, proxy, operator)
        found.set_up()
        yield found
    plane.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="module")
def served(control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(control_plane, tmp_path_factory.mktemp("operator")) as found:
        yield found


def away(proxy: FaultProxy) -> None:
    proxy.down()


def refusing(status: int, reason: str, **more: Any) -> Any:
    def begin(proxy: FaultProxy) -> None:
        proxy.inject("reply", times=-1, status=status, reason=reason, **more)
        proxy.cut()

    return begin


def black_hole(proxy: FaultProxy) -> None:
    """Nothing is ever answered, neither on new connections nor on those that there are."""
    proxy.inject("black-hole", times=-1)
    proxy.freeze()


def stale(proxy: FaultProxy) -> None:
    """Whoever writes is told that it is too late, whoever watches that its history is gone."""
    proxy.inject("error-event", method="WATCH", times=-1, status=410, reason="Expired")
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        proxy.inject("reply", method=method, times=-1, status=409, reason="Conflict")
    proxy.cut()


OUTAGES = {
    "the API server gone": away,
    "a black hole": black_hole,
    "401 to everything": refusing(401, "Unauthorized"),
    "403 to everything": refusing(403, "Forbidden"),
    "429 to everything": refusing(429, "TooManyRequests", retry_after=1),
    "500 to everything": refusing(500, "InternalError"),
    "503 to everything": refusing(503, "ServiceUnavailable"),
    "410 to watches and 409 to writes": stale,
}
LASTS = [(name, 20.0) for name in OUTAGES] + [("503 to everything", 300.0)]
SHORT = [("401 to everything", 8.0)]


@pytest.mark.parametrize(("outage", "seconds"), LASTS if LONG else SHORT)
def test_all_is_right_soon_after(outage: str, seconds: float, served: Served, tally: Tally) -> None:
    with tally.injected("Operator", f"outage of {seconds:.0f} s: {outage}") as recovery:
        OUTAGES[outage](served.proxy)
        deleted = served.change()
        time.sleep(seconds)
        if outage == "the API server gone":
            served.proxy.up()
        served.proxy.clear()
        if outage == "a black hole":
            served.proxy.cut()
        ended = time.monotonic()
        eventually(lambda: served.is_right(deleted), timeout=RECOVERED + SLACK)
        recovery.took(time.monotonic() - ended)
        print(f"{outage} for {seconds:.0f} s: right again after {recovery.slowest:.1f} s")


def hidden_changes(served: Served) -> tuple[int, float]:
    """Of every kind at the same time, made, changed and deleted: how many, and after how many seconds the last one was found."""
    served.proxy.inject("lossy", method="WATCH", times=-1)
    began = time.monotonic()
    served.proxy.cut()

    def watched() -> set[str]:
        seen = [seen for seen in served.proxy.requests if seen.method == "WATCH" and seen.at > began]
        return {each.target.partition("?")[0] for each in seen}

    try:
        eventually(lambda: len(watched()) == len(KINDS))
        changed = time.monotonic()
        deleted = served.change()
        eventually(lambda: served.is_right(deleted), timeout=FOUND + SLACK)
        took = time.monotonic() - changed
    finally:
        served.proxy.clear()  # What comes after is not to fail with this.
    return len(deleted) + 2 * len(NAMES) + 1, took


if LONG:  # Each takes a minute; a short form is in tests/contract/test_operator_watches.py.

    @pytest.mark.parametrize("_number", range(5))
    def test_changes_that_no_watch_tells_of_are_found(_number: int, served: Served, tally: Tally) -> None:
        with tally.injected("Operator", "changes that no watch tells of") as recovery:
            recovery.injected, took = hidden_changes(served)
            recovery.took(took)
            print(f"{recovery.injected} hidden changes, found after {took:.1f} s")

    @pytest.mark.parametrize("bug", [name for name, bug in BUGS.items() if bug.harm == HIDDEN])
    def test_hidden_changes_show_that(bug: str, control_plane: LocalCluster, tmp_path: Path, tally: Tally) -> None:
        with (
            serving(control_plane, tmp_path, plugin(tmp_path / "plugins", bug)) as served,
            pytest.raises(AssertionError, match=BUGS[bug].shows),
        ):
            hidden_changes(served)
        tally.caught("operator", bug)
