"""Backend `kubernetes`: the rendezvous is kept in the Kubernetes API, in objects of group `rdzv.dev`.

Nothing has to be reachable but the API server: no store to host, no endpoint that dies with a pod.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdzv.addresses import Misplacement, misplaced, networks_of
from rdzv.addresses import problem as misplaced_problem
from rdzv.backends import FAILED, OF_FIXED_RANKS, SUCCEEDED, Backend, BackendError, Condition, Provision, World
from rdzv.env import BY_TOPOLOGY, RANKS, SILENCE
from rdzv.pod_reasons import and_more
from rdzv.protocol import records, reforms
from rdzv.protocol.encoding import MAX_SLOTS
from rdzv.protocol.records import CLOSED, LIVE, RUNNING, SUCCESS, TOO_MANY_REFORMS, Member, Round
from rdzv.protocol.roster import Absent, Misplaced, Roster
from rdzv.spec import GROUP
from rdzv.topology import problems as topology_problems
from rdzv.topology import sites

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from rdzv.observed import Observed, Pod
    from rdzv.spec import Rendezvous

#: Characters of JSON that a status has room for in the list of hopeless pods: etcd stores 1.5 MiB, and names and reasons are long.
MAX_HOPELESS = 400_000

#: Reasons of problems.
_CLOSED, _UNREACHABLE, _SUSPECT = "Closed", "Unreachable", "NodeSuspect"
#: Of agents that wait beside a world that runs.
_SPARE = "Spare: the world has as many nodes as spec.nodes.max allows; it takes the place of one that is lost"
_NEXT = "Waiting: it has asked to join, and is counted when the world forms anew"

#: Seconds. While agents wait for a round, the roster is written anew this often: twice as long after each time, up to the second one.
#: It says itself how long it holds; agents stop trusting one that is not renewed.
HEARTBEAT, HEARTBEAT_MAX = 5, 80


def provision(rendezvous: Rendezvous) -> Provision:
    """The endpoint is the Rendezvous itself.

    Raises:
        BackendError: `spec.endpoint` is set, which has no meaning here, or the world would be too large (the CRD refuses both; an object
            older than the rule gets here), or `spec.kubernetes.networks` names none.
    """
    try:
        networks_of(rendezvous.settings)
    except ValueError as error:
        raise BackendError("InvalidNetwork", str(error)) from None
    if rendezvous.nodes.min > MAX_SLOTS:
        raise BackendError(
            "TooManyNodes",
            f"backend kubernetes has worlds of at most {MAX_SLOTS} nodes: lower spec.nodes.min, or choose another backend",
        )
    if rendezvous.endpoint is not None:
        raise BackendError("EndpointNotUsed", "backend kubernetes has no server of its own: remove spec.endpoint")
    return Provision(
        endpoint=f"{rendezvous.namespace}/{rendezvous.name}",
        config=rendezvous.config,
        # Its agents go by the bounds in the spec.
        unused=OF_FIXED_RANKS | {"PET_NNODES"},
        env=_environment(rendezvous),
        rules=role_rules(rendezvous.name, with_store=rendezvous.config.get("store") == "kubernetes"),
    )


def _environment(rendezvous: Rendezvous) -> dict[str, str]:
    """What agents go by that can't change while they run."""
    silence = rendezvous.settings.get("silenceTimeout")
    return ({RANKS: BY_TOPOLOGY} if rendezvous.topology_keys else {}) | ({SILENCE: str(silence)} if silence else {})


def role_rules(name: str, *, with_store: bool) -> list[dict[str, Any]]:
    """The rules of a Role for agents of Rendezvous `name`, by name where Kubernetes allows it.

    Objects can't be created, or listed by label, by name: that a Member is its pod's own, and a Store or a Round that of the name, the
    chart's ValidatingAdmissionPolicies see to.
    """

    def rule(resource: str, verbs: list[str], names: Sequence[str] = ()) -> dict[str, Any]:
        return {
            "apiGroups": [GROUP],
            "resources": [resource],
            "verbs": verbs,
            **({"resourceNames": [*names]} if names else {}),
        }

    rules = [
        rule("rendezvous", ["get", "watch", "list"], [name]),
        rule("rendezvousrounds", ["get", "watch", "list", "update"], [name]),
        rule("rendezvousrounds", ["create"]),
        rule("rendezvousmembers", ["create", "get", "list", "update", "watch"]),
    ]
    if with_store:
        rules += [
            rule("rendezvousstores", ["delete", "get", "list", "patch", "watch"], [name]),
            rule("rendezvousstores", ["create"]),
        ]
    return rules


