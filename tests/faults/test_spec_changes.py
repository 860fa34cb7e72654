"""A Rendezvous that is changed again and again ends as one that was made so at once, and what is refused changes nothing (Acto).

The changes are drawn from the CRD's schema, some of them while the API server refuses writes. RDZV_FAULTS=long (`make faults`): 500.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults.operator_life import differences, outcome
from faults.spec_changes import BASES, Change, chance, changes, properties
from faults.tally import LONG, Tally
from kubernetes.client import ApiException
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import FaultProxy
from support.operated import pod, rendezvous
from support.operator_process import Kube, OperatorProcess, eventually, running_operator
from support.torchrun_fleet import install_crds
from torch.distributed import run as torchrun

from rdzv.env import ENV_METHOD
from rdzv.spec import NO_LAUNCHER

Object = dict[str, Any]
pytestmark = pytest.mark.timeout(3600)

ACCEPTED = 500 if LONG else 25
"""Changes that the API server is to accept; about as many again are refused."""
THROUGH_ERRORS = 8
"""One of so many changes happens while the API server refuses the operator's writes."""
GROUP = "Operator: changes of a Rendezvous"
#: What the operator makes of a spec that can be served.
SERVED = {"Provisioned", "ServerNotReady"}


@dataclass
class Field:
    """A namespace with one Rendezvous of each base that lives through all changes, and fresh ones beside them."""

    kube: Kube
    namespace: str
    proxy: FaultProxy
    operator: OperatorProcess
    log: Path
    made: int = 0

    def make(self, name: str, spec: Object) -> None:
        obj = rendezvous(self.namespace)
        obj["metadata"]["name"] = name
        self.kube.create({**obj, "spec": spec})
        self.kube.create(pod(self.namespace, f"{name}-0", 0, labels={"rdzv.dev/rendezvous": name}))

    def get(self, name: str) -> Object:
        found = self.kube.get("Rendezvous", self.namespace, name)
        assert found is not None
        return found

    def server_starts(self, name: str) -> None:
        """The test plays the controller of StatefulSets."""
        for obj in self.kube.list("StatefulSet", self.namespace, f"rdzv.dev/rendezvous={name}"):
            members = obj["spec"]["replicas"]
            if obj["status"].get("readyReplicas") != members:
                ready = {"replicas": members, "readyReplicas": members}
                self.kube.patch("StatefulSet", self.namespace, obj["metadata"]["name"], {"status": ready}, status=True)

    def condition(self, name: str, type_: str = "Provisioned") -> str:
        status = self.get(name).get("status") or {}
        return next((c["reason"] for c in status.get("conditions", []) if c["type"] == type_), "")

    def ends_as_a_fresh_one(self, name: str, spec: Object) -> None:
        """And both are served."""
        self.made += 1
        fresh = f"fresh-{self.made:04}"
        self.make(fresh, spec)

        def is_the_same() -> bool:
            self.server_starts(fresh)
            self.server_starts(name)
            wanted = outcome(self.kube, self.namespace, fresh)
            state = wanted["Rendezvous NAME"]
            assert state["is up to date"]
            assert "ConfigMap rdzv-NAME" in wanted, state
            found = outcome(self.kube, self.namespace, name)
            # Certificates of an etcd that it does not run any more stay: the operator may not read Secrets.
            left = {title for title in found if title.startswith("Secret ")} - wanted.keys()
            wrong = differences({title: each for title, each in found.items() if title not in left}, wanted)
            assert not wrong, f"{spec}\n{wrong}"
            return True

        eventually(is_the_same, timeout=60)
        assert self.condition(fresh) in SERVED, f"accepted, and can't be served: {spec}"
        torch_takes((self.kube.get("ConfigMap", self.namespace, f"rdzv-{fresh}") or {})["data"], spec)
        self.kube.delete("Rendezvous", self.namespace, fresh)
        self.kube.delete("Pod", self.namespace, f"{fresh}-0")


def torch_takes(data: Object, spec: Object) -> None:
    """torchrun itself reads the environment that the pods get; where nothing launches there is what init_process_group reads instead."""
    if spec.get("launcher") == NO_LAUNCHER:
        assert data["WORLD_SIZE"] == str(spec["nodes"]["min"])
        # Each pod has its RANK from another ConfigMap.
        assert {*ENV_METHOD} - {"RANK"} <= data.keys()
        assert not [name for name in data if name.startswith("PET_")]
        return
    if spec.get("nprocPerNode") == "gpu":
        return  # It looks for one.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**data, "PET_NODE_RANK": "0"}.items():
            patch.setenv(name, value)
        patch.setenv("OMP_NUM_THREADS", "1")
        found, *_ = torchrun.config_from_args(torchrun.parse_args(["train.py"]))
    assert (found.min_nodes, found.max_nodes) == (spec["nodes"]["min"], spec["nodes"].get("max", spec["nodes"]["min"]))
    assert found.rdzv_backend == spec["backend"]
    for key, value in (spec.get("config") or {}).items():
        assert str(found.rdzv_configs[key]) == value, (key, value, found.rdzv_configs)


