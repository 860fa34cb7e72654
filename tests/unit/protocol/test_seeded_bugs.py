"""The simulator finds bugs: each one here is put into the protocol (or its use), and must be caught.

A bug is a replaced function of the production modules, so that nothing in them knows of tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from faults.tally import Tally
from unit.protocol.scenarios import play
from unit.protocol.sim import Sim

from rdzv.protocol import (
    candidacy,
    coordinator,
    exclusion,
    facts,
    joining,
    member,
    own_record,
    ranking,
    rivalry,
)
from rdzv.protocol import events as ev
from rdzv.protocol.coordinator_state import View
from rdzv.protocol.member_state import MemberState, OwnRecord, Standing
from rdzv.protocol.records import CLOSED, RUNNING, Closure, Member, Round

#: Schedules that a bug may survive before the simulator counts as blind to it.
LIMIT = 4000

Patch = Callable[[pytest.MonkeyPatch], None]
BUGS: list[Patch] = []


def bug(function: Patch) -> Patch:
    BUGS.append(function)
    return function


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    patch.setattr(owner, name, make(getattr(owner, name)))


@bug
def blind_write_of_the_member(patch: pytest.MonkeyPatch) -> None:
    """Writes without a resourceVersion, so that a late one undoes a newer one."""

    def make(real: Any) -> Any:
        def put(self: Sim, record: Member, condition: int | None, sent: int) -> Any:
            current = self.members.get(record.name)
            return real(self, record, current[1] if current else None, sent)

        return put

    wrap(patch, Sim, "put_member", make)


@bug
def blind_write_of_the_round(patch: pytest.MonkeyPatch) -> None:
    """Replaces the Round whatever it has become meanwhile."""

    def make(real: Any) -> Any:
        def put(self: Sim, by: str, record: Round, condition: int | None, counted: Any) -> Any:
            return real(self, by, record, self.round[1] if self.round else None, counted)

        return put

    wrap(patch, Sim, "put_round", make)


@bug
def blind_retry(patch: pytest.MonkeyPatch) -> None:
    """Takes a lost reply for a refusal: repeats the write instead of reading what became of it."""
    wrap(
        patch,
        own_record,
        "take_reply",
        lambda real: (
            lambda state, event, now: real(
                state, ev.WriteFailed() if isinstance(event, ev.WriteUnknown) else event, now
            )
        ),
    )


@bug
def no_incarnation_check(patch: pytest.MonkeyPatch) -> None:
    """Accepts when the bit of the own slot is set, whoever was counted on it."""
    real = joining._accept

    def accept(state: MemberState, record: Round) -> ev.Accept | None:
        if state.me.slot is None or state.slot is None:
            return real(state, record)
        if record.phase != RUNNING or record.want > record.round or record.leader is None:
            return None
        rv = state.own.acked_rv
        if state.slot not in record.slots or record.round < state.request.requested:
            return None
        if rv is None or rv > record.members_rv:
            return None
        rank = record.slots.index(state.slot)
        return ev.Accept(record.round, rank, record.size, state.slot, record.leader, record.uid)

    patch.setattr(joining, "_accept", accept)
    patch.setattr(joining, "_usurped", lambda state: None)


@bug
def ignores_members_rv(patch: pytest.MonkeyPatch) -> None:
    """Accepts a round that was formed before the own join was known."""
    wrap(
        patch,
        joining,
        "_accept",
        lambda real: lambda state, record: real(state, replace(record, members_rv=10**9)),
    )


@bug
def ignores_whether_the_join_is_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """Decides on an old resourceVersion while the new request is still under way."""
    patch.setattr(OwnRecord, "acknowledged", property(lambda own: own.acked_rv is not None))


@bug
def takes_old_events(patch: pytest.MonkeyPatch) -> None:
    """Takes whatever a watch delivers for the present, and forgets what was later."""

    def make(real: Any) -> Any:
        def known(state: MemberState, event: ev.RoundSeen, now: float) -> Any:
            return real(replace(state, known=replace(state.known, rv=0, highest_seen=0)), event, now)

        return known

    wrap(patch, member, "_known", make)


@bug
def asks_for_the_same_store_again(patch: pytest.MonkeyPatch) -> None:
    """Keeps the bound store for the next request, though a round may have used it."""

    def make(real: Any) -> Any:
        def ask(state: MemberState, actions: list[ev.Action]) -> Any:
            request = state.request
            kept = replace(request, requested=0) if request.requested and request.port else request
            return real(replace(state, request=kept), actions)

        return ask

    wrap(patch, joining, "_ask", make)


@bug
def starts_again_at_zero(patch: pytest.MonkeyPatch) -> None:
    """Makes a deleted Round with number 0."""
    wrap(patch, coordinator, "gather", lambda real: lambda *args: replace(real(*args), floor=0, highest_seen=0))


@bug
def leaves_announced_members_in(patch: pytest.MonkeyPatch) -> None:
    """Counts members that are leaving."""

    def why(record: Member, dead: frozenset[str], *_: object) -> str:
        return "its connection is gone" if record.incarnation in dead else ""

    patch.setattr(facts, "why_not_alive", why)


@bug
def counts_the_dead(patch: pytest.MonkeyPatch) -> None:
    """Counts members whose connection broke."""
    wrap(
        patch,
        facts,
        "why_not_alive",
        lambda real: lambda record, dead, succeeded, roster: real(record, frozenset(), succeeded, None),
    )


@bug
def counts_who_has_not_asked(patch: pytest.MonkeyPatch) -> None:
    """Counts every live member, whether it asked for this round or is still in an earlier one."""

    def make(real: Any) -> Any:
        def gather(state: Any, view: View, own: Round | None, now: float) -> Any:
            result = real(state, view, own, now)
            entries = view.members.values()
            live = [(m, rv) for m, rv in entries if m.run_id == state.me.run_id and m.state == "live"]
            joined = tuple(facts.one_per_pair(live, own))
            return replace(result, attendance=replace(result.attendance, joined=joined))

        return gather

    wrap(patch, coordinator, "gather", make)


@bug
def two_pods_on_one_slot(patch: pytest.MonkeyPatch) -> None:
    """Does not notice that two pods claim a slot."""
    patch.setattr(facts, "one_per_pair", lambda entries, own: [member for member, _ in entries])


@bug
def the_latest_write_has_the_slot(patch: pytest.MonkeyPatch) -> None:
    """Gives a slot to whoever made its Member last, as by creationTimestamp: an agent that was stopped evicts its replacement."""
    patch.setattr(facts, "_strength", lambda entry, own: (entry[1], entry[0].name))


@bug
def a_later_agent_has_the_slot(patch: pytest.MonkeyPatch) -> None:
    """Gives the slot of who lives and is connected to whoever asks for it later."""

    def make(real: Any) -> Any:
        def gather(state: Any, view: View, own: Round | None, now: float) -> Any:
            everybody = frozenset(member.incarnation for member, _ in view.members.values())
            return real(state, replace(view, doubted=everybody), own, now)

        return gather

    wrap(patch, coordinator, "gather", make)


@bug
def forms_below_the_minimum(patch: pytest.MonkeyPatch) -> None:
    """Forms a world of whoever is there."""
    wrap(patch, facts, "attend", lambda real: lambda *args: replace(real(*args), least=1))


@bug
def forms_above_the_maximum(patch: pytest.MonkeyPatch) -> None:
    """Lets everybody in."""
    wrap(patch, facts, "attend", lambda real: lambda *args: replace(real(*args), most=100))


@bug
def closes_when_the_first_succeeds(patch: pytest.MonkeyPatch) -> None:
    """Closes the Rendezvous for all as soon as one is done, as torch's own handlers do."""

    def make(real: Any) -> Any:
        def target(state: Any, facts: Any, own: Round, now: float) -> Any:
            if own.phase == RUNNING and facts.succeeded:
                return state, coordinator.Target(replace(own, phase=CLOSED, closed=Closure("Succeeded", "x")))
            return real(state, facts, own, now)

        return target

    wrap(patch, coordinator, "_target", make)


