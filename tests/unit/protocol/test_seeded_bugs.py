"""The simulator finds bugs: each one here is put into the protocol (or its use), and must be caught.

A bug is a replaced function of the production modules, so that nothing in them knows of tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from unit.protocol.scenarios import play
from unit.protocol.sim import Sim

from rdzv.protocol import coordinator, member
from rdzv.protocol import events as ev
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
        member,
        "_take_reply",
        lambda real: (
            lambda state, event, now: real(
                state, ev.WriteFailed() if isinstance(event, ev.WriteUnknown) else event, now
            )
        ),
    )


@bug
def no_incarnation_check(patch: pytest.MonkeyPatch) -> None:
    """Accepts when the bit of the own slot is set, whoever was counted on it."""
    real = member._accept

    def accept(state: member.MemberState, seen: Round) -> ev.Accept | None:
        if state.me.slot is None or state.slot is None:
            return real(state, seen)
        if seen.phase != RUNNING or seen.want > seen.round or seen.leader is None or state.slot not in seen.slots:
            return None
        if seen.round < state.want or state.acked_rv is None or state.acked_rv > seen.members_rv:
            return None
        return ev.Accept(seen.round, seen.slots.index(state.slot), seen.size, state.slot, seen.leader, seen.uid)

    patch.setattr(member, "_accept", accept)
    patch.setattr(member, "_usurped", lambda state, seen: False)


@bug
def ignores_members_rv(patch: pytest.MonkeyPatch) -> None:
    """Accepts a round that was formed before the own join was known."""
    wrap(
        patch,
        member,
        "_accept",
        lambda real: lambda state, seen: real(state, replace(seen, members_rv=10**9)),
    )


@bug
def ignores_whether_the_join_is_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """Decides on an old resourceVersion while the new request is still under way."""
    patch.setattr(member, "_acknowledged", lambda state: state.acked_rv is not None)


@bug
def takes_old_events(patch: pytest.MonkeyPatch) -> None:
    """Takes whatever a watch delivers for the present, and forgets what was later."""

    def make(real: Any) -> Any:
        return lambda state, event, now: real(replace(state, seen_rv=0, top=0), event, now)

    wrap(patch, member, "_see", make)


@bug
def asks_for_the_same_store_again(patch: pytest.MonkeyPatch) -> None:
    """Keeps the bound store for the next request, though a round may have used it."""

    def make(real: Any) -> Any:
        def ask(state: member.MemberState, actions: list[ev.Action]) -> Any:
            return real(replace(state, want=0) if state.want and state.port else state, actions)

        return ask

    wrap(patch, member, "_ask", make)


@bug
def starts_again_at_zero(patch: pytest.MonkeyPatch) -> None:
    """Makes a deleted Round with number 0."""
    wrap(patch, coordinator, "_facts", lambda real: lambda *args: replace(real(*args), floor=0, seen=0))


@bug
def leaves_announced_members_in(patch: pytest.MonkeyPatch) -> None:
    """Counts members that are leaving."""
    patch.setattr(coordinator, "_alive", lambda state, dead, record, roster: record.incarnation not in dead)


@bug
def counts_the_dead(patch: pytest.MonkeyPatch) -> None:
    """Counts members whose connection broke."""
    wrap(
        patch,
        coordinator,
        "_alive",
        lambda real: lambda state, dead, record, roster: real(state, frozenset(), record, None),
    )


@bug
def counts_who_has_not_asked(patch: pytest.MonkeyPatch) -> None:
    """Counts every live member, whether it asked for this round or is still in an earlier one."""

    def make(real: Any) -> Any:
        def facts(state: Any, view: coordinator.View, own: Round | None, now: float) -> Any:
            result = real(state, view, own, now)
            live = [m for m, _ in view.members.values() if m.run_id == state.me.run_id and m.state == "live"]
            return replace(result, joined=tuple(coordinator._one_per_slot(live)))

        return facts

    wrap(patch, coordinator, "_facts", make)


@bug
def two_pods_on_one_slot(patch: pytest.MonkeyPatch) -> None:
    """Does not notice that two pods claim a slot."""
    patch.setattr(coordinator, "_one_per_slot", list)


@bug
def forms_below_the_minimum(patch: pytest.MonkeyPatch) -> None:
    """Forms a world of whoever is there."""
    wrap(patch, coordinator, "_facts", lambda real: lambda *args: replace(real(*args), least=1))


@bug
def forms_above_the_maximum(patch: pytest.MonkeyPatch) -> None:
    """Lets everybody in."""
    wrap(patch, coordinator, "_facts", lambda real: lambda *args: replace(real(*args), most=100))


@bug
def closes_when_the_first_succeeds(patch: pytest.MonkeyPatch) -> None:
    """Closes the Rendezvous for all as soon as one is done, as torch's own handlers do."""

    def make(real: Any) -> Any:
        def target(state: Any, facts: Any, own: Round, now: float) -> Any:
            if own.phase == RUNNING and facts.succeeded:
                return state, replace(own, phase=CLOSED, closed=Closure("Succeeded", "x")), "", None
            return real(state, facts, own, now)

        return target

    wrap(patch, coordinator, "_target", make)


