"""What is near a Rendezvous and not its own (pure).

Events that say why a pod does not start or is not made, who holds pods back, and pods and workloads that nearly use it.
Everything here is what tenants write. It is bounded where it is read, and named by kind and name.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rdzv.backends import FAILED, SUCCEEDED
from rdzv.control.children import MANAGED_BY_LABEL
from rdzv.objects import ReadOnlyObject
from rdzv.pod_reasons import said, seconds
from rdzv.spec import GROUP, LABEL, MANAGER

#: How alike a label has to be to ours, and a value to a name, for a slip of the finger.
_ALIKE = 0.75
#: Labels and annotations of one object that are looked at, and characters of each.
_MOST_LABELS, _MOST_CHARACTERS = 64, 128
#: Near misses that are told of one Rendezvous.
MAX_NEAR = 3

#: Labels of group rdzv.dev that mean something else.
_OTHER_LABELS = frozenset({f"{GROUP}/slot", f"{GROUP}/group", f"{GROUP}/host"})
#: Reasons of Events of a workload that could not make a pod.
_NOT_CREATED = frozenset({"FailedCreate"})
#: What the conditions of a Job that has ended, or can only end so, say of it.
_ENDS = {"Complete": SUCCEEDED, "SuccessCriteriaMet": SUCCEEDED, "Failed": FAILED, "FailureTarget": FAILED}


@dataclass(frozen=True)
class Warned:
    """The last Event of type Warning about one object. `at`: seconds since the epoch. `kind`, `name`: of that object."""

    kind: str
    name: str
    reason: str
    text: str
    at: float


@dataclass(frozen=True)
class Workload:
    """Something that makes pods: its own `labels`, the labels and annotations of its pods.

    `suspended`: it is to make none. `ended`: Succeeded or Failed, if a Job says so of itself; `ended_at`: since when, in seconds since
    the epoch.
    """

    kind: str
    name: str
    uid: str
    labels: Mapping[str, str]
    template: Mapping[str, str]
    annotations: Mapping[str, str]
    suspended: bool = False
    ended: str = ""
    ended_at: float = 0.0

    @property
    def title(self) -> str:
        """Kind and name."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Found:
    """What was asked beside what memory has.

    Attributes:
        warnings: by UID of a pod or of a workload.
        suspended: who holds the pods of this Rendezvous back; empty if nobody is known to.
        not_created: why no pod is made, as readable text.
        near: who nearly uses this Rendezvous, and what to write instead.
        jobs: by UID of a Job of this Rendezvous, how that has ended: Succeeded, Failed, "" (it goes on), None (it can't be read).
    """

    warnings: Mapping[str, Warned] = field(default_factory=dict)
    suspended: str = ""
    not_created: str = ""
    near: Sequence[str] = ()
    jobs: Mapping[str, str | None] = field(default_factory=dict)


def warnings_of(events: Iterable[ReadOnlyObject]) -> dict[str, Warned]:
    """The last warning about each object, by its UID. The operator's own say what it knew then, and may not hold any more."""
    found: dict[str, Warned] = {}
    for event in events:
        about = event.get("involvedObject") or {}
        uid, reason = str(about.get("uid") or ""), str(event.get("reason") or "Warning")
        own = (event.get("source") or {}).get("component") == MANAGER
        if not uid or own or event.get("type") != "Warning":
            continue
        warned = Warned(
            str(about.get("kind", ""))[:63],
            str(about.get("name", ""))[:253],
            reason[:64],
            said(reason, str(event.get("message") or "")),
            _last(event),
        )
        if uid not in found or found[uid].at <= warned.at:
            found[uid] = warned
    return found


def _last(event: ReadOnlyObject) -> float:
    times = (
        (event.get("series") or {}).get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    )
    return max((at for at in map(seconds, times) if at is not None), default=0.0)


def workload_of(obj: ReadOnlyObject, kind: str) -> Workload:
    """Reads a Job, StatefulSet or Deployment."""
    spec = obj.get("spec") or {}
    template = (spec.get("template") or {}).get("metadata") or {}
    meta = obj["metadata"]
    ended, ended_at = _ended(obj) if kind == "Job" else ("", 0.0)
    return Workload(
        kind,
        meta["name"],
        meta.get("uid", ""),
        _bounded(meta.get("labels")),
        _bounded(template.get("labels")),
        _bounded(template.get("annotations")),
        bool(spec.get("suspend")) and not ended,
        ended,
        ended_at,
    )


