"""Mistakes in the operator, each as a replaced function of it: a plug-in plants one when the operator loads its plug-ins.

Nothing in the operator knows of tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rdzv.control import apply, cache, compare, feed, plan, reconcile
from rdzv.kube.api import ApiError

NOTHING, AFTER, REFUSED, HIDDEN = "nothing", "killed after each write", "each write refused once", "hidden changes"


@dataclass(frozen=True)
class Bug:
    """One mistake, what is seen of it, what has to happen for that, and in which of the lives."""

    plant: Callable[[], None]
    shows: str
    harm: str = NOTHING
    life: int = 0


def _put(place: Any, name: str, mistake: Any) -> None:
    assert hasattr(place, name)
    setattr(place, name, mistake)


def _whose_it_is_does_not_matter() -> None:
    _put(plan, "_belongs", lambda obj, rendezvous: obj["metadata"]["name"].startswith(rendezvous.child_name))


def _pods_are_let_in_first() -> None:
    real = apply.KubernetesAPI.execute

    def execute(self: Any, decided: Any, rendezvous: Any, *rest: Any) -> Any:
        if decided.release is not None:
            self._attempt([], self._put_right, decided.release, rendezvous, [])
        return real(self, decided, rendezvous, *rest)

    _put(apply.KubernetesAPI, "execute", execute)


def _a_server_is_not_waited_for() -> None:
    _put(plan, "_awaits_server", lambda provision, observed: False)


def _a_pass_that_failed_is_not_made_again() -> None:
    real = reconcile.Reconciler.reconcile

    def one_pass(self: Any, key: Any) -> Any:
        try:
            return real(self, key)
        except ApiError:
            return None

    _put(reconcile.Reconciler, "reconcile", one_pass)


def _what_is_gone_stays_in_memory() -> None:
    _put(cache.Cache, "remove", lambda self, kind, obj: set())


def _the_status_is_written_once() -> None:
    _put(reconcile, "_differs", lambda previous, status: not previous)


def _owners_are_not_compared() -> None:
    real = compare._metadata_differs

    def differs(actual: Any, wanted: Any) -> bool:
        meta = {**actual["metadata"], "ownerReferences": wanted["metadata"]["ownerReferences"]}
        return real({**actual, "metadata": meta}, wanted)

    _put(compare, "_metadata_differs", differs)
    _put(compare, "is_of_predecessor", lambda obj, name, uid: False)


def _what_is_no_longer_wanted_stays() -> None:
    real = plan.plan
    _put(reconcile, "plan", lambda *seen: replace(real(*seen), delete=()))


def _a_write_that_failed_counts_as_made() -> None:
    def attempt(_failures: Any, write: Callable[..., Any], *args: Any) -> bool:
        with suppress(ApiError):
            write(*args)
        return True

    _put(apply.KubernetesAPI, "_attempt", staticmethod(attempt))


def _what_is_there_is_never_changed() -> None:
    def compared(actual: Any, wanted: Any) -> compare.Verdict:
        found = compare.compare(actual, wanted)
        return compare.Verdict.SAME if found is compare.Verdict.REPLACE else found

    _put(plan, "compare", compared)
    _put(apply, "compare", compared)


def _the_host_stays_though_it_is_gone() -> None:
    real, chosen = plan._elect, dict[str, Any]()

    def elect(pods: Any, host: Any, present: str | None) -> Any:
        found = chosen.get(present or "") or real(pods, host, present)
        if found is not None:
            chosen[found.uid] = found
        return found

    _put(plan, "_elect", elect)


def _finalizers_are_taken_off() -> None:
    _put(compare, "kept_finalizers", lambda actual: [])
    _put(apply, "kept_finalizers", lambda actual: [])


def _memory_is_never_compared() -> None:
    def compared(_self: Any, *_: Any) -> int:
        time.sleep(1.0)
        return 0

    _put(feed.Comparison, "compare", compared)


BUGS = {
    "whose an object is does not matter": Bug(_whose_it_is_does_not_matter, "ConfigMap rdzv-NAME-theirs"),
    "pods are let in before what they rely on is there": Bug(_pods_are_let_in_first, "is there before", AFTER),
    # Of the life whose first backend has a server: in the other one the children that linger may give it the time to become ready.
    "pods are let in before their server is ready": Bug(_a_server_is_not_waited_for, "is ready", AFTER, 2),
    # Of which child, and in which part, depends on what else makes a pass.
    "a pass that failed is not made again": Bug(_a_pass_that_failed_is_not_made_again, " rdzv-NAME:", REFUSED),
    "what is gone stays in memory": Bug(_what_is_gone_stays_in_memory, "its host goes: "),
    "the status is written once": Bug(_the_status_is_written_once, "Rendezvous NAME:"),
    "children of an earlier Rendezvous are taken over as they are": Bug(
        _owners_are_not_compared, "uid of what is gone", life=2
    ),
    "what is no longer wanted stays": Bug(_what_is_no_longer_wanted_stays, "deleted and made again: "),
    "a write that failed counts as made": Bug(
        _a_write_that_failed_counts_as_made, "deleted and made again: Rendezvous NAME", REFUSED
    ),
    "what is there is never changed": Bug(_what_is_there_is_never_changed, "changed: "),
    "the host stays though it is gone": Bug(_the_host_stays_though_it_is_gone, "its host goes: "),
    "finalizers that keep a child are taken off": Bug(_finalizers_are_taken_off, "deleted and made again: "),
    "memory is never compared with what is there": Bug(_memory_is_never_compared, "is not back", HIDDEN),
}


def plugin(directory: Path, bug: str) -> Path:
    """A directory for PYTHONPATH with a plug-in that plants this bug."""
    tests = Path(__file__).parents[1]
    info = directory / "seeded-1.0.dist-info"
    info.mkdir(parents=True)
    (directory / "seeded_bug.py").write_text(
        f"import sys\nsys.path.append({str(tests)!r})\nfrom faults.operator_bugs import BUGS\nBUGS[{bug!r}].plant()\n"
        "def backend():\n    return lambda rendezvous: None\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: seeded\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rdzv.backends]\nseeded = seeded_bug:backend\n")
    return directory
