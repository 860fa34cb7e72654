"""Where a Rendezvous is in its life: the STATUS column for people, and the conditions Ready and Formed for programs (pure).

A ladder each: the first rung that holds says it. What is wrong comes as `Problem`s (`control/problems.py`), the most harmful first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rdzv.backends import FAILED, SUCCEEDED, Condition, World
from rdzv.observed import Observed, Pod
from rdzv.spec import Nodes

#: What a Rendezvous without pods says: none has been there, or those that were there are gone.
NO_POD_YET, NO_POD_LEFT = "Waiting: no pod yet", "Waiting: no pod left"
#: How a summary begins that only a Rendezvous with pods has, or one that had them.
_WITH_PODS = ("Forming", "Running", SUCCEEDED, FAILED, NO_POD_LEFT)


@dataclass(frozen=True)
class Problem:
    """Something that needs somebody's attention.

    `blocking`: as long as it lasts, what was asked for can't come about. `refusal`: the spec itself can't be served.
    """

    reason: str
    message: str
    blocking: bool = False
    refusal: bool = False


@dataclass(frozen=True)
class Life:
    """What is known of a Rendezvous at one moment.

    Attributes:
        nodes: bounds of the spec.
        expected: how many nodes the world should have now.
        joined: how many of them are there.
        pods: how many pods are, or may yet be, nodes of the world.
        formed: condition Formed, as the backend sees it.
        outcome: Succeeded or Failed for a job that has ended; else empty.
        problems: what is wrong, the most harmful first.
        suspended: who holds the pods back, as readable text; empty if nobody does.
        had_pods: there have been pods, whether there are some now or not.
    """

    nodes: Nodes
    expected: int
    joined: int
    pods: int
    formed: Condition
    outcome: str = ""
    problems: Sequence[Problem] = ()
    suspended: str = ""
    had_pods: bool = False

    @property
    def blocked_by(self) -> Problem | None:
        """The first thing without which nothing comes about."""
        return next((problem for problem in self.problems if problem.blocking), None)


# The STATUS column.


def summary(life: Life) -> str:
    """A few words for people: the STATUS column of `kubectl get rdzv`."""
    return (
        _refused(life)
        or life.outcome
        or _degraded(life)
        or _suspended(life)
        or _without_pods(life)
        or _running(life)
        or f"Forming {life.joined}/{life.expected}"
    )


def _refused(life: Life) -> str:
    """A spec that is refused now comes before how an earlier job ended: the next one gets nothing."""
    return next((f"Degraded: {problem.reason}" for problem in life.problems if problem.refusal), "")


def _degraded(life: Life) -> str:
    return f"Degraded: {life.problems[0].reason}" if life.problems else ""


def _suspended(life: Life) -> str:
    return f"Suspended: {life.suspended}" if life.suspended else ""


def _without_pods(life: Life) -> str:
    if life.pods:
        return ""
    if life.formed.status == "True":
        return "Running outside of pods"
    return NO_POD_LEFT if life.had_pods else NO_POD_YET


def _running(life: Life) -> str:
    """Where the operator sees the world: there is one. Elsewhere: so many pods run that there can be one."""
    seen = life.formed.status == "True"
    possible = life.formed.status == "Unknown" and life.joined >= life.nodes.min
    return f"Running {life.joined}/{life.expected}" if seen or possible else ""


def had_pods(previous: Mapping[str, Any]) -> bool:
    """Whether the status of the pass before tells of pods."""
    joined = (previous.get("nodes") or {}).get("joined")
    return summary_of(previous).startswith(_WITH_PODS) or bool(joined)


# How a job has ended.


def outcome(observed: Observed, nodes: Nodes, world: World, before: str, jobs: Mapping[str, str | None]) -> str:
    """Succeeded or Failed when the job has ended, else empty.

    Args:
        observed: the pods.
        nodes: bounds of the spec.
        world: its `outcome` is the agents' own word, which comes before what pods say.
        before: the summary of the pass before. The pods of a job that has ended are deleted in the end.
        jobs: what is known of Jobs, see `Found`.
    """
    live = [pod for pod in observed.pods if pod.live]
    if world.outcome and all(pod.started for pod in live):
        return world.outcome
    if live or world.outcome:
        return ""
    kept = before if before in (SUCCEEDED, FAILED) else ""
    deciding = deciding_jobs(observed, nodes)
    if deciding - jobs.keys():
        return kept  # until they have been asked
    words = [jobs[uid] for uid in deciding] if observed.pods else list(jobs.values())
    if words and None not in words:
        return kept or _of_jobs(words)
    return _of_pods(observed.pods, kept)


def _of_pods(pods: Sequence[Pod], kept: str) -> str:
    """`kept`: what was said before."""
    ended = [pod for pod in pods if pod.phase in (SUCCEEDED, FAILED)]
    # How a pod fails that is told to end says nothing of the job: Kueue, for one, lets another go first.
    taken_away = any(pod.terminating and pod.phase == FAILED for pod in ended)
    if taken_away or not pods:
        return kept
    return _of_ended(ended) if ended else ""


def deciding_jobs(observed: Observed, nodes: Nodes) -> frozenset[str]:
    """UIDs of the Jobs that have to be asked whether the job has ended: no pod lives, and not all ended well by themselves.

    A Job makes another pod in place of one that failed, and takes its pods away when it is suspended, however they end then.
    """
    pods = observed.pods
    if any(pod.live for pod in pods):
        return frozenset()
    by_themselves = [pod for pod in pods if pod.phase == SUCCEEDED and not pod.terminating]
    if len(by_themselves) >= nodes.min and not any(pod.terminating for pod in pods) and _of_ended(pods) == SUCCEEDED:
        return frozenset()
    return frozenset(pod.job for pod in pods if pod.job)


def _of_jobs(words: Sequence[str | None]) -> str:
    """Of all Jobs of a Rendezvous: each has to succeed."""
    if FAILED in words:
        return FAILED
    return SUCCEEDED if set(words) == {SUCCEEDED} else ""


def _of_ended(ended: Sequence[Pod]) -> str:
    """With indexes, the last pod of each counts; without, a job has succeeded when as many pods have as began."""
    last: dict[object, Pod] = {}
    for pod in sorted(ended, key=lambda pod: (pod.created, pod.name)):
        last[pod.name if pod.pair is None else pod.pair] = pod
    indexed = all(pod.pair is not None for pod in ended)
    succeeded = sum(pod.phase == SUCCEEDED for pod in last.values())
    failed = len(last) - succeeded
    if indexed:
        return FAILED if failed else SUCCEEDED
    return SUCCEEDED if succeeded and succeeded >= failed else FAILED


# Conditions.


def formed(life: Life) -> Condition:
    """The world, as far as it can be known."""
    condition = life.formed
    if life.outcome and condition.status == "Unknown":
        return replace(condition, status="False", reason=life.outcome, message="the pods have ended")
    return condition


def ready(life: Life) -> Condition:
    """Whether the Rendezvous can serve the pods that come, and those that are there can become what was asked for."""
    blocked = life.blocked_by
    if blocked is not None:
        return Condition("Ready", "False", blocked.reason, blocked.message)
    if life.outcome:
        return Condition("Ready", "True", life.outcome, f"the job has ended: {life.outcome}; it can serve another one")
    if not life.pods:
        return Condition("Ready", "True", "NodesMissing", "pods can meet; there is none")
    if life.joined < life.expected:
        return Condition("Ready", "True", "NodesMissing", f"{life.joined} of {life.expected} expected nodes are there")
    return Condition("Ready", "True", "NodesPresent", f"all {life.expected} expected nodes are there")


def degraded(life: Life) -> Condition:
    """The most harmful problem."""
    first = next(iter(life.problems), None)
    if first is None:
        return Condition("Degraded", "False", "AsExpected", "")
    more = sorted({problem.reason for problem in life.problems[1:]} - {first.reason})
    also = f" (also: {', '.join(more)})" if more else ""
    return Condition("Degraded", "True", first.reason, f"{first.message}{also}")


def summary_of(previous: Mapping[str, Any]) -> str:
    """What the status of the pass before said, if it is one of ours."""
    found = previous.get("summary")
    return found if isinstance(found, str) else ""
