"""What the member's side of the protocol takes and gives: identity, timing, events and actions. See `rdzv.protocol.member`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rdzv.pairs import Pair

if TYPE_CHECKING:
    from rdzv.protocol.records import Coordinator, Endpoint, Leader, Member, Round

_FIRST = (Pair("", 0), Pair("0", 0))
CLOSED_ERROR, TIMEOUT, CONNECTION, GRACEFUL = "closed", "timeout", "connection", "graceful"
"""Kinds of `Raise`."""
INVALID_SECONDS = 5.0
"""Between writes of an object that the API server finds wrong: somebody has to change its CRD first."""


@dataclass(frozen=True)
class Identity:
    """Who this agent is. `port` is the liveness listener's.

    `slot` is the pod's index where that alone says which place is its own, else None. `pair`: its index within a group, or,
    where ranks follow the topology, in none.

    `key`, a random one, stands in the Round while this agent coordinates (`Coordinator.key`).
    """

    rendezvous: str
    run_id: str
    name: str
    incarnation: str
    address: str
    port: int
    node: str = ""
    slot: int | None = None
    owned: bool = True
    """It runs in a pod of its name, with which its Member is to go."""
    key: str = field(default="", repr=False)
    pair: Pair | None = None

    @property
    def is_first(self) -> bool:
        """Nobody comes before it, as far as it can tell: it coordinates at once where nobody does."""
        return self.slot == 0 or self.pair in _FIRST


@dataclass(frozen=True)
class Timing:
    """Seconds. `join_timeout` is torch's; the delays decide which agent takes over the coordination, and when.

    A waiting agent looks every `check_interval` whether its Member is still there. An agent that can't connect to a
    coordinator which lives takes over after `doubt` at the earliest, then after twice that, and so on up to `doubt_max`.
    """

    join_timeout: float = 600.0
    bootstrap_delay: float = 1.0
    check_interval: float = 10.0
    takeover_step: float = 0.15
    doubt: float = 10.0
    doubt_max: float = 60.0
    retry: float = 0.2
    retry_max: float = 2.5


# Events.


@dataclass(frozen=True)
class Join:
    """`next_rendezvous` was called `waited` seconds ago; a TCPStore is bound at `port` for the round that will be asked for."""

    port: int
    waited: float = 0.0


@dataclass(frozen=True)
class Bound:
    """Answer to `Rebind`: another TCPStore is bound at `port`, the one before is closed."""

    port: int


@dataclass(frozen=True)
class Written:
    """The own write was applied; `rv` is the resourceVersion in the reply."""

    rv: int


@dataclass(frozen=True)
class WriteFailed:
    """The own write was certainly not applied (refused connection, 429); it is made again after a while.

    `invalid`: the API server finds the object wrong, and will until somebody changes its CRD. `busy`: it answers, with 429.
    """

    invalid: bool = False
    busy: bool = False


@dataclass(frozen=True)
class WriteUnknown:
    """The own write may have been applied (lost reply, 5xx), or somebody wrote before (409, 404): answered by `Read`."""


@dataclass(frozen=True)
class OwnRead:
    """Answer to `Read`: the own Member as it is now (`rv` its resourceVersion), or None when there is none."""

    member: Member | None
    rv: int


@dataclass(frozen=True)
class ReadFailed:
    """`Read` could not be carried out; it is made again after a while."""


@dataclass(frozen=True)
class RoundSeen:
    """The Round as a reply or watch event shows it, in any order, or None: it does not exist (`rv` of the deletion or 0)."""

    round: Round | None
    rv: int


@dataclass(frozen=True)
class CoordinatorLost:
    """The connection to this coordinator broke and could not be made again, or was silent for too long."""

    coordinator: Coordinator


@dataclass(frozen=True)
class CoordinatorFound:
    """A connection to this coordinator stands."""

    coordinator: Coordinator


@dataclass(frozen=True)
class SteppedDown:
    """The coordinator function of this agent has stopped because of the Round at `rv`: another one has taken over."""

    rv: int


@dataclass(frozen=True)
class Refused:
    """There is no place for this agent's run, says the coordinator function in it: another run has the Rendezvous."""

    reason: str


@dataclass(frozen=True)
class LeaderUnreachable:
    """The TCPStore of the accepted `round` could not be reached: ask for another round.

    `store` is where it was tried for long enough to blame somebody; None: the round was over before.
    """

    round: int
    store: Endpoint | None = None


@dataclass(frozen=True)
class StoreReached:
    """Since then this agent could connect to `store`, that of the world which runs without it."""

    store: Endpoint


@dataclass(frozen=True)
class Tick:
    """The time of a `Wake` has come."""


@dataclass(frozen=True)
class Sigterm:
    """The pod is being stopped: tell the others now, not when the workers are done."""


@dataclass(frozen=True)
class Finished:
    """`shutdown()`: the agent is done, with success or without."""

    success: bool


MemberEvent = (
    Join
    | Bound
    | Written
    | WriteFailed
    | WriteUnknown
    | OwnRead
    | ReadFailed
    | RoundSeen
    | CoordinatorLost
    | CoordinatorFound
    | SteppedDown
    | Refused
    | LeaderUnreachable
    | StoreReached
    | Tick
    | Sigterm
    | Finished
)

# Actions.


@dataclass(frozen=True)
class Write:
    """Create the own Member (`rv` None) or replace it on condition that its resourceVersion is `rv`. One at a time.

    Answer: Written, WriteFailed or WriteUnknown. The condition keeps a write that was given up on, and arrives late, from
    undoing a later one.
    """

    member: Member
    rv: int | None


@dataclass(frozen=True)
class Read:
    """Read the own Member from the API server (not from a cache). Answer: OwnRead or ReadFailed."""


@dataclass(frozen=True)
class Rebind:
    """Close the store bound for the last request and bind a fresh one. Answer: Bound.

    A round that this agent has not seen may have used the old one; two worlds never share a store.
    """


@dataclass(frozen=True)
class Accept:
    """`next_rendezvous` is done: this is the world. `uid` is that of the Round, which `round` is a number of."""

    round: int
    rank: int
    size: int
    slot: int
    leader: Leader
    uid: str


@dataclass(frozen=True)
class Raise:
    """`next_rendezvous` ends without a world. `kind`: closed, timeout, connection, graceful (a spare's end, not an error)."""

    kind: str
    message: str


@dataclass(frozen=True)
class Candidate:
    """Run the coordinator function (`rdzv.protocol.coordinator`) in this agent: nobody coordinates, `lost` (if any) is gone."""

    lost: Coordinator | None


@dataclass(frozen=True)
class Wake:
    """Send `Tick` at this time of the monotonic clock. Every step replaces the one before, also by none."""

    at: float


Action = Write | Read | Rebind | Accept | Raise | Candidate | Wake
