"""The objects that belong to a Rendezvous: how they are marked, and whose an object is (pure)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

from rdzv import __version__
from rdzv.objects import Object, ReadOnlyObject
from rdzv.spec import API_VERSION, GROUP, KIND, LABEL, MANAGER, Rendezvous

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
RBAC = "rbac.authorization.k8s.io/v1"

APPLIED_ANNOTATION = f"{GROUP}/applied"
"""`VERSION DIGEST`: of the operator that wrote the object, and of what it wrote."""

_APPLIED = re.compile(r"(?:(?P<version>[0-9]{1,9}(?:\.[0-9]{1,9}){0,3})(?:[^\s\d]\S{0,31})? )?[0-9a-f]{16}", re.ASCII)


def child(obj: ReadOnlyObject, rendezvous: Rendezvous) -> Object:
    """`obj` with our marks, in the namespace of its owner; Kubernetes' garbage collector deletes it with that."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": rendezvous.name,
        "uid": rendezvous.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    digest = hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()[:16]
    metadata = {
        **obj["metadata"],
        "namespace": rendezvous.namespace,
        "labels": {**obj["metadata"].get("labels", {}), MANAGED_BY_LABEL: MANAGER, LABEL: rendezvous.name},
        "annotations": {APPLIED_ANNOTATION: f"{__version__} {digest}"},
        "ownerReferences": [owner],
    }
    return {**obj, "metadata": metadata}


def key(obj: ReadOnlyObject) -> tuple[str, str]:
    """Kind and name: unique among the objects of one namespace that a Rendezvous has to do with."""
    return obj["kind"], obj["metadata"]["name"]


def title(obj: ReadOnlyObject) -> str:
    """Kind and name, for a sentence."""
    return " ".join(key(obj))


def is_owned(obj: ReadOnlyObject, uid: str) -> bool:
    """Whether the Rendezvous with this uid owns it."""
    return any(owner["uid"] == uid for owner in _owners(obj))


def is_marked(obj: ReadOnlyObject, name: str) -> bool:
    """Whether it bears all marks of a child of Rendezvous `name`, whoever owns it now.

    So a child is known after somebody stripped its owner (some backups do). Nobody gains by forging the marks: an object that bears them
    is overwritten with what we would have made, and who can write them can do that too.
    """
    labels = obj["metadata"].get("labels") or {}
    return labels.get(MANAGED_BY_LABEL) == MANAGER and labels.get(LABEL) == name and bool(_applied(obj))


def is_of_predecessor(obj: ReadOnlyObject, name: str, uid: str) -> bool:
    """Whether it belongs to a deleted Rendezvous of the same name, and waits for the garbage collector."""
    return not is_owned(obj, uid) and any(
        owner["kind"] == KIND and owner["name"] == name and str(owner.get("apiVersion")).startswith(f"{GROUP}/")
        for owner in _owners(obj)
    )


def newer_version(objects: Sequence[ReadOnlyObject]) -> str:
    """The version of an operator newer than this one, if one wrote all of them; else the empty string.

    An operator writes every child anew when it is another version's. One child alone that says so was tampered with.
    """
    found = [match["version"] or "" if (match := _applied(obj)) else "" for obj in objects]
    oldest = min(found, key=_number, default="")
    return oldest if _number(oldest) > _number(__version__) else ""


def _number(version: str) -> tuple[int, ...]:
    # "0.10" is newer than "0.9"; what follows the digits (rc1, +local) does not count.
    match = re.match(r"\d{1,9}(?:\.\d{1,9}){0,3}", version, re.ASCII)
    return tuple(map(int, match[0].split("."))) if match else ()


def _applied(obj: ReadOnlyObject) -> re.Match[str] | None:
    return _APPLIED.fullmatch((obj["metadata"].get("annotations") or {}).get(APPLIED_ANNOTATION, ""))


def _owners(obj: ReadOnlyObject) -> Sequence[ReadOnlyObject]:
    return obj["metadata"].get("ownerReferences") or []
