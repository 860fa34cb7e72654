"""What should be, as a function of the spec and what is: no I/O, no clock, no state of its own.

Every pass computes the whole plan from what it observed, so that a missed event, a restart at any moment or a child deleted by hand
leads to the same end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rdzv.backends import BackendError, Host, Provision, endpoint_slice
from rdzv.control.cache import CHILDREN
from rdzv.control.children import RBAC, child, is_marked, is_of_predecessor, is_owned, key, newer_version, title
from rdzv.control.compare import Verdict, compare
from rdzv.control.isolation import isolation
from rdzv.env import render
from rdzv.objects import Object, ReadOnlyObject
from rdzv.observed import Observed, Pod
from rdzv.outoftree import MAX_TEXT, PLUGIN_FAILED
from rdzv.registry import BackendRegistry
from rdzv.spec import Rendezvous

#: Reasons of failures, as conditions give them.
NAME_TAKEN, REQUEST_FAILED, HELD_BACK = "NameTaken", "APIError", "HeldBack"


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
        delete: children that are no longer wanted.
        apply: children that the pods rely on.
        release: the ConfigMap that kubelet holds the pods' containers for, so after all of `apply` and only if that succeeded.
        provision: what the backend needs; None if it refused the spec.
        refused: why the spec can't be served.
        host: the pod that the backend's Service is to lead to.
        leads_there: the Service leads to it already.
        newer: the version of a newer operator that wrote the children; empty if none did.
        held: the pods' server has not been ready yet, so there is no `release`.
        notice: why a plug-in that wants this backend's name is not used; empty if none does.
    """

    delete: Sequence[ReadOnlyObject] = ()
    apply: Sequence[Write] = ()
    release: Write | None = None
    provision: Provision | None = None
    refused: BackendError | None = None
    host: Pod | None = None
    leads_there: bool = False
    newer: str = ""
    held: bool = False
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

    led_to = _present_host(belonging, rendezvous)
    host = _elect(observed.pods, provision.host, led_to) if provision.host else None
    access = _access(rendezvous, provision, observed.pods) if provision.rules else []
    endpoint = _endpoint(rendezvous, provision.host, host)
    made = (*isolation(rendezvous), *endpoint, *access, *provision.objects)
    relied_on = [child(obj, rendezvous) for obj in made]
    released_by = child(_config_map(rendezvous, provision, observed.pods), rendezvous)
    present = {key(obj): obj for obj in observed.children}
    held = _awaits_server(provision, observed) and not _has_released(present.get(key(released_by)), rendezvous)
    wanted = {key(obj) for obj in (*relied_on, *([] if held else [released_by]))}
    return Plan(
        delete=[obj for obj in belonging if key(obj) not in wanted],
        apply=[write for obj in relied_on if (write := _write(obj, present)) is not None],
        release=None if held else _write(released_by, present),
        provision=provision,
        host=host,
        leads_there=host is not None and host.uid == led_to,
        newer=newer,
        held=held,
        notice=registry.failed.get(rendezvous.backend, ""),
    )


def _awaits_server(provision: Provision, observed: Observed) -> bool:
    """Whether the server that the pods can do nothing without is not ready: torch's own clients end at once if nobody answers."""
    sets = [obj for obj in provision.objects if key(obj) == ("StatefulSet", provision.server)]
    return any(
        observed.ready_replicas(obj["metadata"]["name"]) <= (obj.get("spec") or {}).get("replicas", 1) // 2
        for obj in sets
    )


def _has_released(config_map: ReadOnlyObject | None, rendezvous: Rendezvous) -> bool:
    """Whether the pods of this Rendezvous, not of an earlier one of its name, have been let in before."""
    if config_map is None or is_of_predecessor(config_map, rendezvous.name, rendezvous.uid):
        return False
    return is_owned(config_map, rendezvous.uid) or is_marked(config_map, rendezvous.name)


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
    """Whether it is ours to delete: it has a child's name, and it, or an earlier Rendezvous of the name, owns it, or it has the marks."""
    name = obj["metadata"]["name"]
    if not f"{name}-".startswith(f"{rendezvous.child_name}-"):
        return False
    owned = is_owned(obj, rendezvous.uid) or is_of_predecessor(obj, rendezvous.name, rendezvous.uid)
    return owned or is_marked(obj, rendezvous.name)


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


def _config_map(rendezvous: Rendezvous, provision: Provision, pods: Sequence[Pod]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": rendezvous.child_name},
        "data": render(rendezvous, provision, alike=not any(pod.own_nproc for pod in pods)),
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


def _present_host(belonging: Sequence[ReadOnlyObject], rendezvous: Rendezvous) -> str | None:
    """UID of the pod that the Service leads to now."""
    slices = (obj for obj in belonging if key(obj) == ("EndpointSlice", rendezvous.child_name))
    endpoints = [endpoint for obj in slices for endpoint in obj.get("endpoints") or []]
    return (endpoints[0].get("targetRef") or {}).get("uid") if endpoints else None


def _elect(pods: Sequence[Pod], host: Host, present: str | None) -> Pod | None:
    """The pod that hosts the store: the present one while it lives, else one that can start, has an address, has the lowest index."""
    candidates = [pod for pod in pods if pod.live and pod.injected and (host.rank is None or pod.rank == host.rank)]

    def order(pod: Pod) -> tuple[Any, ...]:
        return (pod.hopeless, pod.uid != present, not pod.ip, pod.order[:2], pod.created, pod.uid)

    return min(candidates, key=order, default=None)


def _endpoint(rendezvous: Rendezvous, wanted: Host | None, host: Pod | None) -> list[dict[str, Any]]:
    """Where the Service leads: nowhere while the host has no address, rather than to one that is gone."""
    if wanted is None or host is None or not host.ip:
        return []
    return [endpoint_slice(rendezvous, wanted.port, host)]
