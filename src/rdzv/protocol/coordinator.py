"""The coordinator's side of the protocol as a pure function: `step(state, view, now) -> (state, decision)`.

One agent at a time runs it (see `Candidate` in `rdzv.protocol.events`); what it decides takes effect only by compare-and-set
on the Round, so that a second one that believes to be it does no harm. No I/O, no clock, no randomness: `now` is seconds
of the caller's monotonic clock. The rules and why they hold: docs/adr/0010-kubernetes-protocol.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rdzv.protocol.fields import replace
from rdzv.protocol.records import (
    CLOSED,
    FORMING,
    LIVE,
    MAX_SLOTS,
    RUNNING,
    SUCCEEDED,
    SUCCESS,
    Closure,
    Coordinator,
    Leader,
    Member,
    Roster,
    Round,
    fingerprint,
    fingerprints,
)

if TYPE_CHECKING:
    from rdzv.protocol.events import Identity

_HEARTBEATS_MISSED = 3
_REASON_LENGTH = 256


@dataclass(frozen=True)
class Policy:
    """Seconds, and the bounds that hold while no Rendezvous is known. `last_call` is torch's last_call_timeout."""

    min_nodes: int
    max_nodes: int
    last_call: float = 30.0
    settle: float = 0.3
    grace: float = 2.0
    scale_up_window: float = 30.0


@dataclass(frozen=True)
class View:
    """What the coordinator's caches hold.

    Attributes:
        members: by name, each with its resourceVersion. Complete: every write up to `members_rv` is in it.
        members_rv: highest resourceVersion of the watch (list, event or bookmark) of Members.
        roster: the Rendezvous, None when there is none or it may not be read.
        round: the Round, None when it does not exist. `round_rv` is its resourceVersion.
        dead: incarnations that certainly ended (connection broken and refused, container terminated …) and have not
            connected since. A write says nothing: it may be a late one of a process that is gone.
        suspected: incarnations that are silent; they are not waited for, but not evicted either.
        top: `MemberState.top` of this agent.
        connected: incarnations that hold a connection to this coordinator: the one it replaced is dead until it is here.
    """

    members: Mapping[str, tuple[Member, int]]
    members_rv: int
    roster: Roster | None
    round: Round | None
    round_rv: int | None
    dead: frozenset[str] = frozenset()
    suspected: frozenset[str] = frozenset()
    connected: frozenset[str] = frozenset()
    top: int = 0


@dataclass(frozen=True)
class Decision:
    """What to do.

    Attributes:
        write: the Round to create (`rv` None) or to replace on condition that its resourceVersion is `rv`. Whatever
            comes of it, applied, refused or unknown: read the Round and call `step` again; never repeat it as it is.
        look_again: call `step` at this time even if nothing changes.
        step_down: another agent coordinates: stop, and send `SteppedDown` to the member function.
        waiting_for: who is missing, for people; empty when nothing is.
    """

    write: Round | None = None
    rv: int | None = None
    look_again: float | None = None
    step_down: bool = False
    waiting_for: str = ""


@dataclass(frozen=True)
class CoordinatorState:
    """What the coordinator remembers between steps; start with the first four.

    Attributes:
        lost: the coordinator that `Candidate` named: it is gone, and may be replaced.
        ended: `MemberState.ended`: the closed round that may be opened again.
    """

    me: Identity
    policy: Policy
    lost: Coordinator | None = None
    ended: int = -1

    top: int = 0
    slot: int | None = None
    term: int = 0
    since: Mapping[str, float] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()
    succeeded: frozenset[str] = frozenset()
    basis: int = -1
    heartbeat: tuple[int, float] = (-1, 0.0)


@dataclass(frozen=True)
class _Facts:
    """The view, sorted out. `joined` ask for the next round; the sets are of checks in the running one.

    `own_rv` is the resourceVersion of this agent's own request to join, 0 without one; `success_rv` that of the last success.
    `seen` is the highest round that anybody knows of, `floor` the highest one that anybody may be in.
    """

    least: int
    most: int
    roster: Roster | None
    joined: tuple[Member, ...]
    present: frozenset[str]
    rejoining: frozenset[str]
    lost: frozenset[str]
    succeeded: frozenset[str]
    suspected: frozenset[str]
    members_rv: int
    own_rv: int
    success_rv: int
    seen: int
    floor: int
    names: Mapping[str, str]


