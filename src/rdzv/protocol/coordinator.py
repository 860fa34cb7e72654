"""The coordinator's side of the protocol as a pure function: `step(state, view, now) -> (state, decision)`.

One agent at a time runs it (see `Candidate` in `rdzv.protocol.events`); what it decides takes effect only by compare-and-set
on the Round, so that a second one that believes to be it does no harm. No I/O, no clock, no randomness: `now` is seconds
of the caller's monotonic clock. `facts` sorts out what is seen, `completion` and `reforming` decide about a round. The rules
and why they hold: docs/adr/0010-kubernetes-protocol.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rdzv.protocol import exclusion, rivalry
from rdzv.protocol.completion import commit, completion
from rdzv.protocol.coordinator_state import CoordinatorState, Decision, View, note
from rdzv.protocol.encoding import fingerprint
from rdzv.protocol.facts import Facts, gather
from rdzv.protocol.fields import replace
from rdzv.protocol.records import (
    CLOSED,
    FORMING,
    LIVE,
    REASON_LENGTH,
    RUNNING,
    SUCCEEDED,
    SUCCESS,
    TOO_MANY_REFORMS,
    Closure,
    Coordinator,
    Member,
    Round,
)
from rdzv.protocol.reforming import cause, failure_text
from rdzv.protocol.sifting import sift_view


@dataclass(frozen=True)
class Target:
    """The Round as it should be and why, and, when it is so already, who is waited for and when that may change by itself."""

    record: Round
    why: str = ""
    waiting_for: str = ""
    look_again: float | None = None


def step(state: CoordinatorState, view: View, now: float) -> tuple[CoordinatorState, Decision]:
    """At most one compare-and-set of the Round, and when to look again."""
    own = view.round if view.round is not None and view.round.run_id == state.me.run_id else None
    view, refused = sift_view(view, own, state.me.run_id, state.highest_seen)
    state, decision = _decide(state, view, now)
    return state, replace(decision, refused_members=refused) if refused else decision


def _decide(state: CoordinatorState, view: View, now: float) -> tuple[CoordinatorState, Decision]:
    record, me = view.round, state.me
    own = record if record is not None and record.run_id == me.run_id else None
    if own is None and (other := _other_run(state, view)):
        state = note(state, "foreign", True, now)
        at = state.since["foreign"] + state.policy.give_up
        decision = Decision(foreign=True, look_again=at, waiting_for=other)
        return state, decision if now < at else replace(decision, look_again=None, refused=other)
    named = own.coordinator if own is not None else None
    mine = named is not None and named.incarnation == me.incarnation
    if named is not None and own is not None and not mine and named != state.lost:
        return _meet(state, view, own, named, now)
    state = _remember(state, view, own, now)
    facts = gather(state, view, own, now)
    if own is not None and mine:
        state = rivalry.note_alone(rivalry.note_claim(state, own, now), facts, now)
    if own is None:
        term = max(state.term, view.round.term if view.round else 0) + 1
        fresh = _fresh(state, facts)
        return state, Decision(
            _claimed(fresh, state, term), view.round_rv, why="there is none", waiting_for="the Round to be created"
        )
    state, target = _target(state, facts, own, now)
    act_at = rivalry.may_act_at(state, facts, own, now)
    if not mine and state.lost is not None and own.phase != CLOSED:
        target = Target(own)  # Should the one that is replaced live after all, it sees that nothing has happened yet.
    elif act_at is None or act_at > now:
        target = Target(own, waiting_for="any of the others to connect to the new coordinator", look_again=act_at)
    else:
        state, target = replace(state, followed=True), _naming(state, target, facts, now)
    wanted = target.record
    if not mine:
        if own.phase == CLOSED and wanted.phase == CLOSED:
            return state, Decision()
        wanted = _claimed(wanted, state, own.term + 1)
    probe = exclusion.probes(facts)
    waiting_for = "; ".join([*([target.waiting_for] if target.waiting_for else []), *_reasons(facts)])
    decision = Decision(look_again=target.look_again, waiting_for=waiting_for, probe=probe, ask=facts.contested)
    if wanted == own:
        return state, decision
    return state, replace(decision, write=wanted, rv=view.round_rv, why=target.why or "this agent coordinates")


def _meet(
    state: CoordinatorState, view: View, own: Round, rival: Coordinator, now: float
) -> tuple[CoordinatorState, Decision]:
    """Another agent has claimed the Round: this one takes it back, or steps down."""
    if not rivalry.answers(state, gather(state, view, own, now), own, rival, now):
        return state, Decision(step_down=True)
    why = f"{rival.incarnation} took over, but this agent lives and is connected to others"
    claim = _claimed(own, state, own.term + 1)
    return rivalry.answered(state, rival, now), Decision(claim, view.round_rv, why=why)


def _naming(state: CoordinatorState, target: Target, facts: Facts, now: float) -> Target:
    """Names who can't be reached in the Round."""
    record = target.record
    if record.phase == CLOSED or rivalry.on_probation(state, now):
        return target
    times = [at for at in (target.look_again, facts.name_at) if at is not None]
    record = replace(record, left_out=exclusion.keep_words(record.left_out, facts.left_out))
    return replace(target, record=record, look_again=min(times, default=None))


