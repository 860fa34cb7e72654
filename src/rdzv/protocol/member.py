"""One agent's side of the protocol as a pure function: `step(state, event, now) -> (state, actions)`.

No I/O, no clock, no randomness: `now` is seconds of the caller's monotonic clock. The caller keeps one state per agent,
feeds it every event one at a time, and carries out the actions in order (both are in `rdzv.protocol.events`). The rules and
why they hold: docs/adr/0010-kubernetes-protocol.md.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from rdzv.protocol import events as ev
from rdzv.protocol.fields import replace
from rdzv.protocol.records import (
    CLOSED,
    FAILED,
    LEAVING,
    LIVE,
    RUNNING,
    SUCCEEDED,
    SUCCESS,
    Coordinator,
    Member,
    Roster,
    Round,
)

#: How many times less often a parked spare looks after its Member.
_PARKED_CHECKS = 6


@dataclass(frozen=True)
class MemberState:
    """What one agent knows. Start with `MemberState(identity, timing)`; read `mine`, `slot` and `seen`, write nothing."""

    me: ev.Identity
    timing: ev.Timing = field(default_factory=ev.Timing)
    slot: int | None = None
    """The own slot, once it is known; `me.slot` when the pod has an index."""

    observed: bool = False
    seen: Round | None = None
    seen_rv: int = 0
    top: int = 0
    """Highest round number ever seen; only grows, also when the Round is deleted and made again."""
    met: bool = False
    """A Round of the own run was seen."""
    ended: int = -1
    """Round that was already closed at the first look: what a new run of the same Rendezvous starts from."""
    foreign: str = ""
    """Run ID of the Round when it is not ours. If it stays so, the Rendezvous was made again."""
    foreign_since: float = 0.0
    replaced: bool = False
    """A later agent writes the Member of this name: this one's pod was deleted and made again under its name."""

    mine: int = 0
    """Number of the round accepted last, and the UID of its Round."""
    mine_uid: str = ""
    joining: bool = False
    port: int = 0
    rebinding: bool = False
    want: int = 0
    deadline: float = 0.0
    parked: bool = False

    desired: Member | None = None
    acked: Member | None = None
    acked_rv: int | None = None
    pending: Member | None = None
    written: bool = False
    unknown: bool = False
    reading: bool = False
    confirmed_at: float = 0.0
    retry_at: float = 0.0
    failures: int = 0

    roster: Roster | None = None
    leaving: bool = False
    finished: bool = False

    candidate: bool = False
    vacant_since: float | None = None
    lost: Coordinator | None = None
    stepped_rv: int = 0


def num_nodes_waiting(state: MemberState) -> int:
    """1 when the world this agent is in is to be formed anew, else 0. Reads the state only and never raises."""
    seen = state.seen
    if seen is None or seen.phase == CLOSED or not state.mine or state.leaving or state.finished:
        return 0
    return int(max(seen.round, seen.want) > state.mine or seen.uid != state.mine_uid)


def step(state: MemberState, event: ev.Event, now: float) -> tuple[MemberState, list[ev.Action]]:
    """The next state and what to do about it."""
    state = _take_reply(_take_seen(_take_call(state, event, now), event, now), event, now)
    actions: list[ev.Action] = []
    state = _join(state, actions, now)
    state = _write(state, actions, now)
    state = _candidacy(state, actions, now)
    wake = _wake(state)
    if wake is not None:
        actions.append(ev.Wake(wake))
    return state, actions


def _take_call(state: MemberState, event: ev.Event, now: float) -> MemberState:
    """What the agent asks for, or is told."""
    deadline = now + state.timing.join_timeout
    match event:
        case ev.Join(port):
            slot = state.slot if state.me.slot is None else state.me.slot
            state = replace(state, joining=True, port=port, want=0, slot=slot, rebinding=False)
            state = replace(state, deadline=deadline, parked=False)
        case ev.Bound(port):
            state = replace(state, port=port, rebinding=False)
        case ev.LeaderUnreachable(round_) if state.mine == round_ and not state.joining:
            state = replace(state, joining=True, port=0, deadline=deadline)
        case ev.Sigterm():
            state = replace(state, leaving=True, desired=_with_state(state, LEAVING))
        case ev.Finished(success):
            # A node that was told to leave, and then fails, left: nobody is to blame.
            word = SUCCEEDED if success else LEAVING if state.leaving else FAILED
            state = replace(state, finished=True, desired=_with_state(state, word))
        case _:
            pass
    return state


