"""Threads: what becomes of one whose body fails."""

from __future__ import annotations

import logging
import threading

import pytest

from rdzv.agent import threads
from rdzv.agent.threads import Threads
from rdzv.kube.api import Stopped


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PAUSE_SECONDS", 0.01)


def test_an_unexpected_error_is_logged_once_with_its_traceback_and_the_thread_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop, often, calls = threading.Event(), threading.Event(), list[int]()

    def body() -> None:
        calls.append(1)
        if len(calls) == 5:
            often.set()
            return
        raise KeyError("unforeseen")

    group = Threads(stop)
    with caplog.at_level(logging.ERROR, "rdzv.agent"):
        group.spawn("rdzv-x", body)
        assert often.wait(10)
        group.join(10)
    (record,) = caplog.records
    assert record.getMessage() == "unexpected error in rdzv-x"
    assert record.exc_info is not None
    assert "unforeseen" in str(record.exc_info[1])


def test_a_role_is_given_up_instead(caplog: pytest.LogCaptureFixture) -> None:
    gave_up, calls = threading.Event(), list[int]()

    def body() -> None:
        calls.append(1)
        raise KeyError("unforeseen")

    group = Threads(threading.Event())
    group.spawn("rdzv-x", body, gave_up.set)
    assert gave_up.wait(10)
    group.join(10)
    assert calls == [1]
    assert "unexpected error in rdzv-x" in caplog.text


def test_what_fails_because_all_ends_is_not_said(caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()

    def body() -> None:
        stop.set()
        raise OSError("bad file descriptor")

    def stopped() -> None:
        raise Stopped(None, "the client is closed")

    group = Threads(stop)
    group.spawn("rdzv-x", body)
    group.spawn("rdzv-y", stopped)
    group.join(10)
    assert caplog.text == ""
    assert not [thread for thread in threading.enumerate() if thread.name in ("rdzv-x", "rdzv-y")]