def observe(rendezvous: Rendezvous, observed: Observed, previous: Mapping[str, Any], now: float) -> World:
    """The world as its records tell it, and the roster that the agents go by."""
    strange = _misplaced(rendezvous, observed)
    agents = _agents(rendezvous, observed, strange)
    beat = _heartbeat(is_awaited(rendezvous, observed), previous.get("roster") or {}, now)
    before = reforms.Reforms.from_status(previous if previous.get("runID") == rendezvous.uid else {})
    record = _round(rendezvous, observed)
    failed = reforms.count(before, record, rendezvous.failures, now)
    moments = [at for at in (beat.due_in, reforms.due_in(failed, rendezvous.failures, now)) if at is not None]
    return World(
        formed=_formed(rendezvous, observed, agents),
        joined=agents,
        problems=_problems(rendezvous, observed, failed, strange),
        status={
            "round": _highest_round(rendezvous, observed, previous),
            "roster": _roster(rendezvous, observed, beat, failed, strange),
            **({"reforms": failed.to_status()} if failed.recent else {}),
        },
        indexes=MAX_SLOTS,
        again=min(moments, default=None),
        fatal=frozenset({_CLOSED}),
        outcome=_outcome(rendezvous, observed),
        reasons=_reasons(rendezvous, observed, strange),
        formed_for=reforms.kind(record.want_reason) if record is not None else "",
    )


def _outcome(rendezvous: Rendezvous, observed: Observed) -> str:
    record = _round(rendezvous, observed)
    if record is None or record.closed is None:
        return ""
    return SUCCEEDED if record.closed.reason == SUCCESS else FAILED


def _misplaced(rendezvous: Rendezvous, observed: Observed) -> Mapping[str, Misplacement]:
    try:
        networks = networks_of(rendezvous.settings)
    except ValueError:  # The spec is refused for it.
        return {}
    return misplaced(observed.pods, _members(rendezvous, observed), networks)


def _reasons(rendezvous: Rendezvous, observed: Observed, strange: Mapping[str, Misplacement]) -> Mapping[str, str]:
    """Why agents that have asked to join are not in the world that runs or forms, by the names of their pods."""
    record = _round(rendezvous, observed)
    elsewhere = {each.name: each.missing for each in strange.values()}
    if record is None or record.phase != RUNNING:
        return elsewhere
    found = {
        member.name: _SPARE if record.size >= rendezvous.nodes.max else _NEXT
        for member in _members(rendezvous, observed)
        if member.state == LIVE and record.rank_of(member.incarnation) is None
    }
    return found | {one.name: f"{_UNREACHABLE}: {one.reason}" for one in record.left_out} | elsewhere


def _problems(
    rendezvous: Rendezvous, observed: Observed, failed: reforms.Reforms, strange: Mapping[str, Misplacement]
) -> Sequence[tuple[str, str]]:
    """A world that is closed to all, agents at addresses that are not theirs or can't be reached, a node that most failures were on."""
    record, keys = _round(rendezvous, observed), rendezvous.topology_keys
    live = [pod for pod in observed.pods if pod.live]
    unranked = (
        topology_problems(keys, live, observed.node_labels, record, _members(rendezvous, observed)) if keys else []
    )
    if record is None:
        return [*misplaced_problem(strange), *unranked]
    if record.closed is not None and record.closed.reason != SUCCESS:
        why = reforms.exceeded(failed, rendezvous.failures) if record.closed.reason == TOO_MANY_REFORMS else ""
        text = (
            f"{record.closed.by} closed it after round {record.round}: {record.closed.reason}{f' ({why})' if why else ''}. "
            "Nobody can join any more: for another run, delete this Rendezvous and create it again"
        )
        return [(_CLOSED, text)]
    if record.closed is not None:
        return ()
    found = misplaced_problem(strange)
    if record.left_out:
        found.append((_UNREACHABLE, f"{record.left_out[0].reason}{and_more(record.left_out)}"))
    if suspect := reforms.suspicion(failed):
        found.append(
            (
                _SUSPECT,
                f"{suspect} of the last {rendezvous.failures.window} s: look at what its pods and the node logged",
            )
        )
    return found + unranked


def is_awaited(rendezvous: Rendezvous, observed: Observed) -> bool:
    """Whether agents wait for a world that is not there yet. Pods whose agents have not asked to join wait for nothing."""
    record = _round(rendezvous, observed)
    if record is not None and record.phase == CLOSED:
        return False
    running = record is not None and record.phase == RUNNING and record.want <= record.round
    waiting = (each for each in _members(rendezvous, observed) if each.state == LIVE)
    return not running and any(member.pod_uid not in observed.gone for member in waiting)


@dataclass(frozen=True)
class _Heartbeat:
    """`number` changes at least every `seconds`, while agents wait; `due_in`: seconds until it has to (None: nobody waits)."""

    number: int
    seconds: int
    due_in: float | None = None


def _heartbeat(awaited: bool, before: Mapping[str, Any], now: float) -> _Heartbeat:
    """The next one. `before`: the roster of the status. Numbers are seconds since the epoch."""
    number, seconds = int(before.get("heartbeat", 0)), int(before.get("heartbeatSeconds", HEARTBEAT))
    if not awaited:
        # Who waits next knows soon whether somebody renews it.
        return _Heartbeat(number, HEARTBEAT)
    left = number + seconds - now
    if 0 < left <= seconds:
        return _Heartbeat(number, seconds, left)
    # Long after it was due it is a new wait, or a new operator.
    on_time = -seconds < left <= 0
    seconds = min(seconds * 2, HEARTBEAT_MAX) if on_time else HEARTBEAT
    return _Heartbeat(int(now), seconds, float(seconds))


