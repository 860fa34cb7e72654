"""What the operator makes of the `kubernetes` backend's records: the roster that it tells the agents, and what it tells users (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rdzv.control.observed import Observed
from rdzv.k8s.records import CLOSED, LIVE, RUNNING, SUCCEEDED, Absent, Member, Roster, Round
from rdzv.spec import Rendezvous

BACKEND = "kubernetes"

#: Seconds. While a round forms, the roster is written anew at least this often; agents stop trusting one that is not.
HEARTBEAT = 5.0


def current_round(rendezvous: Rendezvous, observed: Observed) -> Round | None:
    """The round of this incarnation of the Rendezvous; one of a deleted namesake counts for nothing."""
    found = observed.round
    return found if found is not None and found.run_id == rendezvous.uid else None


def is_forming(rendezvous: Rendezvous, observed: Observed) -> bool:
    """Whether pods are there, and no world is (or the one that is has been asked to form anew)."""
    record = current_round(rendezvous, observed)
    if record is not None and record.phase == CLOSED:
        return False
    running = record is not None and record.phase == RUNNING and record.want <= record.round
    return not running and any(pod.live for pod in observed.pods)


def roster(rendezvous: Rendezvous, observed: Observed, previous: Mapping[str, Any], now: float) -> dict[str, Any]:
    """`status.roster`: who is expected, who leaves or is gone, and who will not come without help.

    Args:
        rendezvous: the object.
        observed: what the pass read.
        previous: the status that the object has.
        now: seconds since the epoch.
    """
    live = [pod for pod in observed.pods if pod.live]
    uids = {pod.uid for pod in observed.pods}
    gone = {member.pod_uid for member in _members(rendezvous, observed)} - uids
    failed = {pod.uid for pod in observed.pods if pod.phase == "Failed"}
    beat = (
        int(now // HEARTBEAT)
        if is_forming(rendezvous, observed)
        else (previous.get("roster") or {}).get("heartbeat", 0)
    )
    return Roster(
        run_id=rendezvous.uid,
        min_nodes=rendezvous.nodes.min,
        max_nodes=rendezvous.nodes.max,
        known=True,
        expected=frozenset(pod.slot for pod in live if pod.slot is not None),
        expected_count=len(live),
        hopeless=tuple(Absent(pod.name, pod.slot, pod.reason) for pod in live if pod.hopeless),
        draining=frozenset(pod.uid for pod in observed.pods if pod.terminating),
        dead=frozenset(gone | failed),
        heartbeat=beat,
        heartbeat_seconds=HEARTBEAT,
    ).to_status()


def present(rendezvous: Rendezvous, observed: Observed) -> frozenset[str]:
    """Names of the pods whose agents are in the world, or, while there is none, have asked to be, or ended well."""
    record = current_round(rendezvous, observed)
    members = _members(rendezvous, observed)
    if record is not None and record.phase == RUNNING:
        return frozenset(member.name for member in members if record.rank_of(member.incarnation) is not None)
    return frozenset(member.name for member in members if member.state in {LIVE, SUCCEEDED})


def describe(rendezvous: Rendezvous, observed: Observed, joined: int, expected: int) -> tuple[str, str, str]:
    """Status, reason and message of condition `Formed`."""
    record = current_round(rendezvous, observed)
    if record is not None and record.closed is not None:
        return "False", f"Closed{record.closed.reason}", f"closed by {record.closed.by} after round {record.round}"
    if record is not None and record.phase == RUNNING and record.leader is not None:
        text = f"round {record.round}: {record.size} nodes, led by slot {record.leader.slot} at {record.leader.address}"
        if record.want > record.round:
            return "False", "FormingAnew", f"{text}; forming round {record.want}: {record.want_reason}"
        return "True", "Formed", text
    return "False", "Forming", f"{joined} of {expected} expected nodes have joined"


def highest_round(rendezvous: Rendezvous, observed: Observed, previous: Mapping[str, Any]) -> int:
    """The highest round of this incarnation that is known: agents continue after it when their record was deleted."""
    record = current_round(rendezvous, observed)
    before = previous.get("round", 0) if previous.get("runID") == rendezvous.uid else 0
    return max(before, record.round if record is not None else 0)


def _members(rendezvous: Rendezvous, observed: Observed) -> Sequence[Member]:
    return [member for member in observed.members if member.run_id == rendezvous.uid]