def step(state: CoordinatorState, view: View, now: float) -> tuple[CoordinatorState, Decision]:
    """At most one compare-and-set of the Round, and when to look again."""
    record, me = view.round, state.me
    own = record if record is not None and record.run_id == me.run_id else None
    current = view.roster.run_id if view.roster is not None else me.run_id if record is None else ""
    if own is None and current != me.run_id:
        # The Round of another run may be a newer one; only the Rendezvous itself can say that it is an old one.
        return state, Decision(waiting_for=f"the Rendezvous or its Round belongs to another run than {me.run_id}")
    named = own.coordinator if own is not None else None
    mine = named is not None and named.incarnation == me.incarnation
    if named is not None and not mine and named != state.lost:
        return state, Decision(step_down=True)
    state = _remember(state, view, own, now)
    facts = _facts(state, view, own, now)
    if own is None:
        term = max(state.term, view.round.term if view.round else 0) + 1
        fresh = Round(me.rendezvous, me.run_id, round=facts.floor, want=facts.floor + 1, want_reason="created")
        return state, Decision(_claimed(fresh, state, term), view.round_rv, waiting_for="the Round to be created")
    state, target, waiting_for, look_again = _target(state, facts, own, now)
    if not mine:
        if own.phase == CLOSED and target.phase == CLOSED:
            return state, Decision()
        target = _claimed(target, state, own.term + 1)
    if target == own:
        return state, Decision(look_again=look_again, waiting_for=waiting_for)
    return state, Decision(target, view.round_rv, look_again, waiting_for=waiting_for)


def _claimed(record: Round, state: CoordinatorState, term: int) -> Round:
    me = state.me
    slot = me.slot if me.slot is not None else state.slot
    return replace(record, coordinator=Coordinator(slot, me.incarnation, me.address, me.port, term))


def _remember(state: CoordinatorState, view: View, own: Round | None, now: float) -> CoordinatorState:
    """Keeps what the next view may no longer show."""
    done = {member.incarnation for member, _ in view.members.values() if member.state == SUCCEEDED}
    beat = view.roster.heartbeat if view.roster else -1
    mine = view.members.get(state.me.name)
    state = replace(
        state,
        succeeded=state.succeeded | done,
        heartbeat=state.heartbeat if beat == state.heartbeat[0] else (beat, now),
        slot=mine[0].slot if mine is not None and mine[0].slot is not None else state.slot,
    )
    number, term = (own.round, own.term) if own is not None else (-1, 0)
    state = replace(state, term=max(state.term, term, state.lost.term if state.lost else 0))
    if number != state.basis:
        state = replace(state, basis=number, since={}, failed=frozenset())
    return replace(state, top=max(state.top, number, view.top))


def _facts(state: CoordinatorState, view: View, own: Round | None, now: float) -> _Facts:
    roster = view.roster if view.roster is not None and view.roster.run_id == state.me.run_id else None
    policy, number = state.policy, own.round if own is not None else 0
    everyone = [member for member, _ in view.members.values() if member.run_id == state.me.run_id]
    replaced = frozenset() if state.lost is None else frozenset({state.lost.incarnation})
    dead = view.dead | (replaced - view.connected)
    alive = _one_per_slot([member for member in everyone if _alive(state, dead, member, roster)])
    mine = [entry for entry in view.members.values() if entry[0].incarnation == state.me.incarnation]
    salt = own.salt if own is not None else 0
    by_check = {fingerprint(salt, member.incarnation): member for member in alive}
    done = {fingerprint(salt, incarnation) for incarnation in state.succeeded}
    world = frozenset(own.checks if own is not None and own.phase == RUNNING else ())
    living = {check: by_check[check] for check in world - done if check in by_check}
    rejoining = frozenset(check for check, member in living.items() if member.want_round > number)
    uid = own.uid if own is not None else ""
    # A request to an earlier Round may be a membership in a world of that number.
    rounds = [m.seen_round if m.round_uid == uid else max(m.seen_round, m.want_round) for m in everyone]
    seen = max([state.top, roster.round if roster else 0, *rounds])
    return _Facts(
        least=roster.min_nodes if roster else policy.min_nodes,
        most=roster.max_nodes if roster else policy.max_nodes,
        roster=roster if roster is not None and roster.known and _fresh(state, roster, now) else None,
        joined=tuple(member for member in alive if member.want_round > number and member.round_uid == uid),
        present=frozenset(living) - rejoining,
        rejoining=rejoining,
        lost=world - done - frozenset(living),
        succeeded=world & done,
        suspected=frozenset(check for check, m in living.items() if m.incarnation in view.suspected),
        members_rv=view.members_rv,
        own_rv=max((rv for m, rv in mine if m.state == LIVE and m.want_round > number), default=0),
        success_rv=max((rv for m, rv in view.members.values() if m.state == SUCCEEDED), default=0),
        seen=seen,
        floor=max([seen, *(member.want_round for member in everyone)]),
        names={check: member.name for check, member in living.items()},
    )


def _alive(state: CoordinatorState, dead: frozenset[str], member: Member, roster: Roster | None) -> bool:
    if member.state != LIVE or member.incarnation in state.succeeded or member.incarnation in dead:
        return False
    return roster is None or not (member.pod_uid in roster.dead or member.pod_uid in roster.draining)