@pytest.fixture
def ground(control_plane: LocalCluster, light_namespace: str, tmp_path: Path) -> Iterator[Field]:
    install_crds(control_plane)
    kube, namespace = Kube(control_plane.kubeconfig), light_namespace
    with (
        FaultProxy(control_plane.kubeconfig, tmp_path) as proxy,
        running_operator(proxy.kubeconfig, tmp_path / "log", namespace) as operator,
    ):
        yield Field(kube, namespace, proxy, operator, tmp_path / "log")


def refuse_writes(proxy: FaultProxy) -> None:
    """All but the status, so that the operator can say so."""
    for method in ("POST", "PUT", "DELETE"):
        proxy.inject("reply", method=method, times=-1, status=500, reason="InternalError")


def attempt(ground: Field, name: str, change: Change) -> bool:
    """Whether the API server took it."""
    live = ground.get(name)
    try:
        ground.kube.replace({**live, "spec": change.of(live["spec"])}, strict=True)
    except ApiException as error:
        refused = error
    else:
        assert not change.wrong, f"accepted: {change}"
        return True
    if refused.status == 409:
        return attempt(ground, name, change)  # The operator has written the status meanwhile.
    assert refused.status in {400, 422}, refused.body
    found = ground.get(name)
    assert (found["spec"], found["metadata"]["generation"]) == (live["spec"], live["metadata"]["generation"])
    return False


def tells(ground: Field, name: str, since: int, before: Object, change: Change) -> bool:
    """Whether the operator has said that it may not write, or that there was nothing else to write; to the server it may be no change."""
    now = ground.get(name)
    if now["metadata"]["generation"] == before["metadata"]["generation"]:
        return True
    wrote = any(seen.method == "PATCH" for seen in ground.proxy.requests[since:])
    assert wrote or ground.condition(name) == "APIError", (
        f"nothing said of {change}: {before['spec']} became {now['spec']}"
    )
    return True


def test_a_changed_rendezvous_ends_as_a_fresh_one_and_what_is_refused_changes_nothing(
    ground: Field, tally: Tally
) -> None:
    chances = random.Random(os.urandom(8) if LONG else 11)
    names = {backend: f"live-{number}" for number, backend in enumerate(BASES)}
    for backend, spec in BASES.items():
        ground.make(names[backend], spec)
    for backend in BASES:
        ground.ends_as_a_fresh_one(names[backend], ground.get(names[backend])["spec"])
    count = 0
    with (
        tally.injected(GROUP, "accepted: ends as a fresh one", 0) as accepted,
        tally.injected(GROUP, "accepted while writes are refused: ends as a fresh one", 0) as through_errors,
        tally.injected(GROUP, "refused: changes nothing", 0) as refused,
    ):
        while accepted.injected + through_errors.injected < ACCEPTED:
            name = names[chances.choice([*BASES])]
            live = ground.get(name)
            spec = live["spec"]
            change = chance(chances, spec)
            if change.of(spec) == spec:
                continue
            count += 1
            in_error = count % THROUGH_ERRORS == 0
            if in_error:
                refuse_writes(ground.proxy)
            before = len(ground.proxy.requests)
            taken = attempt(ground, name, change)
            if in_error and taken:
                eventually(partial(tells, ground, name, before, live, change))
            ground.proxy.clear()
            (through_errors if in_error and taken else accepted if taken else refused).injected += 1
            if taken:
                ground.ends_as_a_fresh_one(name, ground.get(name)["spec"])
    for name in names.values():
        ground.ends_as_a_fresh_one(name, ground.get(name)["spec"])
    print(f"{accepted.injected} accepted, {through_errors.injected} of an error state, {refused.injected} refused")
    assert refused.injected > ACCEPTED // 4
    assert "Traceback" not in ground.log.read_text()


def test_what_the_schema_excludes_is_refused_of_every_property(ground: Field, tally: Tally) -> None:
    """No misoperation is accepted, whatever the property."""
    for number, spec in enumerate(BASES.values()):
        ground.make(f"live-{number}", spec)
    eventually(lambda: all(ground.condition(f"live-{number}") for number in range(len(BASES))))
    wrong = [change for path, schema in properties() if path[-1] != "*" for change in changes(path, schema)]
    with tally.injected(GROUP, "misoperations: refused", 0) as misoperations:
        for number, change in enumerate([change for change in wrong if change.wrong]):
            assert not attempt(ground, f"live-{number % len(BASES)}", change)
            misoperations.injected += 1
    assert misoperations.injected > 100
