"""When the round that forms is complete, who is missing until then, and what the round is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.protocol.coordinator_state import note
from rdzv.protocol.encoding import (
    MAX_SLOTS,
    fingerprint,
    salted_fingerprints,
)
from rdzv.protocol.facts import Attendance, Facts, Silent, attend, one_per_pair
from rdzv.protocol.fields import replace
from rdzv.protocol.ranking import order, slots_of
from rdzv.protocol.records import FORMING, LEAVING, LIVE, RUNNING, Leader, Member, Round
from rdzv.protocol.roster import Roster

if TYPE_CHECKING:
    from rdzv.protocol.coordinator_state import CoordinatorState, Policy

_NAMED = 5
_NOBODY = Silent()
_APPEAR_SECONDS = 2.0
"""For the pod of a replacement to be made, once that of the lost one is gone."""


@dataclass(frozen=True)
class Outstanding:
    """Who is waited for, in words, and whether none of them will come soon."""

    who: tuple[str, ...] = ()
    hopeless: bool = False
    seconds: float = 0.0
    """How long they are waited for, at most, where that is not otherwise bounded."""


@dataclass(frozen=True)
class Completion:
    """When (seconds) the round is complete, None: not before more join; why then; and who is missing until then."""

    at: float | None
    why: str
    missing: str


def completion(state: CoordinatorState, facts: Facts, now: float) -> tuple[CoordinatorState, Completion]:
    """When the round that forms is complete, if nothing else happens."""
    there = facts.attendance
    waited_for = outstanding(there)
    enough = len(there.joined) >= there.least
    state = note(state, "ready", enough, now)
    state = note(state, "hopeless", enough and bool(waited_for.who) and waited_for.hopeless, now)
    at, why = _complete_at(state, enough, waited_for, now)
    if at is not None and facts.lost:
        # Failures seldom come alone.
        at = max(at, state.since.get("failed", -1e9) + state.policy.settle)
        forming = state.since.get("forming", now)
        replacements = _replacements(facts, max(0.0, state.since.get("gone", now) - forming))
        if replacements is not None and not waited_for.who:
            at, why = max(at, forming + replacements.seconds), "replacements have not come in time"
            waited_for = replacements
    return state, Completion(at, why, missing_text(there, waited_for))


def _complete_at(
    state: CoordinatorState, enough: bool, waited_for: Outstanding, now: float
) -> tuple[float | None, str]:
    since, policy = state.since, state.policy
    if not enough:
        return None, "too few have joined"
    if not waited_for.who:
        return now, "all have joined"
    last_call = since["ready"] + policy.last_call
    if waited_for.hopeless and since["hopeless"] + policy.grace < last_call:
        return since["hopeless"] + policy.grace, "those who are missing will not come soon"
    return last_call, "the last call is over"


def outstanding(there: Attendance) -> Outstanding:
    """Who has to join before the round is complete."""
    return _survivors(there) or _full(there) or _unnamed(there) or _expected(there)


def _survivors(there: Attendance) -> Outstanding | None:
    """Those who are left can go on: nobody waits for replacements, which come in a later round."""
    if len(there.present | there.rejoining) < there.least:
        return None
    names = tuple(there.names[mark] for mark in sorted(there.present))
    return Outstanding(names, hopeless=there.present <= there.suspected)


def _full(there: Attendance) -> Outstanding | None:
    return Outstanding() if len(there.joined) >= there.most and not there.present else None


def _unnamed(there: Attendance) -> Outstanding | None:
    return None if there.roster else Outstanding(("more nodes, which nobody can name without the operator",))


def _expected(there: Attendance) -> Outstanding:
    """Which expected pods have not joined, and whether none of them will soon."""
    if there.roster is None:
        return Outstanding()
    stuck, coming = _absent(there, there.roster)
    if not stuck and not coming:
        # The operator knows pods; nobody knows how many agents outside of pods are to come.
        owned = all(member.owned for member in there.joined)
        return Outstanding() if owned else Outstanding(("more agents outside of pods",))
    return Outstanding((*stuck, *coming), hopeless=not coming)


def _absent(there: Attendance, roster: Roster, without: Silent = _NOBODY) -> tuple[list[str], list[str]]:
    """Of the expected pods that have not joined those that will not soon, and those that may, in words.

    None if all have. Those in `without` are not looked for.
    """
    slots = {member.index for member in there.joined} | without.slots
    names = {member.name for member in there.joined}
    hopeless = [absent for absent in roster.hopeless if absent.pod not in names]
    hopeless_slots = {absent.slot for absent in hopeless if absent.slot is not None}
    missing = [slot for slot in sorted(roster.expected) if slot not in slots]
    pods = sum(member.owned for member in there.joined) + len(without.slots & roster.expected) + without.more
    unnamed = max(0, roster.expected_count - pods - len(missing))
    if not missing and not unnamed:
        return [], []
    spare = sum(absent.slot is None for absent in hopeless)
    coming = [f"slot {slot}" for slot in missing if slot not in hopeless_slots]
    coming += [f"{unnamed - spare} more"] if unnamed > spare else []
    return [f"{absent.pod} is {absent.reason}" for absent in hopeless], coming


def _replacements(facts: Facts, gone: float) -> Outstanding | None:
    """Who is to come for those who are lost: pods that exist, or are about to, as far as the operator tells.

    `gone`: seconds from the first loss until no pod of theirs was left.
    """
    there, wait = facts.attendance, facts.attendance.pace.replacement_wait
    before = len(there.rejoining) + len(facts.lost)
    if there.roster is None or len(there.joined) >= min(there.most, before):
        return None
    if not wait or not all(member.owned for member in there.joined):
        return None  # The operator knows of pods only.
    stuck, coming = _absent(there, there.roster, facts.silent)
    if coming:
        return Outstanding(tuple(coming), seconds=wait)
    if stuck or facts.silent != _NOBODY:
        return None
    if facts.being_stopped:
        return Outstanding(("replacements of pods that are being stopped",), seconds=wait)
    return Outstanding(("replacements, of which there are no pods yet",), seconds=min(wait, gone + _APPEAR_SECONDS))


def missing_text(there: Attendance, waited_for: Outstanding) -> str:
    """Who is missing, in words; empty when nobody is."""
    joined, who = len(there.joined), waited_for.who
    if not who:
        return f"{joined} of at least {there.least} nodes have joined" if joined < there.least else ""
    count = there.roster.expected_count if there.roster else max(there.least, joined + len(who))
    more = f" and {len(who) - _NAMED} more" if len(who) > _NAMED else ""
    return f"{max(count - joined, 0)} of {count} expected pods have not joined: {'; '.join(who[:_NAMED])}{more}"


def missing(
    members: Iterable[tuple[Member, int]], roster: Roster | None, record: Round | None, policy: Policy, run_id: str
) -> str:
    """Who has not asked for the round after `record`, and why, as far as these records tell; empty when that is nobody.

    Each Member comes with its resourceVersion.

    For an agent whose time is up. The others' is up at about the same moment, so whoever has given up had joined.
    """
    if record is None:
        return "nobody has made its Round"
    if record.run_id != run_id or (record.phase != FORMING and record.want <= record.round):
        return ""
    alive = one_per_pair(
        [
            (replace(member, state=LIVE), rv)
            for member, rv in members
            if member.run_id == run_id and member.state in (LIVE, LEAVING)
        ],
        record,
    )
    roster = roster if roster is not None and roster.run_id == run_id else None
    believed = roster if roster is not None and roster.known else None
    attendance = attend(policy, alive, record, roster, believed, frozenset())
    return missing_text(attendance, outstanding(attendance))


def commit(facts: Facts, own: Round, reason: str) -> Round:
    """The next round, which was wanted for this reason.

    Who was in the last one comes before who was not. `ranking` says who gets which slot.
    """
    there = facts.attendance
    previous = dict(zip(own.fingerprints, own.slots, strict=True))
    had = {member.name: previous.get(fingerprint(own.salt, member.incarnation)) for member in there.joined}
    first_come = sorted(there.joined, key=lambda m: (had[m.name] is None, *order(m)))
    # Who has a slot of its own, asks, and finds somebody else on it takes itself for replaced, and ends: also a spare, or one left out.
    fixed = any(member.index is not None for member in facts.askers.values())
    slots = slots_of(first_come[: min(there.most, MAX_SLOTS)], had, None if fixed else there.sites)
    ranked = sorted(slots)
    salt, fingerprints = salted_fingerprints([slots[slot].incarnation for slot in ranked])
    first = slots[ranked[0]]
    return Round(
        own.name,
        own.run_id,
        round=own.round + 1,
        phase=RUNNING,
        slots=tuple(ranked),
        fingerprints=fingerprints,
        salt=salt,
        leader=Leader(ranked[0], first.address, first.port),
        coordinator=own.coordinator,
        want=own.round + 1,
        want_reason=reason,
        members_rv=facts.members_rv,
        left_out=own.left_out,
        uid=own.uid,
    )