def _reasons(facts: Facts) -> list[str]:
    return [one.reason for one in facts.left_out]


def _other_run(state: CoordinatorState, view: View) -> str:
    """Why this run may not make or replace the Round, in words; empty when it may."""
    me, roster = state.me, view.roster
    if roster is None:
        return _has_it(state, view, view.round) if view.round is not None else ""
    # The Round of another run may be a newer one; the Rendezvous itself says which run is the present one.
    if roster.run_id == me.run_id:
        return ""
    return (
        f"Rendezvous {me.rendezvous} is of run {roster.run_id}, this agent of run {me.run_id}: the Rendezvous was "
        "made again since, or --rdzv-id is another one than its UID"
    )


def _has_it(state: CoordinatorState, view: View, record: Round) -> str:
    """Why the run of this Round has it, where no Rendezvous says so; empty when that run is over."""
    me = state.me
    if view.met:
        # The other one is the later of the two: who was overtaken does not take over again.
        return f"run {record.run_id} has taken Rendezvous {me.rendezvous} over from run {me.run_id}"
    if record.phase == CLOSED:
        return ""
    living = sorted(m.name for m, _ in view.members.values() if m.run_id == record.run_id and m.state == LIVE)
    if not living:
        return ""
    return (
        f"run {record.run_id} uses Rendezvous {me.rendezvous} (round {record.round}, {len(living)} members, {living[0]} "
        f"is one), this agent is of run {me.run_id}: wait for its end or take another name; if nobody is left of "
        "it, delete its RendezvousRound and RendezvousMembers"
    )


def _claimed(record: Round, state: CoordinatorState, term: int) -> Round:
    me = state.me
    slot = me.slot if me.slot is not None else state.slot
    return replace(record, coordinator=Coordinator(slot, me.incarnation, me.address, me.port, term, me.key))


def _fresh(state: CoordinatorState, facts: Facts) -> Round:
    me = state.me
    return Round(me.rendezvous, me.run_id, round=facts.floor, want=facts.floor + 1, want_reason="created")


def _remember(state: CoordinatorState, view: View, own: Round | None, now: float) -> CoordinatorState:
    """Keeps what the next view may no longer show."""
    ours = [member for member, _ in view.members.values() if member.run_id == state.me.run_id]
    done = {member.incarnation for member in ours if member.state == SUCCEEDED}
    beat = view.roster.heartbeat if view.roster else -1
    mine = view.members.get(state.me.name)
    state = replace(
        state,
        succeeded=state.succeeded | done,
        heartbeat=state.heartbeat if beat == state.heartbeat[0] else (beat, now),
        slot=mine[0].slot if mine is not None and mine[0].slot is not None else state.slot,
    )
    state = exclusion.remember(state, view, own, now)
    number, term = (own.round, own.term) if own is not None else (-1, 0)
    state = replace(state, term=max(state.term, term, state.lost.term if state.lost else 0))
    if number != state.basis:
        state = replace(state, basis=number, since={}, failed=frozenset(), nodes=_nodes(ours, own))
    return replace(state, highest_seen=max(state.highest_seen, number, view.highest_seen))


def _nodes(members: Sequence[Member], own: Round | None) -> Mapping[int, str]:
    if own is None or own.phase != RUNNING:
        return {}
    slots = dict(zip(own.fingerprints, own.slots, strict=True))
    marks = ((fingerprint(own.salt, member.incarnation), member.node) for member in members)
    return {slots[mark]: node for mark, node in marks if mark in slots and node}


