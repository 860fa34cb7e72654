"""What is, in memory: all objects that decisions rest on, reduced to what they need, found by the Rendezvous that they concern (no I/O).

Whoever reads from the API server tells it: the watches (`put`, `remove`), lists (`replace`), comparisons (`differing`), replies to our own
writes (`put`). A version that is not newer than the one known says nothing, so these may come in any order. Methods that change something
return the keys (namespace, name) of the Rendezvous that should be looked at again.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

from rdzv.control.children import MANAGED_BY_LABEL, RBAC
from rdzv.control.inject import is_injected
from rdzv.control.overrides import Override, overrides, own_nproc, processors
from rdzv.objects import Object, ReadOnlyObject
from rdzv.observed import Observed, Pod
from rdzv.protocol.records import Member, Round
from rdzv.spec import API_VERSION, GROUP, KIND, LABEL, MANAGER

_log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name of a Rendezvous."""
Id = tuple[str, str]
"""Namespace and name of an object of some kind."""

#: Deletions that are remembered of each kind, so that a reply to an older write does not bring an object back.
_DELETIONS = 1000
#: The texts about what a pod's own settings override that are kept of one pod.
_OVERRIDDEN = 20


@dataclass(frozen=True)
class Kind:
    """A kind that is kept. `selector`: labels without which an object is none of ours. `read`: whom it concerns, and what is kept of it.

    An object that `read` can't read, as it is not as its schema says, is as good as none, and logged once.
    """

    api_version: str
    kind: str
    selector: str
    read: Callable[[ReadOnlyObject], tuple[frozenset[str], Any]] = field(compare=False, repr=False)


class Version(NamedTuple):
    """Which object of a name, and which state of it: `number` is its resourceVersion (0 where that is no number)."""

    uid: str
    number: int


@dataclass(frozen=True)
class PodEntry:
    """What is kept of a pod. `overridden`: what its own settings keep from taking effect."""

    pod: Pod
    overridden: Sequence[Override]


@dataclass(frozen=True)
class View:
    """All that is known of one Rendezvous; `rendezvous` is None when there is none."""

    rendezvous: Object | None
    observed: Observed
    overridden: Mapping[str, Sequence[Override]]


@lru_cache(maxsize=4096)
def _shared(text: str) -> str:
    """The same string for equal ones: those of a world's pods are alike. Not `sys.intern`: what tenants write must not stay for ever."""
    return text


def _names(obj: ReadOnlyObject) -> frozenset[str]:
    """The Rendezvous that the label names. An empty value names nobody."""
    name = (obj["metadata"].get("labels") or {}).get(LABEL)
    return frozenset({_shared(name)}) if name else frozenset()


def _read_pod(obj: ReadOnlyObject) -> tuple[frozenset[str], PodEntry]:
    pod = Pod.from_object(obj, injected=is_injected(obj))
    found = [Override(*map(_shared, each)) for each in overrides(obj)[:_OVERRIDDEN]]
    pod = replace(
        pod,
        phase=_shared(pod.phase),
        reason=_shared(pod.reason),
        service_account=_shared(pod.service_account),
        own_nproc=_shared(own_nproc(obj, found)),
        processors=processors(obj),
    )
    return _names(obj), PodEntry(pod, tuple(found))


def _read_rendezvous(obj: ReadOnlyObject) -> tuple[frozenset[str], bytes]:
    return frozenset({obj["metadata"]["name"]}), _packed(obj)


def _read_child(obj: ReadOnlyObject) -> tuple[frozenset[str], bytes]:
    owners = {
        owner["name"]
        for owner in obj["metadata"].get("ownerReferences") or []
        if owner["kind"] == KIND and owner["apiVersion"].startswith(f"{GROUP}/")
    }
    return _names(obj) | owners, _packed(obj)


def _packed(obj: ReadOnlyObject) -> bytes:
    """As JSON: a tenth of the memory, and nobody can change it. Who set which field is of no interest here."""
    metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    return json.dumps({**obj, "metadata": metadata}, separators=(",", ":")).encode()


