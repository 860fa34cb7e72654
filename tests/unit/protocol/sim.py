"""A simulated cluster for the protocol: API server, network, clocks, operator, agents that crash; all from one seed.

Runs the production functions `rdzv.protocol.member.step` and `rdzv.protocol.coordinator.step` and nothing else of the product. What
must never happen raises `Violation`. Schedules are drawn in `scenarios`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from unit.protocol.links import OPEN, SILENT, Links

from rdzv.pairs import Pair
from rdzv.protocol import coordinator, member
from rdzv.protocol import events as ev
from rdzv.protocol.coordinator_state import CoordinatorState, Policy, View
from rdzv.protocol.fields import replace
from rdzv.protocol.member_state import MemberState, Standing
from rdzv.protocol.pace import Pace
from rdzv.protocol.records import CLOSED, LIVE, RUNNING, Coordinator, Endpoint, Member, Round
from rdzv.protocol.roster import Roster, Site

NAME = "job"
Counted = dict[str, tuple[Member, int]]
SILENCE = 3.0
GROUP = 2
"""Pods of a group, where they have pairs."""
"""After which a connection that says nothing counts as broken; after half of it its peer is suspected."""
RECONNECT, DOUBT = 1.0, 1.0
"""How long a peer whose connection broke has to connect again; after which one that says nothing, or never connected, is doubted."""
STEADY = 1.5
"""Who has been connected, and answering, for so long does not give way to a later agent with its slot."""
SPREAD = (0.1, 0.3)
"""Until an agent connects to a new coordinator."""
PROBE = 2.0
"""Between the attempts of a coordinator to connect to the stores of those who are left out."""
CONNECT, REFUSAL, STORE = 2.0, 0.5, 5.0
"""How long an agent tries in silence to connect to the coordinator; to the store: until it is refused for good; in silence."""


class Violation(AssertionError):  # noqa: N818 - what it is called in the literature
    """The protocol did what it must not do, or did not do what it must."""


@dataclass
class Pod:
    """A pod: what the operator knows of it, and the process in it (None between restarts)."""

    name: str
    uid: str
    slot: int | None
    run: str
    address: str
    grouped: bool = False
    """Its slot is not its own: it is told a pair that follows from it."""
    movable: bool = False
    """Its slot is its index, and it takes any other one."""
    old: bool = False
    """Its agent is of a release that knows no pairs: it has no index then, and ignores those of others."""
    boots: int = 0
    process: Process | None = None
    gone: bool = False
    draining: bool = False
    exited: bool = False


@dataclass
class CoordinatorSide:
    """The coordinator function running in one process, with its caches."""

    state: CoordinatorState
    members: dict[str, tuple[Member, int]]
    members_rv: int
    position: int
    busy: bool = False
    dirty: bool = False
    dead: set[str] = field(default_factory=set)
    connected: set[str] = field(default_factory=set)
    suspected: set[str] = field(default_factory=set)
    doubted: set[str] = field(default_factory=set)
    asked: frozenset[str] = frozenset()
    probes: dict[str, Endpoint] = field(default_factory=dict)
    due: float = 0.0
    wake: int = 0


class Process:
    """One agent process: one incarnation of its pod."""

    def __init__(self, pod: Pod, incarnation: str, offset: float, rate: float, timing: ev.Timing, port: int) -> None:
        self.pod = pod
        own = None if pod.grouped or pod.movable else pod.slot
        me = ev.Identity(NAME, pod.run, pod.name, incarnation, pod.address, port, "node", own)
        if pod.grouped and pod.slot is not None and not pod.old:
            me = replace(me, pair=Pair(str(pod.slot // GROUP), pod.slot % GROUP))
        if pod.movable and pod.slot is not None:
            me = replace(me, pair=Pair("", pod.slot))
        self.me = me
        self.state = MemberState(self.me, timing)
        self.offset, self.rate = offset, rate
        self.alive = True
        self.cut_until = 0.0
        self.frozen_until = 0.0  # stopped by SIGSTOP: it does nothing, and goes on later as if no time had passed
        self.steady_since = 0.0  # nothing has befallen it or its connection since
        self.revoked = False  # its token is bound to a pod that was deleted
        self.generation = 0  # of the watch of the Round
        self.due = 0.0
        self.wake = 0
        self.store = 0
        self.world: ev.Accept | None = None
        self.rejoining = False
        self.round: tuple[Round | None, int] = (None, 0)
        self.coordinates: CoordinatorSide | None = None
        self.link: Coordinator | None = None  # that a connection is tried to
        self.held: CoordinatorSide | None = None  # that a connection stands to
        self.attempt = 0  # number of the last attempt to connect; those before are given up
        self.told: bool | None = None  # whether the connection to `link` was reported as found or lost
        self.raised = ""


def _place(claim: Pair) -> int:
    """The slot that a pod's pair follows from."""
    return int(claim.group or 0) * GROUP + claim.index


