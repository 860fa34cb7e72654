"""How long the survivors need for a new world when an agent is lost. Nothing but the rendezvous tells them: no worker fails.

Four agents of an elastic world (2 to 4) as processes. What happens to one of them:

- kill: SIGKILL, as when memory runs out.
- delete: its pod is deleted: SIGTERM, upon which torch's agent ends by an exception.
- drain: its pod is deleted, but the container passes no signal on; only the operator's roster tells (kubernetes only).
- silent: SIGSTOP: connections stand, nothing answers, as when its node has lost power.
- rank0: SIGKILL to rank 0, which with c10d hosts the store, and with kubernetes coordinates.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.handlers import BACKENDS, CREATE, FOLLOW, Backend, plan
from bench.lab import Lab
from bench.records import Results, Sample
from bench.world import AgentFailedError, Report, World

COUNT, LEAST = 4, 2
LIMIT_SECONDS = 60.0
_FORM_SECONDS = 90.0
_SETTLE_SECONDS = 2.0
_TORCHS = ("c10d", "c10d-tuned", "etcd", "etcd-v2")
HARMS = {"kill": signal.SIGKILL, "delete": signal.SIGTERM, "silent": signal.SIGSTOP, "rank0": signal.SIGKILL}
DRAIN = "drain"


@dataclass(frozen=True)
class Run:
    backend: Backend
    harm: str
    replaced: bool

    @property
    def scenario(self) -> str:
        return f"recover-{self.harm}{'-replaced' if self.replaced else ''}"

    def sample(self, lab: Lab) -> tuple[Sample, Sample | None]:
        """Seconds until all survivors are in a new world; and until that is whole again, if there is a replacement."""
        name = lab.name()
        meeting = lab.meeting(self.backend.registered, name, LEAST, COUNT)
        victim = 0 if self.harm == "rank0" else 2
        slots = [0, 1, 2, 3, victim]  # The last one takes the victim's place, as a Job's replacement does.
        uids = [f"uid-{name}-{i}" if self.harm == DRAIN else "" for i in range(len(slots))]
        plans = [plan(self.backend, "recover", meeting, slot, f"{name}-{i}", uids[i]) for i, slot in enumerate(slots)]
        with World(plans, threads=False, log=lab.log) as world:
            first = range(COUNT)
            world.command(CREATE, first)
            world.gather("created", COUNT, _FORM_SECONDS)
            world.command(FOLLOW, first)
            worlds = world.gather("world", COUNT, _FORM_SECONDS)
            if len(worlds) < COUNT:
                return Sample(LIMIT_SECONDS, timeout=True, note="the first world did not form"), None
            if self.harm == "rank0" and self.backend.registered != "c10d":
                victim = next(report["agent"] for report in worlds if report["rank"] == 0)
            time.sleep(_SETTLE_SECONDS)
            survivors = set(range(COUNT)) - {victim}
            began = time.monotonic()
            if self.harm == DRAIN:
                lab.write_roster(meeting, survivors, [uids[victim]])
            else:
                world.signal(victim, HARMS[self.harm])
            return self._recover(world, survivors, began)

    def _recover(self, world: World, survivors: set[int], began: float) -> tuple[Sample, Sample | None]:
        if self.replaced:
            world.command(CREATE + FOLLOW, [COUNT])
        recovered: float | None = None
        latest: dict[int, Report] = {}
        deadline, note = began + LIMIT_SECONDS, ""
        while (report := world.next(deadline)) is not None:
            agent = report["agent"]
            if report["what"] == "failed" and agent in survivors | {COUNT}:
                lost = "an agent exits" if agent in survivors else "the replacement exits"
                note = f"{lost}: {report['error'].partition(':')[0]}"
                if agent in survivors:
                    break
            if report["what"] == "world" and report["began"] > began:
                latest[agent] = report
                done = _formed(latest, survivors)
                if done is not None and recovered is None:
                    recovered = done - began
                whole = _formed(latest, survivors | {COUNT}) if self.replaced else done
                if whole is not None:
                    assert recovered is not None
                    return Sample(recovered), Sample(whole - began) if self.replaced else None
        late = Sample(LIMIT_SECONDS, timeout=True, note=note or "never, within the limit")
        return (late if recovered is None else Sample(recovered, note=note)), late if self.replaced else None


def _formed(latest: dict[int, Report], agents: set[int]) -> float | None:
    """When all of these agents were in one world, which may have others in it: of one size, with ranks of their own."""
    if not agents <= latest.keys():
        return None
    worlds = [latest[agent] for agent in agents]
    same = len({report["size"] for report in worlds}) == 1 and worlds[0]["size"] >= len(agents)
    apart = len({report["rank"] for report in worlds}) == len(agents)
    return max(float(report["at"]) for report in worlds) if same and apart else None


def recover(lab: Lab, results: Results, runs: int, wanted: Callable[[str], bool]) -> None:
    """torch's backends many at once, for they mostly wait (one run each); this project's one after the other."""
    cases = [(harm, replaced) for harm in HARMS for replaced in (False, True)]
    torchs = [b for b in BACKENDS if b.name in _TORCHS and wanted(b.name)]
    waiting = [Run(backend, harm, replaced) for harm, replaced in cases for backend in torchs]
    for run, sample in zip(waiting, lab.side_by_side([_sampler(run, lab) for run in waiting]), strict=True):
        _add(results, run, [sample])
    for backend in BACKENDS:
        if backend.ours and wanted(backend.name):
            for harm, replaced in [*cases, *([(DRAIN, False)] if backend.on_kubernetes else [])]:
                run = Run(backend, harm, replaced)
                _add(results, run, [_sampler(run, lab)() for _ in range(runs)])


def _sampler(run: Run, lab: Lab) -> Callable[[], tuple[Sample, Sample | None]]:
    def sample() -> tuple[Sample, Sample | None]:
        try:
            return run.sample(lab)
        except AgentFailedError as error:
            return Sample(LIMIT_SECONDS, timeout=True, note=f"the first world failed: {str(error)[:80]}"), None

    return sample


def _add(results: Results, run: Run, samples: list[tuple[Sample, Sample | None]]) -> None:
    results.add(run.scenario, run.backend.name, COUNT, "seconds", "s", [sample for sample, _ in samples])
    whole = [sample for _, sample in samples if sample is not None]
    if whole:
        results.add(run.scenario, run.backend.name, COUNT, "seconds-whole", "s", whole)
