"""One agent's side of the protocol as a pure function: `step(state, event, now) -> (state, actions)`.

No I/O, no clock, no randomness: `now` is seconds of the caller's monotonic clock. The caller keeps one state per agent,
feeds it every event one at a time, and carries out the actions in order (both are in `rdzv.protocol.events`). What is decided:
`joining` (how `next_rendezvous` ends), `own_record` (what is written), `candidacy` (who coordinates). The rules and why they
hold: docs/adr/0010-kubernetes-protocol.md.
"""

from __future__ import annotations

from rdzv.protocol import candidacy, joining, own_record
from rdzv.protocol import events as ev
from rdzv.protocol.fields import replace
from rdzv.protocol.member_state import (
    KnownRound,
    MemberState,
    Stage,
    become_bound,
    become_finished,
    become_joining,
    become_leaving,
    become_reaching,
)
from rdzv.protocol.records import CLOSED, RUNNING, TOO_MANY_REFORMS, Endpoint, Round


def num_nodes_waiting(state: MemberState) -> int:
    """1 when the world this agent is in is to be formed anew, or was ended, else 0. Reads the state only and never raises."""
    record = state.known.record
    if record is None or not state.accepted or state.ending:
        return 0
    if record.phase == CLOSED:
        # torch's agent looks at nothing else while its workers run: it asks for the next round then, and is told why there is none.
        return int(record.closed is not None and record.closed.reason == TOO_MANY_REFORMS)
    return int(max(record.round, record.want) > state.accepted or record.uid != state.accepted_uid)


def is_closed(state: MemberState) -> bool:
    """Whether the Rendezvous was closed for this agent, as far as it has seen."""
    return state.known.record is not None and is_closed_by(state, state.known.record)


def is_closed_by(state: MemberState, record: Round) -> bool:
    """Whether this Round is closed for this agent. One that an earlier run closed with success is not: it is opened again."""
    return record.phase == CLOSED and not joining.later_run(state, record)


def store_elsewhere(state: MemberState) -> Endpoint | None:
    """The store of the world that runs without this agent, if it waits since it could not reach one: could it now?"""
    record = state.known.record
    if not state.joining or state.request.unreachable is None or record is None or record.phase != RUNNING:
        return None
    if record.leader is None or record.rank_of(state.me.incarnation) is not None:
        return None
    return Endpoint(record.leader.address, record.leader.port)


def step(state: MemberState, event: ev.MemberEvent, now: float) -> tuple[MemberState, list[ev.Action]]:
    """The next state and what to do about it."""
    state = _take_seen(_take_call(state, event, now), event, now)
    state = own_record.take_reply(state, event, now)
    actions: list[ev.Action] = []
    for part in (joining.proceed, own_record.bring, candidacy.consider):
        state = part(state, actions, now)
    times = [part(state) for part in (joining.look_at, own_record.look_at, candidacy.look_at)]
    wake = min((at for at in times if at is not None), default=None)
    if wake is not None:
        actions.append(ev.Wake(wake))
    return state, actions


def _take_call(state: MemberState, event: ev.MemberEvent, now: float) -> MemberState:
    """What the agent asks for, or is told."""
    deadline = now + state.timing.join_timeout
    match event:
        case ev.Join(port, waited):
            state = become_joining(state, port, deadline - waited)
        case ev.Bound(port):
            state = become_bound(state, port)
        case ev.LeaderUnreachable(round_, store) if state.accepted == round_ and not state.joining:
            # One deadline for one call of next_rendezvous.
            state = become_joining(state, 0, state.request.deadline, store)
        case ev.StoreReached(store) if store == store_elsewhere(state):
            state = become_reaching(state)
        case ev.Sigterm():
            state = become_leaving(state)
        case ev.Finished(success):
            state = become_finished(state, success)
        case _:
            pass
    return state


def _take_seen(state: MemberState, event: ev.MemberEvent, now: float) -> MemberState:
    """What was learned about the others."""
    role = state.candidacy
    match event:
        case ev.RoundSeen():
            return _see(state, event, now)
        case ev.CoordinatorLost(coordinator):
            role = replace(role, lost=coordinator)
        case ev.CoordinatorFound(coordinator):
            role = replace(role, lost=None if role.lost == coordinator else role.lost, doubts=0)
        case ev.Refused(reason):
            return replace(state, known=replace(state.known, refused=reason))
        case ev.SteppedDown(rv):
            role = replace(role, running=False, stepped_rv=rv, doubts=role.doubts + 1)
        case _:
            return state
    return replace(state, candidacy=role)


def _see(state: MemberState, event: ev.RoundSeen, now: float) -> MemberState:
    """Takes the Round unless it is older than what was seen. RVs of one kind are ordered, also across deletion."""
    known = _known(state, event, now)
    if known is state.known:
        return state
    state, desired = candidacy.doubt(replace(state, known=known)), state.own.desired
    behind = known.record is not None and known.record.round < known.highest_seen
    if behind and desired is not None and state.request.stage is Stage.NONE:
        # Round numbers went back: the Round was deleted and made by somebody who knew less. Tell it how far we were.
        desired = replace(desired, seen_round=known.highest_seen)
        state = replace(state, own=replace(state.own, desired=desired))
    return state


def _known(state: MemberState, event: ev.RoundSeen, now: float) -> KnownRound:
    known, record = state.known, event.round
    if record is None:
        if event.rv and event.rv <= known.rv:
            return known
        return replace(known, observed=True, record=None, rv=max(event.rv, known.rv), foreign="", refused="")
    if event.rv <= known.rv:
        return known
    if record.run_id != state.me.run_id:
        since = known.foreign_since if known.foreign else now
        found = replace(known, observed=True, record=None, rv=event.rv, refused="")
        return replace(found, foreign=record.run_id, foreign_since=since)
    highest_seen = max(known.highest_seen, record.round)
    met_rv = known.met_rv if known.met else event.rv
    return KnownRound(True, record, event.rv, highest_seen, met=True, met_rv=met_rv)
