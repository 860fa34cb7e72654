"""What one agent does with what it is told: the member's decisions one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import pytest

from rdzv.protocol import events as ev
from rdzv.protocol.coordinator import close
from rdzv.protocol.encoding import (
    salted_fingerprints,
)
from rdzv.protocol.member import is_closed, is_closed_by, num_nodes_waiting, step
from rdzv.protocol.member_state import MemberState
from rdzv.protocol.records import (
    CLOSED,
    RUNNING,
    Closure,
    Coordinator,
    Endpoint,
    Leader,
    Member,
    Round,
)

ME = ev.Identity("job", "run", "pod-1", "uid-1/0", "10.0.0.1", 7001, "node-a", slot=1)
FIRST = Coordinator(0, "uid-0/0", "10.0.0.0", 7000, 1)
EMPTY = Round("job", "run", coordinator=FIRST)

T = TypeVar("T")


def world(number: int, members_rv: int, slots: tuple[int, ...] = (0, 1), **changes: Any) -> Round:
    salt, fingerprints = salted_fingerprints([f"uid-{slot}/0" for slot in slots])
    record = Round(
        "job",
        "run",
        round=number,
        phase=RUNNING,
        slots=slots,
        fingerprints=fingerprints,
        salt=salt,
        leader=Leader(slots[0], f"10.0.0.{slots[0]}", 1000),
        coordinator=FIRST,
        want=number,
        members_rv=members_rv,
    )
    return replace(record, **changes)


class Agent:
    """An agent on a table: say what happens, look what it does."""

    def __init__(self, me: ev.Identity = ME, timing: ev.Timing | None = None) -> None:
        self.state = MemberState(me, timing or ev.Timing())
        self.now = 0.0
        self.rv = 0
        self.actions: list[ev.Action] = []

    def sees(self, record: Round | None, rv: int | None = None) -> list[ev.Action]:
        self.rv = self.rv + 1 if rv is None else rv
        return self.gets(ev.RoundSeen(record, self.rv))

    def gets(self, event: ev.MemberEvent, later: float = 0.0) -> list[ev.Action]:
        self.now += later
        self.state, self.actions = step(self.state, event, self.now)
        return [action for action in self.actions if not isinstance(action, ev.Wake)]

    def one(self, kind: type[T]) -> T:
        found = [action for action in self.actions if isinstance(action, kind)]
        assert len(found) == 1, self.actions
        return found[0]

    def joined(self, number: int = 1, rv: int = 10) -> Agent:
        """The agent in the world of this number."""
        self.sees(replace(EMPTY, round=number - 1))
        self.gets(ev.Join(5000))
        self.gets(ev.Written(rv))
        self.sees(world(number, rv))
        self.one(ev.Accept)
        return self


def test_joins_with_one_write_once_the_round_is_known() -> None:
    agent = Agent()
    assert agent.gets(ev.Join(5000)) == []
    [write] = agent.sees(EMPTY)
    expected = Member("pod-1", "job", "run", "uid-1/0", "10.0.0.1", 5000, want_round=1, slot=1, node="node-a")
    assert write == ev.Write(expected, None)
    assert agent.gets(ev.Written(10)) == []
    assert agent.sees(world(1, members_rv=12)) == [ev.Accept(1, 1, 2, 1, Leader(0, "10.0.0.0", 1000), "")]
    assert agent.state.accepted == 1
    assert num_nodes_waiting(agent.state) == 0


def test_waits_for_its_own_reply_before_it_decides() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    assert agent.sees(world(1, members_rv=12)) == []
    agent.gets(ev.Written(12))
    assert agent.one(ev.Accept).rank == 1


@pytest.mark.parametrize(
    "record",
    [
        world(1, members_rv=9),
        world(1, members_rv=12, slots=(0, 2)),
        world(1, members_rv=12, want=2),
        replace(EMPTY, round=1),
    ],
    ids=["formed before the join", "another was counted", "to be formed anew", "forming again"],
)
def test_asks_again_with_another_store_when_it_was_not_counted(record: Round) -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    agent.gets(ev.Written(10))
    assert agent.sees(record) == [ev.Rebind()]
    agent.gets(ev.Bound(5001))
    write = agent.one(ev.Write)
    assert (write.member.want_round, write.member.port, write.rv) == (2, 5001, 10)


def test_old_events_change_nothing() -> None:
    agent = Agent().joined(number=3)
    before = agent.state
    agent.gets(ev.RoundSeen(world(2, 5, want=9), before.known.rv - 1))
    agent.gets(ev.RoundSeen(None, before.known.rv - 1))
    assert agent.state == before


@pytest.mark.parametrize(
    ("record", "waiting"),
    [
        (world(1, 10), 0),
        (world(1, 10, want=2), 1),
        (world(2, 10, slots=(0, 2)), 1),
        (replace(EMPTY, round=1, want=2), 1),
        (world(1, 10, phase=CLOSED), 0),
        (None, 0),
        (Round("job", "another run", round=9), 0),
    ],
)
def test_num_nodes_waiting(record: Round | None, waiting: int) -> None:
    agent = Agent()
    assert num_nodes_waiting(agent.state) == 0
    agent.joined()
    agent.sees(record)
    assert num_nodes_waiting(agent.state) == waiting


def test_a_lost_reply_is_followed_by_a_read() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    write = agent.one(ev.Write)
    assert agent.gets(ev.WriteUnknown()) == [ev.Read()]
    assert agent.gets(ev.OwnRead(write.member, 33)) == []
    agent.sees(world(1, members_rv=33))
    agent.one(ev.Accept)


def test_a_write_that_was_not_applied_is_made_again() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    write = agent.one(ev.Write)
    agent.gets(ev.WriteUnknown())
    # It may have been applied and deleted since, so this agent is no newer than its first look at the Round.
    assert agent.gets(ev.OwnRead(None, 0)) == [ev.Write(replace(write.member, first_rv=agent.rv), None)]


def test_the_member_of_an_earlier_start_is_replaced() -> None:
    agent = Agent(replace(ME, slot=None))
    agent.gets(ev.Join(5000))
    agent.sees(replace(EMPTY, round=4))
    write = agent.one(ev.Write)
    agent.gets(ev.WriteUnknown())
    earlier = replace(write.member, incarnation="uid-1/earlier", slot=3, allotted=True, seen_round=2)
    [again] = agent.gets(ev.OwnRead(earlier, 33))
    assert isinstance(again, ev.Write)
    assert again.rv == 33
    assert agent.state.slot == 3


def test_gives_way_to_a_later_pod_of_its_name() -> None:
    agent = Agent().joined()
    agent.gets(ev.Join(5001))
    agent.gets(ev.WriteUnknown())
    acked = agent.state.own.acked
    assert acked is not None
    agent.gets(ev.OwnRead(replace(acked, incarnation="uid-9/0"), 40))
    assert "another agent of the name pod-1, from 10.0.0.1, joined Rendezvous job later" in agent.one(ev.Raise).message
    assert not any(isinstance(action, ev.Write) for action in agent.actions)


def test_does_not_give_way_to_an_earlier_agent_of_its_name_that_makes_its_member_again() -> None:
    agent = Agent().joined(rv=30)
    agent.gets(ev.Join(5001))
    agent.gets(ev.WriteUnknown())
    acked = agent.state.own.acked
    assert acked is not None
    [again] = agent.gets(ev.OwnRead(replace(acked, incarnation="uid-0/0", first_rv=20), 40))
    assert isinstance(again, ev.Write)
    assert (again.rv, again.member.first_rv) == (40, 30)


def test_of_two_agents_of_one_name_outside_of_pods_the_earlier_is_told() -> None:
    agent = Agent(replace(ME, incarnation="pod-1/0", owned=False))
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    write = agent.one(ev.Write)
    agent.gets(ev.Written(10))
    assert agent.gets(ev.Tick(), later=10.0) == [ev.Read()]
    agent.gets(ev.OwnRead(replace(write.member, incarnation="pod-1/1", address="10.0.0.7"), 12))
    error = agent.one(ev.Raise)
    assert error.kind == ev.CLOSED_ERROR
    assert error.message == (
        "another agent of the name pod-1, from 10.0.0.7, joined Rendezvous job later and has its place: "
        "two agents that run at one time need two names (--rdzv-conf=member=NAME)"
    )


def test_every_write_but_the_first_repeats_when_the_first_was() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    assert agent.one(ev.Write).member.first_rv == 0
    agent.gets(ev.Written(10))
    agent.sees(world(1, 10))
    agent.gets(ev.Join(5001))
    assert agent.one(ev.Write).member.first_rv == 10
    agent.gets(ev.Written(20))
    agent.gets(ev.Sigterm())
    assert agent.one(ev.Write).member.first_rv == 10


def test_undoes_a_late_write_of_an_earlier_start() -> None:
    agent = Agent().joined()
    agent.gets(ev.Join(5001))
    agent.gets(ev.WriteUnknown())
    acked = agent.state.own.acked
    assert acked is not None
    [again] = agent.gets(ev.OwnRead(replace(acked, incarnation="uid-1/earlier"), 40))
    assert isinstance(again, ev.Write)
    assert again.rv == 40


def test_refused_writes_back_off() -> None:
    """And not all agents at one moment."""
    pauses: dict[str, list[float]] = {"uid-1/0": [], "uid-2/0": []}
    for incarnation, waited in pauses.items():
        agent = Agent(replace(ME, incarnation=incarnation))
        agent.gets(ev.Join(5000))
        agent.sees(EMPTY)
        for most in (0.2, 0.4, 0.8, 1.6, 2.5, 2.5):
            assert agent.gets(ev.WriteFailed()) == []
            wait = agent.one(ev.Wake).at - agent.now
            assert most / 2 <= wait <= most
            assert agent.gets(ev.Tick(), later=wait * 0.9) == []
            agent.gets(ev.Tick(), later=wait * 0.1 + 1e-6)
            agent.one(ev.Write)
            waited.append(wait)
    assert pauses["uid-1/0"] != pauses["uid-2/0"]


def test_a_server_that_is_back_and_busy_is_asked_again_soon() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    outcomes = [(ev.WriteFailed(), 0.2), (ev.WriteFailed(), 0.4), (ev.WriteFailed(), 0.8)]
    # Busy for long: longer, as before.
    outcomes += [(ev.WriteFailed(busy=True), most) for most in (0.2, 0.4, 0.8, 1.6)]
    for event, most in [*outcomes, (ev.WriteFailed(), 2.5), (ev.WriteFailed(busy=True), 0.2)]:
        assert agent.gets(event) == []
        wait = agent.one(ev.Wake).at - agent.now
        assert most / 2 <= wait <= most
        agent.gets(ev.Tick(), later=wait + 1e-6)
        agent.one(ev.Write)


def test_a_write_that_is_invalid_waits_for_another_crd() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    for _ in range(3):
        assert agent.gets(ev.WriteFailed(invalid=True)) == []
        assert agent.one(ev.Wake).at == agent.now + ev.INVALID_SECONDS
        agent.gets(ev.Tick(), later=ev.INVALID_SECONDS)
        agent.one(ev.Write)


def test_a_waiting_agent_looks_after_its_member() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    write = agent.one(ev.Write)
    agent.gets(ev.Written(10))
    assert agent.one(ev.Wake).at == 10.0
    assert agent.gets(ev.Tick(), later=10.0) == [ev.Read()]
    assert agent.gets(ev.OwnRead(None, 0)) == [ev.Write(replace(write.member, first_rv=10), None)]


def test_an_agent_in_a_world_does_nothing_by_itself() -> None:
    agent = Agent().joined()
    assert agent.actions == [agent.one(ev.Accept)]
    agent.gets(ev.Tick(), later=1e6)
    assert agent.actions == []


def test_times_out() -> None:
    agent = Agent(timing=ev.Timing(join_timeout=60))
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    agent.gets(ev.Written(10))
    agent.gets(ev.Tick(), later=60)
    error = agent.one(ev.Raise)
    assert error.kind == ev.TIMEOUT
    assert error.message == "Rendezvous job did not form a round within 60 s"
    assert agent.one(ev.Write).member.state == "leaving"


@pytest.mark.parametrize("known", [False, True])
def test_an_unreachable_api_server_is_a_connection_error(known: bool) -> None:
    agent = Agent(timing=ev.Timing(join_timeout=60))
    agent.gets(ev.Join(5000))
    if known:
        agent.sees(EMPTY)
        agent.gets(ev.WriteFailed())
    agent.gets(ev.Tick(), later=60)
    assert agent.one(ev.Raise).kind == ev.CONNECTION


def test_a_spare_waits_without_a_deadline_until_a_round_forms() -> None:
    agent = Agent(timing=ev.Timing(join_timeout=60, check_interval=1e9))
    agent.gets(ev.Join(5000))
    agent.sees(world(1, 5, slots=(0, 2)))
    agent.gets(ev.Written(10))
    assert agent.gets(ev.Tick(), later=1e6) == []
    agent.sees(world(1, 5, slots=(0, 2), want=2))
    assert agent.one(ev.Wake).at == agent.now + 60
    agent.gets(ev.Tick(), later=60)
    assert agent.one(ev.Raise).kind == ev.TIMEOUT


@pytest.mark.parametrize(("reason", "kind"), [("Succeeded", ev.GRACEFUL), ("Requested", ev.CLOSED_ERROR)])
def test_a_spare_is_released_when_the_job_ends(reason: str, kind: str) -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(world(1, 5, slots=(0, 2)))
    agent.gets(ev.Written(10))
    agent.sees(world(1, 15, slots=(0, 2), phase=CLOSED, closed=Closure(reason, "pod-0")))
    assert agent.one(ev.Raise).kind == kind


def test_who_joined_after_the_last_success_waits_for_the_next_run() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(world(1, 5, slots=(0, 2)))
    closed = world(1, 15, slots=(0, 2), phase=CLOSED, closed=Closure("Succeeded", "pod-0"))
    assert agent.sees(closed) == []
    assert agent.gets(ev.Written(16)) == []
    assert agent.state.joining


def test_a_later_run_starts_from_a_closed_round() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(world(6, 5, phase=CLOSED, closed=Closure("Succeeded", "pod-0")))
    assert agent.one(ev.Write).member.want_round == 7
    assert not is_closed(agent.state)


@pytest.mark.parametrize(
    "closed",
    [
        Round("job", "run", phase=CLOSED, closed=Closure("Closed", "pod-0")),
        world(6, 5, phase=CLOSED, closed=Closure("Closed", "pod-0")),
    ],
    ids=["before the first world", "after some"],
)
def test_a_round_closed_with_an_error_is_closed_for_those_who_come_later(closed: Round) -> None:
    agent = Agent()
    agent.sees(closed)
    assert is_closed(agent.state), "also when it is this agent that closed it before anybody joined"
    agent.gets(ev.Join(5000))
    error = agent.one(ev.Raise)
    assert error.kind == ev.CLOSED_ERROR
    assert error.message == (
        "Rendezvous job was closed by pod-0: Closed; it is opened again when its RendezvousRound is deleted"
    )
    assert not any(isinstance(action, (ev.Candidate, ev.Write)) for action in agent.actions)


def test_closing_after_an_earlier_run_succeeded_closes() -> None:
    agent = Agent()
    succeeded = world(6, 5, phase=CLOSED, closed=Closure("Succeeded", "pod-0"))
    agent.sees(succeeded)
    assert not is_closed_by(agent.state, succeeded)
    assert is_closed_by(agent.state, close(succeeded, "Closed", "pod-1"))


def test_who_trains_in_a_world_that_is_ended_learns_of_it() -> None:
    """torch's agent asks for nothing but the nodes that wait while its workers run."""
    agent = Agent().joined()
    agent.sees(world(1, 10, phase=CLOSED, closed=Closure("Succeeded", "pod-0")))
    assert num_nodes_waiting(agent.state) == 0, "those who are not done yet go on"
    agent.sees(world(1, 10, phase=CLOSED, closed=Closure("TooManyReforms", "pod-0")))
    assert num_nodes_waiting(agent.state) == 1
    agent.gets(ev.Join(5001))
    assert agent.one(ev.Raise).kind == ev.CLOSED_ERROR


