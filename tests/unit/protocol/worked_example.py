"""The worked example of docs/adr/0010-kubernetes-protocol.md, played by the real functions: four agents, one lost, its replacement.

`PYTHONPATH=src:tests python -m unit.protocol.worked_example` writes it into the ADR.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rdzv.protocol import coordinator, member
from rdzv.protocol import events as ev
from rdzv.protocol.coordinator_state import CoordinatorState, Policy, View
from rdzv.protocol.member_state import MemberState
from rdzv.protocol.records import Member, Round
from rdzv.protocol.roster import Roster

ADR = Path(__file__).parents[3] / "docs/adr/0010-kubernetes-protocol.md"
BEGIN, END = "<!-- begin of the worked example -->\n", "<!-- end of the worked example -->\n"
RUN = "4be0a5c1"
"""UIDs are shortened to eight digits here."""


class Table:
    """One namespace: the Round, the Members, the agents. Nothing fails and nothing is late."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rv = 100
        self.round: tuple[Round, int] | None = None
        self.members: dict[str, tuple[Member, int]] = {}
        self.agents: dict[str, MemberState] = {}
        self.worlds: dict[str, ev.Accept] = {}
        self.ports: dict[str, int] = {}
        self.coordinator: CoordinatorState | None = None
        self.dead: frozenset[str] = frozenset()
        self.roster = Roster(RUN, 2, 4, known=True)

    def expect(self, *slots: int, dead: str = "") -> None:
        """What the operator says in the status of the Rendezvous."""
        gone = self.roster.dead | ({dead} if dead else frozenset())
        self.roster = replace(self.roster, expected=frozenset(slots), expected_count=len(slots), dead=gone)

    def start(self, slot: int, uid: str) -> str:
        name = f"mnist-{slot}"
        me = ev.Identity(
            "mnist", RUN, name, f"{uid}/{uid[::-1]}", f"10.244.1.{len(self.ports) + 10}", 40000, f"node-{slot}", slot
        )
        self.agents[name], self.ports[name] = MemberState(me), 41000 + 10 * slot
        self.tell(name, ev.RoundSeen(self.round[0] if self.round else None, self.round[1] if self.round else 0))
        return name

    def join(self, name: str) -> None:
        self.ports[name] += 1
        self.tell(name, ev.Join(self.ports[name]))

    def tell(self, name: str, event: ev.MemberEvent) -> None:
        self.agents[name], actions = member.step(self.agents[name], event, self.now)
        for action in actions:
            match action:
                case ev.Write(record, _):
                    self.rv += 1
                    self.members[name] = (record, self.rv)
                    self.tell(name, ev.Written(self.rv))
                case ev.Rebind():
                    self.ports[name] += 1
                    self.tell(name, ev.Bound(self.ports[name]))
                case ev.Accept():
                    self.worlds[name] = action
                case ev.Candidate(lost):
                    self.coordinator = CoordinatorState(self.agents[name].me, Policy(2, 4), lost)

    def coordinate(self, later: float = 0.0) -> str:
        """One step of the coordinator; returns why it wrote, "" if it did not."""
        assert self.coordinator is not None
        self.now += later
        record, rv = self.round if self.round is not None else (None, None)
        connected = frozenset(agent.me.incarnation for agent in self.agents.values())
        view = View(self.members, self.rv, self.roster, record, rv, self.dead, connected=connected)
        self.coordinator, decision = coordinator.step(self.coordinator, view, self.now)
        if decision.write is None:
            return ""
        self.rv += 1
        self.round = (replace(decision.write, uid="9d3f7702"), self.rv)
        for name in self.agents:
            self.tell(name, ev.RoundSeen(*self.round))
        return decision.why

    # As it is printed.

    def member(self, name: str) -> str:
        record, rv = self.members[name]
        return _yaml(record.to_object("team", rv))

    def world(self) -> str:
        assert self.round is not None
        return _yaml(self.round[0].to_object("team", self.round[1]))


