"""How `next_rendezvous` ends: with a world that counted this very request, with an error that says why, or not yet."""

from __future__ import annotations

from rdzv.protocol import events as ev
from rdzv.protocol.fields import replace
from rdzv.protocol.member_state import (
    MemberState,
    Stage,
    Standing,
    become_member,
    become_outsider,
    become_parked,
    become_rebinding,
)
from rdzv.protocol.records import CLOSED, LIVE, RUNNING, SUCCESS, Member, Round


def proceed(state: MemberState, actions: list[ev.Action], now: float) -> MemberState:
    """Ends the call with a world or an error, or asks (again) to be counted."""
    if not state.joining:
        return state
    state = _park(state, now)
    failure = _failure(state, now) or _overdue(state, now)
    if failure is not None:
        actions.append(failure)
        return become_outsider(state)
    record, requested = state.known.record, state.request.requested
    if record is None or state.request.stage is Stage.REBINDING or (requested and not _decided(state, record)):
        return state
    world = _accept(state, record) if requested else None
    if world is None:
        return _ask(state, actions)
    actions.append(world)
    return become_member(state, world)


def look_at(state: MemberState) -> float | None:
    """When the call may end by time alone."""
    if not state.joining:
        return None
    times = [] if state.request.stage is Stage.PARKED else [state.request.deadline]
    if state.known.foreign and state.known.met:
        times.append(state.known.foreign_since + state.timing.check_interval)
    return min(times, default=None)


def later_run(state: MemberState, record: Round) -> bool:
    """The Round was closed with success, and this agent came after that: it waits for it to be opened again.

    It came after that if it has not joined yet, or its join is younger than the last success. A Round that was closed with
    an error is closed for all.
    """
    if record.closed is None or record.closed.reason != SUCCESS or state.accepted == record.round:
        return False
    own = state.own
    return not own.acknowledged or own.acked_rv is None or own.acked_rv > record.members_rv


def _decided(state: MemberState, record: Round) -> bool:
    """The request is used up: its round was formed, with this join in it or not, or the Round was made again."""
    if state.own.desired is not None and state.own.desired.round_uid != record.uid:
        return True
    if record.round < state.request.requested:
        return state.request.requested <= state.known.highest_seen
    # Only an acknowledged join can tell whether it was counted.
    return record.phase != RUNNING or state.own.acknowledged


def _failure(state: MemberState, now: float) -> ev.Raise | None:
    """Why there will be no world for this agent, if so."""
    gone = _stopped(state) or _replaced(state) or _superseded(state, now) or _refused(state)
    return gone or _closed(state) or _usurped(state)


def _stopped(state: MemberState) -> ev.Raise | None:
    if not state.ending:
        return None
    return ev.Raise(ev.CLOSED_ERROR, f"{state.me.name} is being stopped and does not join {state.me.rendezvous} again")


def _replaced(state: MemberState) -> ev.Raise | None:
    if state.standing is not Standing.REPLACED:
        return None
    other = state.replaced_by
    where = f", from {other.address}," if other is not None else ""
    text = f"another agent of the name {state.me.name}{where} joined Rendezvous {state.me.rendezvous} later and has its place"
    if not state.me.owned:
        text += ": two agents that run at one time need two names (--rdzv-conf=member=NAME)"
    return ev.Raise(ev.CLOSED_ERROR, text)


def _superseded(state: MemberState, now: float) -> ev.Raise | None:
    """The Round has been another run's for long. (For a moment, it may be a late write of a run that is over.)"""
    known, me = state.known, state.me
    if not (known.met and known.foreign and now >= known.foreign_since + state.timing.check_interval):
        return None
    text = f"Rendezvous {me.rendezvous} was deleted and made again; this pod belongs to the old one (run {me.run_id})"
    return ev.Raise(ev.CLOSED_ERROR, text)


def _refused(state: MemberState) -> ev.Raise | None:
    return ev.Raise(ev.CLOSED_ERROR, state.known.refused) if state.known.refused else None


def _closed(state: MemberState) -> ev.Raise | None:
    record = state.known.record
    if record is None or record.phase != CLOSED or later_run(state, record):
        return None
    reason, by = (record.closed.reason, record.closed.by) if record.closed else ("unknown", "unknown")
    text = f"Rendezvous {state.me.rendezvous} was closed by {by}: {reason}"
    if reason == SUCCESS:
        return ev.Raise(ev.GRACEFUL, text)
    return ev.Raise(ev.CLOSED_ERROR, f"{text}; it is opened again when its RendezvousRound is deleted")