def test_who_is_refused_is_told_at_once_and_as_often_as_it_asks() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(Round("job", "another", round=3))
    agent.gets(ev.Refused("run another uses Rendezvous job"))
    assert agent.one(ev.Raise) == ev.Raise(ev.CLOSED_ERROR, "run another uses Rendezvous job")
    agent.gets(ev.Join(5001))
    agent.one(ev.Raise)
    agent.sees(EMPTY)
    agent.gets(ev.Join(5002))
    agent.one(ev.Write)


def test_sigterm_is_announced_at_once_and_is_final() -> None:
    agent = Agent().joined()
    [write] = agent.gets(ev.Sigterm())
    assert isinstance(write, ev.Write)
    assert (write.member.state, write.member.want_round, write.rv) == ("leaving", 1, 10)
    agent.gets(ev.Written(11))
    agent.gets(ev.Join(5001))
    assert agent.one(ev.Raise).kind == ev.CLOSED_ERROR
    assert agent.gets(ev.Finished(success=False)) == []


def test_one_call_has_one_deadline() -> None:
    """Also when it began before the agent could start, and when the leader of a round can't be reached."""
    agent = Agent(timing=ev.Timing(join_timeout=60, check_interval=1e9))
    agent.sees(EMPTY)
    agent.gets(ev.Join(5000, waited=20))
    assert agent.one(ev.Wake).at == 40
    agent.gets(ev.Written(10), later=10)
    agent.sees(world(1, 10))
    agent.one(ev.Accept)
    agent.gets(ev.LeaderUnreachable(1), later=20)
    agent.gets(ev.Bound(5001))
    agent.gets(ev.Written(11))
    assert agent.one(ev.Wake).at == 40, "one that is in the running world is no spare"
    agent.gets(ev.Tick(), later=10)
    assert agent.one(ev.Raise).kind == ev.TIMEOUT


