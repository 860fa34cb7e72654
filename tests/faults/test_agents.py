"""Light agents under chaos: killed, stopped, cut off, their clocks wrong; a late write of a coordinator comes when another one coordinates.

Whatever happens, the Round tells of no two worlds of one number, worlds agree on who is in them, and soon all are in one world again.
RDZV_FAULTS=long (`make faults`): crowds of 4 to 16 agents side by side, until 1,000 rounds were formed, and every seeded bug.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults.agent import AWAY, BUGS, KILLED, LATE, LEAST, Seat, order_of
from faults.tally import LONG, Tally
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import Fault, FaultProxy
from support.operator_process import ROOT, eventually
from support.peer_network import BOTH, BY_IT, BY_OTHERS, PeerNetwork
from support.torchrun_fleet import install_crds

from deploy.local.cluster.tools import PACKAGES_OF_CLOCKS, install_packages
from rdzv.agent.agent import UNSET_RUN
from rdzv.kube.api import ApiError, NotFound
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.protocol.records import RUNNING, Round
from rdzv.resources import MEMBERS, RENDEZVOUS, ROUNDS
from rdzv.spec import API_VERSION, KIND

Object = dict[str, Any]
pytestmark = pytest.mark.timeout(3600)

SIZES = (4, 4, 4, 4, 6, 8, 12, 16) if LONG else (4,)
"""Agents of each crowd; all crowds live side by side."""
ROUNDS_OF_EACH = 18 if LONG else 1
"""Rounds that each crowd has to form under each kind of burst: more than 1,000 in all."""
ATTEMPTS = 6
"""Bursts in which a seeded bug may show."""
#: Seconds until all agents are in one world again.
TOGETHER = 60.0
TAKEN_OVER = 60.0
CORNER = os.getpid() % (250 * 250)
"""Which addresses and groups the agents of this test process have, so that no other's connections are cut with theirs."""


class Witness(threading.Thread):
    """Watches every version of the Round, and what must never be seen of it."""

    def __init__(self, client: Client, namespace: str, name: str) -> None:
        super().__init__(name="witness", daemon=True)
        self._client = client
        self._watch = self._client.watch(ROUNDS, namespace, name=name)
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