def _take_seen(state: MemberState, event: ev.Event, now: float) -> MemberState:
    """What was learned about the others."""
    match event:
        case ev.RoundSeen():
            state = _see(state, event, now)
        case ev.RosterSeen(roster):
            state = replace(state, roster=roster)
        case ev.CoordinatorLost(coordinator):
            state = replace(state, lost=coordinator)
        case ev.CoordinatorFound(coordinator) if state.lost == coordinator:
            state = replace(state, lost=None)
        case ev.SteppedDown(rv):
            state = replace(state, candidate=False, stepped_rv=rv)
        case _:
            pass
    return state


def _take_reply(state: MemberState, event: ev.Event, now: float) -> MemberState:
    """What became of the own requests."""
    match event:
        case ev.Written(rv):
            state = replace(state, acked=state.pending, acked_rv=rv, pending=None, written=True)
            state = replace(state, failures=0, confirmed_at=now)
        case ev.WriteFailed(invalid):
            state = _later(replace(state, pending=None), now)
            if invalid:
                state = replace(state, retry_at=now + ev.INVALID_SECONDS)
        case ev.WriteUnknown():
            state = replace(state, pending=None, unknown=True)
        case ev.ReadFailed():
            state = _later(replace(state, reading=False), now)
        case ev.OwnRead(member, rv):
            state = replace(state, unknown=False, reading=False, failures=0, confirmed_at=now)
            state = _read(state, member, rv)
        case _:
            pass
    return state


def _read(state: MemberState, member: Member | None, rv: int) -> MemberState:
    if member is None:
        return replace(state, acked=None, acked_rv=None)
    if member.incarnation == state.me.incarnation:
        state = replace(state, written=True)
    elif state.written and member.pod_uid != state.me.incarnation.partition("/")[0]:
        # Of one pod this is the latest start: anything else is a late write of an earlier one.
        return replace(state, replaced=True)
    if member.run_id == state.me.run_id:
        # An earlier start of this pod knew of rounds, and had a slot, which the new one has to respect.
        state = replace(state, top=max(state.top, member.seen_round))
        if state.slot is None and member.allotted:
            state = replace(state, slot=member.slot)
    return replace(state, acked=replace(member, created=""), acked_rv=rv)


def _later(state: MemberState, now: float) -> MemberState:
    wait = min(state.timing.retry * 2 ** min(state.failures, 16), state.timing.retry_max)
    # Agents that lost the API server at one moment do not all come back to it at one.
    wait *= 1 - 0.5 * zlib.crc32(f"{state.me.incarnation} {state.failures}".encode()) / 2**32
    return replace(state, failures=state.failures + 1, retry_at=now + wait)


def _with_state(state: MemberState, word: str) -> Member | None:
    last = state.desired or state.acked
    return None if last is None else replace(last, state=word)


def _see(state: MemberState, event: ev.RoundSeen, now: float) -> MemberState:
    """Takes the Round unless it is older than what was seen. RVs of one kind are ordered, also across deletion."""
    first, record = not state.met, event.round
    if record is None:
        if event.rv and event.rv <= state.seen_rv:
            return state
        return replace(state, observed=True, seen=None, seen_rv=max(event.rv, state.seen_rv), foreign="")
    if event.rv <= state.seen_rv:
        return state
    state = replace(state, observed=True, seen=None, seen_rv=event.rv)
    if record.run_id != state.me.run_id:
        return replace(state, foreign=record.run_id, foreign_since=state.foreign_since if state.foreign else now)
    state = replace(state, seen=record, top=max(state.top, record.round), met=True, foreign="")
    if first and record.phase == CLOSED:
        state = replace(state, ended=record.round)
    if record.round < state.top and state.desired is not None and not state.joining:
        # Round numbers went back: the Round was deleted and made by somebody who knew less. Tell it how far we were.
        state = replace(state, desired=replace(state.desired, seen_round=state.top))
    return state


def _join(state: MemberState, actions: list[ev.Action], now: float) -> MemberState:
    """Ends `next_rendezvous` with a world or an error, or asks (again) to be counted."""
    seen = state.seen
    if not state.joining:
        return state
    state = _park(state, now)
    ending = _ending(state, now) or _overdue(state, now)
    if ending is not None:
        actions.append(ending)
        leave = not state.finished
        return replace(state, joining=False, desired=_with_state(state, LEAVING) if leave else state.desired)
    if seen is None or state.rebinding or (state.want and not _decided(state, seen)):
        return state
    accept = _accept(state, seen) if state.want else None
    if accept is None:
        return _ask(state, actions)
    actions.append(accept)
    return replace(state, joining=False, mine=seen.round, mine_uid=seen.uid, slot=accept.slot, port=0, want=0)


def _decided(state: MemberState, seen: Round) -> bool:
    """The request is used up: its round was formed, with this join in it or not, or the Round was made again."""
    if state.desired is not None and state.desired.round_uid != seen.uid:
        return True
    if seen.round < state.want:
        return state.want <= state.top
    # Only an acknowledged join can tell whether it was counted.
    return seen.phase != RUNNING or _acknowledged(state)