def test_who_gave_up_the_coordination_does_not_take_itself_for_dead() -> None:
    agent = Agent().joined()
    own = Coordinator(1, ME.incarnation, ME.address, ME.port, 1)
    agent.sees(world(1, 10, coordinator=own))
    agent.gets(ev.SteppedDown(agent.rv))
    agent.gets(ev.Tick(), later=1e3)
    assert agent.one(ev.Candidate) == ev.Candidate(None)


@pytest.mark.parametrize(("success", "word"), [(True, "succeeded"), (False, "failed")])
def test_the_end_is_told(success: bool, word: str) -> None:
    agent = Agent().joined()
    [write] = agent.gets(ev.Finished(success))
    assert isinstance(write, ev.Write)
    assert write.member.state == word


def test_a_rendezvous_made_again_refuses_old_members() -> None:
    agent = Agent().joined()
    agent.sees(None)
    agent.sees(Round("job", "another run"))
    agent.gets(ev.Join(5001))
    agent.gets(ev.Tick(), later=5.0)
    assert agent.state.joining
    agent.gets(ev.Tick(), later=5.0)
    assert "deleted and made again" in agent.one(ev.Raise).message


def test_the_round_of_another_run_is_waited_out_by_a_new_member() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    assert agent.sees(Round("job", "old run", round=8)) == []
    agent.sees(None)
    agent.sees(EMPTY)
    assert agent.one(ev.Write).member.want_round == 1


