"""A Rendezvous `mnist` and its pods, for tests of the real operator."""

from __future__ import annotations

from typing import Any

from support.builders import pod_object
from support.operator_process import Kube

Object = dict[str, Any]


def rendezvous(namespace: str, backend: str = "c10d", **spec: Any) -> Object:
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "Rendezvous",
        "metadata": {"name": "mnist", "namespace": namespace},
        "spec": {"backend": backend, "nodes": {"min": 2, "max": 2}, **spec},
    }


def pod(namespace: str, name: str, index: int, **meta: Any) -> Object:
    obj = pod_object(name, index=index, **meta)
    del obj["metadata"]["uid"]
    obj["metadata"]["namespace"] = namespace
    obj["spec"]["containers"][0]["image"] = "registry.invalid/train"
    return {"apiVersion": "v1", "kind": "Pod", **obj, "status": {"phase": "Pending", "podIP": f"10.1.2.{index + 1}"}}


def is_provisioned(kube: Kube, namespace: str) -> bool:
    """The last thing that a pass writes is the status."""
    obj = kube.get("Rendezvous", namespace, "mnist")
    conditions = {c["type"]: c for c in ((obj or {}).get("status") or {}).get("conditions", [])}
    return (
        conditions.get("Ready", {}).get("reason") == "NodesMissing"
        and kube.get("ConfigMap", namespace, "rdzv-mnist") is not None
    )


def set_up(kube: Kube, namespace: str, order: str) -> None:
    objects = [rendezvous(namespace), pod(namespace, "a", 0), pod(namespace, "b", 1)]
    for obj in objects if order == "rendezvous first" else [*objects[1:], objects[0]]:
        kube.create(obj)


def hosts(kube: Kube, namespace: str, name: str = "mnist") -> list[str]:
    """Names of the pods that the Service leads to."""
    found = kube.get("EndpointSlice", namespace, f"rdzv-{name}") or {}
    return [(endpoint.get("targetRef") or {}).get("name", "") for endpoint in found.get("endpoints") or []]