def _ended(job: ReadOnlyObject) -> tuple[str, float]:
    """What a Job's conditions say of its end, also while it still takes pods away, and since when."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["status"] == "True" and condition["type"] in _ENDS:
            return _ENDS[condition["type"]], seconds(condition.get("lastTransitionTime")) or 0.0
    return "", 0.0


def _bounded(labels: Any) -> Mapping[str, str]:
    items = list((labels or {}).items())[:_MOST_LABELS]
    return {str(key)[:_MOST_CHARACTERS]: str(value)[:_MOST_CHARACTERS] for key, value in items}


def look_around(
    name: str,
    names: Collection[str],
    pods: Iterable[ReadOnlyObject],
    workloads: Sequence[Workload],
    warnings: Mapping[str, Warned],
    since: float = 0.0,
) -> Found:
    """What explains that Rendezvous `name` has no pod.

    Args:
        name: of the Rendezvous.
        names: of all Rendezvous of the namespace.
        pods: metadata of the pods of the namespace.
        workloads: those of the namespace.
        warnings: about objects of the namespace.
        since: when the Rendezvous was made, in seconds since the epoch. Jobs that ended before are not its own.
    """
    # A server that the operator runs for a Rendezvous bears its name.
    workloads = [workload for workload in workloads if workload.labels.get(MANAGED_BY_LABEL) != MANAGER]
    own = [workload for workload in workloads if workload.template.get(LABEL) == name]
    near = [text for workload in workloads if (text := _near_workload(workload, name, names))]
    near += [text for pod in pods if (text := _near_pod(pod["metadata"], name, names))]
    return Found(
        warnings=warnings,
        suspended=next((workload.title for workload in own if workload.suspended), ""),
        not_created=next((text for workload in own if (text := _not_created(workload, warnings.values()))), ""),
        near=list(dict.fromkeys(near))[:MAX_NEAR],
        jobs={job.uid: job.ended for job in own if job.kind == "Job" and not (job.ended and job.ended_at < since)},
    )


def _not_created(workload: Workload, warnings: Iterable[Warned]) -> str:
    """A Deployment's pods are made by a ReplicaSet, which is named after it."""
    for warned in sorted(warnings, key=lambda each: -each.at):
        by_itself = warned.kind == workload.kind and warned.name == workload.name
        by_its_set = (
            warned.kind == "ReplicaSet"
            and workload.kind == "Deployment"
            and warned.name.rpartition("-")[0] == workload.name
        )
        if warned.reason in _NOT_CREATED and (by_itself or by_its_set):
            return f"{warned.kind} {warned.name}: {warned.text}"
    return ""


def creation_failure(owners: Collection[str], warnings: Mapping[str, Warned], since: float) -> str:
    """Why the workloads with these UIDs could not make a pod, if they tried since then (seconds since the epoch)."""
    tried = [
        warnings[uid]
        for uid in owners
        if uid in warnings and warnings[uid].reason in _NOT_CREATED and warnings[uid].at >= since
    ]
    last = max(tried, key=lambda warned: warned.at, default=None)
    return f"{last.kind} {last.name}: {last.text}" if last is not None else ""


# Near misses.


def _near_workload(workload: Workload, name: str, names: Collection[str]) -> str:
    if workload.template.get(LABEL) == name:
        return ""
    where = f"{workload.title}: its pod template"
    if workload.labels.get(LABEL) == name and LABEL not in workload.template:
        return (
            f"{workload.title} has the label {LABEL}: {name} on itself, where it does nothing: write it into "
            "spec.template.metadata.labels"
        )
    if workload.annotations.get(LABEL) == name:
        return f"{where} has {LABEL}: {name} as an annotation: write it as a label"
    return _slip(where, workload.template, name, names)


def _near_pod(meta: ReadOnlyObject, name: str, names: Collection[str]) -> str:
    """Pods that some workload made are told of by that."""
    if any(owner.get("kind") in {"Job", "StatefulSet", "ReplicaSet"} for owner in meta.get("ownerReferences") or []):
        return ""
    labels, where = _bounded(meta.get("labels")), f"pod {meta['name']}"
    if LABEL not in labels and _bounded(meta.get("annotations")).get(LABEL) == name:
        return f"{where} has {LABEL}: {name} as an annotation: write it as a label"
    return _slip(where, labels, name, names)


def _slip(where: str, labels: Mapping[str, str], name: str, names: Collection[str]) -> str:
    """A label whose key is nearly ours, or whose value is nearly the name."""
    value = labels.get(LABEL)
    if value is not None:
        alike = value not in names and is_alike(value, name)
        return (
            f"{where} has the label {LABEL}: {value}, and there is no such Rendezvous: did you mean {name}?"
            if alike
            else ""
        )
    for key, value in labels.items():
        if value == name and is_slip_of_label(key):
            return f"{where} has the label {key}: {name}: write {LABEL}"
    return ""


def is_slip_of_label(key: str) -> bool:
    """Whether somebody who wrote this key may have meant our label."""
    group, _, word = key.rpartition("/")
    if key in _OTHER_LABELS:
        return False
    return word in {"rendezvous", "rdzv"} or group == GROUP or is_alike(key, LABEL)


def is_alike(text: str, name: str) -> bool:
    """Whether somebody may have meant `name`: it differs in case, in a letter or two, or in what follows."""
    one, other = text.lower(), name.lower()
    begins = len(min(one, other, key=len)) >= 3 and (one.startswith(other) or other.startswith(one))
    return one == other or begins or difflib.SequenceMatcher(None, one, other).ratio() >= _ALIKE


def meant(text: str, names: Iterable[str]) -> str:
    """The one of `names` that `text` is nearest to, if it is near; else empty."""
    found = difflib.get_close_matches(text.lower()[:_MOST_CHARACTERS], sorted(names)[:1000], n=1, cutoff=_ALIKE)
    return found[0] if found else ""
