"""Random schedules for the simulator: who is there, what fails and when, and what must hold in the end.

One seed is one schedule. To see one: `PYTHONPATH=src:tests python -m unit.protocol.scenarios SEED`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace

from unit.protocol.links import REFUSED, SILENT, halves, isolated
from unit.protocol.sim import Sim
from unit.protocol.sim_parts import NAME, Pod, Process, Scenario, Violation, show_round

from rdzv.protocol import events as ev
from rdzv.protocol.member_state import Standing
from rdzv.protocol.records import RUNNING, SUCCEEDED, Round, birth

#: Simulated seconds from the last fault within which a round must have formed.
BOUND = 90.0
#: A join timeout that no schedule reaches.
PATIENT = 1000.0
#: Simulated seconds that a partition lasts, and within which a world has formed when it is over: who could not be reached
#: is tried again after two minutes at the latest.
PARTITION, HEALED = 100.0, 250.0
#: Changes of the coordinator that one partition may cost, and rounds. Where only what goes to one agent is cut each of the others
#: notices at another time. Links that are cut here and there may leave no group in which all reach each other: that costs a round
#: again and again, and only safety holds, and healing.
TAKEOVERS = 40
ROUNDS = {"isolated": 4, "out": 4, "halves": 4, "in": 6, "any": 40}
#: More events than this in one schedule are a livelock.
MAX_EVENTS = 30000


def command(seed: int) -> str:
    return f"PYTHONPATH=src:tests python -m unit.protocol.scenarios {seed}"


class Schedule:
    """One schedule: `run()` raises Violation, or returns having found none."""

    def __init__(self, seed: int, trace: list[str] | None = None) -> None:
        self.seed = seed
        self.sim = sim = Sim(seed, Scenario())
        sim.trace = trace
        self.random = rnd = sim.random
        low = rnd.choice((1, 2, 2, 2, 3))
        high = low + rnd.choice((0, 0, 1, 2))
        scenario = sim.scenario
        scenario.bounds = (low, high)
        scenario.policy = replace(scenario.policy, min_nodes=low, max_nodes=high)
        scenario.roster = rnd.choice(("present", "present", "present", "absent", "unknown", "stale"))
        scenario.skew = rnd.random() < 0.7
        scenario.slow = rnd.choice((0.0, 0.05, 0.3))
        scenario.lost = rnd.choice((0.0, 0.1, 0.3))
        scenario.unreachable = rnd.choice((0.0, 0.0, 0.1))
        scenario.timing = replace(scenario.timing, join_timeout=rnd.choice((PATIENT, PATIENT, 1.0)))
        scenario.pauses = (0.0, 0.0, 0.02, 0.5)
        scenario.least_ever, scenario.most_ever = low, high
        self.slots = rnd.random() < 0.75
        # Not of `rnd`: what else a seed plays is as it was before there were pairs.
        chance = random.Random(f"pairs {seed}")
        self.pairs = self.slots and chance.random() < 0.4
        self.old = 0.4 if self.pairs and chance.random() < 0.4 else 0.0
        self.chance = chance
        sited = random.Random(f"sites {seed}")
        self.sited = self.slots and not self.pairs and sited.random() < 0.4
        self.fixed = 0.3 if self.sited and sited.random() < 0.3 else 0.0
        if self.sited:
            scenario.sited, scenario.relabelled = sited, sited.choice((0.0, 0.0, 0.3))
        self.length = rnd.choice((0.5, 2.0, 5.0))
        self.fault_count = rnd.choice((0, 1, 2, 3, 5))

    def run(self) -> None:
        sim, rnd = self.sim, self.random
        if rnd.random() < 0.6:  # the operator has made the Round
            sim.rv += 1
            sim.round = (Round(NAME, sim.run_id), sim.rv)
            sim.round_log.append((sim.rv, sim.round[0]))
        low, high = sim.scenario.bounds
        pods = rnd.randint(low, high) if rnd.random() < 0.7 else high + 1
        together = rnd.random() < 0.5
        for slot in range(pods):
            pod = self.new_pod(slot)
            sim.at(0.0 if together else rnd.uniform(0, min(1.0, self.length)), sim.start, pod)
        for _ in range(self.fault_count):
            sim.at(rnd.uniform(0, self.length), rnd.choice(FAULTS), self)
        while sim.queue and sim.queue[0][0] <= self.length:
            sim.step()
        sim.now = self.length
        self.heal()
        self.until_formed()
        if rnd.random() < 0.15 and not self.twins():
            self.partition()
        if rnd.random() < 0.1 and not self.twins():
            self.quiet()
        if rnd.random() < 0.15:
            self.end()

    def new_pod(self, slot: int, name: str | None = None) -> Pod:
        old = self.chance.random() < self.old
        movable = self.sited and self.chance.random() >= self.fixed
        return self.sim.add_pod(slot if self.slots else None, name, self.pairs, movable, old)

    def heal(self) -> None:
        """No more faults; every pod that is to run does."""
        sim = self.sim
        sim.log("---- faults end")
        sim.faults = False
        sim.api_down = False
        sim.heal_links()
        sim.scenario.timing = replace(sim.scenario.timing, join_timeout=PATIENT)
        for process in sim.processes():
            process.cut_until = 0.0
            deadline = process.state.request.deadline + PATIENT
            request = replace(process.state.request, deadline=deadline)
            process.state = replace(process.state, timing=sim.scenario.timing, request=request)
        for pod in sim.pods:
            if pod.run == sim.run_id and (pod.process is None or not pod.process.alive):
                sim.at(self.random.uniform(0, 1), sim.start, pod)
        low, _ = sim.scenario.bounds
        here = [pod for pod in sim.pods if pod.run == sim.run_id and not (pod.gone or pod.exited or pod.draining)]
        for slot in range(low - len({pod.slot if self.slots else pod.name for pod in here})):
            free = next(s for s in range(slot, 100) if s not in {pod.slot for pod in here}) if self.slots else 0
            pod = self.new_pod(free)
            here.append(pod)
            sim.at(self.random.uniform(0, 1), sim.start, pod)

    def until_formed(self, bound: float = BOUND) -> None:
        """Runs until the world is as it should be, and stays so."""
        sim, events, deadline = self.sim, 0, self.sim.now + bound
        while not self.formed():
            if not sim.queue or sim.queue[0][0] > deadline or events > MAX_EVENTS:
                state = show_round(sim.round[0]) if sim.round else "no Round"
                raise Violation(f"no world of {self.expected()} by {sim.now:.1f} after {events} events: {state}")
            sim.step()
            events += 1

    def advance(self, seconds: float) -> None:
        """Plays on for this long."""
        end = self.sim.now + seconds
        while self.sim.queue and self.sim.queue[0][0] < end:
            self.sim.step()

    def expected(self, *, read_pairs: bool = True) -> list[str]:
        """Incarnations that can be in a world: of several pods on one slot the one that is in it, else the newest.

        A coordinator that does not read pairs, being of an earlier release, counts all of them.
        """
        sim = self.sim
        newest: dict[object, Process] = {}
        for process in sim.processes():
            usable = (
                process.me.run_id == sim.run_id
                and process.state.standing is not Standing.LEAVING
                and not process.raised
            )
            if usable and not process.pod.gone and not process.pod.draining:
                own = process.pod.slot is None or process.pod.old or not read_pairs
                key = process.me.incarnation if own else process.pod.slot
                rival = newest.get(key)
                if rival is None or self.born(rival) <= self.born(process):
                    newest[key] = process
        return sorted(process.me.incarnation for process in newest.values())

    def born(self, process: Process) -> tuple[bool, int, str]:
        record, world = self.sim.members.get(process.pod.name), self.sim.round
        counted = world is not None and world[0].rank_of(process.me.incarnation) is not None
        return (counted, birth(*record) if record else 0, process.pod.name)

    def formed(self) -> bool:
        sim = self.sim
        if sim.round is None or sim.round[0].phase != RUNNING or sim.round[0].run_id != sim.run_id:
            return False
        record = sim.round[0]
        if record.want > record.round:
            return False
        inside = [
            p
            for p in sim.processes()
            if p.state.accepted == record.round and not p.state.joining and p.me.run_id == sim.run_id
        ]
        if len(inside) != record.size or any(record.rank_of(p.me.incarnation) is None for p in inside):
            return False
        if not {p.me.incarnation for p in inside} <= set(self.expected(read_pairs=not self.old)):
            return False
        pending = any(
            pod.process is None and not pod.gone and not pod.exited and pod.run == sim.run_id for pod in sim.pods
        )
        if self.slots and not self.old:
            ranked = sorted(inside, key=lambda p: record.rank_of(p.me.incarnation) or 0)
            told = sim.roster is not None and sim.roster.sites is not None and all(p.pod.movable for p in inside)
            if not told and ranked != sorted(inside, key=lambda p: p.pod.slot or 0):
                raise Violation(f"ranks do not follow the places of pods: {[p.pod.slot for p in ranked]}")
        least, most = len(self.expected()), len(self.expected(read_pairs=False) if self.old else self.expected())
        high = sim.scenario.bounds[1]
        return not pending and min(high, least) <= record.size <= min(high, most)

    def twins(self) -> bool:
        """Two pods have one slot: the loser's container is restarted for ever."""
        slots = [pod.slot for pod in self.sim.pods if not pod.gone and not pod.exited and pod.slot is not None]
        return len(slots) > len(set(slots))

    def quiet(self) -> None:
        """A world that runs costs no writes."""
        sim = self.sim
        self.advance(4.0)  # late writes arrive
        self.until_formed()
        if any(process.pod.gone for process in sim.processes()):
            return  # it is still to die
        if any(self.differs(process) for process in sim.processes()):
            return  # deleted by hand, or undone by a late write; its agent will notice and write
        end = sim.now + 15.0
        settled = sim.now + 8.0
        writes, namings = None, sim.namings
        while sim.queue and sim.queue[0][0] < end:
            sim.step()
            if writes is None and sim.now > settled:
                writes = dict(sim.writes)
        if writes is not None and writes != sim.writes and not self.twins():
            raise Violation(f"writes in a quiet time: {writes} became {sim.writes}")
        if sim.namings > namings + 2:  # A spare that died is named once, and once no more.
            raise Violation(f"{sim.namings - namings} times in a quiet time somebody was named as left out")
        if not self.formed():
            self.until_formed()

    def differs(self, process: Process) -> bool:
        record, _ = self.sim.members.get(process.pod.name, (None, 0))
        return record is None or replace(record, first_rv=0) != process.state.own.acked

    def partition(self) -> None:
        """Some agents can't connect to others, for long: it costs a few rounds, and is over when the network is healed."""
        sim, rnd = self.sim, self.random
        self.advance(4.0)  # late writes arrive
        self.until_formed()
        pods = [process.pod for process in sim.processes() if process.me.run_id == sim.run_id]
        if len(pods) < 2 or len(pods) != len(self.expected()) or sim.round is None:
            return
        addresses = [pod.address for pod in pods]
        victim = rnd.choice(pods)
        kind = rnd.choice(("isolated", "isolated", "out", "in", "halves", "any"))
        if kind == "halves":
            left = rnd.randrange(1, len(addresses))
            pairs = halves(addresses[:left], addresses[left:])
        elif kind == "any":
            every = [(one, other) for one in addresses for other in addresses if one != other]
            pairs = set(rnd.sample(every, rnd.randint(1, len(every))))
        else:
            pairs = isolated(victim.address, addresses, "both" if kind == "isolated" else kind)
        rounds, term, cut_at = len(sim.committed), sim.round[0].term, sim.now
        sim.cut(pairs, rnd.choice((REFUSED, SILENT)))
        for process in sim.processes():
            if rnd.random() < 0.5:
                sim.at(rnd.uniform(0.1, 5.0), self.worker_of, process, process.state.accepted)
        self.advance(PARTITION)
        # An earlier release knows no places of pairs, so each spare is tried in turn, and finds out for itself.
        spares = max(0, len(pods) - sim.scenario.bounds[1]) if self.old else 0
        if len(sim.committed) > rounds + ROUNDS[kind] + 2 * spares:
            raise Violation(f"{len(sim.committed) - rounds} rounds in {PARTITION:g} s of one partition ({kind})")
        if sim.round[0].term > term + TAKEOVERS:
            raise Violation(f"{sim.round[0].term - term} changes of the coordinator in one partition ({kind})")
        if kind == "isolated" and len(pods) > max(2, sim.scenario.bounds[0]):
            self.check_rest(victim, cut_at)
        sim.heal_links()
        self.until_formed(HEALED)

    def worker_of(self, process: Process, number: int) -> None:
        """A worker fails, of a world that the network was cut under."""
        if process.alive and number and process.state.accepted == number and not process.state.joining:
            self.sim.log(f"{process.me.incarnation}: worker failed")
            self.sim.join(process)

    def check_rest(self, victim: Pod, cut_at: float) -> None:
        """All but the one that is isolated since `cut_at` are in one running world."""
        sim = self.sim
        record = sim.round[0] if sim.round is not None else None
        others = [p for p in sim.processes() if p.pod is not victim and p.me.run_id == sim.run_id]
        if record is None or record.phase != RUNNING or record.want > record.round:
            raise Violation(f"no world of the others: {record and show_round(record)}")
        if sim.scenario.bounds[0] == 1 and record.size == 1 and not cut_at < sim.formed_at < cut_at + 5.0:
            return  # It was a world of its own, or became one after the others had their time to take over; one that runs is left alone.
        inside = [p for p in others if record.rank_of(p.me.incarnation) is not None]
        if len(inside) != record.size or record.size != min(sim.scenario.bounds[1], len(others)):
            raise Violation(f"{victim.uid} is isolated, but the world is {show_round(record)}")

    def end(self) -> None:
        """The job ends, well or not; then another job may use the same Rendezvous."""
        sim, rnd = self.sim, self.random
        self.advance(3.0)
        self.until_formed()
        assert sim.round is not None
        sim.scenario.ending = True
        record = sim.round[0]
        world = [p for p in sim.processes() if record.rank_of(p.me.incarnation) is not None]
        failing = rnd.choice(world) if rnd.random() < 0.3 else None
        sim.log(f"---- the job ends, failing: {failing and failing.me.incarnation}")
        for process in world:
            sim.at(rnd.uniform(0, 1), sim.send, process, ev.Finished(process is not failing))
            sim.at(6.0 + rnd.uniform(0, 1), self.complete, process)
        if rnd.random() < 0.3:
            sim.at(rnd.uniform(0, 1.5), self.crash_coordinator, False)
        self.advance(12.0)
        if sim.round is None:
            raise Violation(f"the Round of {record.run_id} is gone after its end")
        coordinates = any(p.coordinates is not None for p in sim.processes())
        closed = (record.run_id, record.round) in sim.closed or sim.round[0].round != record.round
        done = {m.incarnation for _, _, m in sim.member_log if m is not None and m.state == SUCCEEDED}
        # Of two pods of one name the older one, stopped before its first write, may write over the other's (ADR 16).
        done -= {
            m.incarnation
            for _, name, m in sim.member_log
            if m is not None and name in sim.members and sim.members[name][0].incarnation != m.incarnation
        }
        if coordinates and not closed and all(process.me.incarnation in done for process in world):
            raise Violation(f"all have succeeded, but the Round is {show_round(sim.round[0])}")
        if failing is not None:
            return
        for pod in sim.pods:
            pod.gone = True
            if pod.process is not None:
                sim.kill(pod.process)
        for slot in range(sim.scenario.bounds[0]):
            sim.at(rnd.uniform(0, 1), sim.start, self.new_pod(slot))
        self.until_formed()

    def complete(self, process: Process) -> None:
        process.pod.exited = True
        self.sim.kill(process)

    # Faults.

    def victim(self) -> Process | None:
        processes = self.sim.processes()
        return self.random.choice(processes) if processes else None

    def crash(self) -> None:
        """The agent dies and its container restarts, or its pod is replaced."""
        process = self.victim()
        if process is None:
            return
        self.sim.kill(process)
        if self.random.random() < 0.6:
            self.sim.at(self.random.uniform(0.05, 2), self.sim.start, process.pod)
        else:
            self.replace(process.pod)

    def crash_coordinator(self, restart: bool = True) -> None:
        for process in self.sim.processes():
            if process.coordinates is not None:
                self.sim.kill(process)
                if restart:
                    self.sim.at(self.random.uniform(0.05, 2), self.sim.start, process.pod)
                return

    def replace(self, pod: Pod) -> None:
        """The pod is deleted, its Member with it, and another one takes its slot, with the same name or another."""
        sim = self.sim
        if pod.gone:
            return
        pod.gone = True
        sim.at(self.random.uniform(0, 1.5), sim.delete_member, pod.name, pod.uid)
        sim.tell_roster()
        if pod.run == sim.run_id:
            new = self.new_pod(pod.slot or 0, pod.name if self.random.random() < 0.5 else None)
            sim.at(self.random.uniform(0.05, 2), sim.start, new)

    def drain(self) -> None:
        process = self.victim()
        if process is None or process.pod.draining:
            return
        process.pod.draining = True
        self.sim.log(f"{process.me.incarnation} gets SIGTERM")
        self.sim.tell_roster()
        self.sim.send(process, ev.Sigterm())
        self.sim.at(self.random.uniform(0.1, 2), self.drained, process)

    def drained(self, process: Process) -> None:
        if process.pod.process is not None:
            self.sim.kill(process.pod.process)
        self.replace(process.pod)

    def worker_fails(self) -> None:
        process = self.victim()
        if process is not None and process.world is not None and not process.state.joining:
            self.sim.log(f"{process.me.incarnation}: worker failed")
            self.sim.join(process)

    def outage(self) -> None:
        self.sim.log("API server down")
        self.sim.api_down = True
        self.sim.at(self.random.uniform(0.2, 3), self.outage_ends)

    def outage_ends(self) -> None:
        self.sim.log("API server up")
        self.sim.api_down = False

    def cut(self) -> None:
        process = self.victim()
        if process is not None:
            process.cut_until = self.sim.now + self.random.uniform(0.2, 3)

    def links_break(self) -> None:
        """One agent and the others can't connect to each other for a while, or only in one direction."""
        process = self.victim()
        if process is not None:
            addresses = [pod.address for pod in self.sim.pods]
            pairs = isolated(process.me.address, addresses, self.random.choice(("both", "out", "in")))
            self.sim.cut(pairs, self.random.choice((REFUSED, SILENT)))
            self.sim.at(self.random.uniform(0.2, 5), self.links_again, pairs)

    def links_again(self, pairs: set[tuple[str, str]]) -> None:
        if self.sim.faults:  # Else all have been healed, and others may be cut by now.
            self.sim.heal_links(pairs)

    def watch_breaks(self) -> None:
        process = self.victim()
        if process is not None:
            self.sim.reconnect(process)

    def round_deleted(self) -> None:
        self.sim.delete_round()

    def member_deleted(self) -> None:
        process = self.victim()
        # Who can't be moved, and whose request is gone, may find another one on its slot (ADR 19).
        if process is not None and not self.fixed:
            self.sim.delete_member(process.pod.name)

    def twin(self) -> None:
        """A second pod with a slot that one has already."""
        if self.slots and not self.old:
            process = self.victim()
            if process is not None and process.me.run_id == self.sim.run_id and process.pod.slot is not None:
                self.sim.start(self.new_pod(process.pod.slot))

    def zombie(self) -> None:
        """A node is cut off: its pod is deleted by force and replaced, while the agent goes on for a while."""
        process = self.victim()
        if process is not None:
            process.cut_until = self.sim.now + self.random.uniform(0, 3)
            process.revoked = self.random.random() < 0.5
            self.replace(process.pod)
            self.sim.at(self.random.uniform(1, 6), self.sim.kill, process)

    def frozen(self) -> None:
        """An agent is stopped, its pod and Member are deleted, another pod takes its slot, and it goes on for a while."""
        process = self.victim()
        if process is not None and process.me.run_id == self.sim.run_id and not process.pod.gone:
            seconds = self.random.uniform(0.5, 6)
            self.sim.freeze(process, seconds)
            self.replace(process.pod)
            self.sim.at(seconds + self.random.uniform(2, 20), self.sim.kill, process)

    def false_alarm(self) -> None:
        """A live connection is taken for a dead one, at either end."""
        process = self.victim()
        if process is None:
            return
        seen = process.state.known.record
        if process.coordinates is not None and process.coordinates.connected:
            victim = self.random.choice(sorted(process.coordinates.connected))
            process.coordinates.dead.add(victim)
            process.coordinates.connected.discard(victim)
            for other in self.sim.processes():
                if other.me.incarnation == victim:
                    other.steady_since = self.sim.now
            self.sim.coordinate(process)
        elif seen is not None and seen.coordinator is not None:
            process.told = False
            self.sim.dial(process, 1.0)
            self.sim.send(process, ev.CoordinatorLost(seen.coordinator))

    def operator_stops(self) -> None:
        self.sim.roster_frozen = self.sim.scenario.roster in ("stale", "unknown")

    def pod_added(self) -> None:
        slots = {pod.slot for pod in self.sim.pods if not pod.gone}
        pod = self.new_pod(next(slot for slot in range(100) if slot not in slots))
        self.sim.at(self.random.uniform(0, 1), self.sim.start, pod)

    def bounds_change(self) -> None:
        sim = self.sim
        if sim.scenario.roster == "present":
            low, high = sim.scenario.bounds
            high = max(low, high + self.random.choice((-1, 1)))
            sim.log(f"max is now {high}")
            sim.scenario.bounds = (low, high)
            sim.scenario.most_ever = max(sim.scenario.most_ever, high)
            sim.tell_roster()

    def recreated(self) -> None:
        """The Rendezvous is deleted and made again under its name: another run."""
        sim, rnd = self.sim, self.random
        old = sim.run_id
        sim.run_id = f"run-{int(old.rpartition('-')[2]) + 1}"
        sim.log(f"Rendezvous made again: {sim.run_id}")
        pods = [pod for pod in sim.pods if not pod.gone and pod.run == old]
        for pod in pods:
            pod.gone = True
            sim.at(rnd.uniform(0, 2), self.removed, pod)
        self.collect(old)
        sim.tell_roster()
        low, high = sim.scenario.bounds
        for slot in range(rnd.randint(low, high)):
            names = [pod.name for pod in pods if pod.slot == slot]
            pod = self.new_pod(slot, names[0] if names and rnd.random() < 0.5 else None)
            sim.at(rnd.uniform(0, 2), sim.start, pod)

    def removed(self, pod: Pod) -> None:
        if pod.process is not None:
            self.sim.kill(pod.process)
        self.sim.delete_member(pod.name, pod.uid)

    def collect(self, run: str) -> None:
        """Garbage collection: a Round whose Rendezvous is gone goes too, however often it is made."""
        sim = self.sim
        if sim.round is not None and sim.round[0].run_id == run:
            sim.delete_round()
        sim.at(self.random.uniform(0.1, 1.0), self.collect, run)