def _superseded(state: MemberState, now: float) -> bool:
    """The Round has been another run's for long. (For a moment, it may be a late write of a run that is over.)"""
    return state.met and bool(state.foreign) and now >= state.foreign_since + state.timing.check_interval


def _ending(state: MemberState, now: float) -> ev.Raise | None:
    """Why there will be no world for this agent, if so."""
    seen, name = state.seen, state.me.rendezvous
    kind, text = ev.CLOSED_ERROR, ""
    if state.leaving or state.finished:
        text = f"{state.me.name} is being stopped and does not join {name} again"
    elif state.replaced:
        text = f"another agent has taken the place of {state.me.name} in Rendezvous {name}"
    elif _superseded(state, now):
        text = f"Rendezvous {name} was deleted and made again; this pod belongs to the old one (run {state.me.run_id})"
    elif seen is not None and seen.phase == CLOSED and not _later_run(state, seen):
        reason, by = (seen.closed.reason, seen.closed.by) if seen.closed else ("unknown", "unknown")
        kind = ev.GRACEFUL if reason == SUCCESS else ev.CLOSED_ERROR
        text = f"Rendezvous {name} was closed by {by}: {reason}"
    elif seen is not None and _usurped(state, seen):
        text = f"slot {state.me.slot} of Rendezvous {name} is held by another, newer pod"
    return ev.Raise(kind, text) if text else None


def _later_run(state: MemberState, seen: Round) -> bool:
    """The Round was closed before this agent came, which therefore waits for it to be opened again.

    That is known at the first look, and from the own join being younger than the last success of the run that ended.
    """
    if seen.round == state.ended:
        return True
    if seen.closed is None or seen.closed.reason != SUCCESS or state.mine == seen.round:
        return False
    return not _acknowledged(state) or state.acked_rv is None or state.acked_rv > seen.members_rv


def _overdue(state: MemberState, now: float) -> ev.Raise | None:
    if now < state.deadline or state.parked:
        return None
    waited = f"Rendezvous {state.me.rendezvous} did not form a round within {state.timing.join_timeout:g} s"
    if state.foreign:
        return ev.Raise(
            ev.TIMEOUT, f"{waited}: its Round belongs to run {state.foreign}, this pod to run {state.me.run_id}"
        )
    if not state.observed or (state.want and not _acknowledged(state)):
        return ev.Raise(ev.CONNECTION, f"{waited}: the API server was not reached or did not take the request to join")
    missing = "; ".join(f"{a.pod} is {a.reason}" for a in state.roster.hopeless[:5]) if state.roster else ""
    return ev.Raise(ev.TIMEOUT, f"{waited}{': ' if missing else ''}{missing}")


def _usurped(state: MemberState, seen: Round) -> bool:
    """Another pod was counted on the own slot although this join was known to the coordinator."""
    if state.me.slot is None or seen.phase != RUNNING or not state.want or not _decided(state, seen):
        return False
    known = state.acked_rv is not None and state.acked_rv <= seen.members_rv
    return known and state.me.slot in seen.slots and seen.rank_of(state.me.incarnation) is None


def _acknowledged(state: MemberState) -> bool:
    """The API server has confirmed exactly what this agent last wanted to say."""
    return state.desired is not None and state.acked == state.desired and state.pending is None and not state.unknown


def _accept(state: MemberState, seen: Round) -> ev.Accept | None:
    """The world, if it counted this very join: own fingerprint and bit, and the join no younger than what was counted.

    A world whose end is already wanted is not accepted: it would be left at once.
    """
    rank = seen.rank_of(state.me.incarnation)
    if seen.phase != RUNNING or seen.want > seen.round or seen.leader is None or rank is None:
        return None
    if state.desired is None or state.desired.round_uid != seen.uid:
        return None
    if seen.round < state.want or state.acked_rv is None or state.acked_rv > seen.members_rv:
        return None
    slot = seen.slots[rank]
    if state.me.slot is not None and slot != state.me.slot:
        return None
    if rank == 0 and (seen.leader.address, seen.leader.port) != (state.me.address, state.port):
        return None  # what was counted is an earlier request of this very agent, whose store is gone
    return ev.Accept(seen.round, rank, seen.size, slot, seen.leader, seen.uid)


def _ask(state: MemberState, actions: list[ev.Action]) -> MemberState:
    """Asks for the round after the highest one known, with a store that no earlier request has named."""
    if state.want or not state.port:
        # A round that this agent has not seen may have used the port of its last request.
        actions.append(ev.Rebind())
        return replace(state, port=0, want=0, rebinding=True)
    me = state.me
    desired = Member(
        name=me.name,
        rendezvous=me.rendezvous,
        run_id=me.run_id,
        incarnation=me.incarnation,
        address=me.address,
        port=state.port,
        want_round=state.top + 1,
        seen_round=state.top,
        round_uid=state.seen.uid if state.seen else "",
        slot=state.slot,
        allotted=state.slot is not None and me.slot is None,
        state=LIVE,
        node=me.node,
    )
    return replace(state, want=desired.want_round, desired=desired)


