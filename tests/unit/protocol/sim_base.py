"""One schedule's state, its time, and requests that get lost: what the other parts of the simulator stand on."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Any

from unit.protocol.links import Links
from unit.protocol.sim_parts import CoordinatorSide, Counted, Pod, Process, Scenario

from rdzv.protocol import events as ev
from rdzv.protocol.records import Member, Round
from rdzv.protocol.roster import Roster


class Base:
    """The other parts are classes that derive from it, and call each other by the methods at its end."""

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

    def processes(self) -> list[Process]:
        return [pod.process for pod in self.pods if pod.process is not None and pod.process.alive]

    def local(self, process: Process) -> float:
        return process.offset + self.now * process.rate

    def open_to(self, process: Process, side: CoordinatorSide) -> bool:
        return any(
            other.coordinates is side and self.links.open(process.me.address, other.me.address)
            for other in self.processes()
        )

    # What happens to an agent.

    def send(self, process: Process, event: ev.MemberEvent) -> None:
        raise NotImplementedError

    def see_round(self, process: Process, record: Round | None, rv: int) -> None:
        raise NotImplementedError

    def coordinate(self, process: Process, wake: int | None = None) -> None:
        raise NotImplementedError

    def tell_roster(self) -> None:
        raise NotImplementedError
