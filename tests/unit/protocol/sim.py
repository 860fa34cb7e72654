"""A simulated cluster for the protocol: API server, network, clocks, operator, agents that crash; all from one seed.

Runs the production functions `rdzv.protocol.member.step` and `rdzv.protocol.coordinator.step` and nothing else of the product. What
must never happen raises `Violation` (`sim_checks`). Schedules are drawn in `scenarios`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

from unit.protocol import sim_checks
from unit.protocol.links import OPEN, SILENT
from unit.protocol.sim_connections import Connections
from unit.protocol.sim_parts import (
    DOUBT,
    PROBE,
    REFUSAL,
    SILENCE,
    STORE,
    CoordinatorSide,
    Pod,
    Process,
    Violation,
)
from unit.protocol.sim_server import Server

from rdzv.protocol import coordinator, member
from rdzv.protocol import events as ev
from rdzv.protocol.coordinator_state import CoordinatorState, View
from rdzv.protocol.fields import replace
from rdzv.protocol.member_state import Standing
from rdzv.protocol.records import LIVE, Endpoint, Member, Round
from rdzv.protocol.roster import Roster, Site


class Sim(Server, Connections):
    """One schedule: agents, the coordinator function and the operator. Each `step` does what is due next."""

    # Agents.

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
        sim_checks.check_accept(self, process, world)
        process.world = world
        self.at(0.01, self._connect_store, process, world)

    def _connect_store(self, process: Process, world: ev.Accept, tried: float = 0.0) -> None:
        """Connects to the leader's store; gives up on it after a while, or as soon as the round is over."""
        if not process.alive or process.world is not world or process.state.joining:
            return
        way = self.links.state(process.me.address, world.leader.address)
        if way == OPEN and self._serves(Endpoint(world.leader.address, world.leader.port)):
            return
        over = bool(member.num_nodes_waiting(process.state))
        if over or tried >= (STORE if way == SILENT else REFUSAL):
            store = None if over and tried < REFUSAL else Endpoint(world.leader.address, world.leader.port)
            self.send(process, ev.LeaderUnreachable(world.round, store))
            if store is not None:
                self.at(2.0, self._look_again, process)
        else:
            self.at(0.1, self._connect_store, process, world, tried + 0.1)

    def _look_again(self, process: Process) -> None:
        """Whether the store of those who go on without this agent can be reached by now."""
        if not process.alive or not process.state.joining or process.state.request.unreachable is None:
            return
        store = member.store_elsewhere(process.state)
        if store is not None and self._serves(store) and self.links.open(process.me.address, store.address):
            self.send(process, ev.StoreReached(store))
        else:
            self.at(2.0, self._look_again, process)

    def _serves(self, store: Endpoint) -> bool:
        return any(p.me.address == store.address and p.store == store.port for p in self.processes())

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
        sim_checks.check_gives_way(self, process, message)
        ended = superseded or process.state.ending or kind in allowed
        if not ended and not rival:
            raise Violation(f"{process.me.incarnation} ends with {kind}: {message}")
        process.pod.exited = ended
        self.at(0.5, self.kill, process)
        if not ended:
            self.at(2.0, self.start, process.pod)

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

        sim_checks.check_evicts(self, process, side, record, counted)
        asks = any(m.index is not None and m.want_round >= record.round for m, _ in side.members.values())
        if not asks:
            sim_checks.check_order(self, process.round[0], record, counted)
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