def test_a_deleted_round_is_asked_for_beyond_what_was_seen() -> None:
    agent = Agent().joined(number=4)
    assert agent.sees(None) == []
    [nudge] = agent.sees(replace(EMPTY, round=1))
    assert isinstance(nudge, ev.Write)
    assert (nudge.member.seen_round, nudge.member.want_round) == (4, 4)
    agent.gets(ev.Written(20))
    assert num_nodes_waiting(agent.state) == 0
    agent.sees(replace(EMPTY, round=4, want=5))
    assert num_nodes_waiting(agent.state) == 1
    agent.gets(ev.Join(5001))
    assert agent.one(ev.Write).member.want_round == 5


def test_a_round_made_again_is_asked_anew_whatever_its_number() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(replace(EMPTY, uid="first"))
    assert agent.one(ev.Write).member.round_uid == "first"
    agent.gets(ev.Written(10))
    assert agent.sees(replace(EMPTY, uid="second")) == [ev.Rebind()]
    agent.gets(ev.Bound(5001))
    assert agent.one(ev.Write).member.round_uid == "second"


def test_a_world_ends_when_its_round_is_made_again_with_the_same_number() -> None:
    agent = Agent().joined()
    agent.sees(world(1, 20, uid="second"))
    assert num_nodes_waiting(agent.state) == 1


