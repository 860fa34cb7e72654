"""The status of a `Rendezvous`, computed last and written once per pass (no I/O here)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from rdzv.backends import Condition, World
from rdzv.control.plan import NAME_TAKEN, Failure, Plan
from rdzv.observed import Observed, Pod, shown
from rdzv.spec import Nodes, Rendezvous

#: How many absent pods the status names; the rest are counted in its message.
MAX_MISSING = 20

#: How many failures a condition names, and characters of each.
MAX_FAILURES, MAX_MESSAGE = 8, 500

#: Seconds between looks at a name that is taken, at first and at last.
LOOK_FIRST, LOOK_LAST = 2.0, 30.0

NOT_JOINED = "NotJoined: its container runs, and its agent has not asked to join"


def compute_status(
    rendezvous: Rendezvous,
    observed: Observed,
    world: World,
    plan: Plan,
    previous: Mapping[str, Any],
    now: float,
    failures: Sequence[Failure] = (),
) -> dict[str, Any]:
    """The whole status.

    Args:
        rendezvous: the object.
        observed: what the pass read.
        world: what the backend makes of it.
        plan: what the pass decided.
        previous: the status that the object has.
        now: seconds since the epoch.
        failures: what of it could not be written.
    """
    nodes = node_counts(rendezvous, observed, world)
    conditions = [
        *_provisioned_and_ready(rendezvous, plan, nodes, failures, world.unready),
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


def look_again(previous: Mapping[str, Any], now: float) -> float:
    """Seconds until the next look at a name that is taken, the longer the longer it has been: a few seconds after it was found so.

    Args:
        previous: the status that the object has.
        now: seconds since the epoch.
    """
    conditions = {condition["type"]: condition for condition in previous.get("conditions") or []}
    provisioned = conditions.get("Provisioned", {})
    if provisioned.get("reason") != NAME_TAKEN:
        return LOOK_FIRST
    return min(max((now - _seconds(provisioned["lastTransitionTime"])) / 10, LOOK_FIRST), LOOK_LAST)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text[:19]).replace(tzinfo=timezone.utc).timestamp()


def _provisioned_and_ready(
    rendezvous: Rendezvous,
    plan: Plan,
    nodes: Mapping[str, Any],
    failures: Sequence[Failure],
    unready: tuple[str, str] | None,
) -> list[Condition]:
    if plan.refused is not None:
        return [
            _no("Provisioned", plan.refused.reason, str(plan.refused)),
            _no("Ready", plan.refused.reason, str(plan.refused)),
        ]
    if failures:
        # Whose name is taken needs somebody's hand; a request that failed is tried again.
        first = next((failure for failure in failures if failure.reason == NAME_TAKEN), failures[0])
        text = "; ".join(failure.message[:MAX_MESSAGE] for failure in failures[:MAX_FAILURES])
        return [_no("Provisioned", first.reason, text), _no("Ready", first.reason, text)]
    if plan.held and unready is not None:
        reason, text = unready
        return [_no("Provisioned", reason, f"new pods wait: {text}"), _no("Ready", reason, text)]
    expected, joined = nodes["expected"], nodes["joined"]
    if unready is not None:
        ready = _no("Ready", *unready)
    elif joined < expected:
        ready = Condition("Ready", "True", "NodesMissing", f"{joined} of {expected} expected nodes are there")
    else:
        ready = Condition("Ready", "True", "NodesPresent", f"all {expected} expected nodes are there")
    text = f"pods find backend {rendezvous.backend} by ConfigMap {rendezvous.child_name}"
    text += f"; not used: {plan.notice}" if plan.notice else ""
    return [Condition("Provisioned", "True", "Provisioned", text), ready]


def _degraded(rendezvous: Rendezvous, observed: Observed, world: World) -> Condition:
    """The first thing that is wrong with the pods, most harmful first."""
    live = [pod for pod in observed.pods if pod.live]
    return (
        _not_injected(live)
        or _unusable_index(live, world.indexes)
        or _duplicate_index(live)
        or next((_yes(reason, text) for reason, text in world.problems), None)
        or _too_many(live, rendezvous.nodes)
        or _stuck(live)
        or Condition("Degraded", "False", "AsExpected", "")
    )


def _not_injected(live: Sequence[Pod]) -> Condition | None:
    names = [pod.name for pod in live if not pod.injected]
    if not names:
        return None
    return _yes(
        "NotInjected",
        f"{shown(names)} got no rendezvous environment: created before the operator was installed, or labelled later. "
        "Delete them so that their controller makes them again",
    )


def _unusable_index(live: Sequence[Pod], indexes: int) -> Condition | None:
    found = [(pod.name, pod.unusable_index) for pod in live if pod.unusable_index is not None]
    found += [(pod.name, str(pod.slot)) for pod in live if pod.slot is not None and pod.slot >= indexes]
    if not found:
        return None
    name, index = min(found)
    more = f" (and {len(found) - 1} more)" if found[1:] else ""
    return _yes("UnusableIndex", f"pod {name} has index {index[:63]!r}: write 0 to {indexes - 1}{more}")


def _duplicate_index(live: Sequence[Pod]) -> Condition | None:
    slots: dict[int, list[str]] = {}
    for pod in live:
        if pod.slot is not None:
            slots.setdefault(pod.slot, []).append(pod.name)
    names, slot = next(((names, slot) for slot, names in sorted(slots.items()) if len(names) > 1), ([], 0))
    if not names:
        return None
    return _yes("DuplicateIndex", f"{shown(names)} all have index {slot}: give each workload its own Rendezvous")


def _too_many(live: Sequence[Pod], nodes: Nodes) -> Condition | None:
    if len(live) <= nodes.max:
        return None
    return _yes(
        "TooManyPods",
        f"{len(live)} pods for a world of at most {nodes.max}: raise spec.nodes.max, or start fewer",
    )


def _stuck(live: Sequence[Pod]) -> Condition | None:
    hopeless = [pod for pod in live if pod.hopeless]
    if not hopeless:
        return None
    more = f" (and {len(hopeless) - 1} more)" if hopeless[1:] else ""
    return _yes("PodsStuck", f"{hopeless[0].name}: {hopeless[0].reason}{more}")


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
