"""What the simulator is made of: pods, processes, what a schedule is drawn from, and the times of its world (seconds)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from rdzv.pairs import Pair
from rdzv.protocol import events as ev
from rdzv.protocol.coordinator_state import CoordinatorState, Policy
from rdzv.protocol.fields import replace
from rdzv.protocol.member_state import MemberState
from rdzv.protocol.pace import Pace
from rdzv.protocol.records import Coordinator, Endpoint, Member, Round

NAME = "job"
Counted = dict[str, tuple[Member, int]]
GROUP = 2
"""Pods of a group, where they have pairs."""
SILENCE = 3.0
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


def place_of(claim: Pair) -> int:
    """The slot that a pod's pair follows from."""
    return int(claim.group or 0) * GROUP + claim.index


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
