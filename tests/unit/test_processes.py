"""How many processes each pod of a world has: as far as its own settings and limits show it, and what is said when they differ."""

from __future__ import annotations

from typing import Any

import pytest
from support import builders
from support.builders import pod_object, rendezvous

from rdzv.control.cache import PODS
from rdzv.control.inject import InjectionSettings, inject
from rdzv.observed import Observed, Pod

Object = dict[str, Any]
SETTINGS = InjectionSettings(delivery="none", library_image="", init_image="")


def pod(name: str, **container: Any) -> Pod:
    """As admission leaves it and memory keeps it. `container`: what its template says."""
    obj = pod_object(name, phase="Running")
    (train,) = obj["spec"]["containers"]
    del train["envFrom"]
    train |= container
    entry: Pod = PODS.read(inject(obj, SETTINGS))[1].pod
    return entry


def limits(**amounts: str) -> Object:
    return {"resources": {"limits": amounts}}


def env(value: str) -> Object:
    return {"env": [{"name": "PET_NPROC_PER_NODE", "value": value}]}


@pytest.mark.parametrize(
    ("container", "own", "processors"),
    [
        ({}, "", 0),
        (limits(cpu="2"), "", 2),
        (limits(cpu="1500m"), "", 2),
        (limits(cpu="1e3"), "", 0),
        ({"resources": {"limits": {"cpu": "8", "nvidia.com/gpu": "2"}}}, "", 0),
        (env("4") | limits(cpu="2"), "4", 0),
        (env("gpu"), "?", 0),
        (env("4" * 60), "?", 0),
        ({"command": ["torchrun", "--nproc-per-node=4", "train.py"]}, "4", 0),
        ({"command": ["sh", "-c", "exec torchrun --nproc_per_node 4 train.py"]} | env("2"), "4", 0),
        ({"command": ["torchrun", "--nproc-per-node", "$N", "train.py"]}, "?", 0),
        ({"command": ["torchrun", "--nproc-per-node=4x", "train.py"]}, "?", 0),
    ],
)
def test_what_a_pod_says_itself_and_what_auto_means_in_it(container: Object, own: str, processors: int) -> None:
    found = pod("a", **container)
    assert (found.own_nproc, found.processors) == (own, processors)


def degraded(nproc: str, *pods: Pod) -> tuple[str, str]:
    status = builders.status_of(rendezvous(nprocPerNode=nproc), Observed(pods), {}, 1e9)
    (found,) = (c for c in status["conditions"] if c["type"] == "Degraded")
    return found["reason"], found["message"]


@pytest.mark.parametrize(
    ("nproc", "one", "other", "said"),
    [
        ("auto", limits(cpu="4"), limits(cpu="2"), "2 in b, 4 in a"),
        ("2", {}, env("4"), "2 in a, 4 in b"),
        ("auto", env("2"), {"command": ["torchrun", "--nproc-per-node=1", "t.py"]}, "1 in b, 2 in a"),
    ],
)
def test_different_numbers_in_one_world_are_said(nproc: str, one: Object, other: Object, said: str) -> None:
    reason, message = degraded(nproc, pod("a", **one), pod("b", **other))
    assert reason == "MixedProcesses"
    assert f"different numbers of processes: {said}. " in message


@pytest.mark.parametrize(
    ("nproc", "one", "other"),
    [
        ("2", limits(cpu="4"), limits(cpu="2")),
        ("gpu", limits(cpu="4"), limits(cpu="2")),
        ("auto", limits(cpu="2"), env("2")),
        ("auto", limits(cpu="2"), {}),
        ("auto", env("gpu"), env("2")),
    ],
)
def test_what_is_one_number_or_can_not_be_seen_is_no_problem(nproc: str, one: Object, other: Object) -> None:
    assert degraded(nproc, pod("a", **one), pod("b", **other))[0] == "AsExpected"
