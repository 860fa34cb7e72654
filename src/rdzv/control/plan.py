"""What should be, as a function of the spec and what is: no I/O, no clock, no state of its own.

Every pass computes the whole plan from what it observed, so that a missed event, a restart at any moment or a child deleted by hand
leads to the same end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rdzv.backends import BackendError, Host, Provision
from rdzv.control.cache import CHILDREN
from rdzv.control.children import RBAC, child, is_marked, is_of_predecessor, is_owned, key, newer_version, title
from rdzv.control.compare import Verdict, compare
from rdzv.env import render
from rdzv.objects import Object, ReadOnlyObject
from rdzv.observed import Observed, Pod
from rdzv.outoftree import MAX_TEXT, PLUGIN_FAILED
from rdzv.registry import BackendRegistry
from rdzv.spec import HOST_LABEL, Rendezvous

#: Reasons of failures, as conditions give them.
NAME_TAKEN, REQUEST_FAILED, HELD_BACK = "NameTaken", "APIError", "HeldBack"


@dataclass(frozen=True)
class PodPatch:
    """Labels to set on one pod (None removes one), only if it still is the pod with this uid."""

    name: str
    uid: str
    labels: dict[str, str | None]


@dataclass(frozen=True)
class Write:
    """One child to make or to put right. `actual`: what is there, as far as the pass has seen (None: nothing)."""

    wanted: Object
    actual: ReadOnlyObject | None = None


@dataclass(frozen=True)
class Failure:
    """What could not be written: `reason` is that of a condition, `message` says which object, why, and what to do."""

    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What one pass writes. What fails stops only what depends on it.

    Attributes:
        patches: pods to mark; in this order, and none after one that failed.
        delete: children that are no longer wanted.
        apply: children that the pods rely on.
        release: the ConfigMap that kubelet holds the pods' containers for, so after all of `apply` and only if that succeeded.
        provision: what the backend needs; None if it refused the spec.
        refused: why the spec can't be served.
        host: the pod that the backend's Service leads to.
        newer: the version of a newer operator that wrote the children; empty if none did.
        notice: why a plug-in that wants this backend's name is not used; empty if none does.
    """

    patches: Sequence[PodPatch] = ()
    delete: Sequence[ReadOnlyObject] = ()
    apply: Sequence[Write] = ()
    release: Write | None = None
    provision: Provision | None = None
    refused: BackendError | None = None
    host: Pod | None = None
    newer: str = ""
    notice: str = ""


def plan(rendezvous: Rendezvous, observed: Observed, registry: BackendRegistry) -> Plan:
    """Computes what to write so that the pods of `rendezvous` can meet."""
    belonging = [obj for obj in observed.children if _belongs(obj, rendezvous)]
    newer = newer_version(belonging)
    try:
        provision = registry.provision(rendezvous)
        _check_kinds(rendezvous, provision)
    except BackendError as error:
        return Plan(refused=error, delete=_no_longer_served(belonging, rendezvous, error), newer=newer)

    host = _elect(observed.pods, provision.host) if provision.host else None
    access = _access(rendezvous, provision, observed.pods) if provision.rules else []
    relied_on = [child(obj, rendezvous) for obj in (*access, *provision.objects)]
    released_by = child(_config_map(rendezvous, provision), rendezvous)
    wanted = {key(obj) for obj in (*relied_on, released_by)}
    present = {key(obj): obj for obj in observed.children}
    return Plan(
        patches=_host_patches(observed.pods, host),
        delete=[obj for obj in belonging if key(obj) not in wanted],
        apply=[write for obj in relied_on if (write := _write(obj, present)) is not None],
        release=_write(released_by, present),
        provision=provision,
        host=host,
        newer=newer,
        notice=registry.failed.get(rendezvous.backend, ""),
    )


def name_taken(wanted: ReadOnlyObject) -> Failure:
    """The failure of a child whose name is that of somebody else's object, which we never take over."""
    kind, meta = wanted["kind"], wanted["metadata"]
    return Failure(
        NAME_TAKEN,
        f"{title(wanted)} exists and does not belong to this Rendezvous: delete it (kubectl delete {kind.lower()} {meta['name']} "
        f"-n {meta['namespace']}), or give this Rendezvous another name",
    )


def _write(wanted: Object, present: dict[tuple[str, str], ReadOnlyObject]) -> Write | None:
    actual = present.get(key(wanted))
    return None if compare(actual, wanted) is Verdict.SAME else Write(wanted, actual)


def _belongs(obj: ReadOnlyObject, rendezvous: Rendezvous) -> bool:
    """Whether it is ours to delete: it, or an earlier Rendezvous of the name, owns it, or it has a child's name and marks."""
    marked = obj["metadata"]["name"] == rendezvous.child_name and is_marked(obj, rendezvous.name)
    owned = is_owned(obj, rendezvous.uid) or is_of_predecessor(obj, rendezvous.name, rendezvous.uid)
    return owned or marked


def _no_longer_served(
    belonging: Sequence[ReadOnlyObject], rendezvous: Rendezvous, refused: BackendError
) -> list[ReadOnlyObject]:
    """What goes when the spec is refused: its ConfigMap, so that new pods wait instead of meeting where the spec no longer says.

    The rest serves the pods that run. A plug-in that failed has refused nothing.
    """
    if refused.reason == PLUGIN_FAILED:
        return []
    return [obj for obj in belonging if key(obj) == ("ConfigMap", rendezvous.child_name)]


def _check_kinds(rendezvous: Rendezvous, provision: Provision) -> None:
    """What is not watched can't be compared: it would be written again on every pass, and nobody would see it go."""
    watched = {kind.kind for kind in CHILDREN}
    others = sorted({obj["kind"] for obj in provision.objects} - watched)
    if others:
        known = ", ".join(sorted(watched))
        text = f"backend {rendezvous.backend!r} wants objects of kind {', '.join(others)}: this operator makes {known}"
        raise BackendError(PLUGIN_FAILED, text[:MAX_TEXT])


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


def _elect(pods: Sequence[Pod], host: Host) -> Pod | None:
    """The pod that hosts the store: the present one while it lives, else one that can start, the lowest index first.

    Of several the present one is that which has been marked for longest.
    """
    candidates = [pod for pod in pods if pod.live and pod.injected and (host.slot is None or pod.slot == host.slot)]

    def order(pod: Pod) -> tuple[bool, bool, str, bool, int, str, str]:
        since = pod.marked_at if pod.host else ""
        return (pod.hopeless, not pod.host, since, pod.slot is None, pod.slot or 0, pod.created, pod.uid)

    return min(candidates, key=order, default=None)


def _host_patches(pods: Sequence[Pod], chosen: Pod | None) -> list[PodPatch]:
    """Exactly one pod is marked; a mark on any other is taken off first, so that the Service never leads to two."""
    changes = [pod for pod in pods if pod.mark != ("true" if pod == chosen else None)]
    return [
        PodPatch(pod.name, pod.uid, {HOST_LABEL: "true" if pod == chosen else None})
        for pod in sorted(changes, key=lambda pod: pod == chosen)
    ]