def _usurped(state: MemberState) -> ev.Raise | None:
    """Another pod was counted on the own slot although this join was known to the coordinator."""
    record, slot, acked_rv = state.known.record, state.me.slot, state.own.acked_rv
    if record is None or slot is None or record.phase != RUNNING or not state.request.requested:
        return None
    known = _decided(state, record) and acked_rv is not None and acked_rv <= record.members_rv
    if not known or slot not in record.slots or record.rank_of(state.me.incarnation) is not None:
        return None
    text = f"slot {slot} of Rendezvous {state.me.rendezvous} is held by another pod"
    return ev.Raise(ev.CLOSED_ERROR, text)


def _overdue(state: MemberState, now: float) -> ev.Raise | None:
    if now < state.request.deadline or state.request.stage is Stage.PARKED:
        return None
    known, me = state.known, state.me
    waited = f"Rendezvous {me.rendezvous} did not form a round within {state.timing.join_timeout:g} s"
    if known.foreign:
        return ev.Raise(ev.TIMEOUT, f"{waited}: its Round belongs to run {known.foreign}, this pod to run {me.run_id}")
    if not known.observed or (state.request.requested and not state.own.acknowledged):
        return ev.Raise(
            ev.CONNECTION,
            f"{waited}: the server that keeps the records was not reached or did not take the request to join",
        )
    left_out = why_left_out(state)
    return ev.Raise(ev.TIMEOUT, f"{waited}: {left_out}" if left_out else waited)


def why_left_out(state: MemberState) -> str:
    """Why this agent is not counted although it asks to be: it and the others can't reach each other. Empty: it is."""
    record, me = state.known.record, state.me
    if record is None:
        return ""
    told = next((one.reason for one in record.left_out if one.name == me.name), "")
    lost = record.coordinator
    if told or lost is None or state.candidacy.lost != lost:
        return told
    return f"{me.name} can't connect to the coordinator at {lost.address} port {lost.port}"


def _accept(state: MemberState, record: Round) -> ev.Accept | None:
    """The world, if it counted this very join: own fingerprint and bit, and the join no younger than what was counted.

    A world whose end is already wanted is not accepted: it would be left at once.
    """
    me, own, request = state.me, state.own, state.request
    rank = record.rank_of(me.incarnation)
    if record.phase != RUNNING or record.want > record.round or record.leader is None or rank is None:
        return None
    if own.desired is None or own.desired.round_uid != record.uid:
        return None
    if record.round < request.requested or own.acked_rv is None or own.acked_rv > record.members_rv:
        return None
    slot = record.slots[rank]
    if me.slot is not None and slot != me.slot:
        return None
    if rank == 0 and (record.leader.address, record.leader.port) != (me.address, request.port):
        return None  # what was counted is an earlier request of this very agent, whose store is gone
    return ev.Accept(record.round, rank, record.size, slot, record.leader, record.uid)


def _ask(state: MemberState, actions: list[ev.Action]) -> MemberState:
    """Asks for the round after the highest one known, with a store that no earlier request has named."""
    me, known, request = state.me, state.known, state.request
    if request.requested or not request.port:
        # A round that this agent has not seen may have used the port of its last request.
        actions.append(ev.Rebind())
        return become_rebinding(state)
    desired = Member(
        name=me.name,
        rendezvous=me.rendezvous,
        run_id=me.run_id,
        incarnation=me.incarnation,
        address=me.address,
        port=request.port,
        want_round=known.highest_seen + 1,
        seen_round=known.highest_seen,
        round_uid=known.record.uid if known.record else "",
        slot=state.slot,
        allotted=state.slot is not None and me.slot is None,
        pair=me.pair,
        state=LIVE,
        node=me.node,
        owned=me.owned,
        unreachable=request.unreachable,
    )
    request = replace(request, requested=desired.want_round)
    return replace(state, request=request, own=replace(state.own, desired=desired))


def _park(state: MemberState, now: float) -> MemberState:
    """While a world runs without it, a spare waits without a deadline; the time counts again when a round forms."""
    record = state.known.record
    world = record is not None and record.phase == RUNNING
    world = world and record is not None and record.want <= record.round < state.request.requested
    # Who is counted in that world, and asks again because its leader can't be reached, is no spare: its time goes on.
    without = record is None or record.rank_of(state.me.incarnation) is None
    parked = world and without and state.own.acknowledged and not why_left_out(state)
    if parked == (state.request.stage is Stage.PARKED):
        return state
    return become_parked(state, parked, now + state.timing.join_timeout)
