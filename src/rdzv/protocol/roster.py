"""The record that the operator writes: `Roster`, who is expected in a Rendezvous, and its form in `Rendezvous.status`.

Pure: nothing here does I/O. `from_object` raises `ValueError` naming the field for anything that is not as described.
Why the fields are what they are: docs/adr/0010-kubernetes-protocol.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rdzv.objects import Object
from rdzv.protocol.encoding import MAX_SLOTS, decode_slots, encode_slots
from rdzv.protocol.fields import Fields
from rdzv.protocol.pace import Pace
from rdzv.protocol.records import UID_LENGTH

MAX_MISPLACED = 256
"""Of those who name another address than their pod's, as many are told: with more, it is the network that is as nobody said."""
_REASON_LENGTH = 1024
"""Characters, as the CRD allows."""


@dataclass(frozen=True)
class Absent:
    """An expected pod that has not joined and will not soon: `reason` is the operator's text (Unschedulable …)."""

    pod: str
    slot: int | None
    reason: str


@dataclass(frozen=True)
class Misplaced:
    """The agent of a pod (its UID) says that it is at an address which is none of the pod's. It may correct itself at any time."""

    pod: str
    address: str


@dataclass(frozen=True)
class Site:
    """Pods (their UIDs) whose nodes have the same `labels`: the values of `spec.ranks.topologyKeys`, "" where a node has none."""

    labels: tuple[str, ...]
    pods: tuple[str, ...]


@dataclass(frozen=True)
class Roster:
    """What the Rendezvous says: bounds and pace from its spec and, when `known`, who is expected, from the operator's status.

    `expected` has the slots, `expected_count` the number, of pods that exist (or are about to) and are not terminal,
    draining or dead; pods without a slot are in the number only. `draining` and `dead` are pod UIDs; `hopeless` are
    expected pods that will not join soon. `heartbeat` changes at least every `heartbeat_seconds` while a round forms;
    0 seconds means that it never goes stale. `ended`, if it is not empty, is why the world of Round `ended_uid` is to be closed.
    `misplaced`: who is not to be counted while it names that address.
    `sites`: where the pods' nodes are, in the order that ranks are to follow; None: the spec does not ask for that.
    """

    run_id: str
    min_nodes: int
    max_nodes: int
    known: bool = False
    expected: frozenset[int] = frozenset()
    expected_count: int = 0
    hopeless: tuple[Absent, ...] = ()
    draining: frozenset[str] = frozenset()
    dead: frozenset[str] = frozenset()
    misplaced: frozenset[Misplaced] = frozenset()
    round: int = 0
    heartbeat: int = 0
    heartbeat_seconds: float = 0.0
    ended: str = ""
    ended_uid: str = ""
    pace: Pace = field(default_factory=Pace)
    sites: tuple[Site, ...] | None = None

    def to_status(self) -> Object:
        """The value of `Rendezvous.status.roster`, as the operator writes it; at most MAX_SLOTS of each, as the CRD allows."""
        return {
            "expected": encode_slots(slot for slot in self.expected if slot < MAX_SLOTS),
            "expectedCount": self.expected_count,
            "hopeless": [
                {"pod": a.pod, "reason": a.reason[:_REASON_LENGTH]} | ({} if a.slot is None else {"slot": a.slot})
                for a in self.hopeless[:MAX_SLOTS]
            ],
            "draining": sorted(self.draining)[:MAX_SLOTS],
            "dead": sorted(self.dead)[:MAX_SLOTS],
            "heartbeat": self.heartbeat,
            "heartbeatSeconds": self.heartbeat_seconds,
            **({"ended": {"roundUID": self.ended_uid, "reason": self.ended[:_REASON_LENGTH]}} if self.ended else {}),
            **({"misplaced": self._misplaced()} if self.misplaced else {}),
            **({"sites": [{"labels": [*s.labels], "pods": [*s.pods]} for s in self.sites]} if self.sites else {}),
        }

    def _misplaced(self) -> list[Object]:
        told = sorted(self.misplaced, key=lambda each: (each.pod, each.address))[:MAX_MISPLACED]
        return [{"pod": each.pod, "address": each.address} for each in told]

    @staticmethod
    def from_object(obj: Mapping[str, Any]) -> Roster:
        """Reads a Rendezvous: bounds, pace and whether ranks follow sites from its spec, the rest from status.roster if it is there.

        Raises ValueError.
        """
        nodes = Fields(obj, "spec").child("nodes") or Fields({}, "spec.nodes")
        minimum = nodes.integer("min", default=1)
        maximum = nodes.integer("max", default=minimum)
        if not 1 <= minimum <= maximum:
            raise ValueError(f"spec.nodes.max: {maximum} is below min {minimum}, or min is below 1")
        pace = Pace.of(Fields(obj, "spec").child("kubernetes"))
        ranks = Fields(obj, "spec").child("ranks")
        sited = ranks is not None and bool(ranks.texts("topologyKeys"))
        run_id = Fields(obj, "metadata").text("uid", required=True)
        status = Fields(obj, "status")
        roster = status.child("roster")
        ended = roster.child("ended") if roster is not None else None
        # A status that an operator wrote for another incarnation of this name says nothing about this one.
        if roster is None or status.text("runID") not in ("", run_id):
            return Roster(run_id, minimum, maximum, pace=pace, sites=() if sited else None)
        return Roster(
            run_id,
            minimum,
            maximum,
            known=True,
            expected=frozenset(decode_slots(roster.text("expected"), "status.roster.expected")),
            expected_count=roster.integer("expectedCount"),
            hopeless=tuple(_absent(item) for item in roster.children("hopeless")),
            draining=roster.names("draining"),
            dead=roster.names("dead"),
            misplaced=frozenset(_misplaced(item) for item in roster.children("misplaced")),
            round=status.integer("round"),
            heartbeat=roster.integer("heartbeat"),
            heartbeat_seconds=roster.number("heartbeatSeconds"),
            ended=ended.text("reason", most=_REASON_LENGTH) if ended is not None else "",
            ended_uid=ended.text("roundUID", required=True, most=UID_LENGTH) if ended is not None else "",
            pace=pace,
            sites=_sites(roster) if sited else None,
        )


def _sites(roster: Fields) -> tuple[Site, ...]:
    sites = tuple(Site(each.texts("labels"), each.texts("pods")) for each in roster.children("sites"))
    if sum(len(site.pods) for site in sites) > MAX_SLOTS:
        raise ValueError(f"{roster.name}.sites: more than {MAX_SLOTS} pods")
    return sites


def _misplaced(fields: Fields) -> Misplaced:
    return Misplaced(fields.text("pod", required=True, most=UID_LENGTH), fields.address("address"))


def _absent(fields: Fields) -> Absent:
    slot = None if fields.data.get("slot") is None else fields.integer("slot", below=MAX_SLOTS)
    return Absent(fields.text("pod", required=True), slot, fields.text("reason"))
