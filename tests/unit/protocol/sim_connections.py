"""The simulated connections between members and their coordinator: made, cut, silent, broken; and agents that freeze or die."""

from __future__ import annotations

from collections.abc import Iterable

from unit.protocol.links import SILENT
from unit.protocol.sim_base import Base
from unit.protocol.sim_parts import CONNECT, DOUBT, RECONNECT, SILENCE, SPREAD, CoordinatorSide, Process

from rdzv.protocol import events as ev
from rdzv.protocol.records import Coordinator


class Connections(Base):
    """What either end of a connection notices, and when."""

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
        if side is not None and self.open_to(process, side):
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
        if who not in side.connected or self.open_to(process, side):
            return
        among.add(who)
        if among is side.dead:
            side.connected.discard(who)
        self._coordinate_side(side)

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
