"""Thousands of agents without torch against the real API server: what a large world costs, and by which law that grows.

The two agents with the lowest slots are whole ones (`rdzv.agent.agent`), each in a process of its own: the first coordinates, the second
takes over. All others are light (`bench.light_agents`).

- connecting: until every agent watches the Round.
- forming: from the last call to join until all are in the world.
- quiet: half a minute of a world in which nothing happens; figures are those of ten seconds.
- loss: one agent ends; until all others are in the next world.
- coordinator: the one that coordinates ends; until all others are in the next world.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.handlers import Meeting
from bench.lab import Lab, requests_in
from bench.light_agents import LOSE, TELL, crowd, whole
from bench.records import Results, Sample
from bench.servers import processor_seconds
from bench.world import CREATE, END, JOIN, AgentFailedError, Report, World

from rdzv.spec import GROUP

SIZES = [256, 1024, 4096]
PHASES = ("connecting", "forming", "quiet", "loss", "coordinator")
WHOLE = 2
"""Agents that are not light."""
CROWDS = 4
"""Processes."""
QUIET_SECONDS = 10.0
_SETTLE_SECONDS = 20.0
_LIMIT_SECONDS = 240.0
_WRITES = {"create", "update", "patch", "delete"}


@dataclass(frozen=True)
class Used:
    """What has been used so far: processor seconds of API server and etcd, and of who coordinates; bytes of the API."""

    servers: float
    coordinator: float
    sent: int
    log: int


class Bench:
    """One world of `count` agents, and what its phases cost."""

    def __init__(self, lab: Lab, results: Results, count: int) -> None:
        self._lab, self._results, self._count = lab, results, count
        lab.new_namespace()
        name = lab.name()
        self._meeting: Meeting = lab.meeting("kubernetes", name, count // 2, count)
        slots = range(WHOLE, count)
        self._crowds = [slots[part::CROWDS] for part in range(CROWDS)]
        self._plans = [whole(self._meeting, lab.namespace, slot) for slot in range(WHOLE)]
        self._plans += [crowd(self._meeting, lab.namespace, part) for part in self._crowds]
        self._pids: list[int] = []
        self._coordinator = 0

    def run(self) -> None:
        """All phases, one after the other."""
        everyone, crowds = range(len(self._plans)), range(WHOLE, len(self._plans))
        with World(self._plans, threads=False, log=self._lab.log) as world:
            # Whoever coordinates has made the Round by the time that the others look for it.
            world.command(CREATE, range(WHOLE))
            self._pids = [int(report["pid"]) for report in self._gather(world, "created", WHOLE)]
            began, used = time.monotonic(), self._used()
            world.command(CREATE, crowds)
            self._gather(world, "created", CROWDS)
            self._add("connecting", Sample(time.monotonic() - began), used)
            time.sleep(2.0 + 0.002 * self._count)  # What is connected in the background is connected then.
            used = self._used()
            world.command(JOIN)
            self._formed(world, "forming", used, set(everyone))
            time.sleep(_SETTLE_SECONDS)  # Everybody has connected to who coordinates.
            used = self._used()
            time.sleep(QUIET_SECONDS)
            self._add("quiet", None, used)
            used, began = self._used(), time.monotonic()
            world.command(LOSE, [crowds[-1]])
            self._formed(world, "loss", used, set(everyone), began)
            time.sleep(_SETTLE_SECONDS)
            self._steps(world)
            self._coordinator = 1
            used, began = self._used(), time.monotonic()
            world.signal(0, signal.SIGKILL)
            self._formed(world, "coordinator", used, set(everyone) - {0}, began)
            self._steps(world)
            world.command(END, range(1, len(self._plans)))

    def _gather(self, world: World, what: str, count: int) -> list[Report]:
        found = world.gather(what, count, _LIMIT_SECONDS)
        if len(found) < count:
            raise RuntimeError(f"{what}: {len(found)} of {count} processes in time")
        return sorted(found, key=lambda report: report["agent"])

    def _formed(self, world: World, phase: str, used: Used, processes: set[int], began: float | None = None) -> None:
        """Waits until all agents of these processes are in one and the same world; a process says so of its own, each time."""
        latest: dict[int, Report] = {}
        deadline = time.monotonic() + _LIMIT_SECONDS
        while latest.keys() != processes or not _one_world(latest):
            report = world.next(deadline)
            if report is None or report["what"] == "failed":
                self._add(phase, Sample(_LIMIT_SECONDS, timeout=True, note=str(report)[:80]), used)
                raise RuntimeError(f"{phase}: not in time, {report}; {latest}")
            if report["what"] == "world" and (began is None or report["at"] > began):
                latest[report["agent"]] = report
        start = began if began is not None else max(r["began"] for r in latest.values())
        time.sleep(1.0)  # What is still on its way belongs to this phase.
        rivals = sum(r["candidates"] for r in latest.values())
        seconds = max(r["at"] for r in latest.values()) - start
        self._add(phase, Sample(seconds, note=f"{rivals} more would have claimed it" if rivals else ""), used)

    def _steps(self, world: World) -> None:
        """The coordinator's longest step so far."""
        world.command(TELL, [self._coordinator])
        (told,) = self._gather(world, "told", 1)
        phase = PHASES[-1] if self._coordinator else PHASES[-2]
        note = f"{told['steps']} steps, {told['processor']:.2f} s in all"
        self._record(phase, "longest step", "s of processor time", Sample(told["longest"], note=note))

    # What it costs.

    def _used(self) -> Used:
        servers = self._lab.servers
        log = servers.audit_log.stat().st_size
        return Used(servers.processor(), processor_seconds(self._pids[self._coordinator]), servers.bytes_of(GROUP), log)

    def _add(self, phase: str, seconds: Sample | None, before: Used) -> None:
        now, count = self._used(), self._count
        if seconds is not None:
            self._record(phase, "seconds", "s", seconds)
        found = requests_in(self._lab.servers.audit_log, self._lab.namespace, before.log)
        kinds = Counter(_kind(str(item["verb"])) for item in found)
        for kind in ("writes", "reads", "watches"):
            self._record(phase, kind, "per agent", Sample(kinds[kind] / count))
        self._record(phase, "kilobytes", "per agent", Sample((now.sent - before.sent) / 1000 / count))
        self._record(phase, "API server and etcd", "s of processor time", Sample(now.servers - before.servers))
        self._record(phase, "coordinator", "s of processor time", Sample(now.coordinator - before.coordinator))
        if phase == "quiet":
            for name, pid in self._lab.servers.pids().items():
                self._record(phase, f"memory of {name}", "MB", Sample(resident(pid)))
            self._record(phase, "memory of the coordinator", "MB", Sample(resident(self._pids[self._coordinator])))

    def _record(self, phase: str, metric: str, unit: str, sample: Sample) -> None:
        self._results.add(f"light-{phase}", "kubernetes", self._count, metric, unit, [sample])


def _one_world(latest: dict[int, Report]) -> bool:
    """These processes tell of one world, and have as many agents as that."""
    worlds = {(report["round"], report["size"]) for report in latest.values()}
    return len(worlds) == 1 and worlds.pop()[1] == sum(report["agents"] for report in latest.values())


def _kind(verb: str) -> str:
    return "writes" if verb in _WRITES else "watches" if verb == "watch" else "reads"


def resident(pid: int) -> float:
    """Megabytes of memory that a process shares with nobody: agents are forked from one that has imported torch."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


def light(lab: Lab, results: Results, sizes: list[int]) -> None:
    """All sizes, one after the other. One that fails ends alone: what the machine can't bear says so in its figures."""
    for count in sizes:
        try:
            Bench(lab, results, count).run()
        except (RuntimeError, AgentFailedError) as error:
            print(f"  {count} light agents: {error}", flush=True)
