"""The records that agents write: `Round` and `Member`, and their form as Kubernetes objects.

Pure: nothing here does I/O. `from_object` raises `ValueError` naming the field for anything that is not as described,
because these objects are written by other processes and, by hand, by people. Why the fields are what they are:
docs/adr/0010-kubernetes-protocol.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rdzv.objects import Object
from rdzv.pairs import Pair, is_group
from rdzv.protocol.encoding import (
    MAX_SLOTS,
    decode_fingerprints,
    decode_slots,
    encode_fingerprints,
    encode_slots,
    fingerprint,
)
from rdzv.protocol.fields import Fields
from rdzv.spec import API_VERSION, LABEL, MAX_NODES

ROUND_KIND = "RendezvousRound"

MAX_AHEAD = 1_000_000
"""How far above the highest known round a Member's numbers may be: more rounds than are ever missed."""
UID_LENGTH = 64
"""Characters of a UID, as the CRDs allow."""
_NAME_LENGTH, _INCARNATION_LENGTH, _WANT_LENGTH, _CLOSURE_LENGTH, _KEY_LENGTH = 253, 128, 256, 64, 64
"""Characters, as the CRDs allow."""
_PREFIX_LENGTH = 100
"""Characters of the name of an agent outside of pods that its incarnation begins with."""

FORMING, RUNNING, CLOSED = "Forming", "Running", "Closed"
PHASES = (FORMING, RUNNING, CLOSED)
LIVE, LEAVING, SUCCEEDED, FAILED = "live", "leaving", "succeeded", "failed"
SUCCESS = "Succeeded"
"""Reason of the one closure that is not an error."""
TOO_MANY_REFORMS = "TooManyReforms"
"""Reason of the closure that the operator asks for, see `spec.failurePolicy`."""
STATES = (LIVE, LEAVING, SUCCEEDED, FAILED)

REASON_LENGTH = 256
"""Characters of a reason in the Round."""
MAX_LEFT_OUT = 8
"""Of those who can't be reached, as many are named in the Round."""


@dataclass(frozen=True)
class Leader:
    """Whose agent serves the TCPStore of the round: the member of rank 0, at the port it bound before it joined."""

    slot: int
    address: str
    port: int


@dataclass(frozen=True)
class Coordinator:
    """Which agent commits rounds. `address:port` is where members keep their liveness connection; `term` grows by takeover.

    `key` is what both sides of such a connection prove to know: who may read the Round.
    """

    slot: int | None
    incarnation: str
    address: str
    port: int
    term: int
    key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Endpoint:
    """The TCPStore of a round's leader, as an agent tried to connect to it."""

    address: str
    port: int


