"""Simulated clusters in which nothing fails but what the test makes fail."""

from __future__ import annotations

from unit.protocol.sim import Sim
from unit.protocol.sim_parts import NAME, Pod, Scenario

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


def lose(sim: Sim, pod: Pod) -> None:
    process = pod.process
    assert process is not None
    pod.gone = True
    sim.kill(process)
