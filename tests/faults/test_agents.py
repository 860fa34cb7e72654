"""Light agents under chaos: they are killed, stopped, cut off, and a coordinator's last write arrives when another one coordinates.

Whatever happens, the Round tells of no two worlds of one number, worlds agree on who is in them, and soon all are in one world again.
RDZV_FAULTS=long (`make faults`): 20 bursts of each kind, and seeded bugs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults.agent import BUGS, NODES, Seat, order_of
from faults.tally import LONG, Tally
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import Fault, FaultProxy
from support.operator_process import ROOT, eventually
from support.torchrun_fleet import install_crds

from rdzv.kube.api import ApiError
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.protocol.records import RUNNING, Round
from rdzv.resources import ROUNDS

Object = dict[str, Any]
pytestmark = pytest.mark.timeout(3600)

BURSTS = 20 if LONG else 1
ATTEMPTS = 6
"""Late writes in which a seeded bug may show."""
#: Seconds until all agents are in one world again.
TOGETHER = 60.0
TAKEN_OVER = 60.0


class Witness(threading.Thread):
    """Watches every version of the Round, and what must never be seen of it."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        super().__init__(name="witness", daemon=True)
        self._client, self._namespace = Client(from_kubeconfig(str(kubeconfig))), namespace
        self._watch = self._client.watch(ROUNDS, namespace, name="job")
        self.latest: Round | None = None
        self.violations: list[str] = []
        self.worlds: dict[int, tuple[Any, ...]] = {}
        """By number, who was in it."""

    def run(self) -> None:
        with contextlib.suppress(ApiError):
            for event in self._watch.events():
                if event.type in {"ADDED", "MODIFIED"}:
                    self._see(Round.from_object(event.object))

    def _see(self, record: Round) -> None:
        if self.latest is not None and record.round < self.latest.round:
            self.violations.append(f"round {record.round} after round {self.latest.round}")
        self.latest = record
        if record.phase == RUNNING:
            world = (record.slots, record.fingerprints, record.leader)
            if self.worlds.setdefault(record.round, world) != world:
                self.violations.append(f"two worlds of round {record.round}: {self.worlds[record.round]}, then {world}")

    def end(self) -> None:
        self._watch.close()
        self.join(20)
        self._client.close()


@dataclass
class Crowd:
    """Agents of one Rendezvous behind a proxy."""

    directory: Path
    endpoint: str
    proxy: FaultProxy
    witness: Witness
    nursery: subprocess.Popen[str]
    bug: str
    pids: dict[int, int] = field(default_factory=dict)

    def start(self, slot: int) -> None:
        seat = Seat(self.endpoint, str(self.proxy.kubeconfig), slot, str(self.directory / f"agent-{slot}"), self.bug)
        assert self.nursery.stdin
        assert self.nursery.stdout
        self.nursery.stdin.write(order_of(seat))
        self.nursery.stdin.flush()
        self.pids[slot] = int(self.nursery.stdout.readline())

    def send(self, slot: int, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[slot], what)

    def said(self) -> dict[int, list[Object]]:
        """By slot, in which worlds its agents were."""
        found = {}
        for slot in self.pids:
            path = self.directory / f"agent-{slot}"
            lines = path.read_text().split("\n")[:-1] if path.exists() else []
            found[slot] = [json.loads(line) for line in lines]
        return found

    def are_together(self) -> bool:
        """Whether all of them are in one world, as far as they have said."""
        last = [said[-1] if said else {} for said in self.said().values()]
        worlds = {each.get("world") for each in last}
        assert worlds != {None}, last
        assert len(worlds) == 1, last
        assert worlds != {""}, last
        assert sorted(each["rank"] for each in last) == list(range(len(self.pids))), last
        assert {each["size"] for each in last} == {len(self.pids)}, last
        return True

    def check(self) -> None:
        """Nobody crashed, and whoever was in one world agreed on it."""
        assert [path.read_text() for path in self.directory.glob("*.crash")] == []
        assert self.witness.violations == []
        by_world: dict[str, list[Object]] = {}
        for each in (each for said in self.said().values() for each in said if each["world"]):
            by_world.setdefault(each["world"], []).append(each)
        for world, seats in by_world.items():
            assert len({seat["size"] for seat in seats}) == 1, (world, seats)
            assert len({seat["rank"] for seat in seats}) == len(seats), (world, seats)

    def coordinator(self) -> int:
        """The slot of the agent that coordinates."""
        record = self.witness.latest
        assert record is not None
        assert record.coordinator is not None
        assert record.coordinator.slot is not None
        return record.coordinator.slot


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    places = os.pathsep.join(str(ROOT / name) for name in ("src", "tests", "."))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "faults.agent"],
        env={**os.environ, "PYTHONPATH": places},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    assert process.stdin
    assert process.stdout
    process.stdin.close()
    process.kill()
    process.wait(30)
    process.stdout.close()