@dataclass(frozen=True)
class LeftOut:
    """An agent that asks to be counted and is not, because it and the others can't reach each other; why, in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class Closure:
    """Why and by whom a Rendezvous was closed; every reason but `SUCCESS` is an error."""

    reason: str
    by: str


@dataclass(frozen=True)
class Round:
    """The world record, one object per Rendezvous, replaced as a whole by compare-and-set on its resourceVersion.

    In phase Running it *is* the world of number `round`: `slots` ascending are ranks 0 .. size-1, and `fingerprints[rank]` is
    the fingerprint of the incarnation that was counted, so that two pods that claim one slot cannot both find themselves
    in it, and a pod without a slot finds the one it was allotted. In phase Forming there is no world; the next one is
    `round + 1`. `want > round` asks everybody to join again.
    """

    name: str
    run_id: str
    round: int = 0
    phase: str = FORMING
    slots: tuple[int, ...] = ()
    fingerprints: tuple[str, ...] = ()
    salt: int = 0
    leader: Leader | None = None
    coordinator: Coordinator | None = None
    want: int = 0
    want_reason: str = ""
    members_rv: int = 0
    closed: Closure | None = None
    left_out: tuple[LeftOut, ...] = ()
    """Who can't be reached, or can't reach the others: at most `MAX_LEFT_OUT` of them."""
    uid: str = ""
    """Of the object, as the API server set it: another one when the Round was deleted and made again. Not written."""

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.slots)

    @property
    def term(self) -> int:
        """Term of the coordinator; 0 before the first one."""
        return self.coordinator.term if self.coordinator else 0

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Rank by fingerprint: whoever asks about each of thousands of members goes through them once."""
        return {mark: rank for rank, mark in enumerate(self.fingerprints)}

    def rank_of(self, incarnation: str) -> int | None:
        """Rank of this incarnation, or None when it was not counted. Its slot is `slots[rank]`."""
        return self.ranks.get(fingerprint(self.salt, incarnation))

    def to_object(self, namespace: str, resource_version: int | None = None, owner: Object | None = None) -> Object:
        """The RendezvousRound; `resource_version` makes a replace conditional, `owner` is an ownerReference (the Rendezvous)."""
        spec: Object = {
            "runID": self.run_id,
            "round": self.round,
            "phase": self.phase,
            "slots": encode_slots(self.slots),
            "checks": encode_fingerprints(self.fingerprints),
            "salt": self.salt,
            "size": self.size,
            "want": self.want,
            "wantReason": self.want_reason,
            "membersRV": str(self.members_rv),
        }
        if self.leader:
            spec["leader"] = {"slot": self.leader.slot, "address": self.leader.address, "port": self.leader.port}
        if self.coordinator:
            c = self.coordinator
            spec["coordinator"] = {"incarnation": c.incarnation, "address": c.address, "port": c.port, "term": c.term}
            if c.key:
                spec["coordinator"]["key"] = c.key
            if c.slot is not None:
                spec["coordinator"]["slot"] = c.slot
        if self.left_out:
            spec["unreachable"] = [{"name": one.name, "reason": one.reason} for one in self.left_out]
        if self.closed:
            spec["closed"] = {"reason": self.closed.reason, "by": self.closed.by}
        metadata = _metadata(self.name, namespace, self.name, resource_version, owner)
        return {"apiVersion": API_VERSION, "kind": ROUND_KIND, "metadata": metadata, "spec": spec}

    @staticmethod
    def from_object(obj: Mapping[str, Any]) -> Round:
        """Reads a RendezvousRound. Raises ValueError, naming the field."""
        spec = Fields(obj, "spec")
        slots, fingerprints = decode_slots(spec.text("slots")), decode_fingerprints(spec.text("checks"))
        if len(fingerprints) != len(slots) or spec.integer("size", default=len(slots)) != len(slots):
            raise ValueError(
                f"spec.size: slots has {len(slots)} members, checks {len(fingerprints)}, size says {spec.integer('size')}"
            )
        record = Round(
            name=Fields(obj, "metadata").text("name", required=True),
            run_id=spec.text("runID", required=True, most=_NAME_LENGTH),
            round=spec.integer("round"),
            phase=spec.choice("phase", PHASES),
            slots=slots,
            fingerprints=fingerprints,
            salt=spec.integer("salt"),
            leader=_leader(spec.child("leader")),
            coordinator=_coordinator(spec.child("coordinator")),
            want=spec.integer("want"),
            want_reason=spec.text("wantReason", most=_WANT_LENGTH),
            members_rv=spec.version("membersRV"),
            closed=_closure(spec.child("closed")),
            left_out=tuple(_left_out(item) for item in spec.children("unreachable")[:MAX_LEFT_OUT]),
            uid=Fields(obj, "metadata").text("uid"),
        )
        if record.phase == RUNNING and (record.leader is None or not slots or record.leader.slot != slots[0]):
            raise ValueError("spec.leader: a running round has members, and the lowest slot leads")
        return record


