"""What is there against what should be there, for one child: is it ours, is it exactly right, and how is it put right (pure).

Exactly, because whatever somebody adds has an effect: a key of the ConfigMap is a variable of every pod, a port or a selector of the
Service leads elsewhere. So what the API server fills in by itself has to be known, kind by kind; all else that we did not write goes.
Foreign labels and annotations stay, as Kubernetes' conventions ask, except those that tell kube-proxy what to do with a Service.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

from rdzv.control import defaults
from rdzv.control.children import is_marked, is_of_predecessor, is_owned
from rdzv.objects import Object, ReadOnlyObject
from rdzv.spec import LABEL


class Verdict(enum.Enum):
    """What to do about one child."""

    SAME = "nothing"
    CREATE = "create"
    REPLACE = "replace"
    RECREATE = "delete and create"
    """A field differs that can't be changed, or the object is on its way out."""
    TAKEN = "leave alone"
    """Somebody else made it."""


#: Labels and annotations under this prefix change where a Service leads (service-proxy-name, topology-mode, headless on a slice).
_STEERING = "service.kubernetes.io/"
_STEERED = ("Service", "EndpointSlice")

#: Fields that the API server sets to one value when they are not given (core/v1 and rbac/v1 defaults of Kubernetes 1.30 to 1.36).
_DEFAULTS: dict[str, Object] = {
    "ConfigMap": {"data": {}, "binaryData": {}, "immutable": False},
    "EndpointSlice": {},
    "Role": {"rules": []},
    "RoleBinding": {"subjects": []},
    "Service": {},
    "StatefulSet": {},
    "PodDisruptionBudget": {},
    "NetworkPolicy": {},
}
_SERVICE = {"type": "ClusterIP", "sessionAffinity": "None", "publishNotReadyAddresses": False}
_ADDRESSED = {"internalTrafficPolicy": "Cluster", "ipFamilyPolicy": "SingleStack"}
_REACHED_FROM_OUTSIDE = {"externalTrafficPolicy": "Cluster"}
_PORT = {"protocol": "TCP"}

#: Fields of a Service that the cluster chooses, each time anew: whatever it chose is right, unless we asked for something.
_ASSIGNED = ("clusterIP", "clusterIPs", "ipFamilies", "healthCheckNodePort")


def compare(actual: ReadOnlyObject | None, wanted: ReadOnlyObject) -> Verdict:
    """Says what has to be done so that `actual` (None: it does not exist) becomes `wanted`, which `children.child` made."""
    if actual is None:
        return Verdict.CREATE
    owner = wanted["metadata"]["ownerReferences"][0]
    if is_of_predecessor(actual, owner["name"], owner["uid"]):
        return Verdict.RECREATE
    if not (is_owned(actual, owner["uid"]) or is_marked(actual, wanted["metadata"]["labels"][LABEL])):
        return Verdict.TAKEN
    if "deletionTimestamp" in actual["metadata"] or _differs_for_good(actual, wanted):
        return Verdict.RECREATE
    if _metadata_differs(actual, wanted) or _content(actual, wanted) != _content(wanted, wanted):
        return Verdict.REPLACE
    return Verdict.SAME


def replacement(actual: ReadOnlyObject, wanted: ReadOnlyObject) -> Object:
    """The body of a PUT that makes `actual` what is wanted; refused (409) if `actual` changed since."""
    kind = wanted["kind"]
    metadata = {
        **wanted["metadata"],
        "uid": actual["metadata"]["uid"],
        "resourceVersion": actual["metadata"]["resourceVersion"],
        "labels": {**_kept(kind, actual, "labels"), **wanted["metadata"]["labels"]},
        "annotations": {**_kept(kind, actual, "annotations"), **wanted["metadata"]["annotations"]},
        "finalizers": kept_finalizers(actual),
    }
    body = {**wanted, "metadata": metadata}
    if kind == "Service":
        # Said in full: what an update leaves out, the API server takes from the object as it is.
        body["spec"] = {**_service_defaults(wanted["spec"]), **wanted["spec"]}
    return body


def kept_finalizers(actual: ReadOnlyObject) -> list[str]:
    """Finalizers that Kubernetes itself takes off when it is done; any other would keep our object from being deleted."""
    return [name for name in actual["metadata"].get("finalizers") or [] if _is_of_kubernetes(name)]


def _is_of_kubernetes(finalizer: str) -> bool:
    domain = finalizer.partition("/")[0]
    return domain in {"foregroundDeletion", "orphan", "kubernetes.io"} or domain.endswith(".kubernetes.io")


