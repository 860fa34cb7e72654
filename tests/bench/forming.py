"""How long it takes to form a world: fixed, and elastic with fewer nodes than its maximum."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench import floor
from bench.handlers import BACKENDS, CREATE, JOIN, Backend, plan
from bench.lab import Lab
from bench.records import Results, Sample
from bench.world import AgentFailedError, World

FLOOR = "api-floor"
PROCESSES_UP_TO = 1000
"""Agents: up to this many are processes, more are threads of one process, alike for every backend; the floor's, by its
definition, are always threads."""
LIMIT_SECONDS = 45.0
ELASTIC_SIZES = [4, 16]
SLOW_SECONDS = 5.0
"""A backend that took longer is not repeated."""
HOPELESS_SECONDS = 15.0
"""One that took longer is not tried with more agents."""
_LAST_CALL_SECONDS = 45.0


def settle(count: int) -> None:
    """Between construction and the common start, for every backend: what handlers open in the background is open then."""
    time.sleep(0.5 + 0.01 * count)


@dataclass(frozen=True)
class Run:
    """One backend with `count` of at most `most` agents; `roster`: an operator has said that no more are expected."""

    scenario: str
    backend: Backend | None
    count: int
    most: int
    limit: float
    roster: bool = False

    def sample(self, lab: Lab) -> Sample:
        """Seconds from the last next_rendezvous call until all have a rank."""
        threads = self.backend is None or self.count > PROCESSES_UP_TO
        name = lab.name()
        if self.backend is None:
            plans = floor.plans(lab.kubeconfig, lab.namespace, name, self.count)
        else:
            least = self.count if self.most == self.count else max(1, self.count // 2)
            meeting = lab.meeting(self.backend.registered, name, least, self.most)
            if self.roster:
                lab.write_roster(meeting, expected=range(self.count))
            # An operator knows pods: of agents outside of them nobody can say that no more are to come.
            uids = [f"uid-{name}-{slot}" if self.roster else "" for slot in range(self.count)]
            plans = [
                plan(self.backend, self.scenario, meeting, slot, f"{name}-{slot}", uids[slot])
                for slot in range(self.count)
            ]
        with World(plans, threads=threads, log=lab.log) as world:
            try:
                return self._time(world, len(plans))
            except AgentFailedError as error:
                return Sample(self.limit, timeout=True, note=f"failed: {str(error)[:80]}")

    def _time(self, world: World, agents: int) -> Sample:
        world.command(CREATE)
        if len(world.gather("created", agents, self.limit)) < agents:
            return Sample(self.limit, timeout=True, note="handlers not created in time")
        settle(self.count)
        world.command(JOIN)
        worlds = world.gather("world", self.count, self.limit)
        if len(worlds) < self.count:
            return Sample(self.limit, timeout=True, note=f"{len(worlds)} of {self.count} had a rank")
        assert {report["rank"] for report in worlds} == set(range(self.count))
        if self.backend is not None:
            assert {report["size"] for report in worlds} == {self.count}
        return Sample(max(r["at"] for r in worlds) - max(r["began"] for r in worlds))


def form_fixed(lab: Lab, results: Results, sizes: list[int], runs: int, wanted: Callable[[str], bool]) -> None:
    """Backends alternate within each round of runs, so that a busy moment is not one backend's."""
    columns: list[tuple[str, Backend | None]] = [(FLOOR, None)]
    columns += [
        (b.name, b) for b in BACKENDS if b.name in {"c10d", "c10d-tuned", "etcd", "etcd-v2", "kubernetes", "etcd-v3"}
    ]
    columns = [(name, backend) for name, backend in columns if wanted(name)]
    beyond: dict[str, Sample] = {}
    for _, backend in columns:
        # Not counted: an API server refuses the first requests of a kind for a second, until its cache is there.
        Run("form-fixed", backend, 2, 2, LIMIT_SECONDS).sample(lab)
    for size in sizes:
        samples: dict[str, list[Sample]] = {name: [] for name, _ in columns}
        for _ in range(runs):
            for name, backend in columns:
                done = samples[name]
                if name in beyond or (done and done[0].value > SLOW_SECONDS):
                    continue
                done.append(Run("form-fixed", backend, size, size, LIMIT_SECONDS).sample(lab))
        for name, _ in columns:
            results.add("form-fixed", name, size, "seconds", "s", samples[name] or [beyond[name]])
            if name not in beyond and samples[name][0].value > HOPELESS_SECONDS:
                # It takes no less with more agents, and so many that collide make the machine useless for minutes.
                slow = samples[name][0].value
                beyond[name] = Sample(slow, timeout=True, note=f"not run: {size} agents took {slow:.1f} s")


def form_elastic(lab: Lab, results: Results, sizes: list[int], runs: int, wanted: Callable[[str], bool]) -> None:
    """All that are there have joined, and there is room for one more; torch cannot know whether it will come.

    What waits takes no processor time, so the torch runs of all sizes go side by side.
    """
    torchs = [b for b in BACKENDS if not b.on_kubernetes and wanted(b.name)]
    waiting = [Run("form-elastic", b, n, n + 1, _LAST_CALL_SECONDS) for b in torchs for n in sizes]
    for run, sample in zip(waiting, lab.side_by_side([_sampler(run, lab) for run in waiting]), strict=True):
        assert run.backend is not None
        results.add("form-elastic", run.backend.name, run.count, "seconds", "s", [sample])
    for backend in BACKENDS:
        if not backend.on_kubernetes or not wanted(backend.name):
            continue
        for size in sizes:
            with_roster = Run("form-elastic", backend, size, size + 1, _LAST_CALL_SECONDS, roster=True)
            results.add(
                "form-elastic", backend.name, size, "seconds", "s", [with_roster.sample(lab) for _ in range(runs)]
            )
        alone = Run("form-elastic", backend, sizes[0], sizes[0] + 1, _LAST_CALL_SECONDS)
        results.add("form-elastic", f"{backend.name}-alone", sizes[0], "seconds", "s", [alone.sample(lab)])


def _sampler(run: Run, lab: Lab) -> Callable[[], Sample]:
    return lambda: run.sample(lab)


def default_sizes() -> list[int]:
    return [2, 8, 32, 64, 128, 256, 512, 1000]


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {"processors": os.cpu_count(), "load before": round(os.getloadavg()[0], 1)}