@bug
def nobody_takes_over(patch: pytest.MonkeyPatch) -> None:
    """Only the first coordinator ever coordinates."""
    wrap(patch, member, "_vacant", lambda real: lambda state: real(replace(state, lost=None)) and state.lost is None)


@bug
def never_steps_down(patch: pytest.MonkeyPatch) -> None:
    """Takes back the coordination from whoever took it over."""

    def make(real: Any) -> Any:
        def step(state: Any, view: coordinator.View, now: float) -> Any:
            other = view.round.coordinator if view.round is not None else None
            return real(replace(state, lost=other), view, now)

        return step

    wrap(patch, coordinator, "step", make)


@bug
def does_not_watch_for_wanted_rounds(patch: pytest.MonkeyPatch) -> None:
    """Tells the agent of a new round only when it has been formed."""

    def waiting(state: member.MemberState) -> int:
        return int(state.seen is not None and bool(state.mine) and state.seen.round > state.mine)

    patch.setattr(member, "num_nodes_waiting", waiting)


@bug
def forgets_the_time(patch: pytest.MonkeyPatch) -> None:
    """Waits for events only."""
    patch.setattr(member, "_wake", lambda state: None)


@bug
def joins_after_leaving(patch: pytest.MonkeyPatch) -> None:
    """Does not give up its place when its pod is being stopped."""
    wrap(patch, member, "_ending", lambda real: lambda state, now: real(replace(state, leaving=False), now))


@bug
def mixes_runs(patch: pytest.MonkeyPatch) -> None:
    """Counts the members of another run of the same name, or of a Round that was deleted."""

    def make(real: Any) -> Any:
        def facts(state: Any, view: coordinator.View, own: Round | None, now: float) -> Any:
            own_ids = {"run_id": state.me.run_id, "round_uid": own.uid if own is not None else ""}
            members = {n: (replace(m, **own_ids), rv) for n, (m, rv) in view.members.items()}
            return real(state, replace(view, members=members), own, now)

        return facts

    wrap(patch, coordinator, "_facts", make)


def first_caught(limit: int) -> tuple[int, str] | None:
    for seed in range(limit):
        try:
            text = play(seed)
        except Exception as error:  # noqa: BLE001 - a broken protocol may fail in any way; that counts as caught
            text = f"{type(error).__name__}: {error}"
        if text is not None:
            return seed, text
    return None


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_caught(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    caught = first_caught(LIMIT)
    assert caught is not None, f"{LIMIT} schedules did not notice: {plant.__doc__}"
    print(f"caught by schedule {caught[0]}: {caught[1]}")


def test_the_protocol_itself_is_not_caught() -> None:
    assert first_caught(200) is None
