"""Queues of Kueue: one for each namespace, with room for so many pods."""

from __future__ import annotations

import json

from support.workloads import Object, Place

GROUP = "kueue.x-k8s.io"


def queued(job: Object, **annotations: str) -> Object:
    """The Job as its user writes it for Kueue. `annotations`: of the group, with `_` for `-`."""
    meta = {
        **job["metadata"],
        "labels": {f"{GROUP}/queue-name": "queue"},
        "annotations": {f"{GROUP}/{key.replace('_', '-')}": value for key, value in annotations.items()},
    }
    return {**job, "metadata": meta, "spec": {**job["spec"], "suspend": True}}


def give_room(place: Place, pods: int) -> None:
    """Makes the queue of a namespace, or changes how many pods it has room for."""
    flavor = {"name": place.namespace, "resources": [{"name": "pods", "nominalQuota": pods}]}
    groups = [{"coveredResources": ["pods"], "flavors": [flavor]}]
    specs: dict[str, tuple[str, Object]] = {
        "ResourceFlavor": (place.namespace, {}),
        "ClusterQueue": (place.namespace, {"namespaceSelector": {}, "resourceGroups": groups}),
        "LocalQueue": ("queue", {"clusterQueue": place.namespace}),
    }
    objects = [
        {"apiVersion": f"{GROUP}/v1beta2", "kind": kind, "metadata": {"name": name}, "spec": spec}
        for kind, (name, spec) in specs.items()
    ]
    place.kubectl("apply", "-f", "-", input="\n---\n".join(map(json.dumps, objects)))


def admit(place: Place, *, active: bool) -> None:
    """Has Kueue take the Job's pods away, as it does for another Job that comes first, or queue it again."""
    (workload,) = place.get(f"workloads.{GROUP}")["items"]
    patch = json.dumps({"spec": {"active": active}})
    place.kubectl("patch", f"workloads.{GROUP}", workload["metadata"]["name"], "--type=merge", "-p", patch)


def why_it_waits(place: Place) -> str:
    """What Kueue says of the one Job that waits in the queue; empty if it has nothing to say."""
    conditions = [
        condition
        for workload in place.get(f"workloads.{GROUP}")["items"]
        for condition in workload.get("status", {}).get("conditions", [])
    ]
    return next((c["message"] for c in conditions if (c["type"], c["status"]) == ("QuotaReserved", "False")), "")
