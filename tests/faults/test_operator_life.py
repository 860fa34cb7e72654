"""The operator over the whole life of a Rendezvous: whatever its writes meet, the end of each part is as if nothing had happened.

The short form harms some of the writes; RDZV_FAULTS=long (`make faults`) each of them, of all backends.
"""

from __future__ import annotations

import functools
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.operator_bugs import BUGS, HIDDEN, plugin
from faults.operator_harm import AFTER, BEFORE, BY_TURNS, LOST, REFUSED, WRITES, AtEachWrite
from faults.operator_life import LIVES, NAME, Life, Object, differences, outcome, released_too_early
from faults.tally import LONG, Tally
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import FaultProxy
from support.operator_process import Kube, OperatorProcess, eventually, running_operator
from support.torchrun_fleet import install_crds

pytestmark = pytest.mark.timeout(3600)
#: Seconds until all is right again, after the last fault of a part; some of them are the start of a process on a busy machine.
RECOVERED = 180.0
#: Seconds without a write after which nothing is written any more.
QUIET = 4.0
#: The same, of an operator with a bug, which recovers more slowly than it should or not at all.
PATIENCE = 30.0
SEEDED = [name for name, bug in BUGS.items() if bug.harm != HIDDEN] if LONG else ["whose an object is does not matter"]
#: Parts in which pods are let in: what they rely on has to be there before.
LETTING_IN = {"made", "its children have lingered"}


@dataclass
class Stage:
    """Where lives are lived: one namespace each, with a proxy before the API server and an operator behind it."""

    kube: Kube
    namespace: str
    proxy: FaultProxy
    operator: OperatorProcess

    def settles(self, life: Life, since: float) -> bool:
        """Whether nothing is written any more, and nothing is to be."""
        life.servers_start()
        found = self.kube.get("Rendezvous", self.namespace, NAME) or {}
        last = max([since, *(seen.at for seen in self.proxy.requests if seen.method in WRITES)])
        told: int = (found.get("status") or {}).get("observedGeneration", 0)
        return told == found["metadata"]["generation"] and time.monotonic() - last > QUIET


@pytest.fixture(scope="module")
def plane(control_plane: LocalCluster) -> LocalCluster:
    install_crds(control_plane)
    return control_plane


@contextmanager
def stage(plane: LocalCluster, directory: Path, plugins: Path | None = None) -> Iterator[Stage]:
    namespace = f"test-{secrets.token_hex(4)}"
    plane.kubectl("create", "namespace", namespace)
    directory.mkdir(exist_ok=True)
    with (
        FaultProxy(plane.kubeconfig, directory) as proxy,
        running_operator(proxy.kubeconfig, directory / "log", namespace, plugins) as operator,
    ):
        eventually(lambda: "backends: " in operator.log.read_text(), timeout=120)
        yield Stage(Kube(plane.kubeconfig), namespace, proxy, operator)
    plane.kubectl("delete", "namespace", namespace, "--wait=false")


@functools.cache
def wanted(plane: LocalCluster, directory: Path, backends: tuple[str, str]) -> dict[str, Object]:
    """What each part of a life ends in if nothing happens."""
    found = {}
    with stage(plane, directory / "-".join(backends)) as undisturbed:
        life = Life(undisturbed.kube, undisturbed.namespace, *backends)
        for name, part in life.parts:
            part()
            eventually(functools.partial(undisturbed.settles, life, time.monotonic()), timeout=90)
            found[name] = outcome(undisturbed.kube, undisturbed.namespace)
    return found


class ViolationError(Exception):
    """What must not be, not even for a moment."""


def live(
    on: Stage, backends: tuple[str, str], ends: dict[str, Object], harm: AtEachWrite, patience: float = RECOVERED
) -> float:
    """A life under `harm`; returns the seconds of the slowest recovery. `patience`: seconds for each."""
    life, slowest = Life(on.kube, on.namespace, *backends), 0.0
    for name, part in life.parts:
        harm.part = name
        harm.last = time.monotonic()
        part()
        while wrong := still_wrong(on, ends[name], harm):
            # As long as faults come, nothing need be right.
            assert time.monotonic() < harm.last + patience, f"{name}: {wrong}"
            time.sleep(0.05)
            life.servers_start()
        slowest = max(slowest, time.monotonic() - harm.last)
    eventually(functools.partial(on.settles, life, time.monotonic()), timeout=RECOVERED)
    assert not still_wrong(on, ends[life.parts[-1][0]], harm)
    return slowest


def still_wrong(on: Stage, end: Object, harm: AtEachWrite) -> str:
    """What is not yet as it is to be; empty if all is."""
    if harm.problems:
        raise ViolationError(harm.problems[0])
    return "the operator is dead" if harm.at_work else differences(outcome(on.kube, on.namespace), end)


def disturbed(
    on: Stage,
    backends: tuple[str, str],
    ends: dict[str, Object],
    harm: str,
    every: int = 1,
    patience: float = RECOVERED,
) -> tuple[float, list[str]]:
    """A life that is disturbed at its writes; returns the seconds of the slowest recovery, and which writes these were."""

    def look() -> None:
        if harming.part in LETTING_IN:
            too_early = released_too_early(on.kube, on.namespace, ends[harming.part])
            assert not too_early, too_early

    with AtEachWrite(on.proxy, on.operator, harm, every=every, look=look) as harming:
        slowest = live(on, backends, ends, harming, patience)
    return slowest, harming.hits


@pytest.mark.parametrize("backends", LIVES if LONG else LIVES[:1], ids="-".join)
@pytest.mark.parametrize("harm", [BEFORE, AFTER, LOST, REFUSED] if LONG else [BY_TURNS])
def test_each_part_of_a_life_ends_as_if_nothing_had_happened(
    harm: str,
    backends: tuple[str, str],
    plane: LocalCluster,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tally: Tally,
) -> None:
    ends = wanted(plane, tmp_path_factory.getbasetemp(), backends)
    every = 1 if LONG else 2
    with (
        stage(plane, tmp_path) as on,
        tally.injected("Operator", f"{harm}, {backends[0]} and then {backends[1]}") as recovery,
    ):
        slowest, hits = disturbed(on, backends, ends, harm, every)
        recovery.injected = len(hits)
        recovery.took(slowest)
        print(f"{harm}, {backends}: {len(hits)} times, the slowest recovery took {slowest:.1f} s")
        assert len(hits) >= 4, hits


@pytest.mark.parametrize("bug", SEEDED)
def test_a_life_shows_that(
    bug: str, plane: LocalCluster, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tally: Tally
) -> None:
    seed = BUGS[bug]
    backends = LIVES[seed.life]
    ends = wanted(plane, tmp_path_factory.getbasetemp(), backends)
    with stage(plane, tmp_path / "life", plugin(tmp_path / "plugins", bug)) as on:
        with pytest.raises((AssertionError, ViolationError), match=re.escape(seed.shows)):
            disturbed(on, backends, ends, seed.harm, patience=RECOVERED if seed.harm == AFTER else PATIENCE)
        assert on.operator.running
    tally.caught("operator", bug)
