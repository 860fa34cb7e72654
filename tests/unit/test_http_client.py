"""When a client uses a connection that it has just opened: without a server."""

from __future__ import annotations

import threading
import time

import pytest
from support.scripted_api import ScriptedApi

from rdzv.kube import http_client
from rdzv.kube.api import Call, Resource, Stopped, Unreachable
from rdzv.kube.client import Client
from rdzv.kube.config import Config
from rdzv.kube.retry import CROWD_CAP, spread
from rdzv.kube.transport import Connection

MEMBERS = Resource("rdzv.dev/v1alpha1", "rendezvousmembers")
MEMBER = {
    "apiVersion": "rdzv.dev/v1alpha1",
    "kind": "RendezvousMember",
    "metadata": {"name": "a", "namespace": "train"},
}
SLOW = 0.02


class Slow(ScriptedApi):
    """A server that listens before it serves, for so many seconds."""

    listens = SLOW * 2

    def connect(self, config: Config, call: Call | None) -> Connection:
        connection = super().connect(config, call)
        time.sleep(self.listens)
        return connection


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The longest that each wait for a turn may last; 0 s are waited."""
    found: list[float] = []

    def uniform(_least: float, most: float) -> float:
        found.append(most)
        return 0.0

    monkeypatch.setattr(http_client, "SLOW_SECONDS", SLOW)
    monkeypatch.setattr("rdzv.kube.http_client.random.uniform", uniform)
    return found


def outage(api: ScriptedApi, client: Client) -> None:
    api.down = True
    with pytest.raises(Unreachable):
        client.get(MEMBERS, "train", "a")
    api.down = False


@pytest.mark.parametrize("agents", [40, 1000, 4096])
def test_who_connected_while_the_server_started_takes_its_turn_in_a_crowd(waits: list[float], agents: int) -> None:
    api = Slow()
    api.put(MEMBERS.plural, MEMBER)
    client = api.client()
    client.agents = agents
    outage(api, client)
    assert client.get(MEMBERS, "train", "a")
    assert waits == [spread(agents)]
    assert waits[0] <= CROWD_CAP
    api.cut()  # The server is not in trouble any more: its next slow connection is no start.
    assert client.get(MEMBERS, "train", "a")
    assert len(waits) == 1


def test_a_slow_connection_is_used_at_once_when_no_server_was_away(waits: list[float]) -> None:
    client = Slow().client()
    client.agents = 1000
    client.connect()
    assert waits == []


def test_a_connection_that_is_there_at_once_is_used_at_once(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "SLOW_SECONDS", 10.0)
    api = ScriptedApi()
    api.put(MEMBERS.plural, MEMBER)
    client = api.client()
    client.agents = 1000
    outage(api, client)
    assert client.get(MEMBERS, "train", "a")
    assert waits == []


def test_closing_the_client_ends_the_wait_for_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "SLOW_SECONDS", SLOW)
    monkeypatch.setattr("rdzv.kube.http_client.random.uniform", lambda _least, _most: 600.0)
    api = Slow()
    client = api.client()
    client.agents = 1000
    outage(api, client)
    errors: list[Exception] = []

    def get() -> None:
        try:
            client.get(MEMBERS, "train", "a")
        except Stopped as error:
            errors.append(error)

    thread = threading.Thread(target=get)
    thread.start()
    time.sleep(api.listens * 2)
    client.close()
    thread.join(30)
    assert not thread.is_alive()
    assert len(errors) == 1
