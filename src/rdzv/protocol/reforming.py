"""Whether, and from when on, a running world is to be formed anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.protocol.coordinator_state import note
from rdzv.protocol.encoding import fingerprint
from rdzv.protocol.facts import Facts
from rdzv.protocol.failures import ASKED_AGAIN, GONE, MORE, TOO_MANY, describe
from rdzv.protocol.records import Member, Round

if TYPE_CHECKING:
    from rdzv.protocol.coordinator_state import CoordinatorState


@dataclass(frozen=True, order=True)
class Cause:
    """From when on (seconds) there is a reason to form the world anew, and the reason in words."""

    at: float
    why: str


def cause(state: CoordinatorState, facts: Facts, own: Round, now: float) -> tuple[CoordinatorState, Cause | None]:
    """The first reason to come, None when there is none."""
    late = _late(facts, own)
    state = note(note(state, "late", bool(late), now), "formed", True, now)
    found = [_failure(state, facts, own, now), _surplus(facts, now), _growth(state, facts, own, late)]
    return state, min((each for each in found if each is not None), default=None)


def _failure(state: CoordinatorState, facts: Facts, own: Round, now: float) -> Cause | None:
    """Members are gone, or ask for another round. Failures seldom come alone: they settle first."""
    if not (facts.lost or facts.attendance.rejoining):
        return None
    return Cause(state.since.get("failed", now) + state.policy.settle, failure_text(state, facts, own))


def _surplus(facts: Facts, now: float) -> Cause | None:
    there = facts.attendance
    here = len(there.present | there.rejoining)
    return Cause(now, f"{here} {TOO_MANY} {there.most} are wanted") if here > there.most else None


def _growth(state: CoordinatorState, facts: Facts, own: Round, late: list[Member]) -> Cause | None:
    """Others have joined: they are let in together, at once when nobody else is to come and the world is no new one."""
    if not late:
        return None
    there = facts.attendance
    full = len(there.present | there.rejoining) + len(late) >= there.most
    wait = 0.0 if full or _nobody_else(facts, own) else there.pace.scale_up_window
    at = max(state.since["late"] + wait, state.since["formed"] + there.pace.min_round)
    return Cause(at, f"{len(late)} {MORE}")


def _late(facts: Facts, own: Round) -> list[Member]:
    """Who has joined that is not in the world, if there is room, and nothing else to be done first."""
    there = facts.attendance
    if facts.succeeded or facts.lost or len(there.present | there.rejoining) >= there.most:
        return []
    inside = frozenset(own.fingerprints)
    return [member for member in there.joined if fingerprint(own.salt, member.incarnation) not in inside]


def _nobody_else(facts: Facts, own: Round) -> bool:
    """Every pod that the operator expects is in the world or asks to be."""
    there = facts.attendance
    if there.roster is None or not all(member.owned for member in there.joined):
        return False
    slots = {member.index for member in there.joined}
    slots |= {slot for mark, slot in zip(own.fingerprints, own.slots, strict=True) if mark in there.present}
    joined = len(there.present) + len(there.joined)
    return there.roster.expected <= slots and joined >= there.roster.expected_count


def failure_text(state: CoordinatorState, facts: Facts, own: Round) -> str:
    """Who is gone or has asked to join again, with their nodes: `failures.read` understands it."""
    slots = dict(zip(own.fingerprints, own.slots, strict=True))
    groups = {
        GONE: [slots[mark] for mark in facts.lost],
        ASKED_AGAIN: [slots[mark] for mark in facts.attendance.rejoining],
    }
    return describe(groups, state.nodes)
