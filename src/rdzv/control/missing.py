"""Who of the expected nodes is not there, and why: `status.nodes` (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rdzv.backends import World
from rdzv.control.nearby import Found
from rdzv.observed import Observed, Pod
from rdzv.pairs import Pair
from rdzv.pod_reasons import crash_loop, said, shortened
from rdzv.spec import Rendezvous

#: How many absent pods the status names; the rest are counted in its message.
MAX_MISSING = 20

SPARE = "Spare: the world has as many nodes as it may have, and this pod waits for a place"
NOT_JOINED = "NotJoined: its container runs, and its agent has not asked to join"


def node_counts(
    rendezvous: Rendezvous,
    observed: Observed,
    world: World,
    found: Found,
    overridden: Mapping[str, Sequence[str]],
    now: float,
) -> dict[str, Any]:
    """Who of the expected nodes is there: `{expected, joined, summary, missing}`.

    Args:
        rendezvous: the object.
        observed: its pods.
        world: what its backend makes of them.
        found: what was asked beside.
        overridden: for each pod's name, what its own settings keep from taking effect.
        now: seconds since the epoch.
    """
    pods, candidates = observed.pods, observed.candidates
    expected, there = observed.expected(rendezvous.nodes), observed.joined(world.joined, rendezvous.nodes)
    joined, joined_names = len(there), {pod.name for pod in there}
    # Where nobody sees who has joined, those beyond the maximum are taken for the ones that have not.
    spare = world.joined is None and joined == rendezvous.nodes.max
    absent = [pod for pod in by_slot(candidates) if pod.live and pod.name not in joined_names]
    leaving = [pod for pod in by_slot(pods) if pod.terminating and pod.phase != "Succeeded"]
    # A world of thousands has as many that are missing at first, and only a few are named.
    missing = [
        {"pod": pod.name, "reason": SPARE if spare and not pod.reason else why}
        for pod in absent[:MAX_MISSING]
        for why in (reason_of(pod, world, found, overridden.get(pod.name, ()), now),)
    ]
    missing += [{"pod": pod.name, "reason": "Terminating"} for pod in leaving[:MAX_MISSING]]
    missing += _not_there(expected, observed, found)
    return {
        "expected": expected,
        "joined": joined,
        "summary": f"{joined}/{expected}",
        "missing": missing[:MAX_MISSING],
    }


def reason_of(pod: Pod, world: World, found: Found, overridden: Sequence[str], now: float) -> str:
    """Why a pod that may yet be a node has not joined: what is known best, first."""
    warned = found.warnings.get(pod.uid)
    if pod.reason and pod.bland and warned is not None:
        return warned.text
    if pod.reason:
        return pod.reason
    if now < pod.runs.looping_until:
        return crash_looping(pod)
    if pod.name in world.reasons:
        return shortened(world.reasons[pod.name])
    if overridden:
        return said("NotJoined", f"{NOT_JOINED.partition(': ')[2]}; its own settings win: {', '.join(overridden)}")
    return NOT_JOINED


def crash_looping(pod: Pod) -> str:
    """Of a pod whose containers end again and again, and which runs at the moment."""
    return crash_loop(pod.runs.restarts, pod.runs.ending)


def _not_there(expected: int, observed: Observed, found: Found) -> list[dict[str, str]]:
    """The nodes that no pod stands for: the pod that failed in its place, or why none is made."""
    candidates = observed.candidates
    absent = max(0, expected - len(candidates))
    if found.suspended and not any(pod.live for pod in observed.pods):
        return [{"pod": "every pod", "reason": _not_created("", found)}]
    failed = [pod for pod in observed.pods if pod.phase == "Failed" and not pod.terminating]
    pairs = {pod.pair for pod in candidates}
    groups = {pair.group for pair in pairs if pair is not None}
    if len(groups) == 1 and None not in pairs:  # How the rest is spread over several groups, nobody knows.
        free = [Pair(group, index) for group in groups for index in range(expected)]
        free = [pair for pair in free if pair not in pairs][:absent]
        last = {pod.pair: pod for pod in sorted(failed, key=lambda pod: pod.created)}
        return [_in_place_of(last.get(pair), str(pair), "no pod with this index exists", found) for pair in free]
    last_failed = sorted(failed, key=lambda pod: pod.created, reverse=True)[:absent]
    rest = absent - len(last_failed)
    entries = [{"pod": pod.name, "reason": pod.reason} for pod in by_slot(last_failed)]
    if rest and observed.pods:
        entries.append({"pod": f"{rest} more", "reason": _not_created("there are fewer pods than nodes", found)})
    elif rest and (found.not_created or found.suspended):
        entries.append({"pod": "every pod", "reason": _not_created("", found)})
    return entries


def _in_place_of(failed: Pod | None, title: str, otherwise: str, found: Found) -> dict[str, str]:
    if failed is not None:
        return {"pod": failed.name, "reason": failed.reason}
    return {"pod": title, "reason": _not_created(otherwise, found)}


def _not_created(otherwise: str, found: Found) -> str:
    if found.not_created:
        return said("NotCreated", found.not_created)
    if found.suspended:
        return said("Suspended", f"by {found.suspended}")
    return f"NotCreated: {otherwise}"


def by_slot(pods: Sequence[Pod]) -> list[Pod]:
    """In the order of their places, those without one last."""
    return sorted(pods, key=lambda pod: pod.order)