class Sim:
    """One schedule. `run()` plays it to the end."""

    def __init__(self, seed: int, scenario: Scenario) -> None:
        self.random = random.Random(seed)
        self.scenario = scenario
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.sequence = count()
        self.ports = count(20000)
        self.rv = 10
        self.round: tuple[Round, int] | None = None
        self.round_log: list[tuple[int, Round | None]] = [(1, None)]
        self.members: dict[str, tuple[Member, int]] = {}
        self.member_log: list[tuple[int, str, Member | None]] = []
        self.first_write: dict[str, int] = {}  # resourceVersion of the first write of each incarnation
        self.taken_for_dead: set[str] = set()  # by a coordinator that wrote a Round
        self.sent: dict[str, int] = {}  # Number of the write that each Member is of, in the order of sending.
        self.pods: list[Pod] = []
        self.pod_names = count()
        self.run_id = "run-0"
        self.roster: Roster | None = None
        self.roster_frozen = False
        self.racks: dict[str, str] = {}
        self.api_down = False
        self.links = Links()
        self.faults = True
        self.writes: dict[str, int] = {}
        self.formed_at = 0.0
        """When the round of the highest number was written first."""
        self.namings = 0
        """Writes of the Round that change nothing but who is left out, for people."""
        self.conflicts = 0
        self.trace: list[str] | None = None
        # What the properties are checked against.
        self.committed: dict[tuple[str, int], Round] = {}
        self.counted: dict[tuple[str, int], Counted] = {}
        self.accepted: dict[tuple[str, int], dict[str, ev.Accept]] = {}
        self.leaders: dict[tuple[str, int], tuple[str, int]] = {}
        self.closed: set[tuple[str, int]] = set()

    # Time and network.

    def at(self, delay: float, action: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self.queue, (self.now + delay, next(self.sequence), action, args))

    def delay(self) -> float:
        if self.faults and self.random.random() < self.scenario.slow:
            return self.random.uniform(0.05, 1.5)
        return self.random.uniform(0.001, 0.01)

    def log(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:9.4f} {text}")

    def request(
        self,
        process: Process,
        apply: Callable[[], Any],
        answer: Callable[[Any], None],
        refused: Callable[[], None],
        unknown: Callable[[], None],
    ) -> None:
        """One request: carried out or not, answered or not, late or not."""
        draw = self.random.random() if self.faults else 1.0
        if process.revoked or self.api_down or self.now < process.cut_until:
            if self.random.random() < 0.5:
                self.at(0.05, self._if_alive, process, refused)
            else:
                self.at(1.0, self._if_alive, process, unknown)
            return
        lost = self.scenario.lost
        if draw < lost / 3:  # never arrives
            self.at(1.0, self._if_alive, process, unknown)
        elif draw < lost * 2 / 3:  # applied at once, the reply is lost
            self.at(self.delay(), apply)
            self.at(1.0, self._if_alive, process, unknown)
        elif draw < lost:  # given up on, applied later
            self.at(1.0, self._if_alive, process, unknown)
            self.at(1.0 + self.random.uniform(0, 2), apply)
        else:
            self.at(self.delay(), self._arrive, process, apply, answer, unknown)

    def _arrive(
        self, process: Process, apply: Callable[[], Any], answer: Callable[[Any], None], unknown: Callable[[], None]
    ) -> None:
        result = apply()
        if self.api_down:
            self.at(1.0, self._if_alive, process, unknown)
        else:
            self.at(self.delay(), self._if_alive, process, answer, result)

    def _if_alive(self, process: Process, action: Callable[..., None], *args: Any) -> None:
        if process.alive:
            action(*args)

    # API server.

    def put_round(self, by: str, record: Round, condition: int | None, counted: Counted) -> tuple[str, int, str]:
        current = self.round
        if (current[1] if current else None) != condition:
            self.conflicts += 1
            self.log(f"{by} conflict on Round")
            return "conflict", 0, ""
        if current is not None and replace(record, left_out=(), uid="") == replace(current[0], left_out=(), uid=""):
            self.namings += 1
        else:
            self.writes[by] = self.writes.get(by, 0) + 1
        self.check_round(record, counted)
        if current is None or record.round > current[0].round:
            self.formed_at = self.now
        self.rv += 1
        record = replace(record, uid=current[0].uid if current else f"round-{self.rv}")
        self.round = (record, self.rv)
        self.log(f"{by} writes Round rv={self.rv} {show_round(record)}")
        self.publish_round(record)
        return "ok", self.rv, record.uid

    def delete_round(self) -> None:
        if self.round is not None:
            self.rv += 1
            self.round = None
            self.log("Round deleted")
            self.publish_round(None)

    def publish_round(self, record: Round | None) -> None:
        self.round_log.append((self.rv, record))
        index = len(self.round_log) - 1
        for process in self.processes():
            self.push_round(process, process.generation, index)

    def push_round(self, process: Process, generation: int, index: int) -> None:
        if generation >= 0:
            process.due = max(process.due + 1e-6, self.now + self.delay())
            self.at(process.due - self.now, self.deliver_round, process, generation, index)

    def deliver_round(self, process: Process, generation: int, index: int) -> None:
        if not process.alive or process.generation != generation:
            return
        if self.api_down or self.now < process.cut_until:
            self.reconnect(process)
            return
        rv, record = self.round_log[index]
        self.see_round(process, record, rv)

    def reconnect(self, process: Process) -> None:
        """The watch breaks and is opened again, first served from a cache that may be behind."""
        process.generation += 1
        self.at(self.random.uniform(0.05, 0.4), self._reconnected, process, process.generation)

    def _reconnected(self, process: Process, generation: int) -> None:
        if not process.alive or process.generation != generation:
            return
        if self.api_down or self.now < process.cut_until:
            self.at(0.3, self._reconnected, process, generation)
            return
        last = len(self.round_log) - 1
        first = max(0, last - self.random.randrange(3)) if self.faults else last
        for index in range(first, last + 1):
            self.push_round(process, generation, index)

    def put_member(self, record: Member, condition: int | None, sent: int) -> tuple[str, int]:
        current = self.members.get(record.name)
        if (current[1] if current else None) != condition:
            self.conflicts += 1
            self.log(f"{record.name} conflict on Member")
            return "conflict", 0
        if current is not None and sent < self.sent[record.name]:
            raise Violation(f"a late write of {record} undoes {current}")
        self.sent[record.name] = sent
        self.first_write.setdefault(record.incarnation, self.rv + 1)
        self.writes[record.name] = self.writes.get(record.name, 0) + 1
        self.log(
            f"{record.name} writes Member rv={self.rv + 1} want={record.want_round} seen={record.seen_round} {record.state}"
        )
        self.publish_member(record.name, record)
        return "ok", self.rv

    def publish_member(self, name: str, record: Member | None) -> None:
        self.rv += 1
        if record is None:
            self.members.pop(name, None)
        else:
            self.members[name] = (record, self.rv)
        self.member_log.append((self.rv, name, record))
        for process in self.processes():
            if process.coordinates is not None:
                self.push_member(process, process.coordinates)

    def delete_member(self, name: str, uid: str | None = None) -> None:
        if name in self.members and uid in (None, self.members[name][0].pod_uid):
            self.log(f"Member {name} deleted")
            self.publish_member(name, None)

    def push_member(self, process: Process, side: CoordinatorSide) -> None:
        side.due = max(side.due + 1e-6, self.now + self.delay())
        self.at(side.due - self.now, self.deliver_member, process, side)

    def deliver_member(self, process: Process, side: CoordinatorSide) -> None:
        if not process.alive or process.coordinates is not side or side.position >= len(self.member_log):
            return
        if self.api_down or self.now < process.cut_until:
            self.at(0.3, self.deliver_member, process, side)
            return
        rv, name, record = self.member_log[side.position]
        side.position += 1
        side.members_rv = rv
        if record is None:
            side.members.pop(name, None)
        else:
            side.members[name] = (record, rv)
        self.coordinate(process)

    # Properties that hold at every write and every accepted world.

    def check_round(self, record: Round, counted: Counted) -> None:
        if self.round is not None and self.round[0].run_id == record.run_id and record.round < self.round[0].round:
            raise Violation(f"round number goes back from {self.round[0].round} to {record.round}")
        if record.phase == CLOSED:
            self.check_closed(record)
            self.closed.add((record.run_id, record.round))
        if record.phase != RUNNING:
            return
        key = (record.run_id, record.round)
        known = self.committed.get(key)
        world = (record.slots, record.fingerprints, record.leader)
        if known is not None and (known.slots, known.fingerprints, known.leader) == world:
            return
        # Where nobody is left who knew (every process and every object gone), numbers may begin again.
        witnesses = [p for p in self.processes() if p.me.run_id == record.run_id and not p.pod.gone]
        latest = max((p.state.known.highest_seen for p in witnesses), default=0)
        if record.round <= latest:
            raise Violation(f"round {record.round} is formed after round {latest}: {known} and {record}")
        if record.leader is None or not self.scenario.least_ever <= record.size <= self.scenario.most_ever:
            raise Violation(f"a world of {record.size}")
        strangers = [who for who, (m, _) in counted.items() if m.run_id != record.run_id or m.round_uid != record.uid]
        if strangers:
            raise Violation(f"round {record.round} counts {strangers}, which did not ask this Round")
        endpoint = (record.leader.address, record.leader.port)
        if endpoint in self.leaders:
            raise Violation(f"rounds {self.leaders[endpoint]} and {key} share the store {endpoint}")
        self.leaders[endpoint] = key
        self.committed[key], self.counted[key], self.accepted[key] = record, counted, {}

    def check_order(self, before: Round | None, record: Round, counted: Counted) -> None:
        """Where ranks are to follow sites: who stays keeps its order, whatever was told; of a new world it is as told."""
        sites = self.roster.sites if self.roster is not None and self.roster.run_id == record.run_id else None
        fixed = any(each.index is not None for each, _ in counted.values())
        if sites is None or fixed or record.phase != RUNNING or before is None or before.round == record.round:
            return
        ranked = sorted(counted, key=lambda who: record.rank_of(who) or 0)
        stay = [who for who in ranked if before.phase == RUNNING and before.rank_of(who) is not None]
        if stay != sorted(stay, key=lambda who: before.rank_of(who) or 0):
            raise Violation(f"who stays in round {record.round} is moved: {stay}")
        told = {uid: position for position, site in enumerate(sites) for uid in site.pods}
        places = [
            (told.get(each.pod_uid, len(sites)), _place(each.claim) if each.claim else -1)
            for each in (counted[who][0] for who in ranked)
        ]
        if not stay and places != sorted(places):
            raise Violation(f"ranks in round {record.round} do not follow the sites: {places}")

    def check_closed(self, record: Round) -> None:
        done = {m.incarnation for _, _, m in self.member_log if m is not None and m.state == "succeeded"}
        world = self.counted.get((record.run_id, record.round), {})
        if not set(world) <= done:
            raise Violation(f"closed although {sorted(set(world) - done)} did not succeed")

    def check_accept(self, process: Process, world: ev.Accept) -> None:
        run, me = process.me.run_id, process.me.incarnation
        key = (run, world.round)
        if process.state.standing is Standing.LEAVING:
            raise Violation(f"{me} is leaving and accepts round {world.round}")
        if key not in self.committed:
            raise Violation(f"{me} accepts a world that was never written: {key}")
        if process.world is not None and world.round <= process.world.round:
            raise Violation(f"{me} goes from round {process.world.round} to {world.round}")
        mine = self.counted[key].get(me)
        if mine is None:
            raise Violation(f"{me} accepts round {world.round}, which did not count it")
        if world.rank == 0 and world.leader.port != process.store:
            raise Violation(f"{me} is to lead round {world.round} with a store that it has closed")
        request, rv = mine
        acked, acked_rv = process.state.own.acked, process.state.own.acked_rv or 0
        # A late write of the same agent may have followed the one that it knows of: then only its port differs.
        port = request.port if rv <= acked_rv or acked is None else acked.port
        if rv < acked_rv or replace(request, first_rv=0, port=port) != acked:
            raise Violation(f"{me} accepts round {world.round}, which counted {mine}, not {acked} at {acked_rv}")
        others = self.accepted[key]
        others[me] = world
        ranks = [other.rank for other in others.values()]
        record = self.committed[key]
        if len(set(ranks)) != len(ranks) or not all(0 <= rank < record.size for rank in ranks):
            raise Violation(f"ranks in round {world.round}: { {who: a.rank for who, a in others.items()} }")
        if world.leader != record.leader or world.size != record.size or record.slots[world.rank] != world.slot:
            raise Violation(f"{me} sees another world of number {world.round}: {world} instead of {record}")

    # Agents.

    def processes(self) -> list[Process]:
        return [pod.process for pod in self.pods if pod.process is not None and pod.process.alive]

    def add_pod(
        self,
        slot: int | None,
        name: str | None = None,
        grouped: bool = False,
        movable: bool = False,
        old: bool = False,
    ) -> Pod:
        number = next(self.pod_names)
        pod = Pod(
            name or f"pod-{number}", f"uid-{number}", slot, self.run_id, f"10.0.0.{number}", grouped, movable, old
        )
        self.pods.append(pod)
        self.tell_roster()
        return pod

    def start(self, pod: Pod) -> None:
        if pod.gone or pod.exited or (pod.process is not None and pod.process.alive):
            return
        skew = self.random.uniform(0.8, 1.25) if self.scenario.skew else 1.0
        process = Process(
            pod, f"{pod.uid}/{pod.boots}", self.random.uniform(0, 1e5), skew, self.scenario.timing, next(self.ports)
        )
        pod.boots += 1
        pod.process = process
        self.log(f"{process.me.incarnation} ({pod.name}, slot {pod.slot}) starts")
        self.reconnect(process) if self.faults and self.random.random() < 0.2 else self._reconnected(process, 0)
        pause = self.random.choice(self.scenario.pauses)
        self.at(pause, self._if_alive, process, self.join, process) if pause else self.join(process)

    def local(self, process: Process) -> float:
        return process.offset + self.now * process.rate

    def send(self, process: Process, event: ev.MemberEvent) -> None:
        if not process.alive:
            return
        if self.now < process.frozen_until:
            self.at(process.frozen_until - self.now, self.send, process, event)
            return
        process.state, actions = member.step(process.state, event, self.local(process))
        process.wake += 1
        for action in actions:
            self.act(process, action)
        if not process.alive:
            return
        self.follow(process)
        if (
            process.world is not None
            and not process.rejoining
            and not process.state.joining
            and member.num_nodes_waiting(process.state)
        ):
            process.rejoining = True
            pause = self.random.choice((0.1, 0.3, 1.0, 3.0 if self.faults else 1.0))
            self.at(pause, self._if_alive, process, self.join, process)

    def join(self, process: Process) -> None:
        process.rejoining = False
        if not (process.state.joining or process.state.standing is Standing.FINISHED or process.raised):
            process.store = next(self.ports)
            self.send(process, ev.Join(process.store))

    def act(self, process: Process, action: ev.Action) -> None:
        match action:
            case ev.Write(record, rv):
                sent = next(self.sequence)
                self.request(
                    process,
                    lambda: self.put_member(record, rv, sent),
                    lambda result: self.send(
                        process, ev.Written(result[1]) if result[0] == "ok" else ev.WriteUnknown()
                    ),
                    lambda: self.send(process, ev.WriteFailed()),
                    lambda: self.send(process, ev.WriteUnknown()),
                )
            case ev.Read():
                self.request(
                    process,
                    lambda: self.members.get(process.pod.name, (None, 0)),
                    lambda result: self.send(process, ev.OwnRead(*result)),
                    lambda: self.send(process, ev.ReadFailed()),
                    lambda: self.send(process, ev.ReadFailed()),
                )
            case ev.Rebind():
                process.store = 0
                self.at(0.002, self._bound, process)
            case ev.Accept():
                self.accept(process, action)
            case ev.Raise(kind, message):
                self.raised(process, kind, message)
            case ev.Candidate(lost):
                self.become(process, lost)
            case ev.Wake(at):
                wait = max(0.0, (at - self.local(process)) / process.rate) + 1e-6
                self.at(wait, self._tick, process, process.wake)

    def _bound(self, process: Process) -> None:
        process.store = next(self.ports)
        self.send(process, ev.Bound(process.store))

    def _tick(self, process: Process, wake: int) -> None:
        if process.alive and process.wake == wake:
            self.send(process, ev.Tick())

    def accept(self, process: Process, world: ev.Accept) -> None:
        self.log(
            f"{process.me.incarnation} accepts round {world.round} rank {world.rank}/{world.size} leader {world.leader}"
        )
        self.check_accept(process, world)
        process.world = world
        self.at(0.01, self._connect_store, process, world)

    def _connect_store(self, process: Process, world: ev.Accept, tried: float = 0.0) -> None:
        """Connects to the leader's store; gives up on it after a while, or as soon as the round is over."""
        if not process.alive or process.world is not world or process.state.joining:
            return
        way = self.links.state(process.me.address, world.leader.address)
        serving = any(p.me.address == world.leader.address and p.store == world.leader.port for p in self.processes())
        if serving and way == OPEN:
            return
        over = bool(member.num_nodes_waiting(process.state))
        if over or tried >= (STORE if way == SILENT else REFUSAL):
            store = None if over and tried < REFUSAL else Endpoint(world.leader.address, world.leader.port)
            self.send(process, ev.LeaderUnreachable(world.round, store))
        else:
            self.at(0.1, self._connect_store, process, world, tried + 0.1)

    def raised(self, process: Process, kind: str, message: str) -> None:
        self.log(f"{process.me.incarnation} raises {kind}: {message}")
        impatient = process.state.timing.join_timeout < 100 and not process.state.ending
        if kind in (ev.TIMEOUT, ev.CONNECTION) and impatient:
            self.at(0.1, self._if_alive, process, self.join, process)  # user code that tries again
            return
        process.raised = kind
        allowed = {ev.GRACEFUL} if self.scenario.ending else set()
        superseded = process.me.run_id != self.run_id
        rival = any(
            p is not process.pod and (p.name == process.pod.name or p.slot == process.pod.slot is not None)
            for p in self.pods
        )
        self.check_gives_way(process, message)
        ended = superseded or process.state.ending or kind in allowed
        if not ended and not rival:
            raise Violation(f"{process.me.incarnation} ends with {kind}: {message}")
        process.pod.exited = ended
        self.at(0.5, self.kill, process)
        if not ended:
            self.at(2.0, self.start, process.pod)

    def check_gives_way(self, process: Process, message: str) -> None:
        """Nobody is evicted from its slot by an agent that came before it, unless it was taken for dead."""
        world = self.counted.get((process.me.run_id, process.state.accepted), {})
        if "held by another pod" not in message or process.pod.gone or process.me.incarnation not in world:
            return
        if process.me.incarnation in self.taken_for_dead:
            return
        if process.state.own.first_rv < self.first_write[process.me.incarnation]:
            return  # What became of its first write it does not know, so it says that it is older than it is.
        pods = {pod.uid: pod for pod in self.pods}
        latest = max((key for key in self.committed if key[0] == process.me.run_id), key=lambda key: key[1])
        for who in self.counted[latest]:
            rival = pods[who.partition("/")[0]]
            if rival.slot == process.pod.slot and self.first_write[who] < self.first_write[process.me.incarnation]:
                raise Violation(f"{process.me.incarnation} gives way to {who}, which came before it: {message}")

    def check_evicts(self, process: Process, side: CoordinatorSide, record: Round, counted: Counted) -> None:
        """Nobody in the world who lives, is connected and answers gives way to another agent with its slot."""
        before = process.round[0]
        if before is None or before.phase != RUNNING or record.phase != RUNNING or record.round == before.round:
            return
        claimed = {_place(member.claim): who for who, (member, _) in counted.items() if member.claim is not None}
        for peer in self.processes():
            who, pod = peer.me.incarnation, peer.pod
            said = side.members.get(pod.name)
            barred = side.state.barred.get(who)
            if (
                pod.slot is None
                or pod.old
                or before.rank_of(who) is None
                or claimed.get(pod.slot, who) == who
                or who not in side.connected
            ):
                continue
            if said is None or said[0].incarnation != who or said[0].state != LIVE or (barred and not barred.over):
                continue
            if not self._open_to(peer, side):
                continue  # Its answer does not arrive.
            if not (pod.gone or pod.draining or pod.exited) and self.now > peer.steady_since + STEADY:
                raise Violation(f"{who} lives and is connected, and gives way to {claimed[pod.slot]}")

    def freeze(self, process: Process, seconds: float) -> None:
        """SIGSTOP, later SIGCONT. Its peers notice the silence."""
        self.log(f"{process.me.incarnation} is frozen for {seconds:.2f} s")
        process.frozen_until = process.steady_since = self.now + seconds
        self.at(DOUBT, self._quiet, process)
        self.at(SILENCE, self._noticed, process)
        self.at(seconds + 1e-6, self._speaks, process)
        self.at(seconds + 1e-6, self.coordinate, process)

    def _sides(self, who: str) -> list[tuple[Process, CoordinatorSide]]:
        """The coordinators that this agent is connected to, as they believe."""
        sides = [(other, other.coordinates) for other in self.processes()]
        return [(other, side) for other, side in sides if side is not None and who in side.connected]

    def _quiet(self, process: Process) -> None:
        if self.now < process.frozen_until:
            for other, side in self._sides(process.me.incarnation):
                self._doubt(other, side, process.me.incarnation)

    def _noticed(self, process: Process) -> None:
        if self.now < process.frozen_until:
            for other, side in self._sides(process.me.incarnation):
                self._peer_died(other, side, process.me.incarnation)

    def _speaks(self, process: Process) -> None:
        """It gives a sign of life to whom it is connected to."""
        if not process.alive or self.now < process.frozen_until:
            return
        for other, side in self._sides(process.me.incarnation):
            if process.held is side and self.links.open(process.me.address, other.me.address):
                side.doubted.discard(process.me.incarnation)
                self.coordinate(other)

    def _doubt(self, process: Process, side: CoordinatorSide, who: str) -> None:
        if process.alive and process.coordinates is side:
            side.doubted.add(who)
            self.coordinate(process)

    def kill(self, process: Process) -> None:
        if not process.alive:
            return
        self.log(f"{process.me.incarnation} dies")
        process.alive = False
        self.stop_coordinating(process)
        for other, side in self._sides(process.me.incarnation):
            noticed = self.delay()
            self.at(noticed, self._broke, other, side, process.me.incarnation)
            self.at(noticed + RECONNECT, self._peer_died, other, side, process.me.incarnation)
        self.tell_roster()

    def _broke(self, process: Process, side: CoordinatorSide, who: str) -> None:
        side.connected.discard(who)
        self._doubt(process, side, who)

    def _peer_died(self, process: Process, side: CoordinatorSide, who: str) -> None:
        if process.alive and process.coordinates is side:
            side.dead.add(who)
            side.connected.discard(who)
            self.coordinate(process)

    # The liveness connection to the coordinator.

    def follow(self, process: Process) -> None:
        seen = process.state.known.record
        named = seen.coordinator if seen is not None else None
        before, process.link = process.link, named
        if named == before:
            return
        if named is None or named.incarnation == process.me.incarnation:
            self.dial(process, self.delay())
        elif before is not None and before.incarnation == named.incarnation and process.told is not None:
            # The same agent in a later term: the connection, or the attempts to make it, go on.
            self.at(0.0, self._report, process, named, process.told, True)
        else:
            process.told = None
            self.dial(process, self.random.uniform(*SPREAD))

    def dial(self, process: Process, wait: float) -> None:
        """Connects anew after this time; until then what stands is kept."""
        process.attempt += 1
        self.at(wait, self._dial, process, process.attempt)

    def _dial(self, process: Process, attempt: int) -> None:
        if not process.alive or process.attempt != attempt:
            return
        named = process.link
        if named is None or named.incarnation == process.me.incarnation:
            self._hang_up(process)
            return
        side = self.side_of(named.incarnation)
        if process.held is not side:
            self._hang_up(process)
        silent = side is not None and self.links.state(process.me.address, named.address) == SILENT
        self.at(CONNECT if silent else 0.0, self._connect, process, attempt)

    def _hang_up(self, process: Process) -> None:
        side, process.held = process.held, None
        process.steady_since = self.now
        # What is said goes over the same links: a coordinator that is cut off hears nothing of it.
        if side is not None and self._open_to(process, side):
            side.connected.discard(process.me.incarnation)
            self.at(0.0, self._coordinate_side, side)

    def _coordinate_side(self, side: CoordinatorSide) -> None:
        for process in self.processes():
            if process.coordinates is side:
                self.coordinate(process)

    def _connect(self, process: Process, attempt: int) -> None:
        named = process.link
        if not process.alive or process.attempt != attempt or named is None:
            return
        if self.now < process.frozen_until:
            self.at(process.frozen_until - self.now, self._connect, process, attempt)
            return
        side = self.side_of(named.incarnation)
        wrong = self.faults and self.random.random() < self.scenario.unreachable
        there = side is not None and not wrong and self.links.open(process.me.address, named.address)
        if there:
            assert side is not None
            if process.held is not side:
                process.steady_since = self.now
            process.held = side
            side.connected.add(process.me.incarnation)
            for among in (side.dead, side.suspected, side.doubted):
                among.discard(process.me.incarnation)
            self.at(0.0, self._coordinate_side, side)
        else:
            self._hang_up(process)
        self._report(process, named, there)
        if process.attempt == attempt:
            self.dial(process, 5.0 if there else 1.0)

    def _report(self, process: Process, named: Coordinator, there: bool, again: bool = False) -> None:
        """Tells the agent whether its connection stands, when that is news to it."""
        if not process.alive or process.link != named or (process.told is there and not again):
            return
        process.told = there
        self.send(process, ev.CoordinatorFound(named) if there else ev.CoordinatorLost(named))

    def cut(self, pairs: Iterable[tuple[str, str]], how: str) -> None:
        """Cuts these links, by address; both ends of a connection notice, at once or by silence."""
        pairs = set(pairs)
        self.log(f"{how} from now on: {sorted(pairs)}")
        self.links.cut(pairs, how)
        # Who is refused knows at once; the other end may hear nothing more.
        told = how != SILENT and self.random.random() < 0.5
        for process in self.processes():
            process.steady_since = self.now
            named, side = process.link, process.held
            if side is None or named is None or (process.me.address, named.address) not in pairs:
                continue
            if not told:
                self.at(SILENCE / 2, self._unheard, process, side, side.suspected)
            self.at((0.001 if told else SILENCE) + self.delay(), self._unheard, process, side, side.dead)
            self.dial(process, (SILENCE if how == SILENT else 0.001) + self.delay())

    def _unheard(self, process: Process, side: CoordinatorSide, among: set[str]) -> None:
        """The coordinator's end of a connection that is cut."""
        who = process.me.incarnation
        if who not in side.connected or self._open_to(process, side):
            return
        among.add(who)
        if among is side.dead:
            side.connected.discard(who)
        self._coordinate_side(side)

    def _open_to(self, process: Process, side: CoordinatorSide) -> bool:
        return any(
            other.coordinates is side and self.links.open(process.me.address, other.me.address)
            for other in self.processes()
        )

    def heal_links(self, pairs: set[tuple[str, str]] | None = None) -> None:
        """Opens these links, or all."""
        self.log("all links are open" if pairs is None else f"open again: {sorted(pairs)}")
        self.links.heal(pairs)
        for process in self.processes():
            process.steady_since = self.now

    def side_of(self, incarnation: str) -> CoordinatorSide | None:
        for process in self.processes():
            if process.me.incarnation == incarnation:
                return process.coordinates if self.now >= process.frozen_until else None
        return None

    def stop_coordinating(self, process: Process) -> None:
        side, process.coordinates = process.coordinates, None
        if side is None:
            return
        for other in self.processes():
            if other.held is side:
                other.held = None
                if other.link is not None and other.link.incarnation == process.me.incarnation:
                    self.dial(other, self.delay())

    # The coordinator function.

    def become(self, process: Process, lost: Any) -> None:
        policy = self.scenario.policy
        state = CoordinatorState(process.me, policy, lost)
        self.log(f"{process.me.incarnation} is a candidate, lost {lost and (lost.incarnation, lost.term)}")
        position = max(0, len(self.member_log) - (self.random.randrange(3) if self.faults else 0))
        members: dict[str, tuple[Member, int]] = {}
        for rv, name, record in self.member_log[:position]:
            if record is None:
                members.pop(name, None)
            else:
                members[name] = (record, rv)
        members_rv = self.member_log[position - 1][0] if position else 1
        side = CoordinatorSide(state, members, members_rv, position)
        process.coordinates = side
        for _ in range(position, len(self.member_log)):
            self.push_member(process, side)
        self.at(self.delay(), self.coordinate, process)
        self.at(DOUBT, self._never_came, process, side)
        self.at(SILENCE, self._silent, process, side)

    def _never_came(self, process: Process, side: CoordinatorSide) -> None:
        for record, _ in list(side.members.values()):
            if record.state == LIVE and record.incarnation not in side.connected | {process.me.incarnation}:
                self._doubt(process, side, record.incarnation)

    def _silent(self, process: Process, side: CoordinatorSide) -> None:
        """Who holds no connection to this coordinator, for long, is taken for dead."""
        if not process.alive or process.coordinates is not side:
            return
        if self.now < process.frozen_until:
            self.at(process.frozen_until - self.now + SILENCE, self._silent, process, side)
            return
        live = {record.incarnation for record, _ in side.members.values() if record.state == LIVE}
        side.dead |= live - side.connected - {process.me.incarnation}
        self.at(SILENCE, self._silent, process, side)
        self.coordinate(process)

    def see_round(self, process: Process, record: Round | None, rv: int) -> None:
        if rv > process.round[1]:
            process.round = (record, rv)
        self.send(process, ev.RoundSeen(record, rv))
        self.coordinate(process)

    def coordinate(self, process: Process, wake: int | None = None) -> None:
        side = process.coordinates
        if side is None or not process.alive or side.busy or (wake is not None and side.wake != wake):
            return
        if self.now < process.frozen_until:
            return  # `freeze` has put it off
        record, rv = process.round
        view = View(
            members=side.members,
            members_rv=side.members_rv,
            roster=self.roster,
            round=record,
            round_rv=rv if record is not None else None,
            dead=frozenset(side.dead),
            suspected=frozenset(side.suspected),
            doubted=frozenset(side.doubted),
            connected=frozenset(side.connected),
            highest_seen=process.state.known.highest_seen,
            met=process.state.known.met,
        )
        view = replace(view, probes=self.probe(process, side))
        if process.pod.old:
            unread = {name: (replace(record, pair=None), rv) for name, (record, rv) in view.members.items()}
            view = replace(view, members=unread)
        side.state, decision = coordinator.step(side.state, view, self.local(process))
        side.wake += 1
        self.look_out(process, side, decision.probe)
        self.ask(process, side, decision.ask)
        if decision.refused:
            self.send(process, ev.Refused(decision.refused))
        if decision.step_down:
            self.log(f"{process.me.incarnation} steps down")
            self.stop_coordinating(process)
            self.send(process, ev.SteppedDown(rv))
        elif decision.write is not None:
            side.busy = True
            self.write_round(process, side, decision.write, decision.rv)
        elif decision.look_again is not None:
            wait = max(0.0, (decision.look_again - self.local(process)) / process.rate) + 1e-6
            self.at(wait, self.coordinate, process, side.wake)

    def probe(self, process: Process, side: CoordinatorSide) -> dict[str, bool]:
        """Whether this agent can connect to the stores that it is to try."""
        bound = {(p.me.address, p.store) for p in self.processes()}
        return {
            who: (at.address, at.port) in bound and self.links.open(process.me.address, at.address)
            for who, at in side.probes.items()
        }

    def ask(self, process: Process, side: CoordinatorSide, incarnations: frozenset[str]) -> None:
        """Asks these for a sign of life, each once."""
        news, side.asked = (incarnations - side.asked) & side.connected, incarnations
        for peer in self.processes():
            if peer.me.incarnation in news:
                self.at(0.0, self._doubt, process, side, peer.me.incarnation)
                self.at(self.random.uniform(0.001, 0.02), self._speaks, peer)
        for who in news - {peer.me.incarnation for peer in self.processes()}:
            self.at(0.0, self._doubt, process, side, who)

    def look_out(self, process: Process, side: CoordinatorSide, probes: Mapping[str, Endpoint]) -> None:
        """Connects to these stores from time to time, and tells when the outcome is another one."""
        idle, side.probes = not side.probes, dict(probes)
        if idle and probes:
            self.at(PROBE, self._look_out, process, side, self.probe(process, side))

    def _look_out(self, process: Process, side: CoordinatorSide, before: dict[str, bool]) -> None:
        if not process.alive or process.coordinates is not side or not side.probes:
            return
        found = self.probe(process, side)
        self.at(PROBE, self._look_out, process, side, found)
        if found != before:
            self.coordinate(process)

    def write_round(self, process: Process, side: CoordinatorSide, record: Round, condition: int | None) -> None:
        counted = {
            m.incarnation: (m, rv) for m, rv in side.members.values() if record.rank_of(m.incarnation) is not None
        }

        self.check_evicts(process, side, record, counted)
        asks = any(m.index is not None and m.want_round >= record.round for m, _ in side.members.values())
        if not asks:
            self.check_order(process.round[0], record, counted)
        self.taken_for_dead |= side.dead
        if side.state.lost is not None:
            self.taken_for_dead.add(side.state.lost.incarnation)

        def again() -> None:
            self.at(0.01 + 0.2 * self.random.random(), self._if_alive, process, self.reread, process, side)

        def answer(result: tuple[str, int, str]) -> None:
            if result[0] == "ok":
                side.busy = False
                self.see_round(process, replace(record, uid=result[2]), result[1])
            else:
                self.reread(process, side)

        self.request(
            process, lambda: self.put_round(process.pod.name, record, condition, counted), answer, again, again
        )

    def reread(self, process: Process, side: CoordinatorSide) -> None:
        def answer(result: tuple[int, Round | None]) -> None:
            side.busy = False
            self.see_round(process, result[1], result[0])

        def again() -> None:
            self.at(0.01 + 0.2 * self.random.random(), self._if_alive, process, self.reread, process, side)

        self.request(process, lambda: self.round_log[-1], answer, again, again)

    # The operator.

    def tell_roster(self) -> None:
        if self.scenario.roster != "absent":
            self.at(self.random.uniform(0.02, 0.3), self._tell_roster)

    def _tell_roster(self) -> None:
        low, high = self.scenario.bounds
        if self.roster_frozen and self.roster is not None and self.roster.run_id == self.run_id:
            return
        if self.scenario.roster == "unknown" or self.roster_frozen:
            sites = () if self.scenario.sited is not None else None
            self.roster = Roster(self.run_id, low, high, pace=self.scenario.policy.pace, sites=sites)
        else:
            pods = [pod for pod in self.pods if pod.run == self.run_id]
            here = [pod for pod in pods if not (pod.gone or pod.draining or pod.exited)]
            self.roster = Roster(
                self.run_id,
                low,
                high,
                known=True,
                expected=frozenset(
                    pod.slot for pod in here if pod.slot is not None and not pod.grouped and self.scenario.sited is None
                ),
                expected_count=len(here),
                draining=frozenset(pod.uid for pod in pods if pod.draining and not pod.gone),
                dead=frozenset(pod.uid for pod in pods if pod.gone or pod.exited),
                round=self.round[0].round if self.round and self.random.random() < 0.5 else 0,
                heartbeat=1,
                heartbeat_seconds=0.5 if self.scenario.roster == "stale" else 0.0,
                pace=self.scenario.policy.pace,
                sites=self.sites(here),
            )
        for process in self.processes():
            self.coordinate(process)

    def sites(self, pods: Iterable[Pod]) -> tuple[Site, ...] | None:
        """Where the pods' nodes are, as their labels say now: one of three racks, or not known. Labels may change at any time."""
        chance = self.scenario.sited
        if chance is None:
            return None
        racks: dict[str, list[str]] = {}
        for pod in pods:
            if chance.random() < self.scenario.relabelled:
                self.racks.pop(pod.uid, None)
            rack = self.racks.setdefault(pod.uid, chance.choice(("", "a", "b", "c")))
            if rack:
                racks.setdefault(rack, []).append(pod.uid)
        return tuple(Site((rack,), tuple(racks[rack])) for rack in sorted(racks))

    # A whole schedule.

    def step(self) -> None:
        self.now, _, action, args = heapq.heappop(self.queue)
        action(*args)


