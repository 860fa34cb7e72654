"""The life of one Rendezvous, and what the operator has made of it after each part.

It is made, changed, loses its host, is deleted and made again of another backend while its children linger, and loses its pods. There are
no nodes: the life plays kubelet, StatefulSet controller and garbage collector.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kubernetes.dynamic.exceptions import NotFoundError
from support.operated import pod, rendezvous
from support.operator_process import Kube

from rdzv.control.children import APPLIED_ANNOTATION, MANAGED_BY_LABEL
from rdzv.spec import LABEL, MANAGER

Object = dict[str, Any]
Part = Callable[[], None]

NAME, CHILD = "mnist", "rdzv-mnist"
CHILDREN = (
    "ConfigMap",
    "Service",
    "EndpointSlice",
    "Role",
    "RoleBinding",
    "StatefulSet",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "Secret",
)
THEIRS = "rdzv-mnist-theirs"
"""A ConfigMap that somebody else made, with a child's name and labels."""
SETTINGS: dict[str, Object] = {"etcd-v3": {"etcd": {"replicas": 3}}}
LIVES = (("c10d", "kubernetes"), ("static", "etcd-v3"), ("etcd-v2", "etcd"))
"""The backends before and after the Rendezvous is made again."""
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HELD = {"metadata": {"finalizers": ["life.kubernetes.io/held"]}}


@dataclass
class Life:
    """In one namespace."""

    kube: Kube
    namespace: str
    first: str
    second: str
    parts: Sequence[tuple[str, Part]] = field(init=False)
    """Each is over when the operator has made of it what it is to make."""

    def __post_init__(self) -> None:
        self.parts = (
            ("made", self._is_made),
            ("changed", self._is_changed),
            ("its host goes", self._loses_its_host),
            ("deleted and made again", self._is_made_again),
            ("its children have lingered", self._let_go),
            ("its pods go", self._loses_its_pods),
        )

    def _is_made(self) -> None:
        labels = {LABEL: NAME, MANAGED_BY_LABEL: MANAGER}
        theirs = {"name": THEIRS, "namespace": self.namespace, "labels": labels}
        self.kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": theirs, "data": {"a": "b"}})
        for obj in (self._pod("a", 0), self._rendezvous(self.first), self._pod("b", 1)):
            self.kube.create(obj)

    def _is_changed(self) -> None:
        self.kube.patch("Rendezvous", self.namespace, NAME, {"spec": {"maxRestarts": 3, "nprocPerNode": 2}})

    def _loses_its_host(self) -> None:
        self.kube.delete("Pod", self.namespace, "a")
        # Another host than b is not elected in any order of events; that of backend static has index 0.
        late = self._pod("c", 0 if self.first == "static" else 2)
        late["spec"]["serviceAccountName"] = "another"
        self.kube.create(late)

    def _is_made_again(self) -> None:
        """A finalizer of Kubernetes' own keeps a child of the first one until it is let go."""
        self.kube.delete("Rendezvous", self.namespace, NAME)
        self.kube.patch("ConfigMap", self.namespace, CHILD, _HELD)
        self.kube.delete("ConfigMap", self.namespace, CHILD)
        self.kube.create(self._rendezvous(self.second))

    def _let_go(self) -> None:
        self.kube.patch("ConfigMap", self.namespace, CHILD, {"metadata": {"finalizers": None}})

    def _loses_its_pods(self) -> None:
        for name in ("b", "c"):
            self.kube.delete("Pod", self.namespace, name)

    def _pod(self, name: str, index: int) -> Object:
        return pod(self.namespace, name, index)

    def _rendezvous(self, backend: str) -> Object:
        return rendezvous(self.namespace, backend, **SETTINGS.get(backend, {}))

    def servers_start(self) -> None:
        """The pods of each StatefulSet become ready, once the operator says that it waits for them.

        To be called again and again: the operator may make one at any time.
        """
        status = (self.kube.get("Rendezvous", self.namespace, NAME) or {}).get("status") or {}
        if "ServerNotReady" not in {each["reason"] for each in status.get("conditions") or []}:
            return
        for obj in self.kube.list("StatefulSet", self.namespace, f"{LABEL}={NAME}"):
            replicas = obj["spec"]["replicas"]
            if (obj.get("status") or {}).get("readyReplicas") != replicas:
                ready = {"replicas": replicas, "readyReplicas": replicas}
                with suppress(NotFoundError):  # Just deleted.
                    self.kube.patch(
                        "StatefulSet", self.namespace, obj["metadata"]["name"], {"status": ready}, status=True
                    )