@bug
def nobody_takes_over(patch: pytest.MonkeyPatch) -> None:
    """Only the first coordinator ever coordinates."""

    def make(real: Any) -> Any:
        def vacant(state: MemberState) -> bool:
            nobody_lost = replace(state, candidacy=replace(state.candidacy, lost=None))
            return bool(real(nobody_lost)) and state.candidacy.lost is None

        return vacant

    wrap(patch, candidacy, "_vacant", make)


@bug
def never_steps_down(patch: pytest.MonkeyPatch) -> None:
    """Takes back the coordination from whoever took it over."""

    def make(real: Any) -> Any:
        def step(state: Any, view: View, now: float) -> Any:
            other = view.round.coordinator if view.round is not None else None
            return real(replace(state, lost=other), view, now)

        return step

    wrap(patch, coordinator, "step", make)


@bug
def does_not_watch_for_wanted_rounds(patch: pytest.MonkeyPatch) -> None:
    """Tells the agent of a new round only when it has been formed."""

    def waiting(state: MemberState) -> int:
        record = state.known.record
        return int(record is not None and bool(state.accepted) and record.round > state.accepted)

    patch.setattr(member, "num_nodes_waiting", waiting)


@bug
def forgets_the_time(patch: pytest.MonkeyPatch) -> None:
    """Waits for events only."""
    for module in (joining, own_record, candidacy):
        patch.setattr(module, "look_at", lambda state: None)


