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

from rdzv.backends import HOST_LABEL, BackendError, Host, Provision
from rdzv.control.observed import Observed, Pod
from rdzv.env import POD_CONFIG_ANNOTATION, render, render_config
from rdzv.registry import BackendRegistry
from rdzv.spec import API_VERSION, KIND, LABEL, Rendezvous

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "rendezvous-operator"
APPLIED_ANNOTATION = "rdzv.dev/applied"

Object = Mapping[str, Any]


@dataclass(frozen=True)
class PodPatch:
    """Labels and annotations to set on one pod (None removes one), only if it still is the pod with this uid."""

    name: str
    uid: str
    labels: Mapping[str, str | None]
    annotations: Mapping[str, str | None]


@dataclass(frozen=True)
class Plan:
    """What one pass writes, in this order: delete, apply, patches, apply_last.

    `apply_last` holds what releases the pods (their ConfigMap), so it comes after all that they rely on. `refused`: why the spec
    can't be served. `host`: the pod that the backend's Service leads to.
    """

    delete: Sequence[Object] = ()
    apply: Sequence[Object] = ()
    patches: Sequence[PodPatch] = ()
    apply_last: Sequence[Object] = ()
    provision: Provision | None = None
    refused: BackendError | None = None
    host: Pod | None = None
    waiting_for_host: bool = False


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
    # Until its host is known, nobody may start: a container reads its configuration only once.
    waiting = provision.host is not None and bool(provision.host.config) and host is None
    objects = [_child(obj, rendezvous) for obj in provision.objects]
    released = [] if waiting else [_child(_config_map(rendezvous, provision), rendezvous)]
    wanted = {_key(obj) for obj in (*objects, *released)}
    current = {_key(child): child for child in ours}
    return Plan(
        delete=[*stale, *(child for child in ours if _key(child) not in wanted)],
        apply=[obj for obj in objects if not _contains(current.get(_key(obj)), obj)],
        patches=_host_patches(observed.pods, host, provision.host),
        apply_last=[obj for obj in released if not _contains(current.get(_key(obj)), obj)],
        provision=provision,
        host=host,
        waiting_for_host=waiting,
    )


def _config_map(rendezvous: Rendezvous, provision: Provision) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": rendezvous.child_name},
        "data": render(rendezvous, provision),
    }


def _child(obj: Object, rendezvous: Rendezvous) -> dict[str, Any]:
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
    """The pod that hosts the store: the present host while it lives, else one that has not read its configuration yet."""
    candidates = [pod for pod in pods if pod.live and pod.injected and (host.slot is None or pod.slot == host.slot)]

    def order(pod: Pod) -> tuple[bool, bool, bool, bool, int, str, str]:
        no_slot = pod.slot is None
        return (pod.hopeless, not pod.host, pod.started, no_slot, pod.slot or 0, pod.created, pod.uid)

    return min(candidates, key=order, default=None)


def _host_patches(pods: Sequence[Pod], chosen: Pod | None, host: Host | None) -> list[PodPatch]:
    """Exactly one pod is marked; a mark on any other is taken off first, so that the Service never leads to two."""
    config = f",{render_config(host.config)}" if host and host.config else ""
    patches = []
    for pod in sorted(pods, key=lambda pod: pod == chosen):
        want_label, want_config = (pod == chosen), (config if pod == chosen else "")
        if (pod.host, pod.pod_config) != (want_label, want_config):
            patches.append(
                PodPatch(
                    name=pod.name,
                    uid=pod.uid,
                    labels={HOST_LABEL: "true" if want_label else None},
                    annotations={POD_CONFIG_ANNOTATION: want_config or None},
                )
            )
    return patches


def _refuse_taken_names(provision: Provision, foreign: Sequence[Object], rendezvous: Rendezvous) -> None:
    """Never takes over an object that somebody else made."""
    wanted = {("ConfigMap", rendezvous.child_name), *(_key(obj) for obj in provision.objects)}
    for child in foreign:
        if _key(child) in wanted:
            kind, name = _key(child)
            raise BackendError(
                "NameTaken",
                f"{kind} {name} exists and does not belong to this Rendezvous: rename or delete it, or choose another name",
            )


def _key(obj: Object) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]


def _owners(obj: Object) -> Sequence[Object]:
    return obj["metadata"].get("ownerReferences") or []


def _owned_by(obj: Object, rendezvous: Rendezvous) -> bool:
    return any(owner["uid"] == rendezvous.uid for owner in _owners(obj))


def _is_of_predecessor(obj: Object, rendezvous: Rendezvous) -> bool:
    """Whether it belonged to a deleted Rendezvous of the same name, and waits for the garbage collector."""
    return any((owner["kind"], owner["name"]) == (KIND, rendezvous.name) for owner in _owners(obj))


def _contains(actual: Any, wanted: Any) -> bool:
    """Whether every field of `wanted` is in `actual`; what the API server or others added does not matter."""
    if isinstance(wanted, Mapping):
        return isinstance(actual, Mapping) and all(_contains(actual.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(actual, list) and len(actual) == len(wanted) and all(map(_contains, actual, wanted))
    return bool(actual == wanted)