def _target(state: CoordinatorState, facts: Facts, own: Round, now: float) -> tuple[CoordinatorState, Target]:
    """The first of these that has something to say about the Round."""
    settled = (
        _ended(state, facts, own)
        or _closed(state, facts, own)
        or _gone_back(facts, own)
        or _all_done(state, facts, own)
    )
    if settled is not None:
        return state, settled
    forming = own.phase == FORMING or own.want > own.round
    state = _note_failures(state, facts, forming, now)
    if forming or facts.attendance.rejoining:
        state, complete = completion(state, facts, now)
        if complete.at is not None and complete.at <= now:
            found = exclusion.judge(state, facts, own, now)
            if found is not None:
                return found.state, Target(own, waiting_for=found.why, look_again=found.at)
            reason = own.want_reason if own.want > own.round else failure_text(state, facts, own)
            return state, Target(commit(facts, own, reason[:REASON_LENGTH]), complete.why)
        if forming:
            return state, Target(own, waiting_for=complete.missing, look_again=complete.at)
    return _running(state, facts, own, now)


def _ended(state: CoordinatorState, facts: Facts, own: Round) -> Target | None:
    """The operator ends the world of this very Round: it fails too often."""
    if own.phase == CLOSED or not facts.ended:
        return None
    return Target(replace(own, phase=CLOSED, closed=Closure(TOO_MANY_REFORMS, state.me.name)), facts.ended)


def _closed(state: CoordinatorState, facts: Facts, own: Round) -> Target | None:
    """A closed Round stays as it is, unless it ended well and this agent is of a later run of the same Rendezvous."""
    if own.phase != CLOSED:
        return None
    success = own.closed is not None and own.closed.reason == SUCCESS
    # Who joined after the last success of the run that ended belongs to another run of the same Rendezvous.
    later = success and facts.own_rv > own.members_rv
    return Target(_blank(own, own.round, "opened again"), "opened again") if later else Target(own)


def _gone_back(facts: Facts, own: Round) -> Target | None:
    """Somebody knows of later rounds: this Round was made after a deletion. Numbers are not used twice."""
    if facts.highest_seen <= own.round:
        return None
    why = "round numbers had gone back"
    return Target(_blank(own, facts.floor, why), why)


def _all_done(state: CoordinatorState, facts: Facts, own: Round) -> Target | None:
    if own.phase != RUNNING or not facts.succeeded or len(facts.succeeded) != own.size:
        return None
    closed = Closure(SUCCESS, state.me.name)
    return Target(replace(own, phase=CLOSED, closed=closed, members_rv=facts.success_rv), "all have succeeded")


def _note_failures(state: CoordinatorState, facts: Facts, forming: bool, now: float) -> CoordinatorState:
    # Once a round forms, joining again is what is asked for; only further losses begin the settling anew.
    failed = facts.lost if forming else facts.lost | facts.attendance.rejoining
    if failed != state.failed:
        state = replace(note(state, "failed", bool(failed - state.failed), now, renew=True), failed=failed)
    state = note(state, "gone", not facts.being_stopped, now)
    return note(state, "forming", forming or bool(failed), now)


def _running(state: CoordinatorState, facts: Facts, own: Round, now: float) -> tuple[CoordinatorState, Target]:
    """A running world stays as it is until there is a cause to form it anew."""
    state, found = cause(state, facts, own, now)
    if found is None:
        return state, Target(own)
    if found.at > now:
        return state, Target(own, look_again=found.at)
    why = "; ".join([found.why, *_reasons(facts)])
    return state, Target(replace(own, want=own.round + 1, want_reason=why[:REASON_LENGTH]), why)


def _blank(own: Round, number: int, reason: str) -> Round:
    """Nobody is in a world; everybody is asked to join the round after `number`."""
    return Round(
        own.name,
        own.run_id,
        round=number,
        want=number + 1,
        want_reason=reason,
        coordinator=own.coordinator,
        members_rv=own.members_rv,
        uid=own.uid,
    )


def close(record: Round, reason: str, by: str) -> Round:
    """The Round closed on request (`set_closed`): to be written by compare-and-set."""
    return replace(record, phase=CLOSED, closed=Closure(reason, by))
