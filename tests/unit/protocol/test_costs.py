"""What the protocol costs, in simulated time and counted writes: nothing here depends on this machine's speed."""

from __future__ import annotations

import pytest
from unit.protocol.sim import NAME, Pod, Scenario, Sim

from rdzv.protocol.coordinator_state import Policy
from rdzv.protocol.events import Timing
from rdzv.protocol.records import RUNNING, Round


def cluster(seed: int, pods: int, low: int, high: int, *, round_exists: bool = True, roster: str = "present") -> Sim:
    """A cluster without faults in which all pods start within 0.1 s."""
    policy = Policy(low, high)
    scenario = Scenario(bounds=(low, high), roster=roster, skew=False, unreachable=0.0, policy=policy, timing=Timing())
    sim = Sim(seed, scenario)
    sim.faults = False
    if round_exists:
        sim.round = (Round(NAME, sim.run_id), 5)
        sim.round_log.append((5, sim.round[0]))
    for slot in range(pods):
        sim.at(sim.random.uniform(0, 0.1), sim.start, sim.add_pod(slot))
    return sim


def run_until_formed(sim: Sim, size: int, after: int = 0) -> float:
    """Simulated seconds until a world of this size, with a number above `after`, was accepted by all in it."""
    began = sim.now
    while True:
        record = sim.round[0] if sim.round else None
        running = record is not None and record.phase == RUNNING and record.size == size
        number = record.round if record is not None and running else 0
        if number > after and sum(process.state.accepted == number for process in sim.processes()) == size:
            return sim.now - began
        assert sim.now < began + 60, f"no world of {size}: {record}"
        sim.step()


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


def lose(sim: Sim, pod: Pod) -> None:
    process = pod.process
    assert process is not None
    pod.gone = True
    sim.kill(process)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("roster", ["present", "absent"])
@pytest.mark.parametrize("victim", [0, 3], ids=["rank 0, which coordinates", "another"])
def test_a_lost_member_costs_little_time(seed: int, roster: str, victim: int) -> None:
    """Settling (0.3 s), then the agents' own pause before they join again (up to 1 s here), and a few messages."""
    sim = cluster(seed, 4, 2, 4, roster=roster)
    run_until_formed(sim, 4)
    while sim.queue and sim.now < 5:
        sim.step()
    lose(sim, sim.pods[victim])
    assert run_until_formed(sim, 3, after=1) < 1.6


@pytest.mark.parametrize("seed", range(5))
def test_an_elastic_world_forms_when_the_last_expected_pod_has_joined(seed: int) -> None:
    sim = cluster(seed, 3, 2, 4)
    assert run_until_formed(sim, 3) < 1.0
