"""What the protocol costs, in simulated time and counted writes: nothing here depends on this machine's speed."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace

import pytest
from unit.protocol.clusters import cluster, lose, run_until_formed
from unit.protocol.sim_parts import RECONNECT
from unit.protocol.test_coordinator import ME, POLICY, member, roster, running

from rdzv.protocol.coordinator import step
from rdzv.protocol.coordinator_state import CoordinatorState, View


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("round_exists", [True, False])
def test_a_fixed_world_of_64_costs_one_write_each_and_no_conflict(seed: int, round_exists: bool) -> None:
    sim = cluster(seed, 64, 64, 64, round_exists=round_exists)
    seconds = run_until_formed(sim, 64)
    assert sim.conflicts == 0
    assert sum(sim.writes.values()) <= 64 + 3  # the Round: made or claimed, and committed
    assert all(count <= 2 for name, count in sim.writes.items() if name != "pod-0")
    assert seconds < 0.25  # the last one starts at 0.1


@pytest.mark.parametrize("seed", range(5))
def test_forming_anew_costs_one_write_each(seed: int) -> None:
    sim = cluster(seed, 64, 32, 64)
    run_until_formed(sim, 64)
    before = dict(sim.writes)
    victim = sim.pods[63].process
    assert victim is not None
    sim.pods[63].gone = True
    sim.kill(victim)
    run_until_formed(sim, 63, after=1)
    spent = {name: count - before.get(name, 0) for name, count in sim.writes.items()}
    assert sim.conflicts == 0
    assert max(spent[pod.name] for pod in sim.pods[1:63]) == 1
    assert spent["pod-0"] <= 3


@pytest.mark.parametrize("seed", range(5))
def test_a_running_world_writes_nothing(seed: int) -> None:
    sim = cluster(seed, 8, 4, 8)
    run_until_formed(sim, 8)
    before = dict(sim.writes)
    while sim.queue and sim.now < 600:
        sim.step()
    assert sim.writes == before


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("roster", ["present", "absent"])
@pytest.mark.parametrize("victim", [0, 3], ids=["rank 0, which coordinates", "another"])
def test_a_lost_member_costs_little_time(seed: int, roster: str, victim: int) -> None:
    """Nobody comes back (1 s), settling (0.3 s), then the agents' own pause before they join again (up to 1 s here), and a few messages."""
    sim = cluster(seed, 4, 2, 4, roster=roster)
    run_until_formed(sim, 4)
    while sim.queue and sim.now < 5:
        sim.step()
    lose(sim, sim.pods[victim])
    assert run_until_formed(sim, 3, after=1) < 1.6 + RECONNECT


@pytest.mark.parametrize("seed", range(5))
def test_an_elastic_world_forms_when_the_last_expected_pod_has_joined(seed: int) -> None:
    sim = cluster(seed, 3, 2, 4)
    assert run_until_formed(sim, 3) < 1.0


class Passes:
    """How often a whole collection was gone through."""

    count = 0


class Connected(frozenset[str]):
    """Who is connected; counts what takes as long as there are members."""

    def __sub__(self, other: Set[object]) -> frozenset[str]:
        Passes.count += 1
        return frozenset(self) - other


class Marks(tuple[str, ...]):
    """Fingerprints of a world, the same way."""

    def __iter__(self) -> Iterator[str]:
        Passes.count += 1
        return super().__iter__()

    def __contains__(self, mark: object) -> bool:
        Passes.count += 1
        return super().__contains__(mark)


def passes(members: int, *, replaced: bool = False) -> int:
    """In a step of the coordinator in which a world's members, and as many newcomers, ask for the next round.

    `replaced`: the newcomers ask for the members' slots.
    """
    inside, late = [member(i) for i in range(members)], [member(i, 2) for i in range(members, 2 * members)]
    if replaced:
        late = [replace(each, slot=slot) for slot, each in enumerate(late)]
    record = running(inside)
    world = replace(record, fingerprints=Marks(record.fingerprints))
    connected = Connected(each.incarnation for each in (*inside, *late))
    counted = {each.name: (each, rv) for rv, each in enumerate((*inside, *late), 100)}
    Passes.count = 0
    step(
        CoordinatorState(ME, POLICY), View(counted, 1000, roster(high=3 * members), world, 50, connected=connected), 0.0
    )
    return Passes.count


def test_a_step_of_the_coordinator_is_not_quadratic() -> None:
    """Nothing in it goes through all of a world once for each member."""
    assert passes(8) == passes(64)


def test_a_world_is_gone_through_once_to_tell_the_ranks_of_all_its_members() -> None:
    inside = [member(i) for i in range(64)]
    record = running(inside)
    world = replace(record, fingerprints=Marks(record.fingerprints))
    Passes.count = 0
    assert [world.rank_of(each.incarnation) for each in inside] == list(range(64))
    assert Passes.count == 1


def test_a_step_of_the_coordinator_is_not_quadratic_when_every_member_is_being_replaced() -> None:
    """Two agents ask for each slot."""
    assert passes(8, replaced=True) == passes(64, replaced=True)
