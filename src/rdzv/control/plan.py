"""What should be, as a function of the spec and what is: no I/O, no clock, no state of its own.

Every pass computes the whole plan from what it observed, so that a missed event, a restart at any moment or a child deleted by hand
leads to the same end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdzv.backends import BackendError, Host, Provision
from rdzv.env import render
from rdzv.objects import ReadOnlyObject
from rdzv.observed import Observed, Pod
from rdzv.registry import BackendRegistry
from rdzv.spec import API_VERSION, HOST_LABEL, KIND, LABEL, Rendezvous

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "rendezvous-operator"
APPLIED_ANNOTATION = "rdzv.dev/applied"
RBAC = "rbac.authorization.k8s.io/v1"


@dataclass(frozen=True)
class PodPatch:
    """Labels to set on one pod (None removes one), only if it still is the pod with this uid."""

    name: str
    uid: str
    labels: Mapping[str, str | None]


@dataclass(frozen=True)
class Plan:
    """What one pass writes, in this order: delete, apply, patches.

    What releases the pods (their ConfigMap) is applied last, after all that they rely on. `refused`: why the spec can't be served.
    `host`: the pod that the backend's Service leads to.
    """

    delete: Sequence[ReadOnlyObject] = ()
    apply: Sequence[ReadOnlyObject] = ()
    patches: Sequence[PodPatch] = ()
    provision: Provision | None = None
    refused: BackendError | None = None
    host: Pod | None = None


def plan(rendezvous: Rendezvous, observed: Observed, registry: BackendRegistry) -> Plan:
    """Computes what to write so that the pods of `rendezvous` can meet."""
    ours = [child for child in observed.children if _owned_by(child, rendezvous)]
    foreign = [child for child in observed.children if not _owned_by(child, rendezvous)]
    stale = [child for child in foreign if _is_of_predecessor(child, rendezvous)]
    try:
        provision = registry.provision(rendezvous)
        _refuse_taken_names(provision, [child for child in foreign if child not in stale], rendezvous)
    except BackendError as error:
        return Plan(refused=error, delete=stale)

    host = _elect(observed.pods, provision.host) if provision.host else None
    access = _access(rendezvous, provision, observed.pods) if provision.rules else []
    objects = [*access, *provision.objects, _config_map(rendezvous, provision)]
    wanted = [_child(obj, rendezvous) for obj in objects]
    kept = {_key(obj) for obj in wanted}
    current = {_key(child): child for child in ours}
    return Plan(
        delete=[*stale, *(child for child in ours if _key(child) not in kept)],
        apply=[obj for obj in wanted if not _contains(current.get(_key(obj)), obj)],
        patches=_host_patches(observed.pods, host),
        provision=provision,
        host=host,
    )


def _config_map(rendezvous: Rendezvous, provision: Provision) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": rendezvous.child_name},
        "data": render(rendezvous, provision),
    }


def _access(rendezvous: Rendezvous, provision: Provision, pods: Sequence[Pod]) -> list[dict[str, Any]]:
    """A Role with what the backend's agents may do, bound to the service accounts that the pods run as."""
    name = rendezvous.child_name
    accounts = sorted({pod.service_account for pod in pods})
    return [
        {
            "apiVersion": RBAC,
            "kind": "Role",
            "metadata": {"name": name},
            "rules": [dict(rule) for rule in provision.rules],
        },
        {
            "apiVersion": RBAC,
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [
                {"kind": "ServiceAccount", "name": account, "namespace": rendezvous.namespace} for account in accounts
            ],
        },
    ]


def _child(obj: ReadOnlyObject, rendezvous: Rendezvous) -> dict[str, Any]:
    """`obj` in the namespace of its owner, deleted with it by Kubernetes' garbage collector."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": rendezvous.name,
        "uid": rendezvous.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    metadata = {
        **obj["metadata"],
        "namespace": rendezvous.namespace,
        "labels": {MANAGED_BY_LABEL: MANAGER, LABEL: rendezvous.name},
        # Tells that a field was dropped from what we want, which comparing the wanted fields alone would not.
        "annotations": {APPLIED_ANNOTATION: hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()[:16]},
        "ownerReferences": [owner],
    }
    return {**obj, "metadata": metadata}


def _elect(pods: Sequence[Pod], host: Host) -> Pod | None:
    """The pod that hosts the store: the present one while it lives, else one that can start, the lowest index first."""
    candidates = [pod for pod in pods if pod.live and pod.injected and (host.slot is None or pod.slot == host.slot)]

    def order(pod: Pod) -> tuple[bool, bool, bool, int, str, str]:
        return (pod.hopeless, not pod.host, pod.slot is None, pod.slot or 0, pod.created, pod.uid)

    return min(candidates, key=order, default=None)


def _host_patches(pods: Sequence[Pod], chosen: Pod | None) -> list[PodPatch]:
    """Exactly one pod is marked; a mark on any other is taken off first, so that the Service never leads to two."""
    changes = [pod for pod in pods if pod.host != (pod == chosen)]
    return [
        PodPatch(pod.name, pod.uid, {HOST_LABEL: "true" if pod == chosen else None})
        for pod in sorted(changes, key=lambda pod: pod == chosen)
    ]


def _refuse_taken_names(provision: Provision, foreign: Sequence[ReadOnlyObject], rendezvous: Rendezvous) -> None:
    """Never takes over an object that somebody else made."""
    wanted = {("ConfigMap", rendezvous.child_name), *(_key(obj) for obj in provision.objects)}
    for child in foreign:
        if _key(child) in wanted:
            kind, name = _key(child)
            raise BackendError(
                "NameTaken",
                f"{kind} {name} exists and does not belong to this Rendezvous: rename or delete it, or choose another name",
            )


def _key(obj: ReadOnlyObject) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]


def _owners(obj: ReadOnlyObject) -> Sequence[ReadOnlyObject]:
    return obj["metadata"].get("ownerReferences") or []


def _owned_by(obj: ReadOnlyObject, rendezvous: Rendezvous) -> bool:
    return any(owner["uid"] == rendezvous.uid for owner in _owners(obj))


def _is_of_predecessor(obj: ReadOnlyObject, rendezvous: Rendezvous) -> bool:
    """Whether it belonged to a deleted Rendezvous of the same name, and waits for the garbage collector."""
    return any((owner["kind"], owner["name"]) == (KIND, rendezvous.name) for owner in _owners(obj))


def _contains(actual: Any, wanted: Any) -> bool:
    """Whether every field of `wanted` is in `actual`; what the API server or others added does not matter."""
    if isinstance(wanted, Mapping):
        return isinstance(actual, Mapping) and all(_contains(actual.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(actual, list) and len(actual) == len(wanted) and all(map(_contains, actual, wanted))
    return bool(actual == wanted)
