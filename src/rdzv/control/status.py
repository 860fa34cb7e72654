"""The status of a `Rendezvous`, computed last and written once per pass (no I/O here)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from rdzv.backends import Condition, World
from rdzv.control.plan import Plan
from rdzv.observed import Observed, Pod, shown
from rdzv.spec import Rendezvous

#: How many absent pods the status names; the rest are counted in its message.
MAX_MISSING = 20

NOT_JOINED = "NotJoined: its container runs, and its agent has not asked to join"


def compute_status(
    rendezvous: Rendezvous,
    observed: Observed,
    world: World,
    plan: Plan,
    previous: Mapping[str, Any],
    now: float,
    error: str = "",
) -> dict[str, Any]:
    """The whole status.

    Args:
        rendezvous: the object.
        observed: what the pass read.
        world: what the backend makes of it.
        plan: what the pass decided.
        previous: the status that the object has.
        now: seconds since the epoch.
        error: what kept the pass from writing its plan ("" if nothing did).
    """
    nodes = node_counts(rendezvous, observed, world)
    conditions = [
        *_provisioned_and_ready(rendezvous, plan, nodes, error),
        world.formed,
        _degraded(rendezvous, observed, world),
    ]
    status: dict[str, Any] = {
        **world.status,
        "observedGeneration": rendezvous.generation,
        "runID": rendezvous.uid,
        "nodes": nodes,
        "conditions": _merge_conditions(
            conditions, previous.get("conditions") or [], rendezvous.generation, rfc3339(now)
        ),
    }
    if plan.provision is not None:
        status["endpoint"] = plan.provision.endpoint
        status["binding"] = {"name": rendezvous.child_name}
    return status


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as Kubernetes writes times."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def node_counts(rendezvous: Rendezvous, observed: Observed, world: World) -> dict[str, Any]:
    """Who of the expected nodes is there: `{expected, joined, summary, missing}`."""
    pods, candidates = observed.pods, observed.candidates
    expected, there = observed.expected(rendezvous.nodes), observed.joined(world.joined)
    joined, joined_names = len(there), {pod.name for pod in there}
    missing = [
        {"pod": pod.name, "reason": pod.reason or NOT_JOINED}
        for pod in _by_slot(candidates)
        if pod.name not in joined_names
    ]
    missing += [
        {"pod": pod.name, "reason": "Terminating"}
        for pod in _by_slot(pods)
        if pod.terminating and pod.phase != "Succeeded"
    ]
    slots = {pod.slot for pod in candidates}
    if candidates and None not in slots:
        absent = [slot for slot in range(expected) if slot not in slots][: max(0, expected - len(candidates))]
        missing += [{"pod": f"index {slot}", "reason": "NotCreated: no pod with this index exists"} for slot in absent]
    return {
        "expected": expected,
        "joined": joined,
        "summary": f"{joined}/{expected}",
        "missing": missing[:MAX_MISSING],
    }


def _by_slot(pods: Sequence[Pod]) -> list[Pod]:
    return sorted(pods, key=lambda pod: (pod.slot is None, pod.slot or 0, pod.name))


def _provisioned_and_ready(rendezvous: Rendezvous, plan: Plan, nodes: Mapping[str, Any], error: str) -> list[Condition]:
    if plan.refused is not None:
        return [
            _no("Provisioned", plan.refused.reason, str(plan.refused)),
            _no("Ready", plan.refused.reason, str(plan.refused)),
        ]
    if error:
        return [_no("Provisioned", "APIError", error), _no("Ready", "APIError", error)]
    expected, joined = nodes["expected"], nodes["joined"]
    if joined < expected:
        ready = Condition("Ready", "True", "NodesMissing", f"{joined} of {expected} expected nodes are there")
    else:
        ready = Condition("Ready", "True", "NodesPresent", f"all {expected} expected nodes are there")
    text = f"pods find backend {rendezvous.backend} by ConfigMap {rendezvous.child_name}"
    return [Condition("Provisioned", "True", "Provisioned", text), ready]


def _degraded(rendezvous: Rendezvous, observed: Observed, world: World) -> Condition:
    """The first thing that is wrong with the pods, most harmful first."""
    live = [pod for pod in observed.pods if pod.live]
    uninjected = [pod.name for pod in live if not pod.injected]
    if uninjected:
        return _yes(
            "NotInjected",
            f"{shown(uninjected)} got no rendezvous environment: created before the operator was installed, or labelled later. "
            "Delete them so that their controller makes them again",
        )
    slots: dict[int, list[str]] = {}
    for pod in live:
        if pod.slot is not None:
            slots.setdefault(pod.slot, []).append(pod.name)
    for slot, names in sorted(slots.items()):
        if len(names) > 1:
            return _yes(
                "DuplicateIndex", f"{shown(names)} all have index {slot}: give each workload its own Rendezvous"
            )
    for reason, text in world.problems:
        return _yes(reason, text)
    if len(live) > rendezvous.nodes.max:
        return _yes(
            "TooManyPods",
            f"{len(live)} pods for a world of at most {rendezvous.nodes.max}: raise spec.nodes.max, or start fewer",
        )
    hopeless = [pod for pod in live if pod.hopeless]
    if hopeless:
        return _yes(
            "PodsStuck",
            f"{hopeless[0].name}: {hopeless[0].reason}" + (f" (and {len(hopeless) - 1} more)" if hopeless[1:] else ""),
        )
    return Condition("Degraded", "False", "AsExpected", "")


def _no(type_: str, reason: str, message: str) -> Condition:
    return Condition(type_, "False", reason, message)


def _yes(reason: str, message: str) -> Condition:
    return Condition("Degraded", "True", reason, message)


def _merge_conditions(
    conditions: Sequence[Condition], previous: Sequence[Mapping[str, Any]], generation: int, now: str
) -> list[dict[str, Any]]:
    """Keeps `lastTransitionTime` where the status of a condition did not change (API conventions)."""
    before = {condition["type"]: condition for condition in previous}
    merged = []
    for condition in conditions:
        old = before.get(condition.type)
        unchanged = old is not None and old["status"] == condition.status
        merged.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if old is not None and unchanged else now,
            }
        )
    return merged
