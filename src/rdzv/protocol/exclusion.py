"""Who is not counted because it and the others can't reach each other, how the coordinator finds out, and until when."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.protocol.fields import replace
from rdzv.protocol.records import MAX_LEFT_OUT, REASON_LENGTH, RUNNING, Endpoint, LeftOut, Member, Round

if TYPE_CHECKING:
    from rdzv.protocol.coordinator_state import CoordinatorState, View
    from rdzv.protocol.facts import Facts

_NAMED_AFTER = 5.0
"""Seconds for which, at least, an agent without a connection is taken for one that is about to connect; at most twice that."""
_PROBE_SECONDS = 4.0
"""How long a coordinator waits for the outcome of its own attempt to connect."""
_WAIT, _WAIT_FACTOR, _WAIT_MAX = 120.0, 4.0, 3600.0
"""Seconds until an agent that was left out for a failed connection to a store is let in again, should nothing be found
out before; each time longer, because it costs everybody a round to find out."""
_REACHING = 12.0
"""So many times shorter for an agent that has connected to the store of those who went on without it."""


@dataclass(frozen=True)
class Barred:
    """An agent that could not lead a round, or not reach the one that did.

    `leads`: it was the leader, and is counted when the coordinator can connect to the store that it has bound now: at once
    if it could not before (`refused`), else after `until`. The other kind is counted after `until` (both seconds), or before
    that if it has found out itself that it can connect now.
    `over`: it is counted; what is kept is how often (`times`) it has happened, last in round number `last`.
    """

    name: str
    reason: str
    leads: bool
    until: float
    wait: float
    last: int
    times: int = 1
    refused: bool = False
    over: bool = False


@dataclass(frozen=True)
class Verdict:
    """What to remember, why the round is not formed yet, and when to look again (seconds)."""

    state: CoordinatorState
    why: str
    at: float


def is_left_out(state: CoordinatorState, view: View, own: Round | None, member: Member) -> bool:
    """Whether this live member is not counted. Nobody is left out of the first round: it does not wait for connections."""
    barred = state.barred.get(member.incarnation)
    if barred is not None and not barred.over:
        return True
    if own is None or not asks(member, own) or _is_connected(state, view, member):
        return False
    return member.unreachable is not None or (own.phase == RUNNING and not _is_inside(own, member))


def _is_inside(own: Round | None, member: Member) -> bool:
    """Whether it was counted in the last world."""
    return own is not None and own.rank_of(member.incarnation) is not None


def asks(member: Member, own: Round) -> bool:
    """Whether it asks for the round after this one."""
    return member.want_round > own.round and member.round_uid == own.uid


def _is_connected(state: CoordinatorState, view: View, member: Member) -> bool:
    # A connection that has been silent for long may still be open.
    me = member.incarnation
    return me == state.me.incarnation or (me in view.connected and me not in view.dead)


def remember(state: CoordinatorState, view: View, own: Round | None, now: float) -> CoordinatorState:
    """Keeps since when somebody asks without a connection, and lets in who may be counted again."""
    members = [member for member, _ in view.members.values() if member.run_id == state.me.run_id]
    strangers = [m for m in members if own is not None and _is_stranger(state, view, own, m)]
    unconnected = {m.incarnation: state.unconnected.get(m.incarnation, now) for m in strangers}
    living = {member.incarnation: member for member in members}
    barred = {
        who: _review(one, living[who], view.probes.get(who), now)
        for who, one in state.barred.items()
        if who in living and not _has_worked(one, own, living[who])
    }
    return replace(state, unconnected=unconnected, barred=barred)


def _has_worked(barred: Barred, own: Round | None, member: Member) -> bool:
    """It was in a later world, and leaves that without a complaint: what was wrong is over, and the next time is a first one."""
    if barred.leads or not barred.over or own is None or own.round <= barred.last:
        return False
    return _is_inside(own, member) and asks(member, own) and member.unreachable is None


def _is_stranger(state: CoordinatorState, view: View, own: Round, member: Member) -> bool:
    if not asks(member, own) or _is_connected(state, view, member):
        return False
    gone = own.phase == RUNNING and member.incarnation in view.dead
    return gone or is_left_out(state, view, own, member)


def _let_in_at(barred: Barred, member: Member) -> float:
    """When time alone ends it (seconds)."""
    reaching = not barred.leads and member.unreachable is None
    return barred.until - barred.wait * (1 - 1 / _REACHING) if reaching else barred.until


def _review(barred: Barred, member: Member, reached: bool | None, now: float) -> Barred:
    if barred.over:
        return barred
    barred = replace(barred, refused=barred.refused or reached is False)
    over = now >= _let_in_at(barred, member)
    if barred.leads:
        over = reached is True and (over or barred.refused)
    return replace(barred, over=over)


def judge(state: CoordinatorState, facts: Facts, own: Round, now: float) -> Verdict | None:
    """Before the next round is formed: whoever kept the last one from working is barred. None: form it.

    It is the leader, when most of the others could not connect to its store; else those who could not. Once may be chance,
    so that only a leader whom the coordinator can't reach either is barred at once.
    """
    leader, reporters = facts.leader, facts.reporters
    if not reporters or leader is None:
        return None
    if all(_is_judged(state, member, own) for member in (leader, *reporters)):
        return None
    leads = _most(state, facts, reporters)
    if leads and leader.incarnation == state.me.incarnation:
        return None  # They are connected to this very agent, so its store was late; and none but they could say that this is over.
    reached = facts.probes.get(leader.incarnation)
    since = now if state.judged_since is None else state.judged_since
    if leads and reached is None and now < since + _PROBE_SECONDS:
        why = f"this agent to find out whether {leader.name} can be reached at {leader.address}:{leader.port}"
        return Verdict(replace(state, judged_since=since), why, since + _PROBE_SECONDS)
    store = Endpoint(leader.address, own.leader.port if own.leader is not None else 0)
    charge = _Charge(leader, store, leads, refused=leads and reached is False, round=own.round)
    found = dict(state.barred)
    for member in (leader, *reporters):
        by = reporters[0] if leads else member
        found[member.incarnation] = _sentence(charge, member, by, found.get(member.incarnation), now)
    return Verdict(replace(state, barred=found, judged_since=None), "", now)


@dataclass(frozen=True)
class _Charge:
    """`store` of the leader of this round was not reached: it `leads` to the leader itself, or to those who say so."""

    leader: Member
    store: Endpoint
    leads: bool
    refused: bool
    round: int


def _is_judged(state: CoordinatorState, member: Member, own: Round) -> bool:
    before = state.barred.get(member.incarnation)
    return before is not None and before.last == own.round


def _most(state: CoordinatorState, facts: Facts, reporters: Sequence[Member]) -> bool:
    others = len(facts.attendance.joined) - 1
    tie = 2 * len(reporters) == others and any(m.incarnation == state.me.incarnation for m in reporters)
    return 2 * len(reporters) > others or tie


def _sentence(charge: _Charge, member: Member, by: Member, before: Barred | None, now: float) -> Barred:
    blamed = (member is charge.leader) is charge.leads
    times = (before.times if before is not None else 0) + blamed
    wait = min(_WAIT * _WAIT_FACTOR ** max(0, times - 2), _WAIT_MAX)
    over = not blamed or (times < 2 and not charge.refused)
    reason = _unreachable(charge.leader.name, by.name, charge.store)
    return Barred(member.name, reason, charge.leads, now + wait, wait, charge.round, times, charge.refused, over)


@dataclass(frozen=True)
class Naming:
    """Who is left out and why, who will be named next, and when (seconds) to look again, as far as time alone decides.

    Whether the coordinator can connect to those who are next is found out before: which way is cut is part of the reason.
    """

    left_out: tuple[LeftOut, ...]
    next: tuple[str, ...]
    at: float | None


def naming(state: CoordinatorState, view: View, own: Round | None, members: Iterable[Member], now: float) -> Naming:
    """Whom to name in the Round now, and later."""
    found, following, times = [], [], []
    before = {one.name: one for one in own.left_out} if own is not None else {}
    for member in sorted(members, key=lambda m: (m.slot is None, m.slot or 0, m.name)):
        barred, since = state.barred.get(member.incarnation), state.unconnected.get(member.incarnation)
        # Many that are cut off at one moment are one write of the Round, not many.
        at = None if since is None else math.ceil(since / _NAMED_AFTER + 1) * _NAMED_AFTER
        if barred is not None and not barred.over:
            found.append(LeftOut(member.name, barred.reason[:REASON_LENGTH]))
            if (let_in_at := _let_in_at(barred, member)) > now:
                times.append(let_in_at)
        elif member.name in before and not _is_connected(state, view, member) and not _is_inside(own, member):
            found.append(before[member.name])  # As another coordinator has found.
        elif at is not None and now >= at:
            found.append(LeftOut(member.name, _no_connection(state, view, member)[:REASON_LENGTH]))
        elif at is not None and now >= at - _PROBE_SECONDS:
            following.append(member.name)
            times.append(at)
        elif at is not None:
            times.append(at - _PROBE_SECONDS)
    return Naming(tuple(found[:MAX_LEFT_OUT]), tuple(following[:MAX_LEFT_OUT]), min(times, default=None))


def _no_connection(state: CoordinatorState, view: View, member: Member) -> str:
    me = state.me
    if view.probes.get(member.incarnation):
        return _unreachable(me.name, member.name, Endpoint(me.address, me.port))
    return _unreachable(member.name, me.name, Endpoint(member.address, member.port))


def _unreachable(who: str, by: str, at: Endpoint) -> str:
    return f"{who} can't be reached by {by} at {at.address}:{at.port}"


def probes(facts: Facts) -> dict[str, Endpoint]:
    """By incarnation, the stores to connect to: of those who are left out, or about to be, and of a leader that some could not reach."""
    names = [*(one.name for one in facts.left_out), *facts.named_next]
    there = [facts.askers[name] for name in names if name in facts.askers]
    if facts.leader is not None and facts.reporters:
        there.append(facts.leader)
    return {member.incarnation: Endpoint(member.address, member.port) for member in there}


def keep_words(before: tuple[LeftOut, ...], now: tuple[LeftOut, ...]) -> tuple[LeftOut, ...]:
    """The Round is not written again for other words about the same agents."""
    return before if {one.name for one in before} == {one.name for one in now} else now
