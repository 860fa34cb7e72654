"""Whether a pod asks for a Rendezvous, which one, and whether it was injected: the first half of `rdzv explain` (pure)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from rdzv.cli.doctor import NOTE, OK, PROBLEM, Finding
from rdzv.cli.pod_facts import AGAIN, PodFacts, ago, names, template_labels, training_containers
from rdzv.control.inject import (
    CONTAINERS_ANNOTATION,
    DELIVERIES,
    LIBRARY,
    LIBRARY_ANNOTATION,
    MIRROR_ANNOTATION,
    containers_of,
    is_injected,
    named_containers,
)
from rdzv.control.nearby import is_slip_of_label, meant
from rdzv.env import LIBRARY_PATH
from rdzv.objects import ReadOnlyObject
from rdzv.observed import EARLIER
from rdzv.pairs import labels_of
from rdzv.pod_reasons import seconds
from rdzv.spec import LABEL


def check(facts: PodFacts) -> list[Finding]:
    """From the pod to its injection. Nobody needs to look further at a pod that is not injected."""
    found = [_pod(facts)]
    if not facts.rendezvous:
        return [*found, _no_label(facts)]
    found += [_rendezvous(facts), *_annotations(facts.pod)]
    if not is_injected(facts.pod):
        return [*found, _not_injected(facts)]
    return [*found, _injected(facts.pod), *_earlier(facts)]


# The pod, and what it asked for.


def _pod(facts: PodFacts) -> Finding:
    pod, status = facts.pod, facts.pod.get("status") or {}
    phase = "Terminating" if pod["metadata"].get("deletionTimestamp") else status.get("phase", "Pending")
    node = (pod["spec"].get("nodeName") or "") and f" on {pod['spec']['nodeName']}"
    age = ago(facts.now - (seconds(pod["metadata"].get("creationTimestamp")) or facts.now))
    return Finding("pod", OK, f"{pod['metadata']['namespace']}/{facts.name}: {phase}{node}, made {age} ago")


def _no_label(facts: PodFacts) -> Finding:
    text = f"it has no label {LABEL}, so nothing is injected"
    again = "and delete this pod, so that it is made again: injection happens when a pod is created"
    near = near_label(facts.pod, facts.neighbours)
    if near:
        return Finding(
            "label", PROBLEM, text, near, f"write {LABEL}: NAME in the labels of the pod's template, {again}"
        )
    for owner in facts.owners:
        kind, name = owner["kind"], owner["metadata"]["name"]
        mine = (owner["metadata"].get("labels") or {}).get(LABEL)
        template = template_labels(owner).get(LABEL)
        if template:
            cause = f"the template of {kind} {name} has it by now: this pod is older"
            return Finding("label", PROBLEM, text, cause, "delete this pod, so that it is made again")
        if mine:
            cause = f"{kind} {name} has it in its own metadata, which its pods do not get"
            fix = f"move it to spec.template.metadata.labels of {kind} {name}, {again}"
            return Finding("label", PROBLEM, text, cause, fix)
        if near := near_label({"metadata": {"labels": template_labels(owner)}}, facts.neighbours):
            return Finding("label", PROBLEM, text, f"in the template of {kind} {name}: {near}", f"write {LABEL} there")
    known = f" (there {'are' if facts.neighbours[1:] else 'is'} {names(facts.neighbours)})" if facts.neighbours else ""
    fix = f"if it should train: label the template of its controller {LABEL}: NAME{known}, {again}"
    return Finding("label", NOTE, text, "pods are left alone until they ask", fix)


def near_label(obj: ReadOnlyObject, known: Sequence[str] = ()) -> str:
    """What somebody wrote who meant our label, in words; empty when there is nothing like it. `known`: Rendezvous, if any are."""
    metadata = obj["metadata"]
    if LABEL in (metadata.get("annotations") or {}):
        return f"{LABEL} is an annotation here, not a label"
    for key, value in (metadata.get("labels") or {}).items():
        if key != LABEL and is_slip_of_label(key) and (value in known or not known):
            return f"the label's key is written {key}"
    return ""


def _rendezvous(facts: PodFacts) -> Finding:
    name, namespace = facts.rendezvous, facts.shown.namespace
    if facts.shown.rendezvous is not None:
        return Finding("label", OK, f"it asks for Rendezvous {namespace}/{name}, which exists")
    if "rendezvous" in facts.shown.errors:
        cause = facts.shown.errors["rendezvous"]
        return Finding("label", NOTE, f"it asks for Rendezvous {namespace}/{name}, which can't be read", cause)
    text = f"it asks for Rendezvous {namespace}/{name}, which does not exist: its containers wait"
    near = meant(name, facts.neighbours)
    if near:
        cause = f"namespace {namespace} has one that is called {near}"
        fix = f"correct the label in the pod's template to {LABEL}: {near}"
        return Finding("label", PROBLEM, text, cause, f"{fix}, and make the pod again")
    if facts.elsewhere:
        cause = f"there is one in namespace {names(facts.elsewhere)}: a pod takes part in its own namespace only"
        return Finding("label", PROBLEM, text, cause, f"apply it in namespace {namespace} too, or run the pod there")
    has = f"namespace {namespace} has {names(facts.neighbours)}" if facts.neighbours else f"{namespace} has none at all"
    return Finding("label", PROBLEM, text, has, "apply it (the pod then starts by itself), or correct the label")


def _annotations(pod: ReadOnlyObject) -> list[Finding]:
    annotations = pod["metadata"].get("annotations") or {}
    found = []
    wish = annotations.get(LIBRARY_ANNOTATION)
    if wish is not None and wish not in DELIVERIES:
        near = difflib.get_close_matches(wish, DELIVERIES, 1)
        fix = f"write one of {', '.join(DELIVERIES)}" + (f" (did you mean {near[0]}?)" if near else "")
        text = f"{LIBRARY_ANNOTATION}: {wish[:60]!r} is not a way to deliver the library"
        found.append(Finding("annotation", PROBLEM, text, "so what the chart says is done instead", fix))
    have = [container["name"] for container in containers_of(pod)]
    absent = [name for name in named_containers(pod) if name not in have]
    if absent:
        text = f"{CONTAINERS_ANNOTATION} names {names(absent)}, which the pod does not have"
        found.append(Finding("annotation", PROBLEM, text, f"its containers are {', '.join(have)}", "correct the names"))
    for key in annotations:
        prefix, _, word = key.rpartition("/")
        ours = (CONTAINERS_ANNOTATION, LIBRARY_ANNOTATION)
        if prefix == LABEL.partition("/")[0] and key not in ours and difflib.get_close_matches(key, ours, 1, 0.85):
            near = difflib.get_close_matches(key, ours, 1)[0]
            text = f"annotation {key} means nothing"
            found.append(Finding("annotation", PROBLEM, text, f"{word!r} is no annotation of ours", f"write {near}"))
    return found


# Injection.


def _injected(pod: ReadOnlyObject) -> Finding:
    labels = pod["metadata"].get("labels") or {}
    containers = ", ".join(container["name"] for container in training_containers(pod))
    text = f"injected, as its label asks for it: container {containers}"
    group, index = labels_of(labels)
    text += f"; index {labels[index]} by label {index}" if index in labels else "; no index: no label has one"
    text += f", in group {labels[group]} by label {group}" if group in labels else ""
    volume = next((v for v in pod["spec"].get("volumes") or [] if v["name"] == LIBRARY), None)
    if volume is None:
        return Finding("injection", OK, f"{text}; the library is not delivered")
    how = "as an image" if "image" in volume else "by an init container" if "emptyDir" in volume else "by your volume"
    return Finding("injection", OK, f"{text}; the library comes {how}, at {LIBRARY_PATH}")


def _not_injected(facts: PodFacts) -> Finding:
    return (
        _mirror(facts)
        or _no_container_named(facts)
        or _labelled_later(facts)
        or _before_injection(facts)
        or _no_injection(facts)
        or _unknown_injection()
    )


_NOT = "not injected: its containers have no rendezvous, and each trains alone"


def _mirror(facts: PodFacts) -> Finding | None:
    if MIRROR_ANNOTATION not in (facts.pod["metadata"].get("annotations") or {}):
        return None
    fix = "run it as a Job, StatefulSet or Deployment"
    return Finding("injection", PROBLEM, _NOT, "it is a static pod, which must stay as its kubelet made it", fix)


def _no_container_named(facts: PodFacts) -> Finding | None:
    named = set(named_containers(facts.pod))
    if not named or named & {container["name"] for container in containers_of(facts.pod)}:
        return None
    cause = f"annotation {CONTAINERS_ANNOTATION} names none of its containers"
    return Finding("injection", PROBLEM, _NOT, cause, f"correct it in the template, and {AGAIN}")


def _labelled_later(facts: PodFacts) -> Finding | None:
    """The API server keeps who wrote which field when."""
    created = str(facts.pod["metadata"].get("creationTimestamp") or "")
    for entry in facts.pod["metadata"].get("managedFields") or []:
        labels = ((entry.get("fieldsV1") or {}).get("f:metadata") or {}).get("f:labels") or {}
        if f"f:{LABEL}" in labels and created and str(entry.get("time") or "") > created:
            cause = (
                f"{entry.get('manager', 'somebody')} added the label at {entry['time']}, the pod was made at {created}"
            )
            fix = f"label the template of its controller, and {AGAIN}"
            return Finding("injection", PROBLEM, _NOT, f"{cause}: injection happens when a pod is created", fix)
    return None


def _before_injection(facts: PodFacts) -> Finding | None:
    if facts.injects is not True:
        return None
    cause = "such a pod is injected if it is made now: this one is older than the operator, or was labelled later"
    return Finding("injection", PROBLEM, _NOT, cause, AGAIN)


def _no_injection(facts: PodFacts) -> Finding | None:
    if facts.injects is not False:
        return None
    namespace = facts.pod["metadata"]["namespace"]
    cause = (
        f"no labelled pod is injected in namespace {namespace}: the operator's chart is not installed, or leaves this "
        "namespace out, as it does its own and kube-system"
    )
    return Finding("injection", PROBLEM, _NOT, cause, f"see rdzv check -n {namespace}")


def _unknown_injection() -> Finding:
    cause = "it is older than the operator, was labelled later, or injection is not installed"
    fix = f"see rdzv check whether it is; then {AGAIN}"
    return Finding("injection", PROBLEM, _NOT, cause, fix)


def _earlier(facts: PodFacts) -> list[Finding]:
    if facts.observed.reason != EARLIER:
        return []
    text = "it has the environment of an earlier Rendezvous of this name, and never meets the others"
    return [Finding("environment", PROBLEM, text, "its containers are older than the Rendezvous", AGAIN)]