RENDEZVOUS = Kind(API_VERSION, KIND, "", _read_rendezvous)
PODS = Kind("v1", "Pod", LABEL, _read_pod)
ROUNDS = Kind(
    API_VERSION, "RendezvousRound", LABEL, lambda obj: (frozenset({obj["metadata"]["name"]}), Round.from_object(obj))
)
MEMBERS = Kind(API_VERSION, "RendezvousMember", LABEL, lambda obj: (_names(obj), Member.from_object(obj)))
#: The kinds of children that a backend may ask for.
CHILDREN = tuple(
    Kind(api_version, kind, f"{LABEL},{MANAGED_BY_LABEL}={MANAGER}", _read_child)
    for api_version, kind in (
        ("v1", "ConfigMap"),
        ("v1", "Service"),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        (RBAC, "Role"),
        (RBAC, "RoleBinding"),
        ("apps/v1", "StatefulSet"),
        ("policy/v1", "PodDisruptionBudget"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
    )
)
KINDS = (RENDEZVOUS, PODS, ROUNDS, MEMBERS, *CHILDREN)
_BY_NAME = {(kind.api_version, kind.kind): kind for kind in KINDS}


@dataclass(frozen=True)
class _Entry:
    version: Version
    names: frozenset[str]
    value: Any


class Cache:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Kind, dict[Id, _Entry]] = {kind: {} for kind in KINDS}
        self._index: dict[Key, dict[Kind, dict[str, _Entry]]] = {}
        self._deleted: dict[Kind, OrderedDict[Id, int]] = {kind: OrderedDict() for kind in KINDS}

    # What is there.

    def view(self, key: Key) -> View:
        """What is known of one Rendezvous, as of now; all in the order of names, as the API server lists it."""
        with self._lock:
            entries = self._index.get(key, {})
            found = {kind: [of_kind[name] for name in sorted(of_kind)] for kind, of_kind in entries.items()}
        pods: list[PodEntry] = _values(found, PODS)
        packed, rounds = _values(found, RENDEZVOUS), _values(found, ROUNDS)
        children = [
            {"apiVersion": kind.api_version, "kind": kind.kind, **json.loads(child)}
            for kind in CHILDREN
            for child in _values(found, kind)
        ]
        observed = Observed(
            pods=[entry.pod for entry in pods],
            children=children,
            round=rounds[0] if rounds else None,
            members=_values(found, MEMBERS),
        )
        overridden = {entry.pod.name: entry.overridden for entry in pods}
        return View(json.loads(packed[0]) if packed else None, observed, overridden)

    def keys(self) -> list[Key]:
        """Every Rendezvous, and every one that some object names."""
        with self._lock:
            return list(self._index)

    def names(self, namespace: str) -> set[str]:
        """Of the Rendezvous of a namespace."""
        with self._lock:
            return {name for place, name in self._entries[RENDEZVOUS] if place == namespace}

    def versions(self, kind: Kind, namespace: str | None) -> dict[Id, Version]:
        """Which state of each object is known, in one namespace or (None) in all."""
        with self._lock:
            entries = self._entries[kind].items()
            return {id_: entry.version for id_, entry in entries if namespace in (None, id_[0])}

    # What is told.

    def learn(self, obj: ReadOnlyObject) -> set[Key]:
        """The reply to a write of our own. Kinds that are not kept are of no interest.

        Of a Rendezvous we write only the status, so that its watch would bring back nothing but that. Unless somebody changed the rest
        just before: the watch's word of that will be old news.
        """
        kind = _BY_NAME.get((obj.get("apiVersion", ""), obj.get("kind", "")))
        if kind is None:
            return set()
        before = self.generation(id_of(obj)) if kind is RENDEZVOUS else None
        keys = self.put(kind, obj)
        return set() if kind is RENDEZVOUS and before == _generation(obj) else keys

    def generation(self, id_: Id) -> tuple[Any, ...] | None:
        """What changes with everything of a Rendezvous but its status."""
        with self._lock:
            entry = self._entries[RENDEZVOUS].get(id_)
        return None if entry is None else _generation(json.loads(entry.value))

    def put(self, kind: Kind, obj: ReadOnlyObject) -> set[Key]:
        """An object as it is, or was: what is older than what is known changes nothing."""
        id_, version = id_of(obj), version_of(obj)
        with self._lock:
            if self._is_old(kind, id_, version):
                return set()  # Not read before: half of what watches tell is our own writes.
        entry = _read(kind, obj, version)
        with self._lock:
            if self._is_old(kind, id_, version):
                return set()
            known = self._entries[kind].get(id_)
            self._set(kind, id_, entry)
        if known is None:
            return _keys(id_, entry)
        same = (known.names, known.value, known.version.uid) == (entry.names, entry.value, version.uid)
        return set() if same else _keys(id_, known) | _keys(id_, entry)

    def remove(self, kind: Kind, obj: ReadOnlyObject) -> set[Key]:
        """An object that was deleted, or does not have the labels of its kind any more; `obj` is its last state."""
        id_, version = id_of(obj), version_of(obj)
        with self._lock:
            known = self._entries[kind].get(id_)
            if known is None or (version.number and version.number < known.version.number):
                return set()
            self._drop(kind, id_)
            self._remember(kind, id_, version.number)
        return _keys(id_, known)

    def forget(self, kind: Kind, id_: Id, version: Version) -> set[Key]:
        """It is not there any more: `version` was known of it before somebody looked."""
        with self._lock:
            known = self._entries[kind].get(id_)
            if known is None or known.version != version:
                return set()
            self._drop(kind, id_)
            self._remember(kind, id_, version.number)
        return _keys(id_, known)

    def distrust(self, kind: Kind, namespace: str | None) -> None:
        """Versions began anew (the API server's store was restored): whatever is told next counts as newer."""
        with self._lock:
            for id_, entry in self._entries[kind].items():
                if namespace in (None, id_[0]):
                    self._set(kind, id_, replace(entry, version=Version(entry.version.uid, 0)))
            self._deleted[kind].clear()

    def differing(
        self, kind: Kind, namespace: str | None, listed: Mapping[Id, Version], at: int
    ) -> dict[Id, Version | None]:
        """Objects of which a list, made at version `at`, knows something newer, or nothing; with the version known here (None: none).

        Right after the list some of them are only on their way here: who still differs in the same version later was missed.
        """
        known = self.versions(kind, namespace)
        behind = {id_ for id_, version in listed.items() if id_ not in known or known[id_].number < version.number}
        with self._lock:
            deleted = self._deleted[kind]
            behind = {id_ for id_ in behind if listed[id_].number > deleted.get(id_, 0)}
        vanished = {id_ for id_ in known.keys() - listed.keys() if not at or known[id_].number <= at}
        return {id_: known.get(id_) for id_ in behind | vanished}

    # Called with the lock held.

    def _is_old(self, kind: Kind, id_: Id, version: Version) -> bool:
        known = self._entries[kind].get(id_)
        last = max(known.version.number if known else 0, self._deleted[kind].get(id_, 0))
        return bool(version.number) and version.number <= last

    def _set(self, kind: Kind, id_: Id, entry: _Entry) -> None:
        known = self._entries[kind].get(id_)
        if known is not None and known.names != entry.names:
            self._drop(kind, id_)
        self._entries[kind][id_] = entry
        for name in entry.names:
            self._index.setdefault((id_[0], name), {}).setdefault(kind, {})[id_[1]] = entry

    def _drop(self, kind: Kind, id_: Id) -> None:
        """With the last object that names a Rendezvous goes all memory of it."""
        for name in self._entries[kind].pop(id_).names:
            key = (id_[0], name)
            kinds = self._index[key]
            del kinds[kind][id_[1]]
            if not kinds[kind]:
                del kinds[kind]
            if not kinds:
                del self._index[key]

    def _remember(self, kind: Kind, id_: Id, number: int) -> None:
        deleted = self._deleted[kind]
        deleted[id_] = number
        deleted.move_to_end(id_)
        while len(deleted) > _DELETIONS:
            deleted.popitem(last=False)


