"""One Rendezvous and all that belongs to it, read once, and the picture of its world (pure, from what was read)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rdzv.kube.api import ApiError, NotFound, Resource
from rdzv.objects import ReadOnlyObject
from rdzv.protocol.records import LEAVING, LIVE, RUNNING, Member, Round
from rdzv.protocol.roster import Roster
from rdzv.resources import MEMBERS, RENDEZVOUS, ROUNDS
from rdzv.spec import LABEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from rdzv.kube.client import Client

PODS = Resource("v1", "pods")

#: What each condition of a Rendezvous should be; any other condition is not judged.
EXPECTED = {"Provisioned": "True", "Ready": "True", "Formed": "True", "Degraded": "False"}


@dataclass(frozen=True)
class Snapshot:
    """What was read of Rendezvous `name`. Absent is what does not exist; what could not be read has its error in `errors`."""

    namespace: str
    name: str
    rendezvous: ReadOnlyObject | None = None
    round: Round | None = None
    members: Sequence[Member] = ()
    pods: Sequence[ReadOnlyObject] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    """By plural: rendezvous, rendezvousrounds, rendezvousmembers, pods."""

    @property
    def uid(self) -> str:
        """UID of the Rendezvous; empty when there is none."""
        return str(self.rendezvous["metadata"]["uid"]) if self.rendezvous else ""

    @property
    def status(self) -> ReadOnlyObject:
        """What the operator wrote; empty when it has not, or for a deleted namesake."""
        status: ReadOnlyObject = (self.rendezvous or {}).get("status") or {}
        return status if status.get("runID", self.uid) == self.uid else {}

    @property
    def backend(self) -> str:
        """The backend that the spec names; empty when there is no Rendezvous."""
        return str(((self.rendezvous or {}).get("spec") or {}).get("backend", ""))

    @property
    def run_id(self) -> str:
        """The run that the members are in: that of the Round, else that of the Rendezvous."""
        return self.round.run_id if self.round else self.uid


@dataclass(frozen=True)
class Node:
    """One line of the picture. `state`: joined, waiting, leaving, succeeded, failed, draining, dead, missing, or a pod's phase."""

    pod: str
    slot: int | None
    rank: int | None
    state: str
    node: str = ""
    reason: str = ""


def take(client: Client, namespace: str, name: str) -> Snapshot:
    """Reads everything once; what is refused or missing does not keep the rest from being read."""
    errors: dict[str, str] = {}

    def attempt(resource: Resource, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except NotFound:
            return None
        except (ApiError, ValueError) as error:
            errors[resource.plural] = str(error)
            return None

    selector = f"{LABEL}={name}"
    rendezvous = attempt(RENDEZVOUS, lambda: client.get(RENDEZVOUS, namespace, name))
    record = attempt(ROUNDS, lambda: Round.from_object(client.get(ROUNDS, namespace, name)))
    members = attempt(MEMBERS, lambda: _parsed(client.list(MEMBERS, namespace, label_selector=selector)["items"])) or []
    pods = attempt(PODS, lambda: client.list(PODS, namespace, label_selector=selector)["items"]) or []
    return Snapshot(namespace, name, rendezvous, record, members, pods, errors)


def _parsed(items: Sequence[ReadOnlyObject]) -> list[Member]:
    return [Member.from_object(item) for item in items]


def unexpected_conditions(snapshot: Snapshot) -> list[ReadOnlyObject]:
    """Conditions that are not as they should be. What the operator can't observe is not held against anybody."""
    return [
        condition
        for condition in snapshot.status.get("conditions") or []
        if condition["status"] != EXPECTED.get(condition["type"], condition["status"])
        and condition["reason"] != "NotObservable"
    ]


def nodes(snapshot: Snapshot) -> list[Node]:
    """Who is in the world, who waits, who is missing: by rank, those without one after them."""
    missing = {
        entry["pod"]: str(entry.get("reason", "")) for entry in (snapshot.status.get("nodes") or {}).get("missing", [])
    }
    found = {node.pod: node for node in _members(snapshot)}
    for name, node in found.items():
        found[name] = replace(node, reason=missing.get(name, ""))
    for pod in snapshot.pods:
        name = pod["metadata"]["name"]
        if name in found:
            continue
        found[name] = _from_pod(pod, missing.get(name, ""))
    for name, reason in missing.items():
        if name not in found:
            found[name] = Node(name, None, None, "missing", "", reason)
    lines = [*found.values(), *_without_member(snapshot, list(found.values()))]
    return sorted(lines, key=lambda n: (n.rank is None, n.rank or 0, n.slot is None, n.slot or 0, n.pod))


def _members(snapshot: Snapshot) -> list[Node]:
    record, roster = snapshot.round, _roster(snapshot)
    running = record if record is not None and record.phase == RUNNING else None
    lines = []
    for member in snapshot.members:
        if member.run_id != snapshot.run_id:
            continue  # Left over from a deleted namesake.
        rank = running.rank_of(member.incarnation) if running else None
        if roster is not None and member.pod_uid in roster.dead:
            state = "dead"
        elif roster is not None and member.pod_uid in roster.draining:
            state = "draining"
        elif member.state != LIVE:
            state = member.state
        else:
            state = "waiting" if rank is None else "joined"
        slot = running.slots[rank] if running and rank is not None else member.slot
        lines.append(Node(member.name, slot, rank, state, member.node))
    return lines


def _without_member(snapshot: Snapshot, lines: Sequence[Node]) -> list[Node]:
    """Members that the Round counts, whose own records nobody has (or may read)."""
    if snapshot.round is None or snapshot.round.phase != RUNNING:
        return []
    seen = {line.rank for line in lines}
    return [
        Node("?", slot, rank, "joined", "", "its RendezvousMember is gone")
        for rank, slot in enumerate(snapshot.round.slots)
        if rank not in seen and "rendezvousmembers" not in snapshot.errors
    ]


def _from_pod(pod: ReadOnlyObject, reason: str) -> Node:
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    state = LEAVING if pod["metadata"].get("deletionTimestamp") else str(status.get("phase", "Pending")).lower()
    return Node(pod["metadata"]["name"], _index(pod), None, state, spec.get("nodeName") or "", reason)


def _index(pod: ReadOnlyObject) -> int | None:
    """The pod's index, from the label that injection has made RDZV_SLOT refer to."""
    labels = pod["metadata"].get("labels") or {}
    for container in (pod.get("spec") or {}).get("containers") or []:
        for entry in container.get("env") or []:
            path = ((entry.get("valueFrom") or {}).get("fieldRef") or {}).get("fieldPath", "")
            if entry["name"] == "RDZV_SLOT" and path.startswith("metadata.labels['"):
                text = str(labels.get(path.removeprefix("metadata.labels['").removesuffix("']"), ""))
                return int(text) if text.isdecimal() else None
    return None


def _roster(snapshot: Snapshot) -> Roster | None:
    try:
        return Roster.from_object(snapshot.rendezvous) if snapshot.rendezvous else None
    except ValueError:
        return None  # The conditions say what is wrong with it; the picture does without.