Fault = Callable[[Schedule], None]
FAULTS: tuple[Fault, ...] = (
    Schedule.crash,
    Schedule.crash,
    Schedule.crash_coordinator,
    Schedule.drain,
    Schedule.worker_fails,
    Schedule.worker_fails,
    Schedule.outage,
    Schedule.cut,
    Schedule.links_break,
    Schedule.watch_breaks,
    Schedule.round_deleted,
    Schedule.member_deleted,
    Schedule.twin,
    Schedule.zombie,
    Schedule.frozen,
    Schedule.false_alarm,
    Schedule.operator_stops,
    Schedule.pod_added,
    Schedule.bounds_change,
    Schedule.recreated,
)


def play(seed: int) -> str | None:
    """Plays one schedule; the text of what went wrong, or None."""
    try:
        Schedule(seed).run()
    except Violation as violation:
        return f"seed {seed}: {violation}"
    return None


def play_many(seeds: range) -> list[str]:
    """Plays these schedules; what went wrong, each with the command that shows it."""
    return [f"{text}\n  {command(seed)}" for seed in seeds if (text := play(seed)) is not None]


def main(arguments: list[str]) -> int:
    """Plays one schedule and prints all that happened in it."""
    trace: list[str] = []
    schedule = Schedule(int(arguments[0]), trace)
    print(schedule.sim.scenario, "pairs" if schedule.pairs else "slots" if schedule.slots else "no slots")
    try:
        schedule.run()
    except Violation as violation:
        print("\n".join(trace))
        print("VIOLATION:", violation)
        return 1
    print("\n".join(trace))
    print("no violation")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