def id_of(obj: ReadOnlyObject) -> Id:
    """Namespace and name."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def version_of(obj: ReadOnlyObject) -> Version:
    """UID and resourceVersion. Numbers of one kind can be compared (KEP-5504)."""
    number = str(obj["metadata"].get("resourceVersion", ""))
    return Version(obj["metadata"].get("uid", ""), int(number) if number.isdecimal() else 0)


def _generation(obj: ReadOnlyObject) -> tuple[Any, ...]:
    meta = obj["metadata"]
    return meta.get("uid"), meta.get("generation"), meta.get("deletionTimestamp")


@lru_cache(maxsize=10_000)
def _name_unreadable(kind: str, name: str, why: str) -> None:
    """Once each, however often it is written; bounded, because others write them."""
    _log.warning("%s %s counts for nothing: %.300s", kind, name, why)


def _read(kind: Kind, obj: ReadOnlyObject, version: Version) -> _Entry:
    try:
        names, value = kind.read(obj)
    except Exception as error:  # noqa: BLE001 - whatever one object holds must not keep the others from being seen
        why = str(error) if isinstance(error, ValueError) else f"it can't be read: {type(error).__name__}"
        _name_unreadable(kind.kind, "/".join(id_of(obj)), why)
        return _Entry(version, frozenset(), None)
    return _Entry(version, names, value)


def _values(found: Mapping[Kind, Iterable[_Entry]], kind: Kind) -> list[Any]:
    return [entry.value for entry in found.get(kind, ())]


def _keys(id_: Id, entry: _Entry) -> set[Key]:
    return {(id_[0], name) for name in entry.names}
