"""What an agent says while it waits, and of a Rendezvous that was deleted: once, and not as a missing permission."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from support.scripted_api import Answer, Hold
from unit.agent.lab import eventually
from unit.agent.test_agent import RENDEZVOUS, ROUNDS, Lab, lab

from rdzv.agent import narrator
from rdzv.agent.narrator import Situation, fate_of, interval, missing_text, waits_for
from rdzv.kube import api
from rdzv.protocol.events import Identity
from rdzv.protocol.records import Coordinator, Leader, Round
from rdzv.resources import RENDEZVOUS as KIND

__all__ = ["lab"]

GET = api.Call("get", KIND, "team", "job")


def rendezvous(**nodes: Any) -> dict[str, Any]:
    """As the operator writes it; its status is of the UID that it has."""
    return {
        "metadata": {"name": "job", "uid": "uid-1"},
        "spec": {"backend": "kubernetes", "nodes": {"min": 2, "max": 2}},
        "status": {"runID": "uid-1", "nodes": nodes},
    }


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "rdzv.agent"]


# Words.


def test_who_is_missing_and_why() -> None:
    missing = [
        {"pod": "node-0", "reason": "NotJoined"},
        {"pod": "node-1", "reason": "Unschedulable: 0/2 nodes are available: Insufficient cpu"},
    ]
    text = missing_text(rendezvous(expected=2, joined=1, missing=missing), "node-0")
    assert text == "1 of 2 joined, missing: node-1 (Unschedulable: 0/2 nodes are available: Insufficient cpu)"
    many = [{"pod": f"node-{i}", "reason": "x" * 1000} for i in range(20)]
    text = missing_text(rendezvous(expected=20, joined=0, missing=many), "other")
    assert text.endswith("and 17 more")
    assert len(text) < 800
    assert missing_text(rendezvous(expected=2, joined=2, missing=[]), "node-0") == ""
    earlier = {**rendezvous(expected=2, missing=many), "status": {"runID": "uid-0", "nodes": {"expected": 2}}}
    assert missing_text(earlier, "node-0") == "", "a status that was written for a namesake says nothing"
    assert missing_text({"metadata": {"uid": "uid-1"}}, "node-0") == ""


def test_what_became_of_a_rendezvous() -> None:
    again = {"metadata": {"uid": "uid-2"}}
    assert fate_of(rendezvous(), "uid-1", gone=True) == ""
    assert "was deleted and made again" in fate_of(again, "uid-1", gone=False)
    assert fate_of(api.NotFound(GET, "no"), "uid-1", gone=False).startswith("was deleted: ")
    refused = api.Forbidden(GET, "no", code=403)
    assert "was deleted, it seems" in fate_of(refused, "uid-1", gone=True)
    assert fate_of(refused, "uid-1", gone=False) == "", "somebody may have taken the Role away"
    assert fate_of(api.Unreachable(GET, "no"), "uid-1", gone=True) == ""


def test_what_an_agent_waits_for_that_knows_only_the_round() -> None:
    assert waits_for(None) == "nobody has made the Round yet"
    forming = Round("job", "run", want=1, coordinator=Coordinator(0, "x", "10.0.0.7", 1, 1))
    assert waits_for(forming).startswith("round 1 is not complete, which the agent at 10.0.0.7 coordinates")
    running = Round("job", "run", 3, "Running", (0, 1), leader=Leader(0, "10.0.0.7", 1), want=3)
    assert "a spare until there is room" in waits_for(running)


def test_large_worlds_and_spares_ask_less_often() -> None:
    me = Identity("job", "run", "a", "a", "10.0.0.1", 1)
    small = Situation(me, None, 2, "", coordinates=False)
    assert interval(small) == narrator.SAY_SECONDS
    assert interval(replace(small, nodes=640)) == 10 * narrator.SAY_SECONDS
    assert interval(replace(small, nodes=640, coordinates=True)) == narrator.SAY_SECONDS
    running = Round("job", "run", 3, "Running", (0,), leader=Leader(0, "10.0.0.7", 1), want=3)
    assert interval(replace(small, record=running)) == narrator.SPARE_SECONDS


# An agent.


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(narrator, "SAY_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "rdzv.agent")
    return caplog


def described(lab: Lab, *missing: dict[str, str]) -> str:
    """A Rendezvous that its operator has described; returns its UID."""
    obj = rendezvous(expected=2, joined=1, missing=list(missing))
    uid = str(lab.api.put(RENDEZVOUS, obj)["metadata"]["uid"])
    obj["status"] |= {"runID": uid, "roster": {"expected": "", "expectedCount": 2}}
    lab.api.put(RENDEZVOUS, obj)
    return uid


def test_it_says_who_is_missing_while_it_waits(lab: Lab, talkative: pytest.LogCaptureFixture) -> None:
    uid = described(lab, {"pod": "node-1", "reason": "Unschedulable: Insufficient cpu"})
    agents = [lab.agent(0, 2, 2, run=uid)]
    calls = [lab.join(agents[0])]
    text = "1 of 2 joined, missing: node-1 (Unschedulable: Insufficient cpu)"
    eventually(lambda: any(text in line for line in said(talkative)), "its word")
    calls.append(lab.join(lab.agent(1, 2, 2, run=uid)))
    assert [call.result(30).size for call in calls] == [2, 2]


def test_without_an_operator_the_coordinator_says_what_it_knows(lab: Lab, talkative: pytest.LogCaptureFixture) -> None:
    lab.join(lab.agent(0, 2, 2))
    eventually(lambda: any("more nodes, which nobody can name" in line for line in said(talkative)), "its word")


def test_an_api_server_that_hangs_does_not_hold_a_world_up(lab: Lab, talkative: pytest.LogCaptureFixture) -> None:
    uid = described(lab)
    call = lab.join(lab.agent(0, 2, 2, run=uid))
    eventually(lambda: lab.member(0))
    held = lab.api.inject(Hold(), "GET", RENDEZVOUS)
    assert held.met.wait(20)
    other = lab.join(lab.agent(1, 2, 2, run=uid))
    assert [call.result(30).size, other.result(30).size] == [2, 2]
    held.release.set()


@pytest.mark.parametrize("role", ["still there", "gone with it"])
def test_a_rendezvous_that_is_deleted_is_said_once(lab: Lab, talkative: pytest.LogCaptureFixture, role: str) -> None:
    uid = described(lab)
    agents = [lab.agent(slot, 2, 2, run=uid) for slot in range(2)]
    for call in [lab.join(agent) for agent in agents]:
        call.result(30)
    talkative.clear()
    # In the order in which Kubernetes' garbage collector may do it.
    lab.api.delete(RENDEZVOUS, "job")
    if role == "gone with it":
        lab.api.inject(Answer(code=403, message="no"), "", "", times=-1)
    lab.api.delete(ROUNDS, "job")
    eventually(lambda: sum("was deleted" in line for line in said(talkative)) == len(agents), "their word")
    error = lab.refused(agents[0]) if role == "gone with it" else None
    assert sum("was deleted" in line for line in said(talkative)) == len(agents), said(talkative)
    if error is not None:
        assert "was deleted, it seems" in str(error)
        assert not [line for line in said(talkative) if "403" in line], said(talkative)


def test_one_that_was_made_again_is_said_to_the_waiting(lab: Lab, talkative: pytest.LogCaptureFixture) -> None:
    uid = described(lab)
    call = lab.join(lab.agent(0, 2, 2, run=uid))
    eventually(lambda: (obj := lab.api.get(ROUNDS, "job")) and obj["metadata"].get("ownerReferences"), "its Round")
    lab.api.delete(RENDEZVOUS, "job")
    assert described(lab) != uid
    eventually(lambda: any("was deleted and made again" in line for line in said(talkative)), "its word")
    lab.agents[0].stop()
    assert call.exception(30) is not None
