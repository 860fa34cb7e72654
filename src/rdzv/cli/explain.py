"""Why pods are, or are not, in the world of their Rendezvous: the verdicts of `rdzv explain`, from facts that others gathered (pure).

What injection makes of a pod is asked of `rdzv.control.inject`, the very function that the webhook runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rdzv.cli import doctor, injection, running
from rdzv.cli.doctor import NOTE, OK, PROBLEM, Finding
from rdzv.cli.pod_facts import PodFacts, alike, names, template_labels
from rdzv.cli.snapshot import Snapshot
from rdzv.control.inject import is_injected
from rdzv.objects import ReadOnlyObject
from rdzv.spec import LABEL

#: Pods of a Rendezvous whose problems are told; of the others there is a number.
_TOLD = 3


def explain_pod(facts: PodFacts) -> list[Finding]:
    """All that there is to say about one pod, in the order in which things happen to it."""
    return [*injection.check(facts), *(running.check(facts) if is_injected(facts.pod) else [])]


def explain_rendezvous(
    shown: Snapshot, pods: Sequence[PodFacts], others: Sequence[ReadOnlyObject], neighbours: Sequence[str]
) -> list[Finding]:
    """All that there is to say about one Rendezvous and its pods.

    Args:
        shown: the Rendezvous and its world.
        pods: those that have its label.
        others: further pods of its namespace, and controllers that make pods there.
        neighbours: names of all Rendezvous of the namespace.
    """
    found = doctor.check_rendezvous(shown, shown.backend)
    if shown.rendezvous is None:
        return found
    found += doctor.check_world(shown, shown.backend)
    if not pods:
        return [*found, _unused(shown.name, others, neighbours)]
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


def _unused(name: str, others: Sequence[ReadOnlyObject], neighbours: Sequence[str]) -> Finding:
    """Nobody has its label. Who nearly does, most likely meant it."""
    text = f"no pod asks for Rendezvous {name}"
    for each in others:
        who = f"{each.get('kind', 'Pod')} {each['metadata']['name']}"
        labels = template_labels(each) if "kind" in each else each["metadata"].get("labels") or {}
        own = (each["metadata"].get("labels") or {}).get(LABEL)
        if "kind" in each and own == name and LABEL not in labels:
            fix = "move it to spec.template.metadata.labels, and make the pods again"
            return Finding("pods", PROBLEM, text, f"{who} has the label in its own metadata, not in its template", fix)
        if near := injection.near_label({"metadata": {**each["metadata"], "labels": labels}}):
            return Finding("pods", PROBLEM, text, f"{who}: {near}", f"write {LABEL}: {name}, and make the pods again")
        value = labels.get(LABEL)
        if value and value not in neighbours and alike(value, name):
            fix = f"write {LABEL}: {name}, and make the pods again"
            return Finding("pods", PROBLEM, text, f"{who} asks for {value}, which does not exist", fix)
    known = names([other for other in neighbours if other != name])
    cause = "no pod of this namespace has the label, or one like it" + (f"; other Rendezvous: {known}" if known else "")
    return Finding("pods", NOTE, text, cause, f"label the template of your pods {LABEL}: {name}")
