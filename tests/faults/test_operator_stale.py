"""An operator that is started anew on an API server that lags: its lists are those of a life that is over.

In that life the Rendezvous had just been made. Since then it was deleted and made again, of the same backend or another, with other pods.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faults.tally import LONG, Tally
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import Fault, FaultProxy
from support.operated import pod, rendezvous
from support.operator_process import Kube, OperatorProcess, eventually, running_operator
from support.torchrun_fleet import install_crds

from rdzv.control.cache import CHILDREN, KINDS
from rdzv.kube.api import Call, Resource
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.kube.http_client import Request

Object = dict[str, Any]
pytestmark = pytest.mark.timeout(900)

STALE = 20.0 if LONG else 6.0
"""Seconds for which watches tell nothing after the lists."""
RECOVERED = 30.0 if LONG else 60.0
STARTED = 120.0
"""Seconds for what is no measure."""
BEFORE, AFTER = "10.8.0.1", "10.8.0.2"
"""Addresses of the first pod in the one life and in the other."""
COLLECTION = re.compile(r"/(?:api/v1|apis/[^/]+/[^/]+)(?:/namespaces/[^/]+)?/[a-z]+")


class Lag:
    """Answers lists through a proxy with what they were at one moment, and holds watches back."""

    def __init__(self, proxy: FaultProxy, kubeconfig: Path) -> None:
        self._proxy, self._kubeconfig = proxy, kubeconfig
        self._lists: dict[str, bytes] = {}
        self._answered: set[str] = set()
        self._held: list[Fault] = []

    def remember(self) -> None:
        """All lists that were asked for so far, as they are now."""
        with closing(Client(from_kubeconfig(str(self._kubeconfig)))) as client:
            for seen in [*self._proxy.requests]:
                path = seen.target.partition("?")[0]
                if seen.method == "GET" and COLLECTION.fullmatch(path):
                    asked = Request(Call("list", Resource("v1", "lists")), "GET", seen.target, safe=True)
                    self._lists[path] = json.dumps(client.run(asked, None)).encode()

    def begin(self) -> None:
        self._proxy.decide = self._decide

    def is_seen(self) -> bool:
        """Whether the Rendezvous were asked for."""
        return any(path.endswith("/rendezvous") for path in self._answered)

    def end(self) -> None:
        self._proxy.decide = lambda method, target, body: None
        for fault in self._held:
            fault.release.set()

    def _decide(self, method: str, target: str, _body: bytes) -> Fault | None:
        found = self._lists.get(target.partition("?")[0])
        if method == "GET" and found is not None:
            self._answered.add(target.partition("?")[0])
            return Fault("answer", body=found)
        if method != "WATCH":
            return None
        self._held.append(Fault("delay", seconds=600.0))
        return self._held[-1]


def lives_of(namespace: str, backend: str, address: str) -> list[Object]:
    """A Rendezvous and its two pods."""
    pods = [pod(namespace, f"mnist-{index}", index, labels={"rdzv.dev/rendezvous": "mnist"}) for index in range(2)]
    pods[0]["status"]["podIP"] = address
    return [rendezvous(namespace, backend), *pods]


def children(kube: Kube, namespace: str) -> dict[tuple[str, str], Object]:
    """What the operator made, by kind and name."""
    found = [obj for kind in CHILDREN for obj in kube.list(kind.kind, namespace)]
    return {(obj["kind"], name): obj for obj in found if (name := obj["metadata"]["name"]).startswith("rdzv-mnist")}


def is_made(kube: Kube, namespace: str) -> bool:
    """Whether pods are let in."""
    return kube.get("ConfigMap", namespace, "rdzv-mnist") is not None


def is_right(kube: Kube, namespace: str) -> bool:
    """The pods are let in with what is of the Rendezvous of now, whose status is up to date."""
    obj = kube.get("Rendezvous", namespace, "mnist")
    assert obj is not None
    data = (kube.get("ConfigMap", namespace, "rdzv-mnist") or {}).get("data") or {}
    assert data.get("PET_RDZV_ID") == obj["metadata"]["uid"]
    assert (obj.get("status") or {}).get("observedGeneration") == obj["metadata"]["generation"]
    if obj["spec"]["backend"] == "c10d":
        endpoints = (kube.get("EndpointSlice", namespace, "rdzv-mnist") or {}).get("endpoints") or []
        assert [endpoint["addresses"] for endpoint in endpoints] == [[AFTER]]
    return True


def kept(objects: dict[tuple[str, str], Object]) -> dict[tuple[str, str], tuple[str, Any]]:
    """Which objects they are, and what pods get from them."""
    return {key: (obj["metadata"]["uid"], obj.get("data")) for key, obj in objects.items()}


def lasting(objects: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """The same, but of an EndpointSlice only that there is one: it is there while a host is, and `is_right` says where it leads."""
    return {key: None if key[0] == "EndpointSlice" else value for key, value in objects.items()}


@pytest.mark.parametrize("later", ["c10d", "kubernetes"])
def test_an_old_view_makes_it_undo_nothing(
    later: str, control_plane: LocalCluster, light_namespace: str, tmp_path: Path, tally: Tally
) -> None:
    install_crds(control_plane)
    kube, namespace = Kube(control_plane.kubeconfig), light_namespace
    with (
        FaultProxy(control_plane.kubeconfig, tmp_path) as proxy,
        running_operator(proxy.kubeconfig, tmp_path / "log", namespace) as operator,
        tally.injected("Operator", f"started on lists of an earlier life: c10d, then {later}") as recovery,
    ):
        lag = Lag(proxy, control_plane.kubeconfig)
        eventually(lambda: len(watched(proxy)) == len(KINDS), timeout=STARTED)
        operator.kill()
        first = lives_of(namespace, "c10d", BEFORE)
        for obj in first:
            kube.create(obj)
        lag.remember()
        restart(operator)
        eventually(lambda: is_made(kube, namespace), timeout=STARTED)
        operator.kill()
        for obj in [*reversed(first), *children(kube, namespace).values()]:  # As the garbage collector does.
            kube.delete(obj["kind"], namespace, obj["metadata"]["name"])
        for obj in lives_of(namespace, later, AFTER):
            kube.create(obj)
        operator.start()
        eventually(lambda: is_right(kube, namespace), timeout=STARTED)
        before = kept(children(kube, namespace))
        operator.kill()
        lag.begin()
        restart(operator)
        eventually(lag.is_seen, timeout=STARTED)
        time.sleep(STALE)
        during = kept(children(kube, namespace))
        assert {key: during.get(key) for key in before} == before
        lag.end()
        ended = time.monotonic()
        # The watch of pods tells that the first ones went before it tells of the others: then there is no EndpointSlice for a moment.
        eventually(
            lambda: is_right(kube, namespace) and lasting(kept(children(kube, namespace))) == lasting(before),
            timeout=RECOVERED,
        )
        recovery.took(time.monotonic() - ended)
        print(f"c10d, then {later}: right after {recovery.slowest:.1f} s")


def watched(proxy: FaultProxy) -> set[str]:
    """Collections that the operator has watched."""
    return {seen.target.partition("?")[0] for seen in proxy.requests if seen.method == "WATCH"}


def restart(operator: OperatorProcess) -> None:
    """Once more."""
    operator.kill()
    operator.start()
