"""When an agent starts to coordinate: nobody else does, and it is the first of those who could."""

from __future__ import annotations

import zlib

from rdzv.protocol import events as ev
from rdzv.protocol.fields import replace
from rdzv.protocol.joining import later_run
from rdzv.protocol.member_state import MemberState, Standing
from rdzv.protocol.records import CLOSED, Round


def consider(state: MemberState, actions: list[ev.Action], now: float) -> MemberState:
    """Starts the coordinator function when nobody coordinates, earlier the lower the own slot."""
    candidacy = state.candidacy
    if not _vacant(state):
        return state if candidacy.vacant_since is None else _since(state, None)
    since = now if candidacy.vacant_since is None else candidacy.vacant_since
    if candidacy.vacant_since is None:
        state = _since(state, since)
    if now < since + takeover_delay(state):
        return state
    record = state.known.record
    gone = record.coordinator if record else None
    if gone is not None and gone.incarnation == state.me.incarnation:
        gone = None  # This very agent had the role and gave it up: it would count itself as dead.
    actions.append(ev.Candidate(gone))
    return replace(state, candidacy=replace(state.candidacy, running=True, vacant_since=None))


def doubt(state: MemberState) -> MemberState:
    """The coordinator that was lost coordinates again, in a later term: it lives, and this agent can't reach it."""
    record, role = state.known.record, state.candidacy
    named = record.coordinator if record is not None else None
    if named is None or role.lost is None or role.running:
        return state
    if named.incarnation != role.lost.incarnation or named.term <= role.lost.term:
        return state
    return replace(state, candidacy=replace(role, lost=None, doubts=role.doubts + 1))


def look_at(state: MemberState) -> float | None:
    """When this agent starts to coordinate, should nobody else."""
    since = state.candidacy.vacant_since
    return None if since is None else since + takeover_delay(state)


def _since(state: MemberState, since: float | None) -> MemberState:
    return replace(state, candidacy=replace(state.candidacy, vacant_since=since))


def _vacant(state: MemberState) -> bool:
    known, candidacy = state.known, state.candidacy
    if candidacy.running or state.standing is not Standing.ACTIVE:
        return False
    if not known.observed or known.rv < candidacy.stepped_rv:
        return False
    if not (state.joining or state.accepted or _early(state)):
        return False
    coordinator = known.record.coordinator if known.record else None
    return _uncoordinated(state) or coordinator == candidacy.lost


def _early(state: MemberState) -> bool:
    """Nobody can ask to join before there is a Round, so it is made while torch still starts."""
    return state.own.desired is None and state.known.record is None and not state.known.foreign


def _uncoordinated(state: MemberState) -> bool:
    """There is no coordinator to lose: none yet, one that ended with an earlier run, or this agent without the function."""
    record = state.known.record
    if record is None or record.coordinator is None or (record.phase == CLOSED and later_run(state, record)):
        return True
    return record.coordinator.incarnation == state.me.incarnation


def takeover_delay(state: MemberState) -> float:
    """Seconds from the moment nobody coordinates until this agent starts to: 0 for the first in the order of slots."""
    record, timing = state.known.record, state.timing
    own = state.slot if state.me.slot is None else state.me.slot
    spread = zlib.crc32(state.me.incarnation.encode())
    if record is None or record.coordinator is None or _uncoordinated(state):
        if state.me.is_first and not state.accepted:
            return 0.0
        if own is None:
            return timing.bootstrap_delay * (spread % 64) / 128
        return timing.bootstrap_delay + own * timing.takeover_step
    return _patience(state) + _turn(state, record, own, spread)


def _patience(state: MemberState) -> float:
    """Who was wrong before takes its time: most likely it is itself the one that nobody reaches."""
    timing, doubts = state.timing, state.candidacy.doubts
    return min(timing.doubt * 2 ** min(doubts - 1, 16), timing.doubt_max) if doubts else 0.0


def _turn(state: MemberState, record: Round, own: int | None, spread: int) -> float:
    timing = state.timing
    # Pods without a slot are spread by a hash, behind the first one that has a slot.
    slot = own if own is not None else 1 + spread % 16
    rank = record.rank_of(state.me.incarnation)
    if rank is None:
        return (record.size + 1 + slot) * timing.takeover_step
    gone = record.coordinator.slot if record.coordinator is not None else None
    return (rank - (gone is not None and gone in record.slots and gone < record.slots[rank])) * timing.takeover_step
