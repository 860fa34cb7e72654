"""What the API server fills in by itself, in the kinds whose objects have many fields (apps/v1 defaults of Kubernetes 1.30 to 1.37; pure).

A table has the shape of the object. A value is filled in where the field is missing, a mapping is filled in where the object has the
field, and `Each` is for the elements of a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Each:
    """For each element of a list."""

    table: Mapping[str, Any]


_PROBE = {
    "timeoutSeconds": 1,
    "periodSeconds": 10,
    "successThreshold": 1,
    "failureThreshold": 3,
    "httpGet": {"path": "/", "scheme": "HTTP"},
}
_CONTAINER = {
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
    "env": Each({"valueFrom": {"fieldRef": {"apiVersion": "v1"}}}),
    "ports": Each({"protocol": "TCP"}),
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
    "startupProbe": _PROBE,
}
_POD = {
    "restartPolicy": "Always",
    "dnsPolicy": "ClusterFirst",
    "schedulerName": "default-scheduler",
    "terminationGracePeriodSeconds": 30,
    "containers": Each(_CONTAINER),
    "initContainers": Each(_CONTAINER),
    "volumes": Each({"configMap": {"defaultMode": 0o644}, "secret": {"defaultMode": 0o644}}),
}
_STATEFUL_SET: Mapping[str, Any] = {
    "replicas": 1,
    "revisionHistoryLimit": 10,
    "podManagementPolicy": "OrderedReady",
    "updateStrategy": {"rollingUpdate": {"partition": 0, "maxUnavailable": 1}},  # The latter since Kubernetes 1.35.
    "template": {"spec": _POD},
    "volumeClaimTemplates": Each({"spec": {"volumeMode": "Filesystem"}}),
}
#: Fields that are objects, and are filled in where the StatefulSet has none. The second one since Kubernetes 1.27.
_OBJECTS: Mapping[str, Any] = {
    "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
    "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
}
#: Fields of a StatefulSet that the API server lets nobody change.
FIXED = ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates")

_SUFFIXES = {
    **{suffix: Fraction(1000) ** power for power, suffix in enumerate("num", -3)},
    **{suffix: Fraction(1000) ** power for power, suffix in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    **{f"{suffix}i": Fraction(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}


def stateful_set(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a StatefulSet with the API server's defaults, in a form in which what means the same is the same."""
    found: dict[str, Any] = _filled({**_OBJECTS, **spec}, _STATEFUL_SET)
    found["volumeClaimTemplates"] = [
        {**{key: value for key, value in claim.items() if key != "status"}, "spec": _sized(claim.get("spec") or {})}
        for claim in found.get("volumeClaimTemplates") or []
    ]
    pod = (found.get("template") or {}).get("spec") or {}
    for kind in ("containers", "initContainers"):
        if kind in pod:
            pod[kind] = [_sized(container) for container in pod[kind]]
    return found


def _filled(value: Any, table: Mapping[str, Any] | Each) -> Any:
    """`value` with the defaults of a table, and without fields whose value is as good as none."""
    if isinstance(table, Each):
        return [_filled(item, table.table) for item in value] if isinstance(value, list) else value
    if not isinstance(value, Mapping):
        return value
    tables = {key: below for key, below in table.items() if _is_table(below)}
    fields = {key: _filled(field, tables.get(key, {})) for key, field in value.items()}
    present = {key: field for key, field in fields.items() if field is not None and field not in ([], {}, "")}
    return {**{key: field for key, field in table.items() if not _is_table(field)}, **present}


def _sized(obj: Mapping[str, Any]) -> dict[str, Any]:
    """With its resources as numbers: the API server writes quantities in a form of its own (`1000m` is `1`)."""
    resources = obj.get("resources") or {}
    numbers = {
        field: {name: _number(amount) for name, amount in amounts.items()} if isinstance(amounts, Mapping) else amounts
        for field, amounts in resources.items()
    }
    return {**obj, "resources": numbers}


def _is_table(field: Any) -> bool:
    return isinstance(field, (Mapping, Each))


def _number(value: Any) -> Any:
    """What a quantity says, as a number; any other value as it is."""
    text = str(value)
    digits = text.rstrip("numkKMGTPEi")
    factor = _SUFFIXES.get(text[len(digits) :])
    try:
        return value if factor is None else Fraction(digits) * factor
    except (ValueError, ZeroDivisionError):
        return value