@contextlib.contextmanager
def crowd(
    plane: LocalCluster, namespace: str, directory: Path, nursery: subprocess.Popen[str], bug: str = ""
) -> Iterator[Crowd]:
    install_crds(plane)
    witness = Witness(plane.kubeconfig, namespace)
    witness.start()
    with FaultProxy(plane.kubeconfig, directory) as proxy:
        found = Crowd(directory, f"{namespace}/job", proxy, witness, nursery, bug)
        try:
            for slot in range(NODES[1]):
                found.start(slot)
            eventually(found.are_together, timeout=120)
            yield found
        finally:
            for slot in found.pids:
                found.send(slot, signal.SIGKILL)
            witness.end()


def killed(found: Crowd, chance: random.Random) -> None:
    """One or two of them, which are replaced."""
    slots = chance.sample(sorted(found.pids), chance.choice([1, 2]))
    for slot in slots:
        found.send(slot, signal.SIGKILL)
    time.sleep(chance.uniform(0.0, 2.0))
    for slot in slots:
        found.start(slot)


def stopped(found: Crowd, chance: random.Random) -> None:
    slot = chance.choice(sorted(found.pids))
    found.send(slot, signal.SIGSTOP)
    time.sleep(chance.uniform(0.5, 15.0))
    found.send(slot, signal.SIGCONT)


def without_the_api(found: Crowd, chance: random.Random) -> None:
    """While one of them is replaced."""
    slot = chance.choice(sorted(found.pids))
    found.proxy.down()
    found.send(slot, signal.SIGKILL)
    time.sleep(chance.uniform(0.5, 8.0))
    found.proxy.up()
    found.start(slot)


def a_late_write(found: Crowd, chance: random.Random) -> None:
    """The coordinator forms a world and is stopped before that is written; it is written when another one has formed one."""
    held = threading.Event()
    fault = Fault("delay", seconds=600.0)
    before = found.coordinator()

    def hold(method: str, target: str, body: bytes) -> Fault | None:
        if method not in {"PUT", "PATCH"} or "/rendezvousrounds/" not in target or held.is_set():
            return None
        if b'"Running"' not in body:
            return None
        held.set()
        return fault

    victim = chance.choice([slot for slot in found.pids if slot != before])
    found.proxy.decide = hold
    found.send(victim, signal.SIGKILL)
    try:
        assert held.wait(60), "nobody has formed a world without the one that was killed"
        number = found.witness.latest.round if found.witness.latest else 0
        late = found.coordinator()
        found.send(late, signal.SIGSTOP)
        eventually(lambda: (found.witness.latest or Round("", "")).round > number, timeout=TAKEN_OVER)
        time.sleep(chance.uniform(0.0, 1.0))
    finally:
        found.proxy.decide = lambda method, target, body: None
        fault.release.set()
    time.sleep(0.5)
    found.send(late, signal.SIGCONT)
    found.start(victim)


Meet = Callable[..., contextlib.AbstractContextManager[Crowd]]


@pytest.fixture
def meet(control_plane: LocalCluster, light_namespace: str, tmp_path: Path, nursery: subprocess.Popen[str]) -> Meet:
    """A crowd in this test's own namespace, with a seeded bug or without."""
    return partial(crowd, control_plane, light_namespace, tmp_path, nursery)


BURST = {"killed": killed, "stopped": stopped, "the API server away": without_the_api, "a late write": a_late_write}


@pytest.mark.parametrize("burst", BURST if LONG else ["a late write"])
def test_soon_all_are_in_one_world_again_and_no_two_worlds_have_one_number(
    burst: str, meet: Meet, tally: Tally
) -> None:
    chance = random.Random(os.urandom(8) if LONG else 5)
    with (
        meet() as found,
        tally.injected("Agents", f"four agents: {burst}", BURSTS) as recovery,
    ):
        for _ in range(BURSTS):
            BURST[burst](found, chance)
            ended = time.monotonic()
            eventually(found.are_together, timeout=TOGETHER)
            recovery.took(time.monotonic() - ended)
            found.check()
        print(f"{burst}: {len(found.witness.worlds)} worlds, the slowest came together after {recovery.slowest:.1f} s")


@pytest.mark.parametrize("bug", list(BUGS) if LONG else list(BUGS)[:1])
def test_chaos_shows_that(bug: str, meet: Meet, tally: Tally) -> None:
    with meet(bug) as found:
        for attempt in range(ATTEMPTS):
            a_late_write(found, random.Random(attempt))
            if found.witness.violations:
                print(f"{bug}: seen in attempt {attempt + 1}: {found.witness.violations[0]}")
                tally.caught("agents", bug)
                return
            eventually(found.are_together, timeout=TOGETHER)
    pytest.fail(f"not seen in {ATTEMPTS} late writes")
