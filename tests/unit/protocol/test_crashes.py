"""A crash at every single step of forming a world and of forming it anew: the others always end up in one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unit.protocol.sim import Sim
from unit.protocol.sim_parts import Process, Scenario

from rdzv.protocol.coordinator_state import Policy
from rdzv.protocol.events import Timing
from rdzv.protocol.records import RUNNING

SIZE = 4


def started(seed: int, roster: str) -> Sim:
    policy = Policy(2, SIZE, last_call=3.0)
    sim = Sim(seed, Scenario(bounds=(2, SIZE), roster=roster, unreachable=0.0, policy=policy, timing=Timing()))
    sim.faults = False
    for slot in range(SIZE):
        sim.at(sim.random.uniform(0, 0.02), sim.start, sim.add_pod(slot))
    return sim


def formed(sim: Sim) -> bool:
    """Everybody who lives is in the present world, and nobody else."""
    record = sim.round[0] if sim.round else None
    if record is None or record.phase != RUNNING or record.want > record.round:
        return False
    living = sim.processes()
    inside = [p for p in living if p.state.accepted == record.round and not p.state.joining]
    return len(inside) == len(living) == record.size


def coordinator_of(sim: Sim) -> Process | None:
    return next((p for p in sim.processes() if p.coordinates is not None), None)


def rank_0(sim: Sim) -> Process | None:
    return next((p for p in sim.processes() if p.world is not None and p.world.rank == 0), None)


def last(sim: Sim) -> Process | None:
    return sim.processes()[-1] if sim.processes() else None


def steps_to_form(sim: Sim) -> int:
    steps = 0
    while not formed(sim):
        sim.step()
        steps += 1
    return steps


@pytest.mark.parametrize("roster", ["present", "absent"])
@pytest.mark.parametrize("victim", [coordinator_of, rank_0, last], ids=["coordinator", "rank 0", "last"])
@pytest.mark.parametrize("anew", [False, True], ids=["forming", "forming anew"])
def test_crash_at_every_step(roster: str, victim: Callable[[Sim], Process | None], anew: bool) -> None:
    def prepared() -> Sim:
        sim = started(1, roster)
        if anew:
            steps_to_form(sim)
            # A worker fails: its agent asks for another round, and with it all others.
            sim.join(sim.processes()[1])
            sim.at(0.0, lambda: None)
        return sim

    total = steps_to_form(prepared())
    assert total > 20
    killed = 0
    for crash_at in range(total + 1):
        sim = prepared()
        for _ in range(crash_at):
            sim.step()
        process = victim(sim)
        if process is None:
            continue
        killed += 1
        process.pod.gone = True
        sim.kill(process)
        deadline = sim.now + 20
        while not formed(sim):
            assert sim.queue, f"crash at step {crash_at}: nothing is left to happen"
            assert sim.now < deadline, f"crash at step {crash_at}: no world of the others"
            sim.step()
    assert killed > 0
