"""The coordinator's view, sorted out: who asks for the next round, who is still in this one, which numbers are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.protocol import exclusion
from rdzv.protocol.encoding import (
    fingerprint,
)
from rdzv.protocol.pace import Pace
from rdzv.protocol.records import LIVE, RUNNING, SUCCEEDED, Endpoint, LeftOut, Member, Round, birth
from rdzv.protocol.roster import Roster, Site

if TYPE_CHECKING:
    from rdzv.pairs import Pair
    from rdzv.protocol.coordinator_state import CoordinatorState, Policy, View

_HEARTBEATS_MISSED = 3


@dataclass(frozen=True)
class Attendance:
    """Who could be in the next round and who asks to be. The sets are of fingerprints in the running one.

    Attributes:
        least: the smallest world that may form.
        most: the largest one.
        pace: how long others are waited for.
        roster: who is expected, as the operator says; None when it says nothing, or nothing new for long.
        joined: who asks for the next round, one for each pair.
        present: who is in the running world and has not asked for the next one.
        rejoining: who is in the running world and asks for the next one.
        suspected: those of them that are silent.
        names: of `present` and `rejoining`.
        sites: `Roster.sites`, however old: where a node is does not change with time.
    """

    least: int
    most: int
    pace: Pace
    roster: Roster | None
    joined: tuple[Member, ...]
    present: frozenset[str]
    rejoining: frozenset[str]
    suspected: frozenset[str]
    names: Mapping[str, str]
    sites: tuple[Site, ...] | None


@dataclass(frozen=True)
class Silent:
    """Those who are lost although their connection stands: nobody replaces them soon, whatever the operator says of their pods.

    `slots` of those whose index is their slot, and how many `more` pods there are, which the roster counts and does not list.
    """

    slots: frozenset[int] = frozenset()
    more: int = 0


@dataclass(frozen=True)
class Facts:
    """All that decisions go by.

    Attributes:
        attendance: who could be in the next round and who asks to be.
        lost: fingerprints of the running world whose members are gone.
        succeeded: those whose members ended well.
        members_rv: highest resourceVersion of a Member that is in the view.
        own_rv: resourceVersion of this agent's own request to join, 0 without one.
        success_rv: resourceVersion of the last success, 0 without one.
        highest_seen: number of the highest round that anybody knows of.
        floor: number of the highest round that anybody may be in.
        here: incarnations of those who are in the running world, or ask for the next one, and are connected to this agent,
            which is one of them.
        away: incarnations of the others that live.
        out_of_reach: those of them, and of who is taken for dead only because it is not connected.
        leader: of the running world, if it asks for the next one.
        reporters: who could not connect to its store and asks, too.
        probes: `View.probes`.
        left_out: who asks to be counted and can't be reached, or reaches nobody.
        named_next: names of those who will be, should nothing change.
        name_at: when (seconds) to look at them again; None: not by time alone.
        askers: by name, those whose store may be connected to.
        contested: incarnations of the running world for whose slot a later agent asks.
        silent: those who are lost although their connection stands.
        being_stopped: a pod of those who are lost is not gone yet: some controllers make another one only then.
        ended: why the operator ends the world of this Round; empty: it does not.
    """

    attendance: Attendance
    lost: frozenset[str]
    succeeded: frozenset[str]
    members_rv: int
    own_rv: int
    success_rv: int
    highest_seen: int
    floor: int
    here: frozenset[str]
    away: frozenset[str]
    out_of_reach: frozenset[str]
    leader: Member | None
    reporters: tuple[Member, ...]
    probes: Mapping[str, bool]
    left_out: tuple[LeftOut, ...]
    named_next: tuple[str, ...]
    name_at: float | None
    askers: Mapping[str, Member]
    contested: frozenset[str]
    silent: Silent
    being_stopped: bool
    ended: str


def gather(state: CoordinatorState, view: View, own: Round | None, now: float) -> Facts:
    """The facts in this view. `own` is its Round if that is of this run."""
    run_id = state.me.run_id
    roster = view.roster if view.roster is not None and view.roster.run_id == run_id else None
    everyone = [entry for entry in view.members.values() if entry[0].run_id == run_id]
    members = [member for member, _ in everyone]
    dead = _dead(state, view)
    alive = [entry for entry in everyone if not why_not_alive(entry[0], dead, state.succeeded, roster)]
    contested = _contested(alive, own)
    if replaced := contested & view.doubted:
        dead |= replaced
        alive = [entry for entry in alive if entry[0].incarnation not in replaced]
    believed = roster if roster is not None and _believed(state, roster, now) else None
    counted = [entry for entry in alive if not exclusion.is_left_out(state, view, own, entry[0])]
    attendance = attend(state.policy, one_per_pair(counted, own), own, roster, believed, view.suspected)
    world = frozenset(own.fingerprints if own is not None and own.phase == RUNNING else ())
    salt = own.salt if own is not None else 0
    done = {fingerprint(salt, incarnation) for incarnation in state.succeeded}
    here = attendance.present | attendance.rejoining
    lost = world - done - here
    highest_seen = _highest_seen(state, members, own, roster)
    # Those who are taken for dead may live, out of reach of this agent; pods that are gone don't.
    maybe = [m for m in members if not why_not_alive(m, frozenset(), state.succeeded, roster)]
    involved = [m for m in maybe if _is_involved(m, own, world)]
    perhaps = frozenset(member.incarnation for member in involved)
    there = perhaps - dead
    connected = (view.connected - view.suspected - view.dead) | {state.me.incarnation}
    askers = [m for m in maybe if own is not None and exclusion.asks(m, own)]
    leader = _leader(attendance.joined, own)
    naming = exclusion.naming(state, view, own, maybe, now)
    return Facts(
        attendance=attendance,
        lost=lost,
        succeeded=world & done,
        members_rv=view.members_rv,
        own_rv=_own_rv(state, view, own),
        success_rv=max((rv for m, rv in everyone if m.state == SUCCEEDED), default=0),
        highest_seen=highest_seen,
        floor=max([highest_seen, *(member.want_round for member in members)]),
        here=(there & connected) | {state.me.incarnation},
        away=there - connected,
        out_of_reach=perhaps - connected,
        leader=leader,
        reporters=_reporters(attendance.joined, own, leader),
        probes=view.probes,
        left_out=naming.left_out,
        named_next=naming.next,
        name_at=naming.at,
        askers={member.name: member for member in askers},
        contested=contested,
        ended=roster.ended if roster is not None and own is not None and own.uid == roster.ended_uid else "",
        silent=_silent(members, view, own, lost, roster),
        being_stopped=bool(lost)
        and roster is not None
        and any(m.pod_uid in roster.draining and fingerprint(salt, m.incarnation) in lost for m in members),
    )


def attend(
    policy: Policy,
    alive: Sequence[Member],
    own: Round | None,
    roster: Roster | None,
    believed: Roster | None,
    suspected: frozenset[str],
) -> Attendance:
    """Sorts those who live by what they ask for. `roster` has the bounds; `believed` is it unless it is out of date."""
    number, uid, salt = (own.round, own.uid, own.salt) if own is not None else (0, "", 0)
    world = own.fingerprints if own is not None and own.phase == RUNNING else ()
    by_fingerprint = {fingerprint(salt, member.incarnation): member for member in alive}
    living = {mark: by_fingerprint[mark] for mark in world if mark in by_fingerprint}
    rejoining = frozenset(mark for mark, member in living.items() if member.want_round > number)
    return Attendance(
        least=roster.min_nodes if roster else policy.min_nodes,
        most=roster.max_nodes if roster else policy.max_nodes,
        pace=roster.pace if roster else policy.pace,
        roster=believed,
        joined=tuple(member for member in alive if member.want_round > number and member.round_uid == uid),
        present=frozenset(living) - rejoining,
        rejoining=rejoining,
        suspected=frozenset(mark for mark, member in living.items() if member.incarnation in suspected),
        names={mark: member.name for mark, member in living.items()},
        sites=roster.sites if roster else None,
    )


def why_not_alive(member: Member, dead: frozenset[str], succeeded: frozenset[str], roster: Roster | None) -> str:
    """Why this member counts for nobody; empty when it counts."""
    if member.state != LIVE:
        return f"it says that it is {member.state}"
    if member.incarnation in succeeded:
        return "it has succeeded"
    if member.incarnation in dead:
        return "its connection is gone"
    if roster is not None and member.pod_uid in roster.dead:
        return "its pod is gone"
    if roster is not None and member.pod_uid in roster.draining:
        return "its pod is being stopped"
    return ""


def one_per_pair(members: Iterable[tuple[Member, int]], own: Round | None) -> list[Member]:
    """Of live agents with one pair only one, see `_strength`. They come in the order of pairs, those without one follow by name."""
    claims: dict[Pair, list[tuple[Member, int]]] = {}
    without = []
    for entry in members:
        claim = entry[0].claim
        if claim is None:
            without.append(entry[0])
        else:
            claims.setdefault(claim, []).append(entry)
    first = [_first(claims[pair], own) for pair in sorted(claims, key=lambda pair: pair.order)]
    return first + sorted(without, key=lambda m: m.name)


def _first(rivals: Sequence[tuple[Member, int]], own: Round | None) -> Member:
    return rivals[0][0] if len(rivals) == 1 else max(rivals, key=lambda entry: _strength(entry, own))[0]


def _strength(entry: tuple[Member, int], own: Round | None) -> tuple[bool, bool, int, str]:
    """The higher, the better is this member's claim to its pair.

    Who is in the world stays while it lives: an older agent that was stopped, and goes on after its replacement was counted,
    does not evict it. Else the later one, see `_order`.
    """
    member, rv = entry
    counted = own is not None and own.phase == RUNNING and own.rank_of(member.incarnation) is not None
    return counted, *_order(member, rv), member.name


def _order(member: Member, rv: int) -> tuple[bool, int]:
    """Of two with one pair: a pod comes before an agent that is none, and then the later one (see `records.birth`)."""
    return member.owned, birth(member, rv)


def _contested(alive: Sequence[tuple[Member, int]], own: Round | None) -> frozenset[str]:
    """Who is in the world, while a later agent with the same pair asks for the next round: most likely its replacement.

    Whoever of them gives no sign of life is not waited for any longer. An earlier agent contests nothing.
    """
    if own is None or own.phase != RUNNING:
        return frozenset()
    claims: dict[Pair, tuple[bool, int]] = {}
    for member, rv in alive:
        if member.claim is not None and exclusion.asks(member, own):
            claims[member.claim] = max(claims.get(member.claim, (False, 0)), _order(member, rv))
    return frozenset(
        member.incarnation
        for member, rv in alive
        if member.claim in claims
        and _order(member, rv) < claims[member.claim]
        and own.rank_of(member.incarnation) is not None
    )


def _silent(
    members: Sequence[Member], view: View, own: Round | None, lost: frozenset[str], roster: Roster | None
) -> Silent:
    if own is None or not lost:
        return Silent()
    standing = [m for m in members if m.incarnation in view.connected and fingerprint(own.salt, m.incarnation) in lost]
    uncounted = roster.dead | roster.draining if roster is not None else frozenset()
    more = sum(member.index is None and member.owned and member.pod_uid not in uncounted for member in standing)
    return Silent(frozenset(member.index for member in standing if member.index is not None), more)


def _is_involved(member: Member, own: Round | None, world: frozenset[str]) -> bool:
    """It is in the running world, or asks for the next one."""
    return own is not None and (fingerprint(own.salt, member.incarnation) in world or exclusion.asks(member, own))


def _leader(joined: Sequence[Member], own: Round | None) -> Member | None:
    if own is None or own.phase != RUNNING:
        return None
    return next((m for m in joined if fingerprint(own.salt, m.incarnation) == own.fingerprints[0]), None)


def _reporters(joined: Sequence[Member], own: Round | None, leader: Member | None) -> tuple[Member, ...]:
    if own is None or own.leader is None or leader is None:
        return ()
    store = Endpoint(own.leader.address, own.leader.port)
    return tuple(member for member in joined if member is not leader and member.unreachable == store)


def _dead(state: CoordinatorState, view: View) -> frozenset[str]:
    """The replaced coordinator is dead until it connects to its successor."""
    replaced = frozenset() if state.lost is None else frozenset({state.lost.incarnation})
    return view.dead | (replaced - view.connected)


def _believed(state: CoordinatorState, roster: Roster, now: float) -> bool:
    """The operator renews its heartbeat while a round forms, so its age counts from then."""
    limit = _HEARTBEATS_MISSED * roster.heartbeat_seconds
    fresh = not limit or now <= max(state.heartbeat[1], state.since.get("forming", now)) + limit
    return roster.known and fresh


def _highest_seen(state: CoordinatorState, members: Sequence[Member], own: Round | None, roster: Roster | None) -> int:
    uid = own.uid if own is not None else ""
    # A request to an earlier Round may be a membership in a world of that number.
    rounds = [m.seen_round if m.round_uid == uid else max(m.seen_round, m.want_round) for m in members]
    return max([state.highest_seen, roster.round if roster else 0, *rounds])


def _own_rv(state: CoordinatorState, view: View, own: Round | None) -> int:
    number = own.round if own is not None else 0
    mine = [entry for entry in view.members.values() if entry[0].incarnation == state.me.incarnation]
    return max((rv for member, rv in mine if member.state == LIVE and member.want_round > number), default=0)
