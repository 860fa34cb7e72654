"""OwnMember: which event each outcome of a request about the own Member is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.scripted_api import Answer, Lose, Raise, Refuse, ScriptedApi

from rdzv.agent.own_member import NameTakenError, OwnMember
from rdzv.kube.api import Stopped
from rdzv.kube.config import ConfigError
from rdzv.protocol.events import OwnRead, ReadFailed, Write, WriteFailed, WriteUnknown, Written
from rdzv.protocol.records import Member

MEMBERS = "rendezvousmembers"
ME = Member("node-0", "job", "run", "node-0/1", "10.0.0.1", 4000, want_round=1)


class Lab:
    def __init__(self) -> None:
        self.api, self.failures = ScriptedApi(), list[Exception]()
        self.client = self.api.client()
        self.own = OwnMember(self.client, "team", "node-0", "job", self.failures.append)

    def stored(self, member: Member) -> dict[str, Any]:
        return self.api.put(MEMBERS, member.to_object("team"))


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_a_write_that_was_carried_out(lab: Lab) -> None:
    assert lab.own.write(Write(ME, None)) == Written(101)
    assert lab.own.write(Write(replace(ME, want_round=2), 101)) == Written(102)
    assert lab.own.read() == OwnRead(replace(ME, want_round=2), 102)
    assert lab.failures == []


@pytest.mark.parametrize("owned", [True, False])
def test_only_a_member_that_goes_with_its_pod_is_owned_by_it(lab: Lab, owned: bool) -> None:
    lab.own.write(Write(replace(ME, owned=owned), None))
    written = lab.api.get(MEMBERS, "node-0")
    assert written is not None
    assert ("ownerReferences" in written["metadata"]) is owned


@pytest.mark.parametrize(
    ("fault", "outcome", "told"),
    [
        (Lose(), WriteUnknown(), 0),
        (Answer(code=503), WriteUnknown(), 0),
        (Answer(code=409), WriteUnknown(), 0),
        (Answer(code=429), WriteFailed(busy=True), 1),
        (Refuse(), WriteFailed(), 1),
        (Answer(code=422), WriteFailed(invalid=True), 1),
        (Answer(code=404), WriteFailed(), 1),
        (Answer(code=401), WriteFailed(), 1),
        (Raise(error=ConfigError("the plug-in failed")), WriteFailed(), 1),
    ],
)
def test_a_create_that_fails(lab: Lab, fault: Any, outcome: object, told: int) -> None:
    lab.api.inject(fault, "POST", MEMBERS)
    assert lab.own.write(Write(ME, None)) == outcome
    assert len(lab.failures) == told


def test_a_replace_of_what_somebody_deleted_is_to_be_read_back(lab: Lab) -> None:
    assert lab.own.write(Write(ME, 50)) == WriteUnknown()
    assert lab.own.read() == OwnRead(None, 0)


def test_a_read_that_fails(lab: Lab) -> None:
    lab.api.inject(Refuse(), "GET", MEMBERS)
    assert lab.own.read() == ReadFailed()
    broken = lab.stored(ME)
    broken["spec"]["state"] = "dancing"
    lab.api.put(MEMBERS, broken)
    assert lab.own.read() == ReadFailed()


def test_the_member_of_an_agent_of_another_rendezvous_is_not_taken_for_an_own_one(lab: Lab) -> None:
    lab.stored(replace(ME, rendezvous="other", run_id="run", incarnation="node-0/2"))
    assert lab.own.write(Write(ME, None)) == WriteUnknown()
    assert lab.own.read() == ReadFailed()
    (error,) = lab.failures
    assert isinstance(error, NameTakenError)
    assert "RendezvousMember node-0 in namespace team belongs to Rendezvous other, not to job" in str(error)
    assert "--rdzv-conf=member=NAME" in str(error)


def test_a_closed_client_ends_the_requests(lab: Lab) -> None:
    lab.client.close()
    with pytest.raises(Stopped):
        lab.own.write(Write(ME, None))
    with pytest.raises(Stopped):
        lab.own.read()
