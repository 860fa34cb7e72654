"""The Events that a pass reports (pure). Each has a name made of what it says, so that repeating it creates nothing new."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdzv import __version__
from rdzv.backends import FAILED, SUCCEEDED
from rdzv.control.children import APPLIED_ANNOTATION
from rdzv.control.plan import HELD_BACK, NAME_TAKEN, REQUEST_FAILED, Failure, Plan
from rdzv.control.problems import REFORMING
from rdzv.observed import Pod
from rdzv.pod_reasons import seconds
from rdzv.spec import API_VERSION, KIND, LABEL, MANAGER, Rendezvous

#: Seconds for which a transition is told.
RECENT = 600.0
#: Reasons of condition Degraded without an Event: `events_for` tells of some, the others pass by themselves or came by waiting.
_TOLD_OTHERWISE = frozenset({NAME_TAKEN, REQUEST_FAILED, HELD_BACK, "NotJoined", "TooFewPods"})

#: Pods of a Rendezvous that get an Event of their own for the same reason; one more Event is for all others.
OWN_EVENTS = 3


@dataclass(frozen=True)
class EventToPost:
    """Something to tell about one object. `type`: Normal or Warning; `reason`: a CamelCase word.

    `key`: what makes it another Event than one of the same reason, if that is not the message.
    """

    api_version: str
    kind: str
    name: str
    uid: str
    namespace: str
    type: str
    reason: str
    message: str
    key: str = ""

    @property
    def digest(self) -> str:
        """What it says, and of what: two Events with the same one are the same."""
        said = (self.namespace, self.kind, self.name, self.uid, self.reason, self.key or self.message)
        return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]

    def to_object(self, now: str) -> dict[str, Any]:
        """The core/v1 Event; `now` is RFC 3339."""
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{self.name[:200]}.{self.digest}", "namespace": self.namespace},
            "involvedObject": {
                "apiVersion": self.api_version,
                "kind": self.kind,
                "name": self.name,
                "namespace": self.namespace,
                "uid": self.uid,
            },
            "type": self.type,
            "reason": self.reason,
            "message": self.message[:1024],
            "source": {"component": MANAGER},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def events_without_rendezvous(namespace: str, name: str, pods: Sequence[Pod], meant: str = "") -> list[EventToPost]:
    """For pods that wait for a Rendezvous which does not exist (or no longer does). `meant`: one whose name is nearly that."""
    reason, waiting = "RendezvousNotFound", [pod for pod in pods if pod.live and not pod.started]
    absent = f"Rendezvous {name}, which does not exist in namespace {namespace}"
    remedy = f"create it there (kubectl get rdzv -A shows where there is one), or correct the pods' label {LABEL}"
    remedy += f": did you mean {meant}?" if meant else ""
    first, number = _first_and_number(waiting)
    events = [_on_pod(namespace, pod, reason, f"this pod waits for {absent}: {remedy}") for pod in first]
    if number:
        text = f"more than {number} pods wait for {absent}: {remedy}"
        # There is no object to tell it of, hence no UID.
        events.append(EventToPost(API_VERSION, KIND, name, "", namespace, "Warning", reason, text))
    return events


def events_for(
    rendezvous: Rendezvous,
    plan: Plan,
    failures: Sequence[Failure],
    pods: Sequence[Pod],
    shadowed: Mapping[str, Sequence[str]],
) -> list[EventToPost]:
    """For a Rendezvous that exists: what is refused, whose names are taken, who hosts the store, what pods override.

    Told from what is, not from what a pass did, so that none is lost with a process that ends in between.

    Args:
        rendezvous: the object.
        plan: what the pass decided.
        failures: what it could not write.
        pods: its pods.
        shadowed: for each pod's name, the settings that the pod's own ones override, as readable text.
    """
    events = []
    if plan.refused is not None:
        events.append(_on_rendezvous(rendezvous, "Warning", plan.refused.reason, str(plan.refused)))
    events += [
        _on_rendezvous(rendezvous, "Warning", failure.reason, failure.message)
        for failure in failures
        if failure.reason == NAME_TAKEN
    ]
    if plan.host is not None and plan.leads_there and plan.provision is not None:
        text = f"pod {plan.host.name} hosts the store behind {plan.provision.endpoint}"
        events.append(_on_rendezvous(rendezvous, "Normal", "HostChosen", text))
    reason, of = "SettingsShadowed", f"win over those of Rendezvous {rendezvous.name}"
    first, number = _first_and_number([pod for pod in pods if pod.live and shadowed.get(pod.name)])
    for pod in first:
        text = f"settings of this pod's own {of}: {', '.join(shadowed[pod.name])}"
        events.append(_on_pod(rendezvous.namespace, pod, reason, text))
    if number:
        text = f"settings of their own {of} in more than {number} pods, {first[0].name} among them: {', '.join(shadowed[first[0].name])}"
        events.append(_on_rendezvous(rendezvous, "Warning", reason, text))
    return events


def events_of_status(rendezvous: Rendezvous, status: Mapping[str, Any], now: float) -> list[EventToPost]:
    """The transitions that matter: a world is up, something needs attention, the job has ended.

    Told from the status, one for each time that it became so, and only for a while: a new process does not tell old stories.
    """
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    formed, degraded = conditions["Formed"], conditions["Degraded"]
    told = []
    if degraded["status"] == "True" and degraded["reason"] not in _TOLD_OTHERWISE:
        told.append(("Warning", degraded["reason"], degraded["message"], degraded))
    if formed["status"] == "True" and degraded["reason"] != REFORMING:
        told.append(("Normal", "Formed", formed["message"], formed))
    if status["summary"] in (SUCCEEDED, FAILED):
        type_ = "Normal" if status["summary"] == SUCCEEDED else "Warning"
        told.append((type_, status["summary"], f"the job has ended: {formed['message']}", formed))
    return [
        _on_rendezvous(rendezvous, type_, reason, message, key=condition["lastTransitionTime"])
        for type_, reason, message, condition in told
        if now - (seconds(condition["lastTransitionTime"]) or 0.0) < RECENT
    ]


def gave_way(rendezvous: Rendezvous, newer: str) -> EventToPost:
    """For a Rendezvous that a newer operator serves as well; its status is then that one's to write."""
    text = (
        f"operator {newer} serves this Rendezvous too, so operator {__version__} leaves it alone: uninstall the older one. If there is no "
        f"other one, somebody else writes annotation {APPLIED_ANNOTATION}"
    )
    return _on_rendezvous(rendezvous, "Warning", "NewerOperator", text)


def _first_and_number(pods: Sequence[Pod]) -> tuple[Sequence[Pod], int]:
    """Which pods get an Event each, and how many there are more than, if there are others (else 0).

    The number is a round one, so that every pod that comes does not make another Event.
    """
    first = sorted(pods, key=lambda pod: pod.name)[:OWN_EVENTS]
    if len(pods) <= len(first):
        return first, 0
    return first, max(number for number in (OWN_EVENTS, 10, 100, 1000) if number < len(pods))


def _on_pod(namespace: str, pod: Pod, reason: str, message: str) -> EventToPost:
    return EventToPost("v1", "Pod", pod.name, pod.uid, namespace, "Warning", reason, message)


def _on_rendezvous(rendezvous: Rendezvous, type_: str, reason: str, message: str, *, key: str = "") -> EventToPost:
    return EventToPost(
        API_VERSION, KIND, rendezvous.name, rendezvous.uid, rendezvous.namespace, type_, reason, message, key
    )