def _park(state: MemberState, now: float) -> MemberState:
    """While a world runs without it, a spare waits without a deadline; the time counts again when a round forms."""
    seen = state.seen
    world = seen is not None and seen.phase == RUNNING and seen.want <= seen.round < state.want
    parked = world and _acknowledged(state)
    if parked == state.parked:
        return state
    return replace(state, parked=parked, deadline=now + state.timing.join_timeout)


def _write(state: MemberState, actions: list[ev.Action], now: float) -> MemberState:
    """Brings the Member in the API to what is desired; one request at a time, nothing repeated blindly."""
    if state.pending is not None or state.reading or state.replaced or now < state.retry_at:
        return state
    if state.unknown or (_checking(state) and now >= _check_at(state)):
        actions.append(ev.Read())
        return replace(state, reading=True)
    if state.desired is None or state.desired == state.acked:
        return state
    actions.append(ev.Write(state.desired, state.acked_rv))
    return replace(state, pending=state.desired)


def _checking(state: MemberState) -> bool:
    """Somebody may delete the Member by hand; an agent that waits to be counted would wait for ever."""
    return state.joining and _acknowledged(state)


def _check_at(state: MemberState) -> float:
    return state.confirmed_at + state.timing.check_interval * (_PARKED_CHECKS if state.parked else 1)


def _candidacy(state: MemberState, actions: list[ev.Action], now: float) -> MemberState:
    """Starts the coordinator function when nobody coordinates, earlier the lower the own slot."""
    if not _vacant(state):
        return state if state.vacant_since is None else replace(state, vacant_since=None)
    since = now if state.vacant_since is None else state.vacant_since
    if state.vacant_since is None:
        state = replace(state, vacant_since=since)
    if now < since + takeover_delay(state):
        return state
    actions.append(ev.Candidate(state.seen.coordinator if state.seen else None))
    return replace(state, candidate=True, vacant_since=None)


def _vacant(state: MemberState) -> bool:
    if state.candidate or state.leaving or state.finished or state.replaced:
        return False
    if not state.observed or state.seen_rv < state.stepped_rv or not (state.joining or state.mine or _early(state)):
        return False
    coordinator = state.seen.coordinator if state.seen else None
    return _uncoordinated(state) or coordinator == state.lost


def _early(state: MemberState) -> bool:
    """Nobody can ask to join before there is a Round, so it is made while torch still starts."""
    return state.desired is None and state.seen is None and not state.foreign


def _uncoordinated(state: MemberState) -> bool:
    """There is no coordinator to lose: none yet, one that ended with an earlier run, or this agent without the function."""
    seen = state.seen
    if seen is None or seen.coordinator is None or (seen.phase == CLOSED and _later_run(state, seen)):
        return True
    return seen.coordinator.incarnation == state.me.incarnation


def takeover_delay(state: MemberState) -> float:
    """Seconds from the moment nobody coordinates until this agent starts to: 0 for the first in the order of slots."""
    seen, timing = state.seen, state.timing
    own = state.slot if state.me.slot is None else state.me.slot
    spread = zlib.crc32(state.me.incarnation.encode())
    if seen is None or seen.coordinator is None or _uncoordinated(state):
        if own is None:
            return timing.bootstrap_delay * (spread % 64) / 128
        return 0.0 if own == 0 and not state.mine else timing.bootstrap_delay + own * timing.takeover_step
    # Pods without a slot are spread by a hash, behind the first one that has a slot.
    slot = own if own is not None else 1 + spread % 16
    rank = seen.rank_of(state.me.incarnation)
    if rank is None:
        return (seen.size + 1 + slot) * timing.takeover_step
    gone = seen.coordinator.slot
    return (rank - (gone is not None and gone in seen.slots and gone < seen.slots[rank])) * timing.takeover_step


def _wake(state: MemberState) -> float | None:
    times = []
    if state.joining and not state.parked:
        times.append(state.deadline)
    if state.joining and state.foreign and state.met:
        times.append(state.foreign_since + state.timing.check_interval)
    if state.vacant_since is not None:
        times.append(state.vacant_since + takeover_delay(state))
    if state.pending is None and not state.reading and not state.replaced:
        if state.unknown or (state.desired is not None and state.desired != state.acked):
            times.append(state.retry_at)
        elif _checking(state):
            times.append(max(state.retry_at, _check_at(state)))
    return min(times, default=None)