@dataclass
class Scenario:
    """What a schedule is made of, drawn from its seed (`scenarios.draw`) or given by a test."""

    bounds: tuple[int, int] = (2, 3)
    least_ever: int = 1
    most_ever: int = 10**6
    roster: str = "present"
    skew: bool = True
    slow: float = 0.1
    lost: float = 0.1
    unreachable: float = 0.05
    ending: bool = False
    sited: random.Random | None = None
    """Draws where nodes are; None: ranks do not follow that."""
    relabelled: float = 0.0
    """How often that is another place when the operator looks."""
    pauses: tuple[float, ...] = (0.0,)
    """Between a handler's construction and its next_rendezvous."""
    policy: Policy = field(
        default_factory=lambda: Policy(2, 3, last_call=5.0, settle=0.3, grace=1.0, pace=Pace(3.0, 2.0, 4.0))
    )
    timing: ev.Timing = field(default_factory=lambda: ev.Timing(join_timeout=1000.0, check_interval=3.0))


def show_round(record: Round) -> str:
    who = f"{record.coordinator.incarnation} t{record.coordinator.term}" if record.coordinator else "nobody"
    world = f"{record.phase} {record.round} want {record.want} slots {record.slots} mrv {record.members_rv}"
    return f"{record.run_id} {world} by {who} {record.want_reason}"
