"""A replacement takes its predecessor's place as soon as that gives no sign of life, and never while it lives.

The four agents know nothing from the operator: whoever is lost has its place in the world until the coordinator finds out.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.protocol.clusters import cluster, run_until_formed
from unit.protocol.sim_parts import DOUBT, Pod, Process, Violation

from rdzv.protocol import events as ev
from rdzv.protocol import facts
from rdzv.protocol.records import birth

SEEDS = range(10)
SOON = 1.6
"""Settling (0.3 s), then the agents' own pause before they join again (up to 1 s here), and a few messages."""
VICTIM = 2


class Job:
    """A world of four that runs, without a word from the operator."""

    def __init__(self, seed: int) -> None:
        self.sim = sim = cluster(seed, 4, 2, 4, roster="absent")
        run_until_formed(sim, 4)
        self.advance(5)
        self.pod = sim.pods[VICTIM]

    def advance(self, seconds: float) -> None:
        end = self.sim.now + seconds
        while self.sim.queue and self.sim.queue[0][0] < end:
            self.sim.step()
        self.sim.now = end

    def process(self, pod: Pod | None = None) -> Process:
        process = (pod or self.pod).process
        assert process is not None
        return process

    def replacement(self) -> Pod:
        """Another pod with the victim's slot, which starts now."""
        new = self.sim.add_pod(VICTIM)
        self.sim.start(new)
        return new

    def has_slot(self, pod: Pod) -> bool:
        record, process = self.sim.round, pod.process
        return record is not None and process is not None and record[0].rank_of(process.me.incarnation) is not None

    def whole(self) -> float:
        """Seconds until four are in a later world."""
        return run_until_formed(self.sim, 4, after=1)


@pytest.fixture(params=SEEDS)
def job(request: pytest.FixtureRequest) -> Job:
    return Job(request.param)


def kill(job: Job) -> None:
    job.sim.kill(job.process())


def delete(job: Job) -> None:
    job.sim.send(job.process(), ev.Sigterm())
    job.sim.at(0.05, job.sim.kill, job.process())


def silence(job: Job) -> None:
    job.sim.freeze(job.process(), 1000.0)


@pytest.mark.parametrize("harm", [kill, delete, silence])
def test_a_replacement_that_starts_at_once_has_the_slot_at_once(job: Job, harm: object) -> None:
    harm(job)  # type: ignore[operator]
    new = job.replacement()
    assert job.whole() < SOON
    assert job.has_slot(new)
    assert len(job.sim.committed) == 2, "the survivors went through one round, not two"


def test_both_the_coordinator_and_another_are_replaced_at_once(job: Job) -> None:
    kill(job)
    job.sim.kill(job.process(job.sim.pods[0]))
    new = job.replacement()
    job.sim.start(job.sim.pods[0])
    assert job.whole() < SOON + DOUBT, "the next coordinator has never heard of the predecessor"
    assert job.has_slot(new)


def test_two_at_once_cost_one_round(job: Job) -> None:
    other, silent = job.sim.pods[1], job.sim.pods[VICTIM]
    job.sim.kill(job.process(other))
    job.sim.freeze(job.process(silent), 1000.0)
    job.replacement()
    job.sim.start(job.sim.add_pod(1))
    assert job.whole() < SOON
    assert len(job.sim.committed) == 2


def test_a_restart_of_the_same_pod_has_the_slot_at_once(job: Job) -> None:
    kill(job)
    job.sim.start(job.pod)
    assert job.whole() < SOON
    assert job.has_slot(job.pod)


def test_who_lives_keeps_its_slot_however_often_another_agent_asks_for_it(job: Job) -> None:
    for _ in range(3):
        job.replacement()
        job.advance(20)
    assert job.has_slot(job.pod)
    assert len(job.sim.committed) == 1, "nobody's workers were stopped for it"


def test_a_connection_that_breaks_and_is_made_again_gives_no_slot_away(job: Job) -> None:
    job.replacement()
    job.advance(1)
    for other, side in job.sim._sides(job.process().me.incarnation):
        job.sim._broke(other, side, job.process().me.incarnation)
    job.process().held = None
    job.sim.dial(job.process(), 0.1)
    job.advance(20)
    assert job.has_slot(job.pod)
    assert len(job.sim.committed) == 1


@pytest.mark.parametrize("deleted", [True, False], ids=["its Member is deleted", "its Member stays"])
def test_an_agent_that_thaws_does_not_evict_its_replacement(job: Job, deleted: bool) -> None:
    job.sim.freeze(job.process(), 10.0)
    new = job.replacement()
    if deleted:
        job.sim.delete_member(job.pod.name)
    assert job.whole() < SOON
    job.advance(30)
    assert job.has_slot(new)
    assert not job.has_slot(job.pod)
    assert len(job.sim.committed) == 2


def test_an_agent_that_thaws_while_its_replacement_is_in_doubt_does_not_evict_it(job: Job) -> None:
    assert job.has_slot(thaws_while_its_replacement_is_frozen(job))


def test_an_earlier_agent_that_may_contest_a_slot_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_order", lambda member, rv: (True, -birth(member, rv)))
    kept = [job.has_slot(thaws_while_its_replacement_is_frozen(job)) for job in map(Job, SEEDS)]
    assert not all(kept)


def thaws_while_its_replacement_is_frozen(job: Job) -> Pod:
    thaws = job.sim.now + 10.0
    job.sim.freeze(job.process(), 10.0)
    job.sim.delete_member(job.pod.name)
    new = job.replacement()
    assert job.whole() < SOON
    job.advance(thaws - 0.1 - job.sim.now)
    job.sim.freeze(job.process(new), 2.0)
    job.advance(30)
    return new


def test_an_agent_that_thaws_before_it_was_given_up_keeps_its_slot(job: Job) -> None:
    job.sim.freeze(job.process(), 0.2)
    job.replacement()
    job.advance(30)
    assert job.has_slot(job.pod)
    assert len(job.sim.committed) == 1


def test_the_checks_notice_a_younger_agent_that_evicts_one_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    real = facts.gather
    everybody = frozenset(f"uid-{number}/0" for number in range(4))
    monkeypatch.setattr(
        "rdzv.protocol.coordinator.gather",
        lambda state, view, *rest: real(state, replace(view, doubted=everybody), *rest),
    )
    job = Job(0)
    job.replacement()
    with pytest.raises(Violation, match="lives and is connected, and gives way to"):
        job.advance(20)