def _one_per_slot(members: Sequence[Member]) -> list[Member]:
    """Of live pods with one index only the newest (by creation of its Member). Those without follow by name."""
    newest: dict[int, Member] = {}
    for member in sorted(members, key=lambda m: (m.created, m.name)):
        if member.index is not None:
            newest[member.index] = member
    without = sorted((member for member in members if member.index is None), key=lambda m: m.name)
    return [newest[slot] for slot in sorted(newest)] + without


def _fresh(state: CoordinatorState, roster: Roster, now: float) -> bool:
    """The operator renews its heartbeat while a round forms, so its age counts from then."""
    limit = _HEARTBEATS_MISSED * roster.heartbeat_seconds
    return not limit or now <= max(state.heartbeat[1], state.since.get("forming", now)) + limit


_Step = tuple[CoordinatorState, Round, str, "float | None"]


def _target(state: CoordinatorState, facts: _Facts, own: Round, now: float) -> _Step:
    """The Round as it should be, who is waited for, and when that may change by time alone."""
    if own.phase == CLOSED:
        later = bool(facts.own_rv) and own.round == state.ended
        if own.closed is not None and own.closed.reason == SUCCESS:
            # Who joined after the last success of the run that ended belongs to another run of the same Rendezvous.
            later = later or facts.own_rv > own.members_rv
        return state, _blank(own, own.round, "opened again") if later else own, "", None
    if facts.seen > own.round:
        # Somebody knows of later rounds: this Round was made after a deletion. Numbers are not used twice.
        return state, _blank(own, facts.floor, "round numbers had gone back"), "", None
    if own.phase == RUNNING and facts.succeeded and len(facts.succeeded) == own.size:
        closed = Closure(SUCCESS, state.me.name)
        return state, replace(own, phase=CLOSED, closed=closed, members_rv=facts.success_rv), "", None
    forming = own.phase == FORMING or own.want > own.round
    # Once a round forms, joining again is what is asked for; only further losses begin the settling anew.
    failed = facts.lost if forming else facts.lost | facts.rejoining
    if failed != state.failed:
        state = replace(_note(state, "failed", bool(failed - state.failed), now, renew=True), failed=failed)
    state = _note(state, "forming", forming or bool(failed), now)
    if forming or facts.rejoining:
        state, at, text = _completion(state, facts, own, now)
        if at is not None and at <= now:
            return state, _commit(facts, own), "", None
        if forming:
            return state, own, text, at
    return _reasons(state, facts, own, now)


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


def _note(state: CoordinatorState, name: str, holds: bool, now: float, renew: bool = False) -> CoordinatorState:
    """Remembers since when something holds; with `renew`, when it last became true."""
    since = dict(state.since)
    if holds:
        since[name] = now if renew else since.get(name, now)
    elif not renew:
        since.pop(name, None)
    return replace(state, since=since)


def _completion(
    state: CoordinatorState, facts: _Facts, own: Round, now: float
) -> tuple[CoordinatorState, float | None, str]:
    """When the round that forms is complete (None: not before somebody joins), and who is missing."""
    policy, joined = state.policy, len(facts.joined)
    state = _note(state, "ready", joined >= facts.least, now)
    survivors = facts.present | facts.rejoining
    if len(survivors) >= facts.least:
        # Those who are left can go on: nobody waits for replacements, which come in a later round.
        outstanding = [facts.names[check] for check in sorted(facts.present)]
        hopeless = facts.present <= facts.suspected
    else:
        outstanding, hopeless = _absent(facts)
        if joined >= facts.most and not facts.present:
            outstanding = []
    state = _note(state, "hopeless", joined >= facts.least and bool(outstanding) and hopeless, now)
    since = state.since
    text = _missing_text(facts, outstanding, joined)
    if "ready" not in since:
        return state, None, text
    settled = since.get("failed", -1e9) + policy.settle if facts.lost else now
    if not outstanding:
        return state, max(settled, now), text
    last_call = since["ready"] + policy.last_call
    if hopeless:
        last_call = min(last_call, since["hopeless"] + policy.grace)
    return state, max(settled, last_call), text


def _absent(facts: _Facts) -> tuple[list[str], bool]:
    """Which expected pods have not joined, and whether none of them will soon."""
    roster = facts.roster
    if roster is None:
        return ["more nodes, which nobody can name without the operator"], False
    slots = {member.index for member in facts.joined}
    names = {member.name for member in facts.joined}
    hopeless = {absent.pod: absent for absent in roster.hopeless if absent.pod not in names}
    stuck = {absent.slot for absent in hopeless.values() if absent.slot is not None}
    missing = [slot for slot in sorted(roster.expected) if slot not in slots]
    unnamed = max(0, roster.expected_count - len(facts.joined) - len(missing))
    spare = sum(absent.slot is None for absent in hopeless.values())
    texts = [f"{absent.pod} is {absent.reason}" for absent in hopeless.values()]
    texts += [f"slot {slot}" for slot in missing if slot not in stuck]
    texts += [f"{unnamed - spare} more"] if unnamed > spare else []
    if not missing and not unnamed:
        return [], False
    return texts, all(slot in stuck for slot in missing) and unnamed <= spare