def test_the_pod_that_does_not_get_its_slot_is_told() -> None:
    agent = Agent()
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    agent.gets(ev.Written(10))
    salt, fingerprints = salted_fingerprints(["uid-0/0", "newer/0"])
    agent.sees(world(1, members_rv=12, salt=salt, fingerprints=fingerprints))
    assert "slot 1 of Rendezvous job is held by another pod" in agent.one(ev.Raise).message


def test_a_pod_without_a_slot_learns_it_from_the_round() -> None:
    agent = Agent(replace(ME, slot=None))
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    assert agent.one(ev.Write).member.slot is None
    agent.gets(ev.Written(10))
    salt, fingerprints = salted_fingerprints(["a/0", "uid-1/0", "b/0"])
    agent.sees(world(1, 10, slots=(0, 4, 7), salt=salt, fingerprints=fingerprints))
    accept = agent.one(ev.Accept)
    assert (accept.rank, accept.slot) == (1, 4)
    agent.gets(ev.Join(5001))
    write = agent.one(ev.Write)
    assert (write.member.slot, write.member.allotted) == (4, True)


def test_does_not_lead_with_a_store_of_an_earlier_request() -> None:
    agent = Agent(replace(ME, slot=0, incarnation="uid-0/0", address="10.0.0.0"))
    agent.gets(ev.Join(5000))
    agent.sees(EMPTY)
    agent.gets(ev.Written(10))
    assert agent.sees(world(1, 10)) == [ev.Rebind()]