def _differs_for_good(actual: ReadOnlyObject, wanted: ReadOnlyObject) -> bool:
    """Whether a field differs that the API server does not let anybody change."""
    if actual["kind"] == "ConfigMap":
        return bool(actual.get("immutable")) and not wanted.get("immutable")
    if actual["kind"] == "RoleBinding":
        return bool(actual.get("roleRef") != wanted.get("roleRef"))
    if actual["kind"] == "EndpointSlice":
        return bool(actual.get("addressType") != wanted["addressType"])
    if actual["kind"] == "Service":
        # What Kubernetes made for a selector stays behind when that goes, and would lead elsewhere too. With the Service it goes.
        stays_behind = bool(actual["spec"].get("selector")) and not wanted["spec"].get("selector")
        return stays_behind or _is_headless(actual) != _is_headless(wanted)
    if actual["kind"] == "StatefulSet":
        ours, theirs = (defaults.stateful_set(obj["spec"]) for obj in (wanted, actual))
        return any(ours.get(field) != theirs.get(field) for field in defaults.FIXED)
    return False


def _is_headless(service: ReadOnlyObject) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def _metadata_differs(actual: ReadOnlyObject, wanted: ReadOnlyObject) -> bool:
    meta = actual["metadata"]
    for field in ("labels", "annotations"):
        present, kept = meta.get(field) or {}, _kept(actual["kind"], actual, field)
        if present.keys() != kept.keys() or not wanted["metadata"][field].items() <= present.items():
            return True
    # A further owner would keep it alive after its Rendezvous.
    owners: Sequence[Any] = meta.get("ownerReferences") or []
    return bool(
        owners != wanted["metadata"]["ownerReferences"] or kept_finalizers(actual) != (meta.get("finalizers") or [])
    )


def _kept(kind: str, actual: ReadOnlyObject, field: str) -> Mapping[str, str]:
    present: Mapping[str, str] = actual["metadata"].get(field) or {}
    if kind not in _STEERED:
        return present
    return {key: value for key, value in present.items() if not key.startswith(_STEERING)}


def _content(obj: ReadOnlyObject, wanted: ReadOnlyObject) -> Object:
    """All but metadata and status, with the API server's defaults, without what it chooses itself."""
    kind = wanted["kind"]
    own = {name: value for name, value in obj.items() if name not in {"apiVersion", "kind", "metadata", "status"}}
    content: Object = {**_DEFAULTS.get(kind, {}), **_without_nothing(own)}
    if kind == "Service":
        content["spec"] = _service_spec(obj["spec"], wanted["spec"])
    elif kind == "RoleBinding":
        content["subjects"] = [_subject(subject) for subject in content["subjects"]]
    elif kind == "StatefulSet":
        content["spec"] = defaults.stateful_set(obj["spec"])
    return content


def _service_defaults(spec: ReadOnlyObject) -> Object:
    type_ = spec.get("type", "ClusterIP")
    defaults: Object = {**_SERVICE}
    if type_ != "ExternalName":
        defaults |= _ADDRESSED
    if type_ in {"NodePort", "LoadBalancer"}:
        defaults |= _REACHED_FROM_OUTSIDE
    if type_ == "LoadBalancer":
        defaults["allocateLoadBalancerNodePorts"] = True
    return defaults


def _service_spec(spec: ReadOnlyObject, wanted: ReadOnlyObject) -> Object:
    completed: Object = {**_service_defaults(wanted), **_without_nothing(spec)}
    for name in _ASSIGNED:
        if name not in wanted:
            completed.pop(name, None)
    assigned = wanted.get("type") in {"NodePort", "LoadBalancer"}
    completed["ports"] = [_port(port, assigned=assigned) for port in completed.get("ports") or []]
    return completed


def _port(port: ReadOnlyObject, *, assigned: bool) -> Object:
    completed = {**_PORT, "targetPort": port.get("port"), **port}
    if assigned:
        completed.pop("nodePort", None)
    return completed


def _subject(subject: ReadOnlyObject) -> Object:
    # Empty for a service account, and left out of replies.
    return {name: value for name, value in subject.items() if (name, value) != ("apiGroup", "")}


def _without_nothing(fields: ReadOnlyObject) -> Object:
    """Without fields whose value is as good as none: the API server leaves some of them out."""
    return {name: value for name, value in fields.items() if value is not None and value not in ([], {})}