def _missing_text(facts: _Facts, outstanding: Sequence[str], joined: int) -> str:
    count = facts.roster.expected_count if facts.roster else max(facts.least, joined + len(outstanding))
    if not outstanding:
        return f"{joined} of at least {facts.least} nodes have joined" if joined < facts.least else ""
    more = f" and {len(outstanding) - 5} more" if len(outstanding) > 5 else ""
    return f"{max(count - joined, 0)} of {count} expected pods have not joined: {'; '.join(outstanding[:5])}{more}"


def _commit(facts: _Facts, own: Round) -> Round:
    """The next round. Who was in the last one comes before who was not; slots are kept, and allotted where there is none."""
    previous = dict(zip(own.checks, own.slots, strict=True))
    had = {member.name: previous.get(fingerprint(own.salt, member.incarnation)) for member in facts.joined}
    order = sorted(facts.joined, key=lambda m: (had[m.name] is None, m.index is None, m.index or 0, m.name))
    chosen = order[: min(facts.most, MAX_SLOTS)]
    slots: dict[int, Member] = {member.index: member for member in chosen if member.index is not None}
    others = [member for member in chosen if member.index is None]
    for wishes in (had, {member.name: member.slot for member in others}):
        for member in list(others):
            wish = wishes[member.name]
            if wish is not None and slots.setdefault(wish, member) is member:
                others.remove(member)
    free = (slot for slot in range(MAX_SLOTS) if slot not in slots)
    slots |= dict(zip(free, others, strict=False))
    ranked = sorted(slots)
    salt, checks = fingerprints([slots[slot].incarnation for slot in ranked])
    first = slots[ranked[0]]
    return Round(
        own.name,
        own.run_id,
        round=own.round + 1,
        phase=RUNNING,
        slots=tuple(ranked),
        checks=checks,
        salt=salt,
        leader=Leader(ranked[0], first.address, first.port),
        coordinator=own.coordinator,
        want=own.round + 1,
        members_rv=facts.members_rv,
        uid=own.uid,
    )


def _reasons(state: CoordinatorState, facts: _Facts, own: Round, now: float) -> _Step:
    """A running world: whether, and from when on, it is to be formed anew."""
    here = facts.present | facts.rejoining
    late = [member for member in facts.joined if fingerprint(own.salt, member.incarnation) not in own.checks]
    room = bool(late) and len(here) < facts.most and not facts.succeeded and not facts.lost
    state = _note(state, "late", room, now)
    times: list[tuple[float, str]] = []
    if facts.lost or facts.rejoining:
        times.append((state.since.get("failed", now) + state.policy.settle, _failure_text(facts, own)))
    if len(here) > facts.most:
        times.append((now, f"{len(here)} members, at most {facts.most} are wanted"))
    if room:
        everybody = facts.roster is not None and _nobody_else(facts, own)
        wait = 0.0 if everybody or len(here) + len(late) >= facts.most else state.policy.scale_up_window
        times.append((state.since["late"] + wait, f"{len(late)} more joined"))
    if not times:
        return state, own, "", None
    at, reason = min(times)
    if at > now:
        return state, own, "", at
    return state, replace(own, want=own.round + 1, want_reason=reason[:_REASON_LENGTH]), "", None


def _nobody_else(facts: _Facts, own: Round) -> bool:
    """Every pod that the operator expects is in the world or asks to be."""
    roster = facts.roster
    slots = {member.index for member in facts.joined} | {
        slot for check, slot in zip(own.checks, own.slots, strict=True) if check in facts.present
    }
    joined = len(facts.present) + len(facts.joined)
    return roster is not None and roster.expected <= slots and joined >= roster.expected_count


def _failure_text(facts: _Facts, own: Round) -> str:
    slots = dict(zip(own.checks, own.slots, strict=True))
    parts = []
    for word, checks in (("gone", facts.lost), ("asked to join again", facts.rejoining)):
        if checks:
            shown = ", ".join(str(slot) for slot in sorted(slots[check] for check in checks)[:10])
            more = f" and {len(checks) - 10} more" if len(checks) > 10 else ""
            parts.append(f"{word}: slot {shown}{more}")
    return "; ".join(parts)


def close(record: Round, reason: str, by: str) -> Round:
    """The Round closed on request (`set_closed`): to be written by compare-and-set; closed ones stay as they are."""
    return record if record.phase == CLOSED else replace(record, phase=CLOSED, closed=Closure(reason, by))
