"""CoordinatorLoop: its caches, its writes, and how it ends, without sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.scripted_api import Answer, Hold, Lose, Raise, ScriptedApi
from unit.agent.lab import FakeLiveness, as_liveness, eventually

from rdzv.agent import coordinator_loop
from rdzv.agent.coordinator_loop import CoordinatorLoop, Shared
from rdzv.agent.round_record import RoundRecord
from rdzv.kube.config import ConfigError
from rdzv.protocol import coordinator
from rdzv.protocol.coordinator_state import CoordinatorState, Policy
from rdzv.protocol.events import Identity
from rdzv.protocol.records import RUNNING, Coordinator, Member, Round

ROUNDS, MEMBERS, RENDEZVOUS = "rendezvousrounds", "rendezvousmembers", "rendezvous"
ME = Identity("job", "run", "node-0", "uid-0/1", "10.0.0.1", 4999, slot=0)


class Lab:
    def __init__(self) -> None:
        self.api, self.failures = ScriptedApi(), list[Exception]()
        self.stepped, self.refusals = list[int](), list[str]()
        self.client = self.api.client()
        self.liveness = FakeLiveness(None, ME.incarnation, ME.address, None)
        self.round = RoundRecord(self.client, "team", "job", threading.RLock(), lambda *_: self.loop.poke())
        self.while_a_view_is_made: Callable[[], None] = lambda: None
        shared = Shared(
            client=self.client,
            namespace="team",
            round=self.round,
            highest_seen=self.highest_seen,
            met=lambda: False,
            stepped_down=self.stepped.append,
            refused=self.refusals.append,
            failed=self.failures.append,
        )
        self.loop = CoordinatorLoop(shared, as_liveness(self.liveness), "job")

    def highest_seen(self) -> int:
        self.while_a_view_is_made()
        return 0

    def start(self, low: int = 2, high: int = 2) -> None:
        self.loop.start(CoordinatorState(ME, Policy(low, high, last_call=0.1, settle=0.0)))

    def join(self, slot: int) -> None:
        record = eventually(lambda: self.api.get(ROUNDS, "job"))
        uid = record["metadata"]["uid"]
        name, incarnation = f"node-{slot}", f"uid-{slot}/1"
        member = Member(name, "job", "run", incarnation, f"10.0.0.{slot}", 4000, 1, round_uid=uid, slot=slot)
        self.api.put(MEMBERS, member.to_object("team"))

    def world(self) -> Round | None:
        obj = self.api.get(ROUNDS, "job")
        found = Round.from_object(obj) if obj else None
        return found if found is not None and found.phase == RUNNING else None

    def forms(self) -> Round:
        for slot in (0, 1):
            self.join(slot)
        found: Round = eventually(self.world, "a world")
        return found


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(coordinator_loop, "_AFTERWARDS_SECONDS", 0.05)
    lab = Lab()
    yield lab
    lab.loop.stop()
    lab.client.close()
    lab.loop.join(10)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("rdzv-")]


def test_it_makes_the_round_and_forms_a_world(lab: Lab) -> None:
    lab.start()
    found = lab.forms()
    assert found.coordinator is not None
    assert (found.slots, found.coordinator.incarnation) == ((0, 1), ME.incarnation)
    assert len(lab.api.asked("POST", ROUNDS)) == 1
    assert eventually(lambda: lab.liveness.expected) == {"uid-0/1", "uid-1/1"}


@pytest.mark.parametrize("verb", ["POST", "PUT"])
@pytest.mark.parametrize("fault", [Lose, lambda: Answer(code=500), lambda: Answer(code=429), lambda: Answer(code=409)])
def test_a_write_that_fails_once_does_not_keep_the_world_from_forming(
    lab: Lab, verb: str, fault: Callable[[], Any]
) -> None:
    injected = lab.api.inject(fault(), verb, ROUNDS)
    lab.start()
    lab.forms()
    assert injected.met.is_set()


def test_who_else_coordinates_is_left_alone(lab: Lab) -> None:
    other = Coordinator(1, "uid-1/1", "10.0.0.2", 4999, 1)
    lab.round.event("ADDED", lab.api.put(ROUNDS, Round("job", "run", coordinator=other).to_object("team")))
    lab.start()
    rv = eventually(lambda: lab.stepped)[0]
    assert rv == lab.round.latest.rv
    assert lab.liveness.serving, "it has not failed"
    assert lab.api.asked("PUT", ROUNDS) == []


def test_a_round_that_changes_while_a_view_is_made_is_looked_at_afterwards(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.start()
    lab.forms()
    looked_at: list[int] = []
    changed = threading.Event()
    original = coordinator.step

    def step(state: Any, view: Any, now: float) -> Any:
        looked_at.append(view.round.round)
        return original(state, view, now)

    def change() -> None:
        if not changed.is_set():
            changed.set()
            theirs = Round.from_object(lab.api.get(ROUNDS, "job") or {})
            later = Round("job", "run", round=41, coordinator=theirs.coordinator)
            lab.round.event("MODIFIED", lab.api.put(ROUNDS, later.to_object("team")))

    monkeypatch.setattr(coordinator, "step", step)
    monkeypatch.setattr(lab.loop, "_expect", lambda: None)  # It has the loop look again by time alone.
    lab.while_a_view_is_made = change
    lab.loop.poke()
    eventually(lambda: 41 in looked_at, "a look at the Round of then")


def test_members_are_watched_again_soon_after_an_error(lab: Lab) -> None:
    lab.start()
    eventually(lambda: lab.api.get(ROUNDS, "job"))
    lab.join(0)
    eventually(lambda: "node-0" in lab.loop._members)
    lab.api.inject(Answer(code=404, message="the CRD is replaced"), "WATCH", MEMBERS, times=2)
    lab.api.cut()
    lab.join(1)
    eventually(lab.world, "a world")


def test_a_rendezvous_that_may_not_be_read_is_gone_on_without(lab: Lab) -> None:
    lab.api.inject(Answer(code=403), "", RENDEZVOUS, times=-1)
    lab.start()
    lab.forms()
    assert lab.failures == []


@pytest.mark.parametrize(
    "request_", [("WATCH", MEMBERS), ("WATCH", RENDEZVOUS), ("GET", RENDEZVOUS), ("PUT", ROUNDS), ("POST", ROUNDS)]
)
def test_a_credential_plug_in_that_fails_once_ends_no_thread(
    lab: Lab, request_: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    fault = lab.api.inject(Raise(error=ConfigError("exec plug-in x ended with code 1")), *request_)
    lab.start()
    lab.forms()
    assert fault.met.is_set()
    assert "Traceback" not in caplog.text, "it was not foreseen"


@pytest.mark.parametrize("request_", [("WATCH", MEMBERS), ("WATCH", RENDEZVOUS)])
def test_an_unexpected_error_in_a_watch_is_logged_and_survived(
    lab: Lab, request_: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    fault = lab.api.inject(Raise(error=RuntimeError("unforeseen")), *request_)
    lab.start()
    assert fault.met.wait(10)
    lab.forms()
    assert "unexpected error in rdzv-" in caplog.text


def test_the_coordination_is_given_up_after_an_unexpected_error_and_peers_are_sent_away(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lab.start()
    lab.forms()

    def fails(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(coordinator, "step", fails)
    lab.loop.poke()
    eventually(lambda: lab.stepped, "stepping down")
    assert not lab.liveness.serving
    assert not lab.loop.active
    assert caplog.text.count("Traceback") == 1


def test_an_agent_whose_own_credentials_stay_bad_gives_the_coordination_up(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_loop, "_POWERLESS_SECONDS", 0.3)
    lab.api.inject(Raise(error=ConfigError("exec plug-in x ended with code 1")), "POST", ROUNDS, times=-1)
    lab.start()
    eventually(lambda: lab.stepped, "stepping down")
    assert not lab.liveness.serving
    assert len(lab.api.asked("POST", ROUNDS)) > 1


def test_stopping_ends_a_write_whose_reply_does_not_come(lab: Lab) -> None:
    hold = lab.api.inject(Hold(), "POST", ROUNDS)
    lab.start()
    assert hold.met.wait(10)
    lab.loop.stop()
    lab.client.close()
    lab.loop.join(10)
