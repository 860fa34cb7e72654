"""The simulated API server: conditional writes of Round and Members, and watches that are late, behind, or break."""

from __future__ import annotations

from unit.protocol import sim_checks
from unit.protocol.sim_base import Base
from unit.protocol.sim_parts import CoordinatorSide, Counted, Process, Violation, show_round

from rdzv.protocol.fields import replace
from rdzv.protocol.records import Member, Round


class Server(Base):
    """Every write is checked."""

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
        sim_checks.check_round(self, record, counted)
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