def test_an_unreachable_leader_is_left() -> None:
    agent = Agent().joined()
    assert agent.gets(ev.LeaderUnreachable(1)) == [ev.Rebind()]
    agent.gets(ev.Bound(5001))
    assert agent.one(ev.Write).member.want_round == 2


def test_who_could_not_reach_a_store_says_so_until_it_reaches_that_of_the_others() -> None:
    agent = Agent().joined()
    agent.gets(ev.LeaderUnreachable(1, Endpoint("10.0.0.0", 1000)))
    agent.gets(ev.Bound(5001))
    assert agent.one(ev.Write).member.unreachable == Endpoint("10.0.0.0", 1000)
    agent.gets(ev.Written(11))
    without = Leader(0, "10.0.0.0", 1001)
    agent.sees(world(2, 11, (0, 2), leader=without))
    assert agent.gets(ev.StoreReached(Endpoint("10.0.0.0", 1000))) == [], "that store is of no use any more"
    agent.gets(ev.StoreReached(Endpoint("10.0.0.0", 1001)))
    said = agent.one(ev.Write).member
    assert (said.unreachable, said.want_round, said.port) == (None, 2, 5001)


def test_slot_zero_coordinates_at_once_the_others_later() -> None:
    zero = Agent(replace(ME, slot=0))
    zero.gets(ev.Join(5000))
    zero.sees(Round("job", "run"))
    assert zero.one(ev.Candidate).lost is None
    one = Agent()
    one.gets(ev.Join(5000))
    one.sees(Round("job", "run"))
    one.gets(ev.Written(10))
    one.gets(ev.Tick(), later=1.14)
    assert not any(isinstance(action, ev.Candidate) for action in one.actions)
    one.gets(ev.Tick(), later=0.02)
    one.one(ev.Candidate)


