"""Who leads: client-go's election on a Lease, as a function of what was read and of one's own clock (no I/O).

A Lease is over when it has not changed for its duration as this process has seen it: no two clocks are compared. The leader writes
nothing `RENEW_SECONDS` after it began its last renewal. That is seconds before anybody may take the Lease: what it wrote last has left it,
and was carried out, by then.
Source: https://pkg.go.dev/k8s.io/client-go/tools/leaderelection
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdzv.objects import Object, ReadOnlyObject

#: Seconds without a renewal after which a Lease is over; and that others are believed at most, whatever they wrote.
LEASE_SECONDS = 10
LEASE_SECONDS_MAX = 60
#: Seconds after the begin of its last renewal that the leader may write.
RENEW_SECONDS = 7.0
#: Seconds between renewals, and between looks of who stands by.
RETRY_SECONDS = 2.0

API_VERSION = "coordination.k8s.io/v1"
RELEASE_ANNOTATION, VERSION_ANNOTATION = "rdzv.dev/release", "rdzv.dev/version"
_TEXT = 100  # characters of what others wrote that are repeated


@dataclass(frozen=True)
class Candidate:
    """A process that would lead. `identity`: its own, never used twice; `release` (namespace/name) and `version`: for those who wait.

    `pod_uid` of pod `pod`: the Lease goes with it; empty outside of pods.
    """

    identity: str
    release: str
    version: str
    pod: str = ""
    pod_uid: str = ""


@dataclass(frozen=True)
class Sighting:
    """What a Lease is (None: there is none), and since when this process has seen it so (own clock, seconds)."""

    lease: ReadOnlyObject | None
    since: float


@dataclass(frozen=True)
class Verdict:
    """What to do about a Lease: to write oneself into it (or once more), or to wait. `again`: seconds until the next look."""

    write: bool
    reason: str
    again: float = RETRY_SECONDS


def see(known: Sighting | None, lease: ReadOnlyObject | None, now: float) -> Sighting:
    """A Lease was read. Only a change of what its holder writes is a sign of life: not one of its labels."""
    if known is not None and _record(known.lease) == _record(lease):
        return Sighting(lease, known.since)
    return Sighting(lease, now)


def elect(seen: Sighting, me: Candidate, now: float, unfit: str = "") -> Verdict:
    """What to do now; `unfit`: why this process should not lead, empty if it may."""
    return next(verdict for rung in _LADDER if (verdict := rung(seen, me, now, unfit)) is not None)


def _unfit(_seen: Sighting, _me: Candidate, _now: float, unfit: str) -> Verdict | None:
    """A Lease of one's own is left to end: what is on its way yet is not known."""
    return Verdict(False, unfit) if unfit else None


def _mine(seen: Sighting, me: Candidate, _now: float, _unfit: str) -> Verdict | None:
    return Verdict(True, "the Lease was its own") if holder(seen.lease) == me.identity else None


def _free(seen: Sighting, _me: Candidate, _now: float, _unfit: str) -> Verdict | None:
    return None if holder(seen.lease) else Verdict(True, "nobody led")


def _over(seen: Sighting, _me: Candidate, now: float, _unfit: str) -> Verdict | None:
    silent = now - seen.since
    if silent < _duration(seen.lease):
        return None
    return Verdict(True, f"{_told(seen.lease)} has not renewed its Lease for {silent:.1f} s")


def _held(seen: Sighting, _me: Candidate, now: float, _unfit: str) -> Verdict:
    left = seen.since + _duration(seen.lease) - now
    return Verdict(False, f"{_told(seen.lease)} leads", min(RETRY_SECONDS, left))


_LADDER: Sequence[Callable[[Sighting, Candidate, float, str], Verdict | None]] = (_unfit, _mine, _free, _over, _held)


def holder(lease: ReadOnlyObject | None) -> str:
    """Identity of who holds it; empty: nobody."""
    return str(_spec(lease).get("holderIdentity") or "")


def is_of_another_release(lease: ReadOnlyObject | None, me: Candidate) -> bool:
    """Whether somebody holds it who is of another release."""
    return bool(holder(lease)) and _notes(lease).get(RELEASE_ANNOTATION) != me.release


def written(lease: ReadOnlyObject | None, me: Candidate, namespace: str, name: str, now: float) -> Object:
    """The Lease as its new or old holder `me` writes it (`now`: seconds since the epoch), over `lease` and no later one."""
    meta, spec = (lease or {}).get("metadata") or {}, _spec(lease)
    time = datetime.datetime.fromtimestamp(now, datetime.timezone.utc).isoformat(timespec="microseconds")
    time = time.replace("+00:00", "Z")
    renewed = spec.get("holderIdentity") == me.identity
    owner = {"apiVersion": "v1", "kind": "Pod", "name": me.pod, "uid": me.pod_uid}
    return {
        "apiVersion": API_VERSION,
        "kind": "Lease",
        "metadata": {
            **{key: meta[key] for key in ("labels", "resourceVersion") if key in meta},
            "name": name,
            "namespace": namespace,
            "annotations": {RELEASE_ANNOTATION: me.release, VERSION_ANNOTATION: me.version},
            "ownerReferences": [owner] if me.pod_uid else [],
        },
        "spec": {
            "holderIdentity": me.identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": spec["acquireTime"] if renewed and spec.get("acquireTime") else time,
            "renewTime": time,
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (not renewed and lease is not None),
        },
    }


def _spec(lease: ReadOnlyObject | None) -> Mapping[str, Any]:
    return (lease or {}).get("spec") or {}


def _record(lease: ReadOnlyObject | None) -> tuple[Any, Mapping[str, Any]]:
    return ((lease or {}).get("metadata") or {}).get("uid"), _spec(lease)


def _duration(lease: ReadOnlyObject | None) -> float:
    return min(float(_spec(lease).get("leaseDurationSeconds") or LEASE_SECONDS), LEASE_SECONDS_MAX)


def _told(lease: ReadOnlyObject | None) -> str:
    """The holder in words."""
    notes = _notes(lease)
    release, version = (str(notes.get(name, "unknown"))[:_TEXT] for name in (RELEASE_ANNOTATION, VERSION_ANNOTATION))
    return f"{holder(lease)[:_TEXT]!r} (release {release}, version {version})"


def _notes(lease: ReadOnlyObject | None) -> Mapping[str, Any]:
    return ((lease or {}).get("metadata") or {}).get("annotations") or {}
