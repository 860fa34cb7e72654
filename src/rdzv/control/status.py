"""The status of a `Rendezvous`, computed last and written once per pass (no I/O here)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from rdzv.backends import Condition, World
from rdzv.control import phase, problems
from rdzv.control.missing import node_counts
from rdzv.control.nearby import Found
from rdzv.control.phase import Life
from rdzv.control.plan import NAME_TAKEN, Failure, Plan
from rdzv.control.problems import REFORMING, Seen
from rdzv.observed import Observed
from rdzv.pod_reasons import seconds
from rdzv.spec import LABEL, Rendezvous

#: Seconds between looks at a name that is taken, at first and at last.
LOOK_FIRST, LOOK_LAST = 2.0, 30.0


@dataclass(frozen=True)
class Beside:
    """What a pass knows beside the objects.

    `found`: what it asked; `overridden`: for each pod's name, what the pod's own settings keep from taking effect; `apart`: for each
    pod's name, the one by which it meets elsewhere than the others; `rounds_lately`: how many rounds formed within a minute; `short_for`:
    seconds for which there have been fewer pods than nodes (None: there are enough).
    """

    found: Found = field(default_factory=Found)
    overridden: Mapping[str, Sequence[str]] = field(default_factory=dict)
    apart: Mapping[str, str] = field(default_factory=dict)
    rounds_lately: int = 0
    short_for: float | None = None


NOTHING_BESIDE = Beside()


@dataclass(frozen=True)
class Computed:
    """`status`: the whole of it. `again`: seconds after which time alone may change it (None: it does not)."""

    status: dict[str, Any]
    again: float | None


def compute_status(
    rendezvous: Rendezvous,
    observed: Observed,
    world: World,
    plan: Plan,
    previous: Mapping[str, Any],
    now: float,
    failures: Sequence[Failure] = (),
    beside: Beside = NOTHING_BESIDE,
) -> Computed:
    """The whole status.

    Args:
        rendezvous: the object.
        observed: what the pass read, told apart from what an earlier Rendezvous of the name left.
        world: what the backend makes of it.
        plan: what the pass decided.
        previous: the status that the object has.
        now: seconds since the epoch.
        failures: what of it could not be written.
        beside: what the pass knows beside.
    """
    nodes = node_counts(rendezvous, observed, world, beside.found, beside.overridden, now)
    seen = Seen(
        rendezvous, observed, world, plan, failures, beside.found, beside.rounds_lately, beside.short_for,
        reforming=_degraded_by(previous) == REFORMING, now=now, apart=beside.apart,
    )  # fmt: skip
    life = _life(seen, nodes, previous)
    conditions = [_provisioned(seen), phase.ready(life), phase.formed(life), phase.degraded(life)]
    status: dict[str, Any] = {
        **world.status,
        "observedGeneration": rendezvous.generation,
        "runID": rendezvous.uid,
        "selector": f"{LABEL}={rendezvous.name}",
        "summary": phase.summary(life),
        "nodes": nodes,
        "conditions": _merge_conditions(conditions, _by_type(previous), rendezvous.generation, rfc3339(now)),
    }
    if plan.provision is not None:
        status["endpoint"] = plan.provision.endpoint
        status["binding"] = {"name": rendezvous.child_name}
    return Computed(status, problems.again(seen))


def _life(seen: Seen, nodes: Mapping[str, Any], previous: Mapping[str, Any]) -> Life:
    candidates, found = seen.observed.candidates, seen.found
    by_whom = "" if seen.live else found.suspended
    return Life(
        nodes=seen.rendezvous.nodes,
        expected=nodes["expected"],
        joined=nodes["joined"],
        pods=len(candidates),
        formed=seen.world.formed,
        outcome=phase.outcome(seen.observed, seen.rendezvous.nodes, seen.world, phase.summary_of(previous), found.jobs),
        problems=problems.problems(seen),
        suspended="pods wait for their scheduling gates" if seen.observed.gated else by_whom,
        had_pods=phase.had_pods(previous),
    )


def rfc3339(moment: float) -> str:
    """Seconds since the epoch as Kubernetes writes times."""
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def look_again(previous: Mapping[str, Any], now: float) -> float:
    """Seconds until the next look at a name that is taken, the longer the longer it has been: a few seconds after it was found so.

    Args:
        previous: the status that the object has.
        now: seconds since the epoch.
    """
    provisioned = _by_type(previous).get("Provisioned", {})
    if provisioned.get("reason") != NAME_TAKEN:
        return LOOK_FIRST
    return min(max((now - (seconds(provisioned["lastTransitionTime"]) or now)) / 10, LOOK_FIRST), LOOK_LAST)


def _by_type(status: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return {condition["type"]: condition for condition in status.get("conditions") or []}


def _degraded_by(previous: Mapping[str, Any]) -> str:
    degraded = _by_type(previous).get("Degraded", {})
    return str(degraded["reason"]) if degraded.get("status") == "True" else ""


def _provisioned(seen: Seen) -> Condition:
    plan, rendezvous = seen.plan, seen.rendezvous
    if plan.refused is not None:
        return Condition("Provisioned", "False", plan.refused.reason, str(plan.refused))
    failed = next(iter(problems.not_written(seen)), None)
    if failed is not None:
        return Condition("Provisioned", "False", failed.reason, failed.message)
    if plan.held and plan.provision is not None:
        text = f"new pods wait until most pods of StatefulSet {plan.provision.server} are ready"
        return Condition("Provisioned", "False", "ServerNotReady", text)
    text = f"pods find backend {rendezvous.backend} by ConfigMap {rendezvous.child_name}"
    text += f"; not used: {plan.notice}" if plan.notice else ""
    return Condition("Provisioned", "True", "Provisioned", text)


def _merge_conditions(
    conditions: Sequence[Condition], before: Mapping[str, Mapping[str, Any]], generation: int, now: str
) -> list[dict[str, Any]]:
    """Keeps `lastTransitionTime` where the status of a condition did not change (API conventions)."""
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
