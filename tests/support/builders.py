"""Objects for unit tests, as the API server would return them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rdzv.control.children import key
from rdzv.control.inject import is_injected
from rdzv.control.plan import Failure, Plan, plan
from rdzv.control.status import NOTHING_BESIDE, Beside, compute_status
from rdzv.observed import Observed, Pod
from rdzv.protocol.encoding import salted_fingerprints
from rdzv.protocol.records import RUNNING, Leader, Member, Round
from rdzv.registry import backend_registry
from rdzv.spec import LABEL, Rendezvous

Object = dict[str, Any]

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


def pod(obj: Mapping[str, Any]) -> Pod:
    """A pod as a pass reads it."""
    return Pod.from_object(obj, injected=is_injected(obj))


def status_of(
    subject: Rendezvous,
    observed: Observed,
    previous: Mapping[str, Any],
    now: float,
    failures: Sequence[Failure] = (),
    beside: Beside = NOTHING_BESIDE,
) -> Object:
    """The status that a pass over `subject` writes."""
    registry = backend_registry()
    observed = observed.told_apart(subject)
    world = registry.observe(subject, observed, previous, now)
    decided = plan(subject, observed, registry)
    return compute_status(subject, observed, world, decided, previous, now, failures, beside).status


def rendezvous(backend: str = "c10d", *, uid: str = "uid-1", name: str = "mnist", **spec: Any) -> Rendezvous:
    nodes = spec.pop("nodes", {"min": 2, "max": 2})
    return Rendezvous.from_object(
        {
            "metadata": {"name": name, "namespace": "team", "uid": uid, "generation": 1},
            "spec": {"backend": backend, "nodes": nodes, **spec},
        }
    )


def pod_object(
    name: str, *, index: int | None = None, phase: str = "Pending", ip: str | None = "10.1.2.3", **meta: Any
) -> Object:
    """An injected pod; containers wait while it is Pending and run while it is Running."""
    labels = {LABEL: "mnist", **({INDEX_LABEL: str(index)} if index is not None else {}), **meta.pop("labels", {})}
    state: Object = {"waiting": {"reason": "ContainerCreating"}} if phase == "Pending" else {"running": {}}
    return {
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-of-{name}", "labels": labels, **meta},
        "spec": {"containers": [{"name": "train", "envFrom": [{"configMapRef": {"name": "rdzv-mnist"}}]}]},
        "status": {
            "phase": phase,
            **({"podIP": ip} if ip else {}),
            "containerStatuses": [{"name": "train", "state": state, "restartCount": 0}],
        },
    }


def member(pod: Object, **changes: Any) -> Member:
    """The agent of a pod, which asks to be in round 1 of Rendezvous `uid-1`."""
    meta = pod["metadata"]
    base = Member(meta["name"], "mnist", "uid-1", f"{meta['uid']}/1", "10.1.2.3", 29400, 1)
    return replace(base, **changes)


def running(members: list[Member], number: int = 1, **changes: Any) -> Round:
    """A world of these agents."""
    salt, fingerprints = salted_fingerprints([each.incarnation for each in members])
    leader = Leader(0, "10.0.0.1", 29400)
    record = Round("mnist", "uid-1", number, RUNNING, tuple(range(len(members))), fingerprints, salt, leader)
    return replace(record, **changes)


class FakeNamespace:
    """What a plan leaves behind when it is executed: enough of the API server to plan again. Not a mock of its behaviour."""

    def __init__(self, pods: list[Object], ready: int | None = None) -> None:
        """`ready`: so many pods of each StatefulSet become ready at once; None: all."""
        self.ready = ready
        self.pods = {pod["metadata"]["name"]: pod for pod in pods}
        self.children: dict[tuple[str, str], Object] = {}

    def execute(self, plan: Plan, stop_after: int | None = None) -> int:
        """Writes a plan step by step; returns how many steps there were. `stop_after` ends it early, as a crash would."""
        writes = [*plan.apply, *([plan.release] if plan.release else [])]
        steps: list[tuple[str, Any]] = [
            *(("delete", obj) for obj in plan.delete),
            *(("write", write.wanted) for write in writes),
        ]
        for verb, what in steps[:stop_after]:
            if verb == "delete":
                self.children.pop(key(what), None)
            else:
                self.children[key(what)] = made = copy.deepcopy(what)
                if made["kind"] == "StatefulSet":
                    made["status"] = {
                        "readyReplicas": self.ready if self.ready is not None else made["spec"]["replicas"]
                    }
        return len(steps)

    def hosts(self) -> list[str]:
        """Names of the pods that the Service leads to."""
        found = self.children.get(("EndpointSlice", "rdzv-mnist"), {})
        return [endpoint["targetRef"]["name"] for endpoint in found.get("endpoints", [])]
