"""Agent: what a join comes to, how it ends, and what is left behind, without sockets."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from support.scripted_api import Answer, Fault, Hold, Lose, Raise, Refuse, ScriptedApi
from unit.agent.lab import FakeLiveness, as_liveness, eventually

from rdzv.agent import troubles
from rdzv.agent.agent import Agent
from rdzv.agent.interface import AgentError, AgentSettings
from rdzv.agent.liveness import Callbacks, Liveness
from rdzv.agent.loop import Loop
from rdzv.kube import http_client
from rdzv.kube.config import ConfigError
from rdzv.protocol.coordinator_state import Policy
from rdzv.protocol.events import CLOSED_ERROR, CONNECTION, TIMEOUT, Accept, Identity, Timing
from rdzv.protocol.records import CLOSED, LEAVING, SUCCEEDED, Member, Round

ROUNDS, MEMBERS, RENDEZVOUS = "rendezvousrounds", "rendezvousmembers", "rendezvous"


class Lab:
    def __init__(self) -> None:
        self.api = ScriptedApi()
        self.agents: list[Agent] = []
        self.liveness: dict[str, FakeLiveness] = {}
        self.pool = ThreadPoolExecutor(8, "test")
        self.port = 4000

    def agent(self, slot: int = 0, low: int = 1, high: int = 1, join_timeout: float = 30, run: str = "run") -> Agent:
        def open_liveness(loop: Loop, incarnation: str, address: str, callbacks: Callbacks, _key: str) -> Liveness:
            found = self.liveness[incarnation] = FakeLiveness(loop, incarnation, address, callbacks)
            return as_liveness(found)

        identity = Identity(
            "job", run, f"node-{slot}", f"uid-{slot}/{len(self.agents)}", f"10.0.0.{slot}", 0, slot=slot
        )
        timing = Timing(join_timeout=join_timeout, bootstrap_delay=0.1, retry=0.02, retry_max=0.1)
        policy = Policy(low, high, last_call=0.2, settle=0.0)
        settings = AgentSettings("team", identity, timing, policy, self.rebind)
        agent = Agent(self.api.client(), settings, open_liveness)
        self.agents.append(agent)
        return agent

    def rebind(self) -> int:
        self.port += 1
        return self.port

    def join(self, agent: Agent) -> Future[Accept]:
        return self.pool.submit(lambda: agent.join(self.rebind()))

    def refused(self, agent: Agent) -> AgentError:
        error = self.join(agent).exception(30)
        assert isinstance(error, AgentError), error
        return error

    def member(self, slot: int) -> Member | None:
        obj = self.api.get(MEMBERS, f"node-{slot}")
        return Member.from_object(obj) if obj else None

    def round(self) -> Round | None:
        obj = self.api.get(ROUNDS, "job")
        return Round.from_object(obj) if obj else None


def agent_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rdzv-")]


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    for agent in lab.agents:
        agent.stop()
    lab.pool.shutdown()
    eventually(lambda: not agent_threads(), "the end of all threads")
    assert lab.api.open_connections() == 0


def test_several_form_a_world_that_ends_well(lab: Lab) -> None:
    agents = [lab.agent(slot, 3, 3) for slot in range(3)]
    worlds = [call.result(30) for call in [lab.join(agent) for agent in agents]]
    assert [(world.rank, world.size) for world in worlds] == [(0, 3), (1, 3), (2, 3)]
    assert len({world.leader for world in worlds}) == 1
    assert [agent.num_nodes_waiting() for agent in agents] == [0, 0, 0]
    assert all(lab.pool.map(lambda agent: agent.finish(True), agents))
    ended = lab.round()
    assert ended is not None
    assert (ended.phase, ended.closed and ended.closed.reason) == (CLOSED, "Succeeded")


def test_one_write_each(lab: Lab) -> None:
    agents = [lab.agent(slot, 3, 3) for slot in range(3)]
    for call in [lab.join(agent) for agent in agents]:
        call.result(30)
    assert len(lab.api.asked("POST", MEMBERS)) == 3
    assert lab.api.asked("PUT", MEMBERS) == []


def test_who_is_lost_is_replaced_as_coordinator_and_in_the_world(lab: Lab) -> None:
    agents = [lab.agent(slot, 2, 3) for slot in range(3)]
    for call in [lab.join(agent) for agent in agents]:
        call.result(30)
    first = lab.round()
    assert first is not None
    assert first.coordinator is not None
    agents[0].stop()
    for agent in agents[1:]:
        fake = lab.liveness[agent._identity.incarnation]
        assert fake.callbacks is not None
        fake.connected = frozenset(other._identity.incarnation for other in agents[1:] if other is not agent)
        fake.callbacks.lost(first.coordinator)
        fake.callbacks.peers()
    eventually(lambda: all(agent.num_nodes_waiting() for agent in agents[1:]), "asking to form anew")
    again = [call.result(30) for call in [lab.join(agent) for agent in agents[1:]]]
    assert [(world.rank, world.size) for world in again] == [(0, 2), (1, 2)]


REQUESTS = [
    ("WATCH", ROUNDS),
    ("GET", ROUNDS),
    ("POST", ROUNDS),
    ("PUT", ROUNDS),
    ("POST", MEMBERS),
    ("WATCH", MEMBERS),
]


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("kind", [Refuse, Lose, "401", "503", "plug-in", "unforeseen"])
def test_no_single_failure_of_a_request_keeps_a_world_from_forming(
    lab: Lab, request_: tuple[str, str], kind: Any
) -> None:
    made: dict[Any, Fault] = {
        "401": Answer(code=401),
        "503": Answer(code=503),
        "plug-in": Raise(error=ConfigError("exec plug-in x ended with code 1")),
        "unforeseen": Raise(error=RuntimeError("unforeseen")),
    }
    fault = lab.api.inject(made[kind] if isinstance(kind, str) else kind(), *request_)
    agents = [lab.agent(slot, 2, 2) for slot in range(2)]
    assert sorted(call.result(30).rank for call in [lab.join(agent) for agent in agents]) == [0, 1]
    assert fault.met.is_set()


def test_a_token_that_stays_bad_ends_the_join(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "UNAUTHORIZED_SECONDS", 0.5)
    lab.api.inject(Answer(code=401, message="Unauthorized"), "", "", times=-1)
    error = lab.refused(lab.agent(join_timeout=600))
    assert error.kind == CONNECTION
    assert "401: Unauthorized" in str(error)


def test_a_token_that_goes_bad_while_others_are_waited_for_ends_the_join(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "UNAUTHORIZED_SECONDS", 0.5)
    call = lab.join(lab.agent(0, 2, 2, join_timeout=600))
    eventually(lambda: lab.member(0))
    lab.api.inject(Answer(code=401, message="Unauthorized"), "", "", times=-1)
    lab.api.cut()
    error = call.exception(30)
    assert "401: Unauthorized" in str(error)


@pytest.mark.parametrize("run", ["run", "none"])
def test_an_api_server_that_is_away_is_named_with_address_source_and_cause(lab: Lab, run: str) -> None:
    lab.api.down = True
    began = time.monotonic()
    error = lab.refused(lab.agent(join_timeout=1, run=run))
    assert error.kind == CONNECTION
    assert "cannot connect to 10.0.0.1:6443 (a test): [Errno 111] Connection refused" in str(error)
    assert time.monotonic() - began < 20


def test_a_plug_in_that_always_fails_ends_the_join(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(troubles.PATIENCE_SECONDS, ConfigError, 0.3)
    lab.api.inject(Raise(error=ConfigError("exec plug-in x ended with code 1")), "", "", times=-1)
    error = lab.refused(lab.agent(join_timeout=600))
    assert str(error) == "exec plug-in x ended with code 1"


def test_a_member_of_the_own_name_in_another_rendezvous_is_told_at_once(lab: Lab) -> None:
    theirs = Member("node-0", "other", "run", "node-0/9", "10.0.0.9", 4000, 1, slot=0)
    lab.api.put(MEMBERS, theirs.to_object("team"))
    error = lab.refused(lab.agent(join_timeout=600))
    assert error.kind == CONNECTION
    assert "RendezvousMember node-0 in namespace team belongs to Rendezvous other" in str(error)
    assert "--rdzv-conf=member=NAME" in str(error)
    assert lab.member(0) == theirs, "it was overwritten"


def test_a_name_that_was_taken_can_be_used_when_it_is_free(lab: Lab) -> None:
    lab.api.put(MEMBERS, Member("node-0", "other", "run", "node-0/9", "10.0.0.9", 4000, 1).to_object("team"))
    agent = lab.agent()
    lab.refused(agent)
    lab.api.delete(MEMBERS, "node-0")
    assert lab.join(agent).result(30).size == 1


def test_a_store_that_cannot_be_reached_does_not_renew_the_deadline(lab: Lab) -> None:
    agent = lab.agent(join_timeout=2)
    began = time.monotonic()
    lab.join(agent).result(30)

    def forever() -> None:
        while time.monotonic() < began + 20:
            time.sleep(0.5)
            agent.rejoin(agent._member.state.accepted if agent._member.state else 0, None)

    with pytest.raises(AgentError, match="within 2 s") as caught:
        forever()
    assert caught.value.kind == TIMEOUT


def test_an_api_server_that_is_away_for_a_while_is_waited_for(lab: Lab) -> None:
    lab.api.down = True
    call = lab.join(lab.agent())
    time.sleep(0.5)
    lab.api.down = False
    assert call.result(30).size == 1


def test_sigterm_is_said_to_the_others_and_ends_the_join(lab: Lab) -> None:
    agent = lab.agent(0, 2, 2)
    call = lab.join(agent)
    eventually(lambda: lab.member(0))
    agent._sigterm()
    assert "is being stopped" in str(call.exception(30))
    eventually(lambda: (found := lab.member(0)) and found.state == LEAVING)


@pytest.mark.parametrize("end", [Agent._at_exit, Agent.abandon], ids=["the process ends", "the handler is dropped"])
def test_sigterm_is_said_to_the_others_although_the_end_comes_at_once(lab: Lab, end: Callable[[Agent], None]) -> None:
    agent = lab.agent()
    lab.join(agent).result(30)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        busy = threading.Event()

        def hold() -> None:
            busy.set()
            time.sleep(0.3)

        agent._loop.call(hold)
        assert busy.wait(5)  # It is past its look at the signals when this one comes.
        signal.raise_signal(signal.SIGTERM)
        end(agent)
    finally:
        signal.signal(signal.SIGTERM, before)
    eventually(agent._stop.is_set, "its end")
    found = lab.member(0)
    assert found is not None
    assert found.state == LEAVING


def test_closing_ends_the_wait_of_others(lab: Lab) -> None:
    waiting, closing = lab.agent(0, 3, 3), lab.agent(1, 3, 3)
    call = lab.join(waiting)
    eventually(lambda: lab.member(0))
    closing.close("Closed")
    error = call.exception(30)
    assert isinstance(error, AgentError)
    assert (error.kind, closing.is_closed()) == (CLOSED_ERROR, True)


def test_closing_works_after_shutdown(lab: Lab) -> None:
    agents = [lab.agent(slot, 2, 2) for slot in range(2)]
    for call in [lab.join(agent) for agent in agents]:
        call.result(30)
    agents[1].finish(False)
    agents[1].close("Closed")
    found = lab.round()
    assert found is not None
    assert found.phase == CLOSED
    assert agents[1].is_closed()
    agents[1].close("Closed")


def test_an_agent_that_is_stopped_ends_its_join(lab: Lab) -> None:
    agent = lab.agent(0, 2, 2)
    call = lab.join(agent)
    eventually(lambda: lab.member(0))
    agent.stop()
    assert "was shut down" in str(call.exception(30))
    assert "was shut down" in str(lab.join(agent).exception(30))


def test_an_agent_that_is_stopped_while_it_starts_leaves_no_thread(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    starting, go_on = threading.Event(), threading.Event()

    def connect(_client: object, _connections: int) -> None:
        starting.set()
        go_on.wait(10)

    monkeypatch.setattr(http_client.HttpClient, "connect", connect)
    agent = lab.agent()
    assert starting.wait(10)
    stopping = lab.pool.submit(agent.stop)
    client = agent._client
    assert isinstance(client, http_client.HttpClient)
    eventually(lambda: client._closed)
    go_on.set()
    stopping.result(30)
    eventually(lambda: not agent_threads(), "the end of its threads")


def test_an_agent_that_nobody_holds_any_more_ends_its_threads_and_connections(lab: Lab) -> None:
    agent = lab.agent()
    lab.join(agent).result(30)
    agent.abandon()
    eventually(lambda: not agent_threads(), "the end of its threads")
    eventually(lambda: lab.api.open_connections() == 0)


def test_a_reply_that_never_comes_does_not_hold_up_the_end(lab: Lab) -> None:
    hold = lab.api.inject(Hold(), "POST", MEMBERS)
    agent = lab.agent()
    call = lab.join(agent)
    assert hold.met.wait(10)
    agent.stop()
    assert "was shut down" in str(call.exception(30))


def test_success_is_known_before_the_end(lab: Lab) -> None:
    agent = lab.agent()
    lab.join(agent).result(30)
    assert agent.finish(True)
    found = lab.member(0)
    assert found is not None
    assert found.state == SUCCEEDED


def test_without_a_run_id_it_is_that_of_the_rendezvous(lab: Lab) -> None:
    obj = {"apiVersion": "rdzv.dev/v1alpha1", "kind": "Rendezvous", "metadata": {"name": "job"}, "spec": {}}
    uid = lab.api.put(RENDEZVOUS, obj)["metadata"]["uid"]
    agent = lab.agent(run="none")
    lab.join(agent).result(30)
    assert agent.run_id() == uid


def test_no_port_left_ends_the_join(lab: Lab) -> None:
    agent = lab.agent()
    lab.join(agent).result(30)

    def none_left() -> int:
        raise OSError(98, "Address already in use")

    object.__setattr__(agent._settings, "rebind", none_left)
    with pytest.raises(AgentError, match="Address already in use"):
        agent.rejoin(1, None)
