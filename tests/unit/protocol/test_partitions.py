"""Agents that have the API but can't connect to each other: who is cut off is left out, and the others go on at once."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from unit.protocol.links import REFUSED, SILENT, halves, isolated
from unit.protocol.sim import Sim
from unit.protocol.sim_parts import Process, Scenario

from rdzv.protocol.coordinator_state import Policy
from rdzv.protocol.events import Timing
from rdzv.protocol.pace import Pace
from rdzv.protocol.records import RUNNING, Round

SIZE = 6
#: Rounds that a partition may cost, however long it lasts.
ROUNDS = 4
STABLE = 120.0

Pairs = set[tuple[str, str]]


def cluster(seed: int, low: int, *, roster: str = "present", high: int = SIZE, size: int = SIZE) -> Sim:
    policy = Policy(low, high, last_call=5.0, pace=Pace(scale_up_window=4.0))
    scenario = Scenario(bounds=(low, high), roster=roster, unreachable=0.0, policy=policy, timing=Timing())
    sim = Sim(seed, scenario)
    sim.faults = False
    for slot in range(size):
        sim.at(sim.random.uniform(0, 0.1), sim.start, sim.add_pod(slot))
    return sim


def addresses(sim: Sim) -> list[str]:
    return [pod.address for pod in sim.pods]


def advance(sim: Sim, seconds: float) -> None:
    end = sim.now + seconds
    while sim.queue and sim.queue[0][0] <= end:
        sim.step()
    sim.now = end


def partition(sim: Sim, pairs: Pairs, how: str) -> None:
    """Cuts these links; the workers of a world that is cut in two fail within a few seconds."""
    sim.cut(pairs, how)
    cut_off = {address for pair in pairs for address in pair}
    for process in sim.processes():
        if process.me.address in cut_off:
            sim.at(sim.random.uniform(0.1, 5.0), worker_fails, sim, process, process.state.accepted)


def worker_fails(sim: Sim, process: Process, world: int) -> None:
    if process.alive and world and process.state.accepted == world and not process.state.joining:
        sim.join(process)


def world(sim: Sim) -> list[str]:
    """Names of those who are in the present world, and know it; none while it is to be formed anew."""
    record: Round | None = sim.round[0] if sim.round else None
    if record is None or record.phase != RUNNING or record.want > record.round:
        return []
    return sorted(p.pod.name for p in sim.processes() if p.state.accepted == record.round and not p.state.joining)


def names(*slots: int) -> list[str]:
    return [f"pod-{slot}" for slot in slots]


def others(victim: int) -> list[str]:
    return names(*(slot for slot in range(SIZE) if slot != victim))


def reasons(sim: Sim) -> list[str]:
    """Why the present world is without some, as the Round says."""
    assert sim.round is not None
    return [one.reason for one in sim.round[0].left_out]


def full(sim: Sim, size: int = SIZE) -> Callable[[], bool]:
    """Whether a world of this size runs."""
    return lambda: len(world(sim)) == size


def rounds_of(sim: Sim) -> int:
    return len(sim.committed)


def takeovers(sim: Sim) -> int:
    return sim.round[0].term if sim.round is not None else 0


def eventually(sim: Sim, condition: Callable[[], bool], seconds: float = 400.0) -> None:
    end = sim.now + seconds
    while not condition():
        assert sim.queue, "nothing is left to happen"
        assert sim.queue[0][0] < end, f"not within {seconds:g} s: {world(sim)} {sim.round}"
        sim.step()


@pytest.mark.parametrize("how", [REFUSED, SILENT])
@pytest.mark.parametrize("direction", ["both", "out", "in"])
@pytest.mark.parametrize("victim", [0, 3], ids=["coordinator and rank 0", "another"])
@pytest.mark.parametrize("formed", [True, False], ids=["formed", "from the start"])
@pytest.mark.parametrize("roster", ["present", "absent"])
def test_one_isolated_among_six(how: str, direction: str, victim: int, formed: bool, roster: str) -> None:
    for seed in range(5):
        sim = cluster(seed, 2, roster=roster)
        if formed:
            eventually(sim, full(sim))
            advance(sim, 3.0)
        before = rounds_of(sim)
        partition(sim, isolated(f"10.0.0.{victim}", addresses(sim), direction), how)
        advance(sim, STABLE / 2)
        settled = rounds_of(sim)
        advance(sim, STABLE / 2)
        assert settled - before <= ROUNDS
        assert rounds_of(sim) == settled, "it does not settle"
        # Who can be connected to can coordinate and lead; who can connect can be in a world that another one leads.
        harmless = direction == ("in" if victim else "out")
        assert world(sim) == (names(*range(SIZE)) if harmless else others(victim))
        # The reason says which way is cut.
        pattern = (
            r"pod-\d can't be reached by pod-3 at"
            if direction == "out"
            else rf"pod-{victim} can't be reached by pod-\d at"
        )
        said = reasons(sim)
        assert [bool(re.match(pattern, reason)) for reason in said] == ([] if harmless else [True]), said
        sim.heal_links()
        eventually(sim, full(sim))


@pytest.mark.parametrize("how", [REFUSED, SILENT])
@pytest.mark.parametrize(
    ("low", "left", "inside"),
    [
        (2, {0, 1, 2}, {0, 1, 2}),
        (2, {0, 1}, {0, 1}),
        (4, {0, 1}, {2, 3, 4, 5}),
        (1, {0}, {1, 2, 3, 4, 5}),
        (4, {0, 1, 2}, set()),
    ],
    ids=["halves", "the coordinator's side is enough", "it is not", "the coordinator alone", "neither is enough"],
)
@pytest.mark.parametrize("roster", ["present", "absent"])
def test_a_partition_in_two_settles_on_one_side(
    how: str, low: int, left: set[int], inside: set[int], roster: str
) -> None:
    for seed in range(5):
        sim = cluster(seed, low, roster=roster)
        eventually(sim, full(sim))
        advance(sim, 3.0)
        before = rounds_of(sim)
        right = set(range(SIZE)) - left
        partition(sim, halves({f"10.0.0.{n}" for n in left}, {f"10.0.0.{n}" for n in right}), how)
        advance(sim, STABLE)
        assert rounds_of(sim) - before <= ROUNDS
        assert world(sim) == names(*sorted(inside))
        settled, term = rounds_of(sim), takeovers(sim)
        advance(sim, STABLE)
        assert rounds_of(sim) == settled
        # Who is left out asks from time to time whether the coordinator still lives.
        assert takeovers(sim) - term <= 20
        sim.heal_links()
        eventually(sim, full(sim))


@pytest.mark.parametrize("how", [REFUSED, SILENT])
@pytest.mark.parametrize("low", [1, 2])
def test_a_pair_that_is_cut_in_two(how: str, low: int) -> None:
    for seed in range(5):
        sim = cluster(seed, low, high=2, size=2)
        eventually(sim, full(sim, 2))
        advance(sim, 3.0)
        before = rounds_of(sim)
        partition(sim, isolated("10.0.0.1", addresses(sim)), how)
        advance(sim, STABLE)
        assert rounds_of(sim) - before <= ROUNDS
        assert len(world(sim)) == (1 if low == 1 else 0)
        sim.heal_links()
        eventually(sim, full(sim, 2))


@pytest.mark.parametrize("how", [REFUSED, SILENT])
@pytest.mark.parametrize("pair", [(0, 3), (1, 3), (3, 1)], ids=["with the coordinator", "not with it", "not from it"])
def test_two_that_cannot_reach_each_other(how: str, pair: tuple[int, int]) -> None:
    for seed in range(5):
        sim = cluster(seed, 2)
        eventually(sim, full(sim))
        before = rounds_of(sim)
        one, other = (f"10.0.0.{slot}" for slot in pair)
        partition(sim, {(one, other), (other, one)}, how)
        advance(sim, STABLE)
        assert rounds_of(sim) - before <= ROUNDS
        assert len(world(sim)) >= SIZE - 1
        sim.heal_links()
        eventually(sim, full(sim))


def test_nobody_reaches_anybody() -> None:
    sim = cluster(1, 2)
    eventually(sim, full(sim))
    everybody = addresses(sim)
    partition(sim, {(one, other) for one in everybody for other in everybody if one != other}, REFUSED)
    advance(sim, STABLE)
    rounds, term = rounds_of(sim), takeovers(sim)
    advance(sim, STABLE)
    assert rounds_of(sim) == rounds <= ROUNDS
    assert takeovers(sim) - term <= 20, "each tries less and less often"
    sim.heal_links()
    eventually(sim, full(sim))


@pytest.mark.parametrize("how", [REFUSED, SILENT])
def test_who_comes_late_and_reaches_nobody_disturbs_nobody(how: str) -> None:
    sim = cluster(1, 2, size=SIZE - 1)
    eventually(sim, full(sim, SIZE - 1))
    before = rounds_of(sim)
    pod = sim.add_pod(SIZE - 1)
    sim.links.cut(isolated(pod.address, addresses(sim)), how)
    sim.at(0.0, sim.start, pod)
    advance(sim, STABLE)
    assert rounds_of(sim) == before
    assert world(sim) == names(*range(SIZE - 1))
    sim.heal_links()
    eventually(sim, full(sim))