class Nursery:
    """The process that forks the agents. Thread-safe."""

    def __init__(self, **environment: str) -> None:
        places = os.pathsep.join(str(ROOT / name) for name in ("src", "tests", "."))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "faults.agent"],
            env={**os.environ, "PYTHONPATH": places, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()

    def bear(self, seat: Seat) -> int:
        """Start an agent; returns its process."""
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(order_of(seat))
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(30)
        self._process.stdout.close()


@dataclass
class Crowd:
    """Agents of one Rendezvous behind a proxy. `number`: which crowd; `run`: its --rdzv-id; `client`: another way to the API server."""

    directory: Path
    namespace: str
    number: int
    run: str
    size: int
    proxy: FaultProxy
    client: Client
    witness: Witness
    nursery: Nursery
    bug: str
    pids: dict[int, int] = field(default_factory=dict)
    outs: dict[int, Path] = field(default_factory=dict)
    """Where the agent that has a slot now writes: what one before it said says nothing of this one."""
    started: int = 0

    @property
    def name(self) -> str:
        return name_of(self.number)

    def start(self, slot: int) -> None:
        self.started += 1
        self.outs[slot] = self.directory / f"agent-{slot}-{self.started}"
        self.set_clock(slot, 0)
        seat = Seat(
            f"{self.namespace}/{self.name}",
            str(self.proxy.kubeconfig),
            slot,
            *self.place(slot),
            self.run,
            self.size,
            str(self.outs[slot]),
            str(self._clock(slot)),
            self.bug,
        )
        self.pids[slot] = self.nursery.bear(seat)

    def place(self, slot: int) -> tuple[str, int]:
        """The address and the group that an agent has, and nobody else on this machine."""
        seat = self.number * max(SIZES) + slot
        return f"127.{CORNER // 250 + 1}.{CORNER % 250 + 1}.{seat + 1}", 100_000 + CORNER * 1000 + seat

    def set_clock(self, slot: int, ahead: int) -> None:
        """How many seconds an agent's wall clock is ahead of the machine's; the agents have clocks if the nursery has."""
        self._clock(slot).touch()
        with self._clock(slot).open("r+b") as mapped:
            mapped.write(ahead.to_bytes(8, sys.byteorder, signed=True))

    def _clock(self, slot: int) -> Path:
        return self.directory / f"clock-{slot}"

    def send(self, slot: int, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[slot], what)

    def are_together(self) -> bool:
        """Whether all of them are in one world, as far as they have said."""
        last = [said[-1] if (said := worlds_of(out)) else {} for out in self.outs.values()]
        worlds, apart = {each.get("world") for each in last}, f"not together: {last}"
        assert len(worlds) == 1, apart
        assert not worlds & {None, ""}, apart
        assert sorted(each["rank"] for each in last) == list(range(len(self.pids))), apart
        assert {each["size"] for each in last} == {len(self.pids)}, apart
        return True

    def check(self) -> None:
        """Nobody crashed, and whoever was in one world agreed on it."""
        assert [path.read_text() for path in self.directory.glob("*.crash")] == []
        assert self.witness.violations == []
        by_world: dict[str, list[Object]] = {}
        outs = [path for path in self.directory.glob("agent-*") if path.suffix != ".crash"]
        for each in (each for out in outs for each in worlds_of(out) if each["world"]):
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


def name_of(number: int) -> str:
    """The Rendezvous of a crowd."""
    return f"job-{number}"


def worlds_of(out: Path) -> list[Object]:
    """In which worlds an agent has said that it was."""
    lines = out.read_text().split("\n")[:-1] if out.exists() else []
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="module")
def nursery_with_clocks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Its agents have a wall clock each."""
    install_packages(PACKAGES_OF_CLOCKS)
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, source], check=True)
    found = Nursery(LD_PRELOAD=str(library))
    yield found
    found.close()


@contextlib.contextmanager
def crowd(
    plane: LocalCluster,
    namespace: str,
    directory: Path,
    nursery: Nursery,
    number: int = 0,
    bug: str = "",
    run: str = "run-1",
) -> Iterator[Crowd]:
    """All are there, if they do not have a bug."""
    name, directory = name_of(number), directory / f"{number}"
    directory.mkdir()
    client = Client(from_kubeconfig(str(plane.kubeconfig)))
    witness = Witness(client, namespace, name)
    witness.start()
    with FaultProxy(plane.kubeconfig, directory) as proxy:
        found = Crowd(directory, namespace, number, run, SIZES[number], proxy, client, witness, nursery, bug)
        try:
            for slot in range(found.size):
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


def told_to_stop(found: Crowd, chance: random.Random) -> None:
    """One after the other, as pods are in a drain, each with its replacement."""
    for slot in chance.sample(sorted(found.pids), chance.choice([1, 2])):
        found.send(slot, signal.SIGTERM)
        time.sleep(chance.uniform(0.0, 2.0))
        found.start(slot)


def without_its_round(found: Crowd, chance: random.Random) -> None:
    """Somebody deletes it by hand."""
    with contextlib.suppress(NotFound):
        found.client.delete(ROUNDS, found.namespace, found.name)
    time.sleep(chance.uniform(0.0, 2.0))


def without_a_member(found: Crowd, chance: random.Random) -> None:
    """Somebody deletes it by hand, while another agent is replaced."""
    gone, replaced = chance.sample(sorted(found.pids), 2)
    with contextlib.suppress(NotFound):
        found.client.delete(MEMBERS, found.namespace, f"{found.name}-{gone}")
    found.send(replaced, signal.SIGKILL)
    time.sleep(chance.uniform(0.0, 2.0))
    found.start(replaced)


def cut_off_from_the_others(found: Crowd, chance: random.Random) -> None:
    """One of them, one way or both, while all have the API server; now and then another one is replaced meanwhile."""
    slot, other = chance.sample(sorted(found.pids), 2)
    with PeerNetwork(*found.place(slot), int(found.proxy.server.rpartition(":")[2])) as network:
        network.cut(chance.choice(["refused", "silent"]), chance.choice([BOTH, BY_IT, BY_OTHERS]))
        if chance.random() < 0.5:
            found.send(other, signal.SIGKILL)
            found.start(other)
        time.sleep(chance.uniform(0.5, 15.0))


def clocks_jump(found: Crowd, chance: random.Random) -> None:
    """The wall clock of one or two of them, by up to a year, and back, while another one is replaced."""
    replaced, *slots = chance.sample(sorted(found.pids), chance.choice([2, 3]))
    for slot in slots:
        found.set_clock(slot, chance.choice([1, -1]) * chance.choice([2, 60, 3600, 365 * 86400]))
    found.send(replaced, signal.SIGKILL)
    time.sleep(chance.uniform(0.0, 5.0))
    found.start(replaced)
    time.sleep(chance.uniform(0.0, 5.0))
    for slot in slots:
        found.set_clock(slot, 0)


def all_replaced(found: Crowd, chance: random.Random) -> None:
    """One after the other, as in a rolling update; the next one does not wait for a world with the one before."""
    for slot in sorted(found.pids, reverse=True):
        found.send(slot, signal.SIGTERM)
        time.sleep(chance.uniform(0.0, 2.0))
        found.start(slot)


def fewer_and_again_all(found: Crowd, chance: random.Random) -> None:
    """Somebody lowers nodes.max, and raises it again; now and then one of them is replaced meanwhile."""
    allow(found, chance.randint(LEAST, found.size - 1))
    time.sleep(chance.uniform(0.0, 8.0))
    if chance.random() < 0.5:
        slot = chance.choice(sorted(found.pids))
        found.send(slot, signal.SIGKILL)
        found.start(slot)
    allow(found, found.size)


def allow(found: Crowd, most: int) -> None:
    """So many agents may be in a world."""
    change = [{"op": "replace", "path": "/spec/nodes/max", "value": most}]
    found.client.json_patch(RENDEZVOUS, found.namespace, found.name, change)


Meet = Callable[..., contextlib.AbstractContextManager[Crowd]]


@pytest.fixture
def meet(control_plane: LocalCluster, light_namespace: str, tmp_path: Path, request: pytest.FixtureRequest) -> Meet:
    """A crowd in this test's own namespace, with a seeded bug or without, and with what its burst needs."""
    install_crds(control_plane)
    burst = request.node.callspec.params.get("burst")
    nursery = request.getfixturevalue("nursery_with_clocks" if burst == CLOCKS else "nursery")
    meeting = partial(crowd, control_plane, light_namespace, tmp_path, nursery)
    return partial(of_a_rendezvous, control_plane, light_namespace, meeting) if burst == EDITED else meeting


