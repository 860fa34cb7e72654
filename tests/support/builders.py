"""Objects for unit tests, as the API server would return them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from rdzv.control.children import key
from rdzv.control.inject import is_injected
from rdzv.control.plan import Failure, Plan, plan
from rdzv.control.status import compute_status
from rdzv.observed import Observed, Pod
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
) -> Object:
    """The status that a pass over `subject` writes."""
    registry = backend_registry()
    world = registry.observe(subject, observed, previous, now)
    return compute_status(subject, observed, world, plan(subject, observed, registry), previous, now, failures)


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
