"""Where a pod stands in its world: a pair of a group and an index in it, from the labels that its controller or its user set.

Controllers that make several sets of pods number each of them from 0, so an index alone is no place. Ranks follow the order of pairs.
Which labels are read is the same here, in injection and in its policy in CEL. See docs/adr/0016-pairs.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rdzv.spec import GROUP, index_of

GROUP_LABEL, SLOT_LABEL = f"{GROUP}/group", f"{GROUP}/slot"
"""The user's own, which come before all others."""
_TEXT = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
"""Values of labels, as Kubernetes allows them."""


@dataclass(frozen=True)
class Pair:
    """A place in a world. `group` is empty where the index alone is one."""

    group: str
    index: int

    @property
    def order(self) -> tuple[int, int, str, int]:
        """Sort key: no group, then groups that are numbers, by number, then the others by name."""
        if self.group.isdigit():
            return 1, int(self.group), self.group, self.index
        return (2 if self.group else 0), 0, self.group, self.index

    def __str__(self) -> str:
        """As people read it."""
        return f"index {self.index} of group {self.group}" if self.group else f"index {self.index}"


def place_order(pair: Pair | None, name: str) -> tuple[bool, tuple[int, int, str, int], str]:
    """Sort key of whoever has this pair and name: those with a pair in the order of pairs, then the others by name."""
    return pair is None, (0, 0, "", 0) if pair is None else pair.order, name


@dataclass(frozen=True)
class Source:
    """Labels of one controller's pods. `mark`: what they have from the start; the others may come by a webhook later."""

    mark: str
    index: str
    group: str = ""


SOURCES = (
    Source(SLOT_LABEL, SLOT_LABEL),
    # Numbered over all replicated jobs, in the order in which the JobSet lists them.
    Source(
        "jobset.sigs.k8s.io/job-global-index",
        "batch.kubernetes.io/job-completion-index",
        "jobset.sigs.k8s.io/job-global-index",
    ),
    # Its pods belong to several StatefulSets, so they have a pod-index, too.
    Source(
        "leaderworkerset.sigs.k8s.io/name",
        "leaderworkerset.sigs.k8s.io/worker-index",
        "leaderworkerset.sigs.k8s.io/group-index",
    ),
    Source(
        "training.kubeflow.org/replica-index",
        "training.kubeflow.org/replica-index",
        "training.kubeflow.org/replica-type",
    ),
    Source("volcano.sh/task-index", "volcano.sh/task-index", "volcano.sh/task-spec"),
    Source("batch.kubernetes.io/job-completion-index", "batch.kubernetes.io/job-completion-index"),
    Source("apps.kubernetes.io/pod-index", "apps.kubernetes.io/pod-index"),
)
"""First found, first taken."""

LABELS = (
    GROUP_LABEL,
    *dict.fromkeys(label for source in SOURCES for label in (source.mark, source.index, source.group) if label),
)
"""All that are read."""


def labels_of(labels: Mapping[str, str]) -> tuple[str, str]:
    """The labels that hold the group and the index of a pod with these `labels`; empty where it has none."""
    source = next((source for source in SOURCES if source.mark in labels), Source("", ""))
    return (GROUP_LABEL if GROUP_LABEL in labels else source.group), source.index


def pair_of(group: str, index: str) -> Pair | None:
    """The pair of these texts, which can be anything that users write; None if they are not one."""
    number = index_of(index)
    return Pair(group, number) if number is not None and is_group(group) else None


def is_group(text: str) -> bool:
    """Whether this may be the name of a group. None is one, too."""
    return not text or _TEXT.fullmatch(text) is not None