@dataclass(frozen=True)
class Member:
    """What one agent says about itself; written by that agent only, deleted with its pod.

    `want_round` is the round it asks to be counted in, `seen_round` the highest round it knew when it wrote, `port` the
    TCPStore it has bound for the round it asks for. Once counted it says nothing more: `want_round <= Round.round` and
    its fingerprint in the Round mean that it is in the world.
    """

    name: str
    rendezvous: str
    run_id: str
    incarnation: str
    address: str
    port: int
    want_round: int
    seen_round: int = 0
    round_uid: str = ""
    """Of the Round that the request was made for: it counts for no other one of that name."""
    slot: int | None = None
    allotted: bool = False
    """The slot is not the pod's index: a Round allotted it, and may allot another one."""
    pair: Pair | None = None
    """Of a pod whose index is not its slot: it counts within a group, or ranks follow the topology. The coordinator allots slots."""
    state: str = LIVE
    node: str = ""
    owned: bool = True
    """The object belongs to a pod of its name, and goes with it. Otherwise the agent runs outside of pods."""
    first_rv: int = 0
    """resourceVersion of this agent's first write, 0 while this is the first. See `birth`."""
    created: str = field(default="", compare=False)
    """creationTimestamp, as the API server set it: what nobody can pretend. Not written."""
    unreachable: Endpoint | None = None
    """The store of the round before, when the agent could not connect to it: why it asks for another one."""

    @property
    def index(self) -> int | None:
        """The slot if it is the pod's own, which nobody else may have."""
        return None if self.allotted else self.slot

    @property
    def claim(self) -> Pair | None:
        """What nobody else may have: its pair, where the index alone is its slot as well. None: any slot will do."""
        return self.pair if self.pair is not None or self.index is None else Pair("", self.index)

    @property
    def pod_uid(self) -> str:
        """UID of the pod that owns it, "" for an agent outside of pods."""
        return self.incarnation.partition("/")[0] if self.owned else ""

    def to_object(self, namespace: str, resource_version: int | None = None) -> Object:
        """The RendezvousMember; `resource_version` makes a replace conditional."""
        spec: Object = {
            "runID": self.run_id,
            "incarnation": self.incarnation,
            "address": self.address,
            "port": self.port,
            "wantRound": self.want_round,
            "seenRound": self.seen_round,
            "roundUID": self.round_uid,
            "state": self.state,
            "node": self.node,
        }
        if self.slot is not None:
            spec["slot"] = self.slot
        if self.allotted:
            spec["allotted"] = True
        if self.pair is not None:
            spec |= {"index": self.pair.index} | ({"group": self.pair.group} if self.pair.group else {})
        if self.unreachable:
            spec["unreachable"] = {"address": self.unreachable.address, "port": self.unreachable.port}
        if self.first_rv:
            spec["firstRV"] = str(self.first_rv)
        owner = {"apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": self.pod_uid} if self.owned else None
        metadata = _metadata(self.name, namespace, self.rendezvous, resource_version, owner)
        return {"apiVersion": API_VERSION, "kind": "RendezvousMember", "metadata": metadata, "spec": spec}

    @staticmethod
    def from_object(obj: Mapping[str, Any]) -> Member:
        """Reads a RendezvousMember. Raises ValueError, naming the field."""
        spec, metadata = Fields(obj, "spec"), Fields(obj, "metadata")
        slot = None if spec.data.get("slot") is None else spec.integer("slot", below=MAX_SLOTS)
        labels = metadata.data.get("labels")
        if not isinstance(labels, Mapping) or not isinstance(labels.get(LABEL), str):
            raise ValueError(f"metadata.labels: {LABEL} is missing")
        name = metadata.text("name", required=True, most=_NAME_LENGTH)
        incarnation = spec.text("incarnation", required=True, most=_INCARNATION_LENGTH)
        first_rv, rv = spec.version("firstRV"), metadata.version("resourceVersion")
        if rv and first_rv > rv:
            raise ValueError(f"spec.firstRV: {first_rv} is later than the object, {rv}")
        return Member(
            name=name,
            rendezvous=labels[LABEL],
            run_id=spec.text("runID", required=True, most=_NAME_LENGTH),
            incarnation=incarnation,
            address=spec.address("address"),
            port=spec.integer("port", below=65536),
            want_round=spec.integer("wantRound"),
            seen_round=spec.integer("seenRound"),
            round_uid=spec.text("roundUID", most=_INCARNATION_LENGTH),
            slot=slot,
            allotted=spec.flag("allotted"),
            pair=_pair(spec),
            state=spec.choice("state", STATES),
            node=spec.text("node", most=_NAME_LENGTH),
            owned=_is_owned(metadata, name, incarnation),
            first_rv=first_rv,
            created=metadata.text("creationTimestamp"),
            unreachable=_endpoint(spec.child("unreachable")),
        )


