"""The agents of `bench.light`: whole ones, each in a process of its own, and light ones, thousands in a few processes.

A light agent is the product's own member side (`MemberLoop`, `OwnMember`, `LivenessClient`, a watch of the Round) without torch. It never
coordinates. It differs in what would not fit on one machine thousands of times: agents of one process share the connections that they
write with, each Round that they are shown is decoded once, and sixty-four of them share the thread of their liveness connections.
"""

from __future__ import annotations

import itertools
import os
import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

from bench.handlers import ADDRESS, Meeting
from bench.world import CREATE, END, JOIN, Commands, Plan

from rdzv.agent.agent import Agent
from rdzv.agent.interface import AgentSettings
from rdzv.agent.liveness import PING_SECONDS, Liveness
from rdzv.agent.liveness_client import LivenessClient
from rdzv.agent.loop import Loop
from rdzv.agent.member_loop import MemberLoop
from rdzv.agent.own_member import OwnMember
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.kube.watch import DELETED, SYNCED
from rdzv.objects import Object
from rdzv.protocol import coordinator, member
from rdzv.protocol.coordinator_state import CoordinatorState, Decision, Policy, View
from rdzv.protocol.events import (
    Accept,
    Action,
    Bound,
    Candidate,
    CoordinatorFound,
    CoordinatorLost,
    Identity,
    Join,
    Raise,
    Read,
    Rebind,
    RoundSeen,
    Tick,
    Timing,
    Write,
)
from rdzv.protocol.member_state import MemberState
from rdzv.protocol.records import Coordinator, Round, incarnation, resource_version
from rdzv.resources import ROUNDS

LOSE, TELL = b"l", b"t"
"""Commands: end one agent, without a word; report what steps of the coordinator took."""
MONITOR_SECONDS = 0.1
SILENCE_SECONDS = 60.0
"""After which the other end of a connection is dead: thousands on one machine wait for a processor for longer than the product's limit."""
_EACH_LOOP = 64
_AT_ONCE = 8
_STACK_BYTES = 256 * 1024


def identity(meeting: Meeting, slot: int) -> Identity:
    """Of an agent outside of pods."""
    name = f"{meeting.name}-{slot}"
    start = incarnation(name, "", secrets.token_hex(4))
    return Identity(
        meeting.name, meeting.run_id, name, start, ADDRESS, 0, slot=slot, owned=False, key=secrets.token_hex(16)
    )


def ports() -> Callable[[], int]:
    """Each call another number, as if a store had been bound there."""
    numbers = itertools.cycle(range(20_000, 60_000))
    return lambda: next(numbers)


# Whole agents.


class Steps:
    """What the coordinator's steps took, seconds of processor time."""

    def __init__(self) -> None:
        self.count, self.longest, self.processor = 0, 0.0, 0.0
        self._step = coordinator.step

    def __call__(self, state: CoordinatorState, view: View, now: float) -> tuple[CoordinatorState, Decision]:
        began = time.thread_time()
        try:
            return self._step(state, view, now)
        finally:
            took = time.thread_time() - began
            self.count, self.longest, self.processor = self.count + 1, max(self.longest, took), self.processor + took


def whole(meeting: Meeting, namespace: str, slot: int) -> Plan:
    """An agent as the product has it, but for torch."""
    return Plan(lambda commands: _be_whole(meeting, namespace, slot, commands))


def _be_whole(meeting: Meeting, namespace: str, slot: int, commands: Commands) -> None:
    steps, port = Steps(), ports()
    policy = Policy(meeting.least, meeting.most)
    settings = AgentSettings(namespace, identity(meeting, slot), Timing(), policy, port)
    with mock.patch.object(coordinator, "step", steps):
        agent: Agent | None = None
        joins = False
        while True:
            match commands.wait(MONITOR_SECONDS):
                case b"":
                    pass
                case command if command == CREATE:
                    patient = partial(Liveness, silence=SILENCE_SECONDS)
                    agent = Agent(Client(from_kubeconfig(meeting.kubeconfig)), settings, patient)
                    commands.say("created", pid=os.getpid())
                case command if command == JOIN:
                    joins = True
                case command if command == TELL:
                    commands.say("told", steps=steps.count, longest=steps.longest, processor=steps.processor)
                case _:
                    return
            if agent is not None and joins:
                joins = False
                began = time.monotonic()
                world = agent.join(port())
                commands.say("world", began=began, round=world.round, size=world.size, agents=1, candidates=0)
            joins = agent is not None and agent.num_nodes_waiting() > 0


# Light ones.


class Part:
    """A loop's part of one agent: names of its timers are its own."""

    def __init__(self, loop: Loop, name: str) -> None:
        self._loop, self._name = loop, name
        self.clock, self.call = loop.clock, loop.call
        self.watch, self.forget = loop.watch, loop.forget

    def at(self, key: str, when: float | None, function: Callable[[], None]) -> None:
        self._loop.at(f"{self._name}.{key}", when, function)


