"""What the coordinator is given, decides and remembers: the types around `rdzv.protocol.coordinator.step`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rdzv.protocol.fields import replace
from rdzv.protocol.pace import Pace

if TYPE_CHECKING:
    from rdzv.protocol.events import Identity
    from rdzv.protocol.exclusion import Barred
    from rdzv.protocol.records import Coordinator, Endpoint, Member, Round
    from rdzv.protocol.roster import Roster


@dataclass(frozen=True)
class Policy:
    """Seconds, and the bounds that hold while no Rendezvous is known. `last_call` is torch's last_call_timeout.

    When the Rendezvous has been another run's for `give_up`, there is no place for this one: for a moment, it may be the
    Round of a run that is over, or an old view.
    """

    min_nodes: int
    max_nodes: int
    last_call: float = 30.0
    settle: float = 0.3
    grace: float = 2.0
    give_up: float = 10.0
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True)
class View:
    """What the coordinator's caches hold.

    Attributes:
        members: by name, each with its resourceVersion. Complete: every write up to `members_rv` is in it.
        members_rv: highest resourceVersion of the watch (list, event or bookmark) of Members.
        roster: the Rendezvous, None when there is none or it may not be read.
        round: the Round, None when it does not exist. `round_rv` is its resourceVersion.
        dead: incarnations that certainly ended (connection broken and refused, container terminated …) and have not
            connected since. A write says nothing: it may be a late one of a process that is gone.
        suspected: incarnations that are silent; they are not waited for, but not evicted either.
        connected: incarnations that hold a connection to this coordinator: the one it replaced is dead until it is here.
        highest_seen: that of this agent (`KnownRound.highest_seen`).
        met: this agent has seen a Round of its own run (`KnownRound.met`).
        probes: by incarnation, whether this agent could connect to the store, as `Decision.probe` asked for.
        doubted: incarnations that owe a sign of life: their connection broke just now, or they were asked (`Decision.ask`)
            and have not answered. Who has one to give does so in milliseconds.
    """

    members: Mapping[str, tuple[Member, int]]
    members_rv: int
    roster: Roster | None
    round: Round | None
    round_rv: int | None
    dead: frozenset[str] = frozenset()
    suspected: frozenset[str] = frozenset()
    connected: frozenset[str] = frozenset()
    highest_seen: int = 0
    met: bool = False
    probes: Mapping[str, bool] = field(default_factory=dict)
    doubted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Decision:
    """What to do.

    Attributes:
        write: the Round to create (`rv` None) or to replace on condition that its resourceVersion is `rv`. Whatever
            comes of it, applied, refused or unknown: read the Round and call `step` again; never repeat it as it is.
        look_again: call `step` at this time even if nothing changes.
        foreign: the Rendezvous is another run's at present; `waiting_for` says whose.
        refused: why there is no place for this agent's run, for people: send `Refused` to the member function.
        step_down: another agent coordinates: stop, and send `SteppedDown` to the member function.
        why: what makes it write, for people.
        refused_members: by name, why a Member counts for nothing; for people.
        waiting_for: who is missing, for people; empty when nothing is.
        probe: by incarnation, stores to connect to from time to time: `View.probes` tells whether that works.
        ask: incarnations to ask for a sign of life, once: a later agent asks for their slot. See `View.doubted`.
    """

    write: Round | None = None
    rv: int | None = None
    look_again: float | None = None
    foreign: bool = False
    refused: str = ""
    step_down: bool = False
    why: str = ""
    waiting_for: str = ""
    refused_members: Mapping[str, str] = field(default_factory=dict)
    probe: Mapping[str, Endpoint] = field(default_factory=dict)
    ask: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CoordinatorState:
    """What the coordinator remembers between steps; start with the first three.

    Attributes:
        me: the agent in which the function runs.
        policy: its waits.
        lost: the coordinator that `Candidate` named: it is gone, and may be replaced.
        highest_seen: number of the highest round that was seen.
        slot: of this agent.
        term: the highest term that was seen.
        since: since when (seconds) what holds in this round: ready, hopeless, failed, forming, late, formed; and foreign.
        failed: fingerprints of those who are gone, or ask again, in this round.
        succeeded: incarnations that ended well: their Members may be deleted before all have.
        basis: number of the round that `since`, `failed` and `nodes` are about.
        nodes: by slot, the nodes of its members, as far as their Members were there when this agent saw it first.
        heartbeat: of the operator, and when (seconds) it changed last.
        claimed_at: when (seconds) the Round first named this agent; None: not yet.
        stood: the Round as it last named this agent.
        answered: by incarnation, when (seconds) a rival was answered.
        alone_since: since when (seconds) none of several others is connected; None: it is not so.
        followed: another agent has found this one since it took over.
        unconnected: by incarnation, since when (seconds) somebody asks to be counted without a connection.
        barred: by incarnation, who could not lead a round, or not reach the one that did.
        judged_since: since when (seconds) it is to be found out whether a leader can be reached; None: it is not.
    """

    me: Identity
    policy: Policy
    lost: Coordinator | None = None

    highest_seen: int = 0
    slot: int | None = None
    term: int = 0
    since: Mapping[str, float] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()
    succeeded: frozenset[str] = frozenset()
    basis: int = -1
    nodes: Mapping[int, str] = field(default_factory=dict)
    heartbeat: tuple[int, float] = (-1, 0.0)
    claimed_at: float | None = None
    stood: Round | None = None
    answered: Mapping[str, float] = field(default_factory=dict)
    alone_since: float | None = None
    followed: bool = False
    unconnected: Mapping[str, float] = field(default_factory=dict)
    barred: Mapping[str, Barred] = field(default_factory=dict)
    judged_since: float | None = None


def note(state: CoordinatorState, name: str, holds: bool, now: float, renew: bool = False) -> CoordinatorState:
    """Remembers since when something holds; with `renew`, when it last became true."""
    since = dict(state.since)
    if holds:
        since[name] = now if renew else since.get(name, now)
    elif not renew:
        since.pop(name, None)
    return replace(state, since=since)
