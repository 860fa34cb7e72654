"""Why pods are, or are not, in the world of their Rendezvous: the verdicts of `rdzv explain`, from facts that others gathered (pure).

What injection makes of a pod is asked of `rdzv.control.inject`, the very function that the webhook runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rdzv.cli import doctor, injection, running
from rdzv.cli.doctor import NOTE, OK, PROBLEM, Finding
from rdzv.cli.pod_facts import PodFacts
from rdzv.cli.snapshot import Snapshot
from rdzv.control.inject import is_injected
from rdzv.control.nearby import Found
from rdzv.spec import LABEL

#: Pods of a Rendezvous whose problems are told; of the others there is a number.
_TOLD = 3


def explain_pod(facts: PodFacts) -> list[Finding]:
    """All that there is to say about one pod, in the order in which things happen to it."""
    return [*injection.check(facts), *(running.check(facts) if is_injected(facts.pod) else [])]


def explain_rendezvous(shown: Snapshot, pods: Sequence[PodFacts], around: Found) -> list[Finding]:
    """All that there is to say about one Rendezvous and its pods.

    Args:
        shown: the Rendezvous and its world.
        pods: those that have its label.
        around: what is near it and not its own, looked for where it has no pods.
    """
    found = doctor.check_rendezvous(shown, shown.backend)
    if shown.rendezvous is None:
        return found
    found += doctor.check_world(shown, shown.backend)
    if not pods:
        return [*found, _unused(shown.name, around)]
    troubled = []
    for facts in pods:
        problems = [finding for finding in explain_pod(facts) if finding.verdict == PROBLEM]
        if problems:
            troubled.append([replace(problem, text=f"{facts.name}: {problem.text}") for problem in problems])
    found += [finding for each in troubled[:_TOLD] for finding in each]
    if len(troubled) > _TOLD:
        found.append(Finding("pods", PROBLEM, f"{len(troubled) - _TOLD} more pods have problems, most likely the same"))
    if not troubled:
        count = f"{len(pods)} pod{'s' if pods[1:] else ''}"
        found.append(Finding("pods", OK, f"{count}, of which none shows a mistake: kubectl rdzv explain POD says more"))
    return found


def _unused(name: str, around: Found) -> Finding:
    """Nobody has its label. Who nearly does, most likely meant it."""
    text = f"no pod asks for Rendezvous {name}"
    if around.suspended:
        return Finding("pods", NOTE, text, f"{around.suspended} is suspended", "resume it, when its turn has come")
    if around.not_created:
        return Finding("pods", PROBLEM, text, around.not_created, "correct that: the workload tries again by itself")
    if around.near:
        return Finding("pods", PROBLEM, text, "; ".join(around.near), "correct it, and make the pods again")
    cause = "no pod or workload of this namespace has the label, or one like it"
    return Finding("pods", NOTE, text, cause, f"label the template of your pods {LABEL}: {name}")