@bug
def joins_after_leaving(patch: pytest.MonkeyPatch) -> None:
    """Does not give up its place when its pod is being stopped."""

    def make(real: Any) -> Any:
        def failure(state: MemberState, now: float) -> Any:
            stays = state.standing is Standing.LEAVING
            return real(replace(state, standing=Standing.ACTIVE) if stays else state, now)

        return failure

    wrap(patch, joining, "_failure", make)


@bug
def mixes_runs(patch: pytest.MonkeyPatch) -> None:
    """Counts the members of another run of the same name, or of a Round that was deleted."""

    def make(real: Any) -> Any:
        def gather(state: Any, view: View, own: Round | None, now: float) -> Any:
            own_ids = {"run_id": state.me.run_id, "round_uid": own.uid if own is not None else ""}
            members = {n: (replace(m, **own_ids), rv) for n, (m, rv) in view.members.items()}
            return real(state, replace(view, members=members), own, now)

        return gather

    wrap(patch, coordinator, "gather", make)


@bug
def takes_over_again_at_once(patch: pytest.MonkeyPatch) -> None:
    """Who can't reach a coordinator that lives takes over from it whenever it finds so."""
    patch.setattr(candidacy, "_patience", lambda state: 0.0)


@bug
def counts_whoever_has_the_api(patch: pytest.MonkeyPatch) -> None:
    """Lets an agent in that is connected to nobody, because its request arrives."""
    patch.setattr(exclusion, "is_left_out", lambda state, view, own, member: False)


@bug
def yields_to_whoever_claims(patch: pytest.MonkeyPatch) -> None:
    """A coordinator steps down for any rival, though it lives and the others are connected to it."""
    patch.setattr(rivalry, "answers", lambda state, facts, own, rival, now: False)


@bug
def acts_while_connected_to_nobody(patch: pytest.MonkeyPatch) -> None:
    """Who takes over takes all who are not connected to it yet for gone, and a coordinator that lost all of them, too."""
    patch.setattr(rivalry, "may_act_at", lambda state, facts, own, now: now)


@bug
def never_lets_in_again(patch: pytest.MonkeyPatch) -> None:
    """Who could not be reached once is left out for good."""
    patch.setattr(exclusion, "_review", lambda barred, member, reached, now: barred)


@bug
def lets_the_unreachable_lead(patch: pytest.MonkeyPatch) -> None:
    """Forms the next round with the same leader, though most could not connect to its store, and those who could not."""
    patch.setattr(exclusion, "judge", lambda state, facts, own, now: None)


@bug
def ranks_by_name(patch: pytest.MonkeyPatch) -> None:
    """Allots slots in the order of names, as of pods without an index."""
    patch.setattr(ranking, "order", lambda each: (False, (0, 0, "", 0), each.name))


@bug
def ranks_by_what_is_told_now(patch: pytest.MonkeyPatch) -> None:
    """Sorts who stays as well by where the nodes are, so that labels that change, or come late, move them."""
    wrap(
        patch,
        ranking,
        "_by_site",
        lambda real: lambda chosen, had, sites: real(chosen, dict.fromkeys(had, None), sites),
    )


@bug
def ranks_in_another_order_of_sites(patch: pytest.MonkeyPatch) -> None:
    """Takes the sites the other way round."""
    wrap(patch, ranking, "_by_site", lambda real: lambda chosen, had, sites: real(chosen, had, sites[::-1]))


@bug
def moves_agents_that_can_not_be_moved(patch: pytest.MonkeyPatch) -> None:
    """Gives an agent with a slot of its own another one, as its site wants: it never accepts such a world."""
    patch.setattr(Member, "index", property(lambda member: None))


def first_caught(limit: int) -> tuple[int, str] | None:
    for seed in range(limit):
        text = play(seed)
        if text is not None:
            return seed, text
    return None


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_caught(plant: Patch, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    plant(monkeypatch)
    caught = first_caught(LIMIT)
    assert caught is not None, f"{LIMIT} schedules did not notice: {plant.__doc__}"
    tally.caught("protocol", plant.__name__.replace("_", " "))
    print(f"caught by schedule {caught[0]}: {caught[1]}")


def test_the_protocol_itself_is_not_caught() -> None:
    assert first_caught(200) is None