def outcome(kube: Kube, namespace: str, name: str = NAME) -> Object:
    """All that the operator answers for, and what it must leave alone; without what differs from life to life, and from name to name."""
    uids: dict[str, str] = {}
    found: Object = {}
    for kind, read in (("Rendezvous", _state), ("Pod", _spec), *((kind, _essence) for kind in CHILDREN)):
        for obj in kube.list(kind, namespace, "" if kind == "Rendezvous" else f"{LABEL}={name}"):
            own = obj["metadata"]["name"]
            if kind != "Rendezvous" or own == name:
                uids[obj["metadata"]["uid"]] = f"uid of {kind} {own}"
                found[f"{kind} {own}"] = read(obj)
    text = json.dumps(found, sort_keys=True).replace(namespace, "NAMESPACE")
    for uid, whose in uids.items():
        text = text.replace(uid, whose)
    settled: Object = json.loads(_UID.sub("uid of what is gone", text.replace(name, "NAME")))
    return settled


def _spec(obj: Object) -> Object:
    spec: Object = obj["spec"]
    return spec


def _state(obj: Object) -> Object:
    status = obj.get("status") or {}
    return {
        "conditions": [[c["type"], c["status"], c["reason"]] for c in status.get("conditions") or []],
        "nodes": status.get("nodes"),
        "endpoint": status.get("endpoint"),
        "is up to date": status.get("observedGeneration") == obj["metadata"]["generation"],
    }


def _essence(obj: Object) -> Object:
    """Of a Secret only that it is there: its certificates are made anew now and then."""
    meta = {name: obj["metadata"].get(name) for name in ("labels", "annotations", "ownerReferences", "finalizers")}
    (meta["annotations"] or {}).pop(APPLIED_ANNOTATION, None)  # A digest of what has uids in it.
    if obj["kind"] == "Secret":
        return {"owners": meta["ownerReferences"]}
    rest = {name: value for name, value in obj.items() if name not in {"metadata", "status"}}
    if obj["kind"] == "Service":
        rest["spec"] = {name: value for name, value in obj["spec"].items() if name not in {"clusterIP", "clusterIPs"}}
    return {**rest, "metadata": meta, "is going": "deletionTimestamp" in obj["metadata"]}


def differences(found: Object, wanted: Object) -> str:
    """In words, for whoever reads a failure."""
    lines = [
        f"{name}:\n  is     {json.dumps(found.get(name))}\n  wanted {json.dumps(wanted.get(name))}"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    return "\n".join(lines)


def released_too_early(kube: Kube, namespace: str, wanted: Object) -> str:
    """Pods are let in by the ConfigMap: what this one relies on has to be there by then. Empty if all is well."""
    current = kube.get("Rendezvous", namespace, NAME)
    config_map = kube.get("ConfigMap", namespace, CHILD)
    if current is None or config_map is None or "deletionTimestamp" in config_map["metadata"]:
        return ""
    if (config_map.get("data") or {}).get("PET_RDZV_ID") != current["metadata"]["uid"]:
        return ""
    for title in wanted:
        kind, _, name = title.partition(" ")
        if kind in {"Service", "Role", "RoleBinding", "StatefulSet", "Secret"}:
            found = kube.get(kind, namespace, name.replace("NAME", NAME))
            owners = (found or {}).get("metadata", {}).get("ownerReferences") or [{}]
            if owners[0].get("uid") != current["metadata"]["uid"]:
                return f"{CHILD} is there before {title}"
            if kind == "StatefulSet" and not (found or {})["status"].get("readyReplicas"):
                return f"{CHILD} is there before {title} is ready"
    return ""
