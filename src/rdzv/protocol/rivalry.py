"""Two agents that both believe to coordinate, because they can't reach each other: who goes on, and when a new one may act."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdzv.protocol.events import Timing
from rdzv.protocol.fields import replace
from rdzv.protocol.records import CLOSED, RUNNING, Coordinator, Round

if TYPE_CHECKING:
    from rdzv.protocol.coordinator_state import CoordinatorState
    from rdzv.protocol.facts import Facts

_PROBATION = 1.0
"""Seconds after a takeover during which the coordinator that was replaced may come back."""
_ALONE = 5.0
"""Seconds for which a coordinator that has lost all of several others does nothing: they need them to take over, if it is
this agent that is cut off."""
_DOUBT = Timing.doubt
"""Of the others."""
_ANSWER_AGAIN = 5.0
"""Seconds after which the same rival is answered again. One that is back sooner has not been convinced."""


def note_claim(state: CoordinatorState, own: Round, now: float) -> CoordinatorState:
    """Remembers the Round that names this agent: what another one does to it later shows."""
    since = now if state.claimed_at is None else state.claimed_at
    return replace(state, claimed_at=since, stood=own)


def note_alone(state: CoordinatorState, facts: Facts, now: float) -> CoordinatorState:
    """Remembers since when none of several others is connected."""
    alone = len(facts.here) == 1 and len(facts.out_of_reach) > 1
    since = now if state.alone_since is None else state.alone_since
    return replace(state, alone_since=since if alone else None)


def answers(state: CoordinatorState, facts: Facts, own: Round, rival: Coordinator, now: float) -> bool:
    """Whether this agent takes the coordination back from a rival, rather than step down."""
    return (
        _established(state, now)
        and _only_claimed(state, own)
        and now >= state.answered.get(rival.incarnation, -_ANSWER_AGAIN) + _ANSWER_AGAIN
        and _stronger(state, facts, own, rival)
    )


def answered(state: CoordinatorState, rival: Coordinator, now: float) -> CoordinatorState:
    """The rival was answered now."""
    return replace(state, answered={**state.answered, rival.incarnation: now}, stood=None)


def may_act_at(state: CoordinatorState, facts: Facts, own: Round, now: float) -> float | None:
    """From when (seconds) on this agent does more than to claim the Round; None: not by time alone.

    Who took over is perhaps cut off from all: it waits until one of the others has found it. If there is none, it gives the
    one that it replaced a moment to object.
    """
    if own.phase == CLOSED or len(facts.here) > 1:
        return now
    if state.lost is None or state.followed:
        return now if state.alone_since is None or own.phase != RUNNING else _alone_until(state, state.alone_since)
    if state.claimed_at is None or facts.away:
        return None
    return state.claimed_at + state.policy.settle


def _alone_until(state: CoordinatorState, since: float) -> float:
    """Rivals that were answered, perhaps because their silence was not noticed yet, wait before they claim again."""
    return max([since, *(at + _DOUBT for at in state.answered.values())]) + _ALONE


def on_probation(state: CoordinatorState, now: float) -> bool:
    """The coordinator that was replaced may still object: nothing is done that can wait."""
    return state.lost is not None and (state.claimed_at is None or now < state.claimed_at + _PROBATION)


def _established(state: CoordinatorState, now: float) -> bool:
    """The rival is not the agent that this one has just taken over from by mistake."""
    return state.claimed_at is not None and not on_probation(state, now)


def _only_claimed(state: CoordinatorState, own: Round) -> bool:
    """The rival, and those between, have done nothing yet: nobody relies on them."""
    stood = state.stood
    return stood is not None and own.phase != CLOSED and replace(own, coordinator=stood.coordinator) == stood


def _stronger(state: CoordinatorState, facts: Facts, own: Round, rival: Coordinator) -> bool:
    """Those connected to this agent are enough for a world, or not fewer than the others.

    Alone it yields, unless there is nobody but the rival, or it is all of the world that runs.
    """
    here, away = len(facts.here), len(facts.out_of_reach)
    whole = own.phase == RUNNING and own.size == 1 and own.rank_of(state.me.incarnation) is not None
    alone = here == 1 and bool(facts.out_of_reach - {rival.incarnation}) and not whole
    return not alone and (here >= facts.attendance.least or here >= away)