class Crowd:
    """The light agents of one process."""

    def __init__(self, meeting: Meeting, namespace: str, slots: Sequence[int], say: Callable[..., None]) -> None:
        self.meeting, self.namespace = meeting, namespace
        self.client = Client(from_kubeconfig(meeting.kubeconfig), idle=2 * _AT_ONCE)
        self.port = ports()
        self.entrance = threading.Semaphore(_AT_ONCE)
        self.requests: queue.SimpleQueue[tuple[Light, Write | Read]] = queue.SimpleQueue()
        self.candidates = 0
        self.began = 0.0
        self._size = 0
        self._say = say
        self._lock = threading.Lock()
        self._rounds: dict[int, Round] = {}
        self._accepted: dict[int, int] = {}
        self._numbers: Counter[int] = Counter()
        self._watching = threading.Semaphore(0)
        loops = [Loop(f"light-{number}") for number in range(-(-len(slots) // _EACH_LOOP))]
        self.agents = [Light(self, slot, loops[place // _EACH_LOOP]) for place, slot in enumerate(slots)]
        for number, loop in enumerate(loops):
            loop.start()
            self._ping(loop, self.agents[number * _EACH_LOOP : (number + 1) * _EACH_LOOP])
        for _ in range(_AT_ONCE):
            threading.Thread(target=self._request, daemon=True).start()

    def connect(self) -> None:
        """Every agent watches the Round from then on."""
        for agent in self.agents:
            threading.Thread(target=agent.follow, daemon=True).start()
        for _ in self.agents:
            self._watching.acquire()

    def watches(self) -> None:
        """Another agent does."""
        self._watching.release()

    def join(self) -> None:
        """Every agent asks for a world."""
        for agent in self.agents:
            agent.join()
        self.began = time.monotonic()
        self._tell()

    def lose(self) -> None:
        """One agent ends."""
        agent = self.agents.pop()
        agent.end()
        with self._lock:
            self._numbers[self._accepted.pop(agent.slot, 0)] -= 1

    def accepted(self, slot: int, world: Accept) -> None:
        """An agent is in a world; that all are in one and the same is said."""
        with self._lock:
            self._numbers[self._accepted.get(slot, 0)] -= 1
            self._accepted[slot] = world.round
            self._numbers[world.round] += 1
            self._size = world.size
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            number = max(self._accepted.values(), default=0)
            agents = self._numbers[number]
        if self.began and number and agents == len(self.agents):
            more = {"round": number, "size": self._size, "agents": agents, "candidates": self.candidates}
            self._say("world", began=self.began, **more)

    def round_of(self, obj: Object) -> Round:
        """Decoded once for all: ten thousand copies of a large one would need ten gigabytes."""
        rv = resource_version(obj)
        with self._lock:
            if rv not in self._rounds:
                self._rounds[rv] = Round.from_object(obj)
            return self._rounds[rv]

    def _request(self) -> None:
        while True:
            agent, action = self.requests.get()
            agent.feed(agent.record.write(action) if isinstance(action, Write) else agent.record.read())

    def _ping(self, loop: Loop, agents: Sequence[Light]) -> None:
        for agent in agents:
            agent.liveness.tick()
        loop.at("ping", loop.clock() + PING_SECONDS, lambda: self._ping(loop, agents))


class Light:
    """One agent: what it is told, decides by `member.step`, and does."""

    def __init__(self, crowd: Crowd, slot: int, loop: Loop) -> None:
        self.slot, self._crowd = slot, crowd
        me = identity(crowd.meeting, slot)
        part: Any = Part(loop, str(slot))
        self.liveness = LivenessClient(
            part,
            me.incarnation,
            lambda it: self.feed(CoordinatorLost(it)),
            lambda it: self.feed(CoordinatorFound(it)),
            silence=SILENCE_SECONDS,
        )
        self._loop = part
        self._member = MemberLoop(self._perform, lambda at: part.at("member", at, lambda: self.feed(Tick())))
        self._member.start(MemberState(me, Timing()))
        self.record = OwnMember(crowd.client, crowd.namespace, me.name, me.rendezvous, _ignore)
        self._watch = crowd.client.watch(ROUNDS, crowd.namespace, name=crowd.meeting.name)

    def feed(self, event: Any) -> None:
        self._member.feed(event)

    def join(self) -> None:
        self.feed(Join(self._crowd.port()))

    def follow(self) -> None:
        """Until `end`: what the watch shows. Few open theirs at once, with the connections that all share."""
        self._crowd.entrance.acquire()
        entering = True
        for event in self._watch.events():
            if event.type == SYNCED:
                if entering:
                    self._crowd.entrance.release()
                    self._crowd.watches()
                entering = False
            elif event.type != DELETED:
                self._see(self._crowd.round_of(event.object), resource_version(event.object))

    def end(self) -> None:
        self._watch.close()
        self._loop.call(lambda: self.liveness.follow(None))

    def _see(self, record: Round, rv: int) -> None:
        self.feed(RoundSeen(record, rv))
        target: Coordinator | None = record.coordinator
        self._loop.call(lambda: self.liveness.follow(target))
        state = self._member.state
        # As torch's agent does, which looks ten times a second.
        if state is not None and not state.joining and member.num_nodes_waiting(state):
            self.join()

    def _perform(self, action: Action) -> None:
        match action:
            case Write() | Read():
                self._crowd.requests.put((self, action))
            case Rebind():
                self.feed(Bound(self._crowd.port()))
            case Accept():
                self._crowd.accepted(self.slot, action)
            case Candidate():
                self._crowd.candidates += 1
            case Raise():
                raise RuntimeError(f"{self.slot}: {action.message}")


def _ignore(_error: Exception) -> None: ...


def crowd(meeting: Meeting, namespace: str, slots: Sequence[int]) -> Plan:
    """Light agents of these slots, in one process."""
    return Plan(lambda commands: _be_many(meeting, namespace, slots, commands))


def _be_many(meeting: Meeting, namespace: str, slots: Sequence[int], commands: Commands) -> None:
    threading.stack_size(_STACK_BYTES)
    many: Crowd | None = None
    while True:
        command = commands.wait()
        if command == CREATE:
            many = Crowd(meeting, namespace, slots, commands.say)
            many.connect()
            commands.say("created", pid=os.getpid())
        elif command == JOIN and many is not None:
            many.join()
        elif command == LOSE and many is not None:
            many.lose()
        else:
            assert command == END
            return