@contextlib.contextmanager
def of_a_rendezvous(plane: LocalCluster, namespace: str, meeting: Meet, number: int) -> Iterator[Crowd]:
    """A crowd whose bounds are read from its Rendezvous."""
    nodes = {"min": LEAST, "max": SIZES[number]}
    spec = {"backend": "kubernetes", "nodes": nodes}
    rendezvous = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name_of(number)}, "spec": spec}
    plane.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(rendezvous))
    with meeting(number, run=UNSET_RUN) as found:
        yield found


CLOCKS, EDITED = "clocks jump", "nodes.max lowered and raised"
BURST = {
    KILLED: killed,
    "stopped": stopped,
    "told to stop": told_to_stop,
    AWAY: without_the_api,
    "the Round deleted": without_its_round,
    "a Member deleted": without_a_member,
    "cut off from the others": cut_off_from_the_others,
    "all replaced in turn": all_replaced,
    CLOCKS: clocks_jump,
    EDITED: fewer_and_again_all,
    LATE: a_late_write,
}


@pytest.mark.parametrize("burst", BURST if LONG else [LATE])
def test_soon_all_are_in_one_world_again_and_no_two_worlds_have_one_number(
    burst: str, meet: Meet, tally: Tally
) -> None:
    took = list[float]()

    def of_one_crowd(number: int) -> int:
        chance = random.Random(os.urandom(8) if LONG else 5)
        with meet(number) as found:
            while len(found.witness.worlds) <= ROUNDS_OF_EACH:
                BURST[burst](found, chance)
                ended = time.monotonic()
                eventually(found.are_together, timeout=TOGETHER)
                took.append(time.monotonic() - ended)
                found.check()
            return len(found.witness.worlds)

    with (
        tally.injected("Agents", f"4 to 16 agents: {burst}") as recovery,
        tally.injected("Agents", "rounds: none of them two worlds") as rounds,
        ThreadPoolExecutor(len(SIZES)) as pool,
    ):
        rounds.injected = sum(pool.map(of_one_crowd, range(len(SIZES))))
        recovery.injected = len(took)
        recovery.took(max(took))
        median = sorted(took)[len(took) // 2]
        print(f"{burst}: {rounds.injected} worlds, together after {median:.1f} s (median), {max(took):.1f} s (worst)")


def wrong_after(found: Crowd, burst: str, chance: random.Random) -> str:
    """What is not as it should be; empty if all is."""
    try:
        BURST[burst](found, chance)
        found.check()
        eventually(found.are_together, timeout=TOGETHER)
        found.check()
    except AssertionError as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize("bug", list(BUGS) if LONG else list(BUGS)[:1])
def test_chaos_shows_that(bug: str, meet: Meet, tally: Tally) -> None:
    seed = BUGS[bug]
    with meet(bug=bug) as found:
        for attempt in range(ATTEMPTS):
            if problem := wrong_after(found, seed.burst, random.Random(attempt)):
                assert re.search(seed.shows, problem), problem
                print(f"{bug}: seen in attempt {attempt + 1}: {problem}")
                tally.caught(seed.where, bug)
                return
    pytest.fail(f"not seen in {ATTEMPTS} bursts")
