"""Where the nodes of a world's pods are, by labels of theirs, for ranks that follow that: `spec.ranks.topologyKeys` (pure).

Sorted are the sites, by the operator; which rank an agent has is decided by whoever coordinates (`rdzv.protocol.ranking`).
See docs/adr/0019-topology.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rdzv.pod_reasons import and_more
from rdzv.protocol.encoding import MAX_SLOTS
from rdzv.protocol.records import RUNNING, Member, Round
from rdzv.protocol.roster import Site

if TYPE_CHECKING:
    from rdzv.observed import Pod

TOPOLOGY_UNKNOWN, TOPOLOGY_NOT_FOLLOWED = "TopologyUnknown", "TopologyNotFollowed"
"""Reasons of problems."""
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class NodeLabels:
    """What is known of nodes.

    `values`: of each, by its name, the values of the keys that are asked for, "" for a label that is not there. `unread`: why others
    could not be read.
    """

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: str = ""


def sites(pods: Sequence[Pod], labels: NodeLabels) -> tuple[Site, ...]:
    """The pods by what their nodes' labels say, in the order that ranks follow: key by key, numbers in names by number, no label last.

    Pods of nodes that are not known are in no site.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for pod in sorted(pods, key=lambda pod: pod.uid)[:MAX_SLOTS]:
        values = labels.values.get(pod.node)
        if values is not None:
            found.setdefault(values, []).append(pod.uid)
    return tuple(Site(values, tuple(found[values])) for values in sorted(found, key=lambda v: [*map(_natural, v)]))


def problems(
    keys: Sequence[str], pods: Sequence[Pod], labels: NodeLabels, record: Round | None, members: Sequence[Member]
) -> list[tuple[str, str]]:
    """Why ranks don't follow the labels, or not all of them: each a reason and a text. `members`: of this Rendezvous."""
    unknown = [text for text in (_unread(pods, labels), _unlabelled(keys, pods, labels)) if text]
    found = [(TOPOLOGY_UNKNOWN, text) for text in unknown]
    if text := _not_followed(sites(pods, labels), record, members):
        found.append((TOPOLOGY_NOT_FOLLOWED, text))
    return found


def _unread(pods: Sequence[Pod], labels: NodeLabels) -> str:
    unknown = sorted({pod.node for pod in pods if pod.node} - labels.values.keys())
    if not unknown:
        return ""
    why = labels.unread or "there is no such node"
    return f"the labels of node {unknown[0]}{and_more(unknown)} are not known, so its pods come after the others: {why}"


def _unlabelled(keys: Sequence[str], pods: Sequence[Pod], labels: NodeLabels) -> str:
    there = {pod.node: labels.values[pod.node] for pod in pods if pod.node in labels.values}
    lacking = [(node, key) for node in sorted(there) for key, value in zip(keys, there[node], strict=True) if not value]
    if not lacking:
        return ""
    node, key = lacking[0]
    nodes = sorted({node for node, _ in lacking})
    return (
        f"node {node} has no label {key}{and_more(nodes)}, so its pods come after those that have it: label the node, or correct "
        "spec.ranks.topologyKeys"
    )


def _not_followed(wanted: Sequence[Site], record: Round | None, members: Sequence[Member]) -> str:
    """Which world has its ranks in another order, and what to do."""
    if record is None or record.phase != RUNNING:
        return ""
    positions = {uid: position for position, site in enumerate(wanted) for uid in site.pods}
    inside = {rank: each for each in members if (rank := record.rank_of(each.incarnation)) is not None}
    ranked = [inside[rank] for rank in sorted(inside)]
    places = [positions.get(each.pod_uid, len(wanted)) for each in ranked]
    if places == sorted(places):
        return ""
    fixed = sorted(each.name for each in ranked if each.index is not None)
    if fixed:
        return (
            f"the agent of {fixed[0]}{and_more(fixed)} was started before spec.ranks was set, or is of an earlier release, and keeps its "
            "index for a rank: ranks follow the index until its pod is replaced"
        )
    return (
        "the labels of nodes changed, or were known, only after agents had joined, and who stays keeps its place: ranks follow the "
        "labels as pods are replaced, or at once when the RendezvousRound is deleted"
    )


def _natural(text: str) -> tuple[bool, list[tuple[bool, int, str]]]:
    """Sort key: block-2 before block-10."""
    parts = _DIGITS.split(text)
    return not text, [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts if part]