def test_the_round_is_made_before_anybody_joins() -> None:
    zero, one = Agent(replace(ME, slot=0)), Agent()
    for agent in (zero, one):
        agent.gets(ev.RoundSeen(None, 0))
    assert zero.one(ev.Candidate).lost is None
    assert one.one(ev.Wake).at == pytest.approx(1.15)
    assert one.sees(EMPTY) == []
    one.gets(ev.Tick(), later=2)
    assert not any(isinstance(action, ev.Candidate) for action in one.actions), "somebody else has made it"


@pytest.mark.parametrize("record", [replace(EMPTY, run_id="another"), replace(EMPTY, coordinator=None)])
def test_nothing_is_coordinated_early_where_there_is_a_round(record: Round) -> None:
    zero = Agent(replace(ME, slot=0))
    assert zero.sees(record) == []


def test_pods_without_an_index_do_not_wait_for_one_that_has() -> None:
    delays = set()
    for number in range(20):
        agent = Agent(replace(ME, slot=None, incarnation=f"uid-{number}/0"))
        assert agent.gets(ev.RoundSeen(None, 0)) == [] or not agent.actions
        delays.add(agent.one(ev.Wake).at)
    assert max(delays) < 0.5
    assert len(delays) > 10


def test_successors_take_over_in_the_order_of_slots() -> None:
    delays = {}
    for slot in (1, 2, 5):
        agent = Agent(replace(ME, slot=slot, incarnation=f"uid-{slot}/0"))
        agent.sees(EMPTY)
        agent.gets(ev.Join(5000))
        agent.gets(ev.Written(10))
        agent.sees(world(1, 10, slots=(0, 1, 2, 5)))
        actions = agent.gets(ev.CoordinatorLost(FIRST))
        if actions:
            delays[slot] = 0.0
            assert actions == [ev.Candidate(FIRST)]
        else:
            delays[slot] = agent.one(ev.Wake).at
    assert delays == {1: 0.0, 2: pytest.approx(0.15), 5: pytest.approx(0.30)}


def test_no_takeover_when_another_was_faster_or_it_came_back() -> None:
    agent = Agent(replace(ME, slot=2, incarnation="uid-2/0"))
    agent.sees(EMPTY)
    agent.gets(ev.Join(5000))
    agent.gets(ev.Written(10))
    agent.sees(world(1, 10, slots=(0, 1, 2)))
    agent.gets(ev.CoordinatorLost(FIRST))
    agent.gets(ev.CoordinatorFound(FIRST))
    assert agent.gets(ev.Tick(), later=1.0) == []
    agent.gets(ev.CoordinatorLost(FIRST))
    agent.sees(world(1, 10, slots=(0, 1, 2), coordinator=Coordinator(1, "uid-1/0", "10.0.0.1", 1, 2)))
    assert agent.gets(ev.Tick(), later=1.0) == []
