"""How an agent brings its Member to what it has to say: one conditional write at a time, nothing repeated blindly."""

from __future__ import annotations

import zlib

from rdzv.protocol import events as ev
from rdzv.protocol.fields import replace
from rdzv.protocol.member_state import MemberState, OwnRecord, Stage, Standing, Writing, become_replaced
from rdzv.protocol.records import MAX_AHEAD, Member, birth

#: How many times less often a parked spare looks after its Member.
_PARKED_CHECKS = 6


def take_reply(state: MemberState, event: ev.MemberEvent, now: float) -> MemberState:
    """What became of the own requests."""
    own = state.own
    match event:
        case ev.Written(rv):
            own = replace(own, acked=own.pending, acked_rv=rv, pending=None, first_rv=own.first_rv or rv)
            own = _settled(own, now)
        case ev.WriteFailed(invalid, busy):
            # A server that was away is back: the others wait for this agent, not for the server any more.
            failures = 0 if busy and not own.busy else own.failures
            own = replace(own, pending=None, writing=Writing.SETTLED, failures=failures, busy=busy)
            own = _later(state, own, now)
            if invalid:
                own = replace(own, retry_at=now + ev.INVALID_SECONDS)
        case ev.WriteUnknown():
            own = replace(own, pending=None, writing=Writing.UNKNOWN)
        case ev.ReadFailed():
            before = Writing.UNKNOWN if own.writing is Writing.READING else Writing.SETTLED
            own = _later(state, replace(own, writing=before), now)
        case ev.OwnRead(member, rv):
            lost = own.writing is Writing.READING
            return _read(replace(state, own=_settled(own, now)), member, rv, lost)
        case _:
            return state
    return replace(state, own=own)


def _settled(own: OwnRecord, now: float) -> OwnRecord:
    return replace(own, writing=Writing.SETTLED, failures=0, confirmed_at=now)


def _read(state: MemberState, member: Member | None, rv: int, lost: bool) -> MemberState:
    """`lost`: the reply to a write was lost before."""
    own, me, known = state.own, state.me, state.known
    if member is None:
        # Its first write may have been applied, and somebody deleted it since: this agent is no newer than its first look.
        first_rv = known.met_rv if lost and not own.first_rv else own.first_rv
        return replace(state, own=replace(own, acked=None, acked_rv=None, first_rv=first_rv))
    if member.incarnation == me.incarnation:
        own = replace(own, first_rv=own.first_rv or birth(member, rv))
    elif own.first_rv and not _earlier_start(me, member) and birth(member, rv) > own.first_rv:
        return become_replaced(state, member)
    if member.run_id == me.run_id:
        # An earlier start of this pod knew of rounds, and had a slot, which the new one has to respect.
        if known.highest_seen < member.seen_round <= known.highest_seen + MAX_AHEAD:
            state = replace(state, known=replace(known, highest_seen=member.seen_round))
        if state.slot is None and member.allotted:
            state = replace(state, slot=member.slot)
    return replace(state, own=replace(own, acked=replace(member, first_rv=0), acked_rv=rv))


def _earlier_start(me: ev.Identity, member: Member) -> bool:
    """Of one pod this is the latest start: anything else is a late write of an earlier one."""
    return me.owned and member.owned and member.pod_uid == me.incarnation.partition("/")[0]


def _later(state: MemberState, own: OwnRecord, now: float) -> OwnRecord:
    wait = min(state.timing.retry * 2 ** min(own.failures, 16), state.timing.retry_max)
    # Agents that lost the API server at one moment do not all come back to it at one.
    wait *= 1 - 0.5 * zlib.crc32(f"{state.me.incarnation} {own.failures}".encode()) / 2**32
    return replace(own, failures=own.failures + 1, retry_at=now + wait)


def bring(state: MemberState, actions: list[ev.Action], now: float) -> MemberState:
    """Reads or writes, if there is a reason to and no request is under way."""
    own = state.own
    if own.writing not in (Writing.SETTLED, Writing.UNKNOWN) or state.standing is Standing.REPLACED:
        return state
    if now < own.retry_at:
        return state
    if own.writing is Writing.UNKNOWN or (_checked(state) and now >= _check_at(state)):
        actions.append(ev.Read())
        reading = Writing.READING if own.writing is Writing.UNKNOWN else Writing.CHECKING
        return replace(state, own=replace(own, writing=reading))
    if own.desired is None or own.desired == own.acked:
        return state
    actions.append(ev.Write(replace(own.desired, first_rv=own.first_rv), own.acked_rv))
    return replace(state, own=replace(own, writing=Writing.PENDING, pending=own.desired))


def look_at(state: MemberState) -> float | None:
    """When there is a reason to read or write by time alone."""
    own = state.own
    if own.writing not in (Writing.SETTLED, Writing.UNKNOWN) or state.standing is Standing.REPLACED:
        return None
    if own.writing is Writing.UNKNOWN or (own.desired is not None and own.desired != own.acked):
        return own.retry_at
    return max(own.retry_at, _check_at(state)) if _checked(state) else None


def _checked(state: MemberState) -> bool:
    """Somebody may delete the Member by hand; an agent that waits to be counted would wait for ever."""
    return state.joining and state.own.acknowledged


def _check_at(state: MemberState) -> float:
    times = _PARKED_CHECKS if state.request.stage is Stage.PARKED else 1
    return state.own.confirmed_at + state.timing.check_interval * times
