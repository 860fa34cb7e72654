"""Who leads, decided from what was read: no two clocks, and nobody before the last write of the one before."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from rdzv.control.election import (
    LEASE_SECONDS,
    LEASE_SECONDS_MAX,
    RENEW_SECONDS,
    RETRY_SECONDS,
    Candidate,
    Sighting,
    elect,
    holder,
    is_of_another_release,
    see,
    written,
)
from rdzv.control.leader import LEASE_TIMEOUT
from rdzv.control.readiness import STUCK_SECONDS, Progress, answer

Object = dict[str, Any]

ME, OTHER = Candidate("a_1", "ns/a", "1.0", "a", "uid-a"), Candidate("b_2", "ns/b", "2.0", "b", "uid-b")


def lease(by: Candidate, *, at: float = 1000.0, over: Object | None = None, version: str = "1") -> Object:
    obj = written(over, by, "ns", "lock", at)
    obj["metadata"] |= {"uid": "uid-1", "resourceVersion": version}
    return obj


def test_nobody_leads_so_it_may() -> None:
    assert elect(Sighting(None, 0), ME, 0).write
    released = lease(OTHER)
    released["spec"]["holderIdentity"] = ""
    assert elect(Sighting(released, 0), ME, 0).write


def test_its_own_lease_is_renewed_however_old_it_is() -> None:
    assert elect(Sighting(lease(ME), 0), ME, 1).write
    assert elect(Sighting(lease(ME), 0), ME, 1e6).write


def test_anothers_lease_is_taken_when_it_has_not_changed_for_its_duration_and_not_before() -> None:
    seen = Sighting(lease(OTHER), 100.0)
    for now in (100.0, 105.0, 100.0 + LEASE_SECONDS - 0.01):
        verdict = elect(seen, ME, now)
        assert not verdict.write
        assert now + verdict.again <= 100 + LEASE_SECONDS
        assert "'b_2' (release ns/b, version 2.0) leads" in verdict.reason
    assert elect(seen, ME, 100 + LEASE_SECONDS).write


def test_it_knows_whether_another_release_leads_and_takes_nobody_for_one() -> None:
    replica = Candidate("a_9", ME.release, "1.1")
    assert is_of_another_release(lease(OTHER), ME)
    assert not is_of_another_release(lease(replica), ME), "of this release, if of another version"
    released = lease(OTHER)
    released["spec"]["holderIdentity"] = ""
    for nobody in (None, released):
        assert not is_of_another_release(nobody, ME)


def test_only_what_the_holder_writes_is_a_sign_of_its_life() -> None:
    seen = see(None, lease(OTHER), 0)
    labelled = lease(OTHER, version="2")
    labelled["metadata"]["labels"] = {"a": "b"}
    assert see(seen, labelled, 5).since == 0
    assert see(seen, labelled, 5).lease == labelled
    assert see(seen, lease(OTHER, at=1002), 5).since == 5
    again = lease(OTHER)
    again["metadata"]["uid"] = "uid-2"
    assert see(seen, again, 5).since == 5


@pytest.mark.parametrize("duration", [None, 0, 2**31 - 1, 15])
def test_no_duration_that_somebody_wrote_keeps_it_out_for_long(duration: int | None) -> None:
    theirs = lease(OTHER)
    theirs["spec"]["leaseDurationSeconds"] = duration
    assert elect(Sighting(theirs, 0), ME, LEASE_SECONDS_MAX).write
    assert not elect(Sighting(theirs, 0), ME, min(duration or LEASE_SECONDS, LEASE_SECONDS_MAX) - 0.1).write


@pytest.mark.parametrize("by", [ME, OTHER])
@pytest.mark.parametrize("since", [0.0, 1000.0])
def test_who_is_unfit_neither_takes_nor_renews(by: Candidate, since: float) -> None:
    verdict = elect(Sighting(lease(by), since), ME, 1000.0, "memory is not complete yet")
    assert (verdict.write, verdict.reason) == (False, "memory is not complete yet")


def test_what_is_written_names_holder_release_version_and_pod_and_counts_changes_of_hands() -> None:
    first = lease(OTHER)
    assert first["spec"] == {
        "holderIdentity": "b_2",
        "leaseDurationSeconds": LEASE_SECONDS,
        "acquireTime": "1970-01-01T00:16:40.000000Z",
        "renewTime": "1970-01-01T00:16:40.000000Z",
        "leaseTransitions": 0,
    }
    renewed = lease(OTHER, at=1002.5, over=first)
    assert renewed["spec"]["acquireTime"] == "1970-01-01T00:16:40.000000Z"
    assert renewed["spec"]["renewTime"] == "1970-01-01T00:16:42.500000Z"
    taken = written(renewed, ME, "ns", "lock", 1020)
    assert taken["metadata"]["resourceVersion"] == "1", "over that version and no later one"
    assert taken["metadata"]["annotations"] == {"rdzv.dev/release": "ns/a", "rdzv.dev/version": "1.0"}
    assert [owner["uid"] for owner in taken["metadata"]["ownerReferences"]] == ["uid-a"]
    assert taken["spec"]["acquireTime"] == taken["spec"]["renewTime"] == "1970-01-01T00:17:00.000000Z"
    assert taken["spec"]["leaseTransitions"] == 1
    assert written(None, Candidate("x", "r", "v"), "ns", "lock", 0)["metadata"]["ownerReferences"] == []


def test_the_last_write_has_left_before_somebody_else_may_lead() -> None:
    assert RENEW_SECONDS < LEASE_SECONDS
    assert sum(LEASE_TIMEOUT) + RETRY_SECONDS < RENEW_SECONDS, "one renewal may fail"


@pytest.mark.parametrize("seed", range(200))
def test_no_two_lead_at_once_and_somebody_soon_does_whatever_stops_and_whatever_their_clocks_say(seed: int) -> None:
    """Three processes with clocks of their own on one Lease with compare-and-set; each may stop for any time between any two steps."""
    chance = random.Random(seed)
    count = 3
    stored: Object | None = None
    versions = itertools.count(1)
    offsets = [chance.uniform(-1e6, 1e6) for _ in range(count)]
    who = [Candidate(f"p{n}_1", "ns/r", "1") for n in range(count)]
    seen: list[Sighting | None] = [None] * count
    until, asleep = [float("-inf")] * count, [0.0] * count
    pending: list[tuple[float, Object] | None] = [None] * count
    now, idle = 0.0, 0.0
    while now < 300:
        step = chance.uniform(0.05, 1.0)
        now, idle = now + step, idle + step
        for n in range(count):
            if now < asleep[n]:
                continue
            began = pending[n]
            if began is not None:  # What was read before a stop is written after it.
                pending[n] = None
                if (stored or {}).get("metadata", {}).get("resourceVersion") == began[1]["metadata"].get(
                    "resourceVersion"
                ):
                    stored = {
                        **began[1],
                        "metadata": {**began[1]["metadata"], "uid": "u", "resourceVersion": str(next(versions))},
                    }
                    seen[n], until[n] = Sighting(stored, began[0] + offsets[n]), began[0] + RENEW_SECONDS
            seen[n] = see(seen[n], stored, now + offsets[n])
            verdict = elect(seen[n], who[n], now + offsets[n])  # type: ignore[arg-type]
            if verdict.write:
                pending[n] = (now, written(stored, who[n], "ns", "lock", now))
            if chance.random() < 0.02:
                asleep[n] = now + chance.uniform(0, 30)
        leading = [n for n in range(count) if now < until[n]]
        assert len(leading) <= 1, f"at {now}: {leading}"
        if leading or any(now < end for end in asleep):
            idle = 0.0
        assert idle <= LEASE_SECONDS + 3
    assert holder(stored)


def test_passes_that_wait_while_none_ends_are_a_stuck_queue() -> None:
    progress = Progress()
    assert not progress.stuck(1e9), "nothing is to be done"
    progress.began("a", 0)
    progress.waits("b", 10)
    assert not progress.stuck(10 + STUCK_SECONDS)
    assert progress.stuck(11 + STUCK_SECONDS) == "1 passes run, 1 wait, and none has ended for 46 s"
    progress.ended("c", 40)
    assert not progress.stuck(80), "one ended 40 seconds ago"
    assert progress.stuck(40 + STUCK_SECONDS + 1)
    progress.began("b", 90)
    assert not progress.stuck(1e9), "who waited has a thread"


def test_a_pass_that_hangs_while_others_are_served_is_no_stuck_queue() -> None:
    """Another process would meet the same plug-in, and hang as well: nobody would lead."""
    progress = Progress()
    progress.began("hangs", 0)
    assert not progress.stuck(1e9)
    for now in range(100, 200, 10):
        progress.waits("other", now)
        progress.began("other", now)
        progress.ended("other", now + 1)
    assert not progress.stuck(1e9)


def test_to_stand_by_is_to_be_ready_and_trouble_is_not() -> None:
    assert answer(["", ""], "") == (200, "leads\n")
    assert answer([], "'b_2' leads") == (200, "stands by: 'b_2' leads\n")
    assert answer(["", "x", "y"], "") == (503, "not ready: x; y\n")
