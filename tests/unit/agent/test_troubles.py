"""Troubles: which errors end a join, and when."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from support.scripted_api import ScriptedApi

from rdzv.agent import troubles
from rdzv.agent.troubles import Troubles
from rdzv.kube import api, http_client
from rdzv.kube.config import ConfigError
from rdzv.kube.retry import CROWD_CAP
from rdzv.resources import ROUNDS

GET = api.Call("get", ROUNDS, "team", "job")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (troubles, http_client):
        monkeypatch.setattr(module, "time", clock)
    return clock


def lasts(clock: Clock, found: Troubles, make: Callable[[], Exception]) -> float:
    """Seconds until this error, which comes every second, is believed."""
    began = clock.now
    while not found.hopeless(make()):
        assert clock.now < began + 600, "never"
        clock.now += 1
    return clock.now - began


@pytest.mark.parametrize(
    ("make", "seconds"),
    [
        (lambda: api.Unauthorized(GET, "Unauthorized", code=401), 30),
        (lambda: api.UnknownResource(GET, "not found", code=404), 8),
        (lambda: ConfigError("exec plug-in x ended with code 1"), 10),
        (lambda: api.Forbidden(GET, "no", code=403), 0),
        (lambda: api.Untrusted(GET, "another CA"), 0),
    ],
)
def test_how_long_an_error_is_waited_out(clock: Clock, make: Callable[[], Exception], seconds: float) -> None:
    assert lasts(clock, Troubles(ScriptedApi().client()), make) == seconds


@pytest.mark.parametrize("kind", [api.Unreachable, api.WrongTime])
def test_an_api_server_that_is_away_is_waited_for(clock: Clock, kind: type[api.ApiError]) -> None:
    found = Troubles(ScriptedApi().client())
    for _ in range(1000):
        assert not found.hopeless(kind(GET, "no"))
        clock.now += 10


def test_a_credential_plug_in_that_fails_now_and_then_never_ends_a_join(clock: Clock) -> None:
    found = Troubles(ScriptedApi().client())
    for _ in range(10):
        assert not found.hopeless(ConfigError("exec plug-in x ended with code 1"))
        clock.now += 60


def test_an_answer_ends_a_trouble(clock: Clock) -> None:
    client_ = ScriptedApi().client()
    found = Troubles(client_)
    for _ in range(3):
        assert not found.hopeless(api.Unauthorized(GET, "Unauthorized", code=401))
        assert client_.trouble is not None
        clock.now += 29
        client_.answered(GET, 200)
        assert client_.trouble is None


def test_403_just_after_an_outage_is_an_api_server_that_starts(clock: Clock) -> None:
    found = Troubles(ScriptedApi().client())
    assert not found.hopeless(api.Unreachable(GET, "refused"))
    clock.now += 2 * CROWD_CAP  # In a crowd the next requests are so far apart.
    assert not found.hopeless(api.Forbidden(GET, "no", code=403))
    clock.now += 11
    assert found.hopeless(api.Forbidden(GET, "no", code=403))


def test_one_error_again_and_again_is_said_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    found = Troubles(ScriptedApi().client())
    with caplog.at_level(logging.INFO, "rdzv.agent"):
        for _ in range(5):
            found.hopeless(api.Forbidden(GET, "no", code=403))
    assert [record.levelname for record in caplog.records] == ["ERROR"]
