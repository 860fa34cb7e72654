"""What passes remember of a Rendezvous, and when time alone makes another diagnosis."""

from __future__ import annotations

from typing import Any

import pytest
from support import builders
from support.builders import pod_object, rendezvous

from rdzv.control.noted import WINDOW, Noted
from rdzv.control.plan import plan
from rdzv.control.problems import SHORT
from rdzv.control.status import Beside, compute_status
from rdzv.observed import Observed
from rdzv.registry import backend_registry

NOW = 1795428000.0


def test_what_has_held_without_a_break_is_timed() -> None:
    noted = Noted()
    assert [noted.lasts("a", "short", holds=True, now=NOW + at) for at in (0, 5, 30)] == [0, 5, 30]
    assert noted.lasts("b", "short", holds=True, now=NOW + 30) == 0
    assert noted.lasts("a", "short", holds=False, now=NOW + 31) is None
    assert noted.lasts("a", "short", holds=True, now=NOW + 40) == 0


def test_rounds_are_counted_over_a_window() -> None:
    noted = Noted()
    counts = [noted.rounds_lately("a", number, NOW + number) for number in range(100)]
    assert counts[0] == 0, "how many there were before is not known"
    assert counts[10] == 10
    assert counts[99] == WINDOW
    assert noted.rounds_lately("a", 99, NOW + 99 + WINDOW + 1) == 0
    assert noted.rounds_lately("a", 1, NOW + 300) == 0, "its record was deleted, and begins anew"


def test_a_single_new_round_is_counted_once() -> None:
    noted = Noted()
    assert noted.rounds_lately("a", 7, NOW) == 0
    assert noted.rounds_lately("a", 8, NOW + 1000) == 1
    assert noted.rounds_lately("a", 8, NOW + 1000 + WINDOW) == 0


def again(pods: list[dict[str, Any]], backend: str = "c10d", now: float = NOW, **beside: Any) -> float | None:
    registry, subject = backend_registry(), rendezvous(backend)
    observed = Observed([builders.pod(obj) for obj in pods])
    world = registry.observe(subject, observed, {}, now)
    return compute_status(
        subject, observed, world, plan(subject, observed, registry), {}, now, beside=Beside(**beside)
    ).again


@pytest.mark.parametrize("short_for", [0.0, 20.0])
def test_too_few_pods_are_looked_at_again_when_it_becomes_a_problem(short_for: float) -> None:
    assert again([pod_object("a")], short_for=short_for) == SHORT - short_for


def test_a_crash_loop_is_looked_at_again_when_it_may_be_over() -> None:
    looping = pod_object("a", phase="Running")
    looping["status"]["containerStatuses"][0] |= {
        "restartCount": 3,
        "state": {"running": {"startedAt": "2026-11-23T10:00:00Z"}},
        "lastState": {
            "terminated": {"exitCode": 1, "startedAt": "2026-11-23T09:59:40Z", "finishedAt": "2026-11-23T09:59:50Z"}
        },
    }
    assert again([looping, pod_object("b", phase="Running")]) == 70
    looping["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    assert again([looping, pod_object("b", phase="Running")]) is None, "kubelet tells when it runs again"


def test_an_agent_that_has_not_joined_is_looked_at_again_after_two_minutes() -> None:
    pods = [pod_object(name, phase="Running") for name in "ab"]
    for obj in pods:
        obj["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": "2026-11-23T10:00:00Z"}}
    assert again(pods, "kubernetes", NOW + 30) == 90
    assert again(pods, "kubernetes", NOW + 121) is None
    assert again(pods, "c10d", NOW + 30) is None


def test_a_quiet_world_is_never_looked_at_again() -> None:
    assert again([pod_object(name, phase="Running") for name in "ab"]) is None
    assert again([]) is None