def _round(rendezvous: Rendezvous, observed: Observed) -> Round | None:
    """The round of this incarnation of the Rendezvous; one of a deleted namesake counts for nothing."""
    found = observed.round
    return found if found is not None and found.run_id == rendezvous.uid else None


def _members(rendezvous: Rendezvous, observed: Observed) -> Sequence[Member]:
    return [member for member in observed.members if member.run_id == rendezvous.uid]


def _roster(
    rendezvous: Rendezvous,
    observed: Observed,
    beat: _Heartbeat,
    lately: reforms.Reforms,
    strange: Mapping[str, Misplacement],
) -> dict[str, Any]:
    """Who is expected, who leaves or is gone, and who will not come without help."""
    live, sited = [pod for pod in observed.pods if pod.live], bool(rendezvous.topology_keys)
    # An agent outside of pods is judged by its peers alone.
    gone = {member.pod_uid for member in _members(rendezvous, observed) if member.owned} & observed.gone
    failed = {pod.uid for pod in observed.pods if pod.phase == "Failed"}
    return Roster(
        run_id=rendezvous.uid,
        min_nodes=rendezvous.nodes.min,
        max_nodes=rendezvous.nodes.max,
        known=True,
        # Agents that take any slot are counted, not listed: an agent of an earlier release would wait for those in a list for ever.
        expected=frozenset(() if sited else (slot for slot in map(_slot, live) if slot is not None)),
        expected_count=len(live),
        hopeless=_hopeless(live, strange, slots=not sited),
        draining=frozenset(pod.uid for pod in observed.pods if pod.terminating),
        dead=frozenset(gone | failed),
        misplaced=frozenset(Misplaced(uid, each.address) for uid, each in strange.items()),
        heartbeat=beat.number,
        heartbeat_seconds=beat.seconds,
        ended=reforms.exceeded(lately, rendezvous.failures),
        ended_uid=lately.uid,
        sites=sites(live, observed.node_labels) if sited else None,
    ).to_status()


def _slot(pod: Pod) -> int | None:
    return pod.slot if pod.slot is not None and pod.slot < MAX_SLOTS else None


def _hopeless(live: Sequence[Pod], strange: Mapping[str, Misplacement], *, slots: bool) -> tuple[Absent, ...]:
    """Those that will not start, or not be counted, without help, in a stable order: all of them, unless there are thousands."""
    absent, room = [], MAX_HOPELESS
    for pod in sorted((pod for pod in live if pod.hopeless or pod.uid in strange), key=lambda pod: pod.name):
        reason = pod.reason if pod.hopeless else strange[pod.uid].missing
        room -= len(json.dumps([pod.name, reason])) + 40
        if room < 0:
            break
        absent.append(Absent(pod.name, _slot(pod) if slots else None, reason))
    return tuple(absent)


def _agents(rendezvous: Rendezvous, observed: Observed, strange: Mapping[str, Misplacement]) -> frozenset[str]:
    """Names of the pods whose agents are in the world, or, while there is none, have asked to be and may, or ended well."""
    record = _round(rendezvous, observed)
    members = _members(rendezvous, observed)
    if record is not None and record.phase == RUNNING:
        return frozenset(member.name for member in members if record.rank_of(member.incarnation) is not None)
    return frozenset(
        member.name for member in members if member.state in {LIVE, records.SUCCEEDED} and member.pod_uid not in strange
    )


def _formed(rendezvous: Rendezvous, observed: Observed, agents: frozenset[str]) -> Condition:
    record = _round(rendezvous, observed)
    if record is not None and record.closed is not None:
        text = f"closed by {record.closed.by} after round {record.round}"
        return Condition("Formed", "False", f"Closed{record.closed.reason}", text)
    if record is not None and record.phase == RUNNING and record.leader is not None:
        text = f"round {record.round}: {record.size} nodes, led by slot {record.leader.slot} at {record.leader.address}"
        if record.want > record.round:
            text = f"{text}; forming round {record.want}: {record.want_reason}"
            return Condition("Formed", "False", "FormingAnew", text)
        return Condition("Formed", "True", "Formed", text)
    joined, expected = len(observed.joined(agents, rendezvous.nodes)), observed.expected(rendezvous.nodes)
    return Condition("Formed", "False", "Forming", f"{joined} of {expected} expected nodes have joined")


def _highest_round(rendezvous: Rendezvous, observed: Observed, previous: Mapping[str, Any]) -> int:
    """The highest round of this incarnation that is known: agents continue after it when their record was deleted."""
    record = _round(rendezvous, observed)
    before = previous.get("round", 0) if previous.get("runID") == rendezvous.uid else 0
    return max(before, record.round if record is not None else 0)


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Creates the handler; raises `ValueError` for parameters that are not usable."""
    from rdzv.agent.handler import create_handler

    return create_handler(params)


BACKEND = Backend("kubernetes", provision, create_handler, observe)
