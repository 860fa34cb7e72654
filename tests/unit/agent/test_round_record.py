"""RoundRecord: what an agent takes for the present Round, whatever order its watch, reads and writes come in."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.scripted_api import Answer, Hold, Lose, ScriptedApi

from rdzv.agent.conditional import OutcomeUnknownError
from rdzv.agent.round_record import RoundRecord
from rdzv.kube.api import ApiError, ServerError
from rdzv.kube.retry import Retry
from rdzv.protocol.records import CLOSED, Round

ROUNDS = "rendezvousrounds"
ONCE = Retry(deadline=float("-inf"))


def is_closed(record: Round) -> bool:
    return record.phase == CLOSED


class Lab:
    def __init__(self) -> None:
        self.api = ScriptedApi()
        self.changes: list[tuple[Round | None, int]] = []
        self.record = RoundRecord(
            self.api.client(), "team", "job", threading.RLock(), lambda *change: self.changes.append(change)
        )

    def stored(self, number: int = 1, **fields: Any) -> dict[str, Any]:
        """As somebody else writes it."""
        return self.api.put(ROUNDS, Round("job", "run", round=number, **fields).to_object("team"))

    def reading(self) -> threading.Thread:
        thread = threading.Thread(target=lambda: self.record.read(ONCE))
        thread.start()
        return thread

    def number(self) -> int | None:
        found = self.record.latest.record
        return found.round if found is not None else None


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_older_news_is_none(lab: Lab) -> None:
    old, new = lab.stored(1), lab.stored(2)
    lab.record.event("ADDED", new)
    lab.record.event("MODIFIED", old)
    assert lab.number() == 2
    assert len(lab.changes) == 1


@pytest.mark.parametrize("known_before", [True, False])
def test_a_404_that_was_answered_before_a_newer_round_was_made_does_not_hide_it(lab: Lab, known_before: bool) -> None:
    if known_before:
        lab.record.event("ADDED", lab.stored(6))
        lab.api.delete(ROUNDS, "job")
    hold = lab.api.inject(Hold(), "GET", ROUNDS)
    thread = lab.reading()
    assert hold.met.wait(10)
    lab.record.event("ADDED", lab.stored(7))
    hold.release.set()
    thread.join(10)
    assert lab.number() == 7


def test_a_404_after_a_round_was_seen_says_that_it_is_gone_and_one_made_anew_is_seen(lab: Lab) -> None:
    lab.record.event("ADDED", lab.stored(7))
    lab.api.delete(ROUNDS, "job")
    assert lab.record.read(ONCE).record is None
    assert lab.changes[-1][0] is None
    lab.record.event("ADDED", lab.stored(8))
    assert lab.number() == 8


def test_none_is_told_once(lab: Lab) -> None:
    for _ in range(3):
        lab.record.read(ONCE)
    assert lab.changes == [(None, 1)]


def test_a_deletion_that_is_noticed_late_comes_with_the_last_version(lab: Lab) -> None:
    seen = lab.stored(1)
    lab.record.event("ADDED", seen)
    lab.record.event("DELETED", seen)
    assert lab.number() is None


def test_an_unreadable_round_changes_nothing(lab: Lab) -> None:
    lab.record.event("ADDED", lab.stored(1))
    broken = lab.stored(2)
    broken["spec"]["phase"] = "Dancing"
    lab.record.event("MODIFIED", broken)
    assert lab.number() == 1


def test_a_lost_reply_is_read_back(lab: Lab) -> None:
    lab.api.inject(Lose(), "POST", ROUNDS)
    with pytest.raises(OutcomeUnknownError):
        lab.record.write(Round("job", "run"), None, ONCE)
    assert lab.number() == 0, "what was written was not read"


def test_a_conflict_is_read_back_and_a_replace_keeps_what_others_have_added_to_the_metadata(lab: Lab) -> None:
    lab.record.event("ADDED", lab.stored(1))
    rv = lab.record.latest.rv
    lab.stored(2)
    with pytest.raises(OutcomeUnknownError):
        lab.record.write(Round("job", "run", round=9), rv, ONCE)
    assert lab.number() == 2
    theirs = lab.api.get(ROUNDS, "job")
    assert theirs is not None
    theirs["metadata"]["annotations"] = {"note": "x"}
    lab.record.event("MODIFIED", lab.api.put(ROUNDS, theirs))
    lab.record.write(Round("job", "run", round=3), lab.record.latest.rv, ONCE)
    written = lab.api.get(ROUNDS, "job")
    assert written is not None
    assert (written["spec"]["round"], written["metadata"]["annotations"]) == (3, {"note": "x"})


def test_what_was_certainly_not_written_is_not_read(lab: Lab) -> None:
    lab.api.inject(Answer(code=403), "POST", ROUNDS)
    with pytest.raises(ApiError, match="403"):
        lab.record.write(Round("job", "run"), None, ONCE)
    assert lab.api.asked("GET", ROUNDS) == []


def test_closing_goes_on_after_somebody_else_wrote_and_after_a_lost_reply(lab: Lab) -> None:
    lab.stored(1)
    hold = lab.api.inject(Hold(), "GET", ROUNDS)
    lab.api.inject(Lose(), "PUT", ROUNDS)
    thread = threading.Thread(target=lambda: lab.record.close("run", "Closed", "me", Retry.within(30), is_closed))
    thread.start()
    assert hold.met.wait(10)
    lab.stored(2)
    hold.release.set()
    thread.join(30)
    assert not thread.is_alive()
    assert lab.record.latest.record is not None
    assert (lab.record.latest.record.phase, lab.number()) == (CLOSED, 2)


def test_closing_what_is_closed_or_another_run_s_writes_nothing(lab: Lab) -> None:
    lab.stored(3, phase=CLOSED)
    lab.record.close("run", "Closed", "me", ONCE, is_closed)
    lab.stored(4)
    lab.record.close("another", "Closed", "me", ONCE, is_closed)
    assert lab.api.asked("PUT", ROUNDS) == []


def test_closing_that_cannot_be_written_says_so(lab: Lab) -> None:
    lab.api.inject(Answer(code=503), "", ROUNDS, times=-1)
    with pytest.raises(ServerError):
        lab.record.close("run", "Closed", "me", Retry.within(0.2), is_closed)