def birth(member: Member, rv: int) -> int:
    """When this agent first wrote its Member, as a resourceVersion; `rv` is that of the object.

    Of two agents with one slot or name the later one counts. An agent that makes its Member again, because somebody deleted
    it, repeats the number of its first write: unlike a creationTimestamp it can't be renewed by the older agent.
    """
    return member.first_rv or rv


def incarnation(name: str, pod_uid: str, start: str) -> str:
    """Of the agent of this start; `pod_uid` is "" outside of pods."""
    return f"{pod_uid or name[:_PREFIX_LENGTH]}/{start}"


def resource_version(obj: Mapping[str, Any]) -> int:
    """`metadata.resourceVersion` as a number: comparable within one kind (Kubernetes 1.35 says so; etcd always did)."""
    return Fields(obj, "metadata").version("resourceVersion")


def _metadata(name: str, namespace: str, rendezvous: str, resource_version: int | None, owner: Object | None) -> Object:
    metadata: Object = {"name": name, "namespace": namespace, "labels": {LABEL: rendezvous}}
    if resource_version is not None:
        metadata["resourceVersion"] = str(resource_version)
    if owner is not None:
        metadata["ownerReferences"] = [owner]
    return metadata


def _is_owned(metadata: Fields, name: str, incarnation: str) -> bool:
    """Whether a pod owns this Member, which its incarnation has to begin with; outside of pods it is the Member's name."""
    begins = incarnation.partition("/")[0]
    owned = False
    for owner in metadata.children("ownerReferences"):
        if owner.data.get("kind") == "Pod":
            owned = True
            if (owner.text("name"), owner.text("uid", most=UID_LENGTH)) != (name, begins):
                raise ValueError(f"{owner.name}: incarnation {incarnation!r:.80} of {name!r:.80} is not of this pod")
    if not owned and begins not in (name, name[:_PREFIX_LENGTH]):
        raise ValueError(f"spec.incarnation: {incarnation!r:.80} does not begin with the name, {name!r:.80}")
    return owned


def _pair(spec: Fields) -> Pair | None:
    group = spec.text("group")
    if not group and spec.data.get("index") is None:
        return None
    if not is_group(group):
        raise ValueError(f"spec.group: not a label's value: {group!r:.80}")
    if spec.data.get("index") is None or (spec.data.get("slot") is not None and not spec.flag("allotted")):
        raise ValueError("spec.group: its agent has an index, and no slot of its own")
    return Pair(group, spec.integer("index", below=MAX_NODES))


def _leader(fields: Fields | None) -> Leader | None:
    if fields is None:
        return None
    port = fields.integer("port", below=65536)
    return Leader(fields.integer("slot", below=MAX_SLOTS), fields.address("address"), port)


def _coordinator(fields: Fields | None) -> Coordinator | None:
    if fields is None:
        return None
    return Coordinator(
        slot=None if fields.data.get("slot") is None else fields.integer("slot", below=MAX_SLOTS),
        incarnation=fields.text("incarnation", required=True, most=_INCARNATION_LENGTH),
        address=fields.address("address"),
        port=fields.integer("port", below=65536),
        term=fields.integer("term"),
        key=fields.text("key", most=_KEY_LENGTH),
    )


def _endpoint(fields: Fields | None) -> Endpoint | None:
    return None if fields is None else Endpoint(fields.address("address"), fields.integer("port", below=65536))


def _left_out(fields: Fields) -> LeftOut:
    name = fields.text("name", required=True, most=_NAME_LENGTH)
    return LeftOut(name, fields.text("reason", most=REASON_LENGTH))


def _closure(fields: Fields | None) -> Closure | None:
    return (
        None
        if fields is None
        else Closure(fields.text("reason", required=True, most=_CLOSURE_LENGTH), fields.text("by", most=_NAME_LENGTH))
    )