def _yaml(obj: dict[str, Any]) -> str:
    metadata = {key: obj["metadata"][key] for key in ("name", "resourceVersion")}
    text = yaml.safe_dump({"kind": obj["kind"], "metadata": metadata, "spec": obj["spec"]}, sort_keys=False, width=200)
    return f"```yaml\n{text}```\n"


def example() -> str:
    """The example as Markdown."""
    table, parts = Table(), []

    def show(text: str, *objects: str) -> None:
        parts.extend([f"{text}\n", *objects])

    table.expect(0, 1, 2, 3)
    names = [table.start(slot, uid) for slot, uid in enumerate(["a10c33f0", "b27d41e9", "c35e5fd2", "d4f36ab7"])]
    assert table.coordinate() == "there is none"
    show("1. The agent of slot 0 finds no Round. It coordinates, and makes one. Nobody has joined.", table.world())
    for name in names[:3]:
        table.join(name)
        table.coordinate()
    show(
        "2. Each agent binds a TCPStore and writes its Member: it asks for round 1 of this Round. Here is that of slot 2.",
        table.member("mnist-2"),
    )
    table.join("mnist-3")
    assert table.coordinate() == "all have joined"
    show(
        "3. All four that the operator expects have asked. The coordinator commits round 1. `slots` has the bits 0 to 3, `checks` "
        "four fingerprints, and `membersRV` is the version of the last Member that it has seen. Every agent finds its own "
        "fingerprint, and its own Member is not younger than `membersRV`: it is in the world.",
        table.world(),
    )
    assert {world.round for world in table.worlds.values()} == {1}
    lost = table.agents.pop("mnist-2").me.incarnation
    table.dead = frozenset({lost})
    table.expect(0, 1, 3, dead=lost.partition("/")[0])
    table.coordinate(60.0)
    table.coordinate(0.3)
    show(
        "4. The machine of slot 2 dies, and its connection to the coordinator with it. After 0.3 s, in which others may fail too, "
        "the coordinator asks for round 2. The world is still that of round 1, so nothing else has changed.",
        table.world(),
    )
    for name in table.agents:
        table.join(name)
    show(
        "5. `num_nodes_waiting()` is 1 for the three others. torch stops the workers and calls `next_rendezvous` again: each asks for "
        "round 2 with another store. `firstRV` says since when this agent has been there.",
        table.member("mnist-1"),
    )
    assert table.coordinate() == ""
    assert table.coordinate(2.0) == "replacements have not come in time"
    show(
        "6. Three are at least the two that `nodes.min` wants. The operator shows no pod of a replacement for 2 s, so they go on "
        "without one: round 2. `slots` has the bits 0, 1 and 3, so slot 3 has rank 2 now.",
        table.world(),
    )
    table.coordinate()
    table.members.pop("mnist-2")
    table.expect(0, 1, 2, 3)
    table.start(2, "e5a9708c")
    table.join("mnist-2")
    show(
        "7. The replacement of slot 2 has the same name and another UID. Its request is for round 3, the one after the highest "
        "that it has seen.",
        table.member("mnist-2"),
    )
    assert table.coordinate(30.0) == "1 more joined"
    for name in ("mnist-0", "mnist-1", "mnist-3"):
        table.join(name)
    assert table.coordinate() == "all have joined"
    show(
        "8. All pods that are expected are there, and round 2 is not new any more, so the coordinator asks for round 3 at once (`want: 3`, "
        "`wantReason: 1 more joined`). "
        "The others ask for it, too, and it is committed.",
        table.world(),
    )
    assert {world.round for world in table.worlds.values()} == {3}
    assert sorted(world.rank for world in table.worlds.values()) == [0, 1, 2, 3]
    return "\n".join(parts)


def documented() -> str:
    """The example as it is in the ADR."""
    return ADR.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    before, _, rest = ADR.read_text().partition(BEGIN)
    ADR.write_text(before + BEGIN + example() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
