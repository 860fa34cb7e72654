"""What one agent knows and where it stands: the state that `rdzv.protocol.member` keeps. Records are replaced, never changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from rdzv.protocol import events as ev
from rdzv.protocol.fields import replace
from rdzv.protocol.records import FAILED, LEAVING, SUCCEEDED, Coordinator, Endpoint, Member, Round


class Standing(Enum):
    """Whether this agent may still be in a world. Each change is for good."""

    ACTIVE = "active"
    LEAVING = "leaving"
    """Its pod is being stopped."""
    FINISHED = "finished"
    """`shutdown()` was called."""
    REPLACED = "replaced"
    """A later agent writes the Member of this name: this one's pod was deleted and made again under its name."""


class Stage(Enum):
    """How far the call of `next_rendezvous` has come."""

    NONE = "none"
    """There is no call: the agent is in a world, or has not asked for one yet."""
    JOINING = "joining"
    """It asks to be counted, or is about to."""
    REBINDING = "rebinding"
    """The store of the last request is spent; the one for the next is being bound."""
    PARKED = "parked"
    """A world runs without this agent, a spare, which waits without a deadline."""


class Writing(Enum):
    """What is under way about the own Member. One request at a time."""

    SETTLED = "settled"
    """Nothing; `acked` is what the API server has."""
    PENDING = "pending"
    """`pending` is being written."""
    UNKNOWN = "unknown"
    """A write may have been applied; nothing is written before the Member was read."""
    READING = "reading"
    """That read is under way."""
    CHECKING = "checking"
    """A read is under way to see whether the Member, as far as known in order, is still there."""


@dataclass(frozen=True)
class KnownRound:
    """What was seen of the Round."""

    observed: bool = False
    """The API server has said, once at least, whether there is one."""
    record: Round | None = None
    """The Round of the own run as last seen, None while there is none."""
    rv: int = 0
    """resourceVersion of what was seen last. Anything older changes nothing."""
    highest_seen: int = 0
    """Highest round number ever seen. Only grows, also when the Round is deleted and made again."""
    met: bool = False
    """A Round of the own run was seen."""
    met_rv: int = 0
    """Its resourceVersion at the first look: no write of this agent is older."""
    foreign: str = ""
    """Run ID of the Round when it is not the own. If it stays so, the Rendezvous was made again."""
    foreign_since: float = 0.0
    """Since when (seconds) the Round has been of another run."""
    refused: str = ""
    """Why there is no place for the own run, as the coordinator function of this agent says, until the Round changes."""


@dataclass(frozen=True)
class Request:
    """What `next_rendezvous` asks for."""

    stage: Stage = Stage.NONE
    """How far the call has come."""
    port: int = 0
    """Of the TCPStore that is bound for the request, 0 when the last one was used up."""
    requested: int = 0
    """Number of the round that was asked for, 0 before it was asked."""
    deadline: float = 0.0
    """When (seconds) the call gives up, unless parked."""
    unreachable: Endpoint | None = None
    """The store of the round before, if it could not be connected to."""


@dataclass(frozen=True)
class OwnRecord:
    """The own Member: as it is to be, and as the API server has it."""

    desired: Member | None = None
    """What this agent has to say, None before it asks for the first time."""
    acked: Member | None = None
    """What the API server has, as far as it has told; without `first_rv`, as `desired` and `pending`."""
    acked_rv: int | None = None
    """resourceVersion of `acked`: the condition of the next write. None: create it."""
    writing: Writing = Writing.SETTLED
    """The request that is under way."""
    pending: Member | None = None
    """What is being written."""
    first_rv: int = 0
    """resourceVersion of the first write that is known to have been applied, 0 before. What a later one has to say."""
    confirmed_at: float = 0.0
    """When (seconds) the API server last told what it has."""
    retry_at: float = 0.0
    """No request before this time (seconds)."""
    failures: int = 0
    """Requests that failed in a row, counted anew when the server is back and says that it is busy."""
    busy: bool = False
    """It was busy at the last one of them."""

    @property
    def acknowledged(self) -> bool:
        """The API server has confirmed exactly what this agent last wanted to say."""
        known = self.writing in (Writing.SETTLED, Writing.CHECKING)
        return known and self.desired is not None and self.acked == self.desired

    def saying(self, word: str) -> OwnRecord:
        """With this `state` in the Member, if there is one."""
        last = self.desired or self.acked
        return replace(self, desired=None if last is None else replace(last, state=word))


@dataclass(frozen=True)
class Candidacy:
    """This agent and the role of coordinator."""

    running: bool = False
    """The coordinator function runs in this agent."""
    vacant_since: float | None = None
    """Since when (seconds) nobody coordinates and this agent could; None: somebody does."""
    lost: Coordinator | None = None
    """The coordinator to which the connection is lost."""
    doubts: int = 0
    """Times in a row that this agent was wrong, or could not tell, whether the coordinator is gone: it lived on, or another
    agent took over from this one. 0 as soon as a connection to a coordinator stands."""
    stepped_rv: int = 0
    """resourceVersion of the Round that made the function step down. An older one is no reason to start it again."""


@dataclass(frozen=True)
class MemberState:
    """What one agent knows. Start with `MemberState(identity, timing)`, and only read it."""

    me: ev.Identity
    """Who this agent is."""
    timing: ev.Timing = field(default_factory=ev.Timing)
    """How long it waits for what."""
    standing: Standing = Standing.ACTIVE
    """Whether it may still be in a world."""
    replaced_by: Member | None = None
    """What the later agent of this name says."""
    slot: int | None = None
    """The own slot, once it is known; `me.slot` when the pod has an index."""
    accepted: int = 0
    """Number of the world accepted last, 0 before the first."""
    accepted_uid: str = ""
    """UID of the Round that `accepted` is a number of."""
    known: KnownRound = field(default_factory=KnownRound)
    """What was seen of the Round."""
    request: Request = field(default_factory=Request)
    """What `next_rendezvous` asks for."""
    own: OwnRecord = field(default_factory=OwnRecord)
    """The own Member."""
    candidacy: Candidacy = field(default_factory=Candidacy)
    """The role of coordinator."""

    @property
    def joining(self) -> bool:
        """`next_rendezvous` waits for its end."""
        return self.request.stage is not Stage.NONE

    @property
    def ending(self) -> bool:
        """It leaves, or is done."""
        return self.standing in (Standing.LEAVING, Standing.FINISHED)


def become_joining(state: MemberState, port: int, deadline: float, unreachable: Endpoint | None = None) -> MemberState:
    """`next_rendezvous` begins, with a store bound at `port`; or goes on, when that of the last round was unreachable."""
    slot = state.slot if state.me.slot is None else state.me.slot
    request = Request(Stage.JOINING, port, deadline=deadline, unreachable=unreachable)
    return replace(state, slot=slot, request=request)


def become_reaching(state: MemberState) -> MemberState:
    """It can connect to the store of those who went on without it, and no longer says that it can't."""
    desired = state.own.desired
    own = state.own if desired is None else replace(state.own, desired=replace(desired, unreachable=None))
    return replace(state, own=own, request=replace(state.request, unreachable=None))


def become_rebinding(state: MemberState) -> MemberState:
    """The store that is bound is spent, or there is none: no request before there is another one."""
    return replace(state, request=replace(state.request, stage=Stage.REBINDING, port=0, requested=0))


def become_bound(state: MemberState, port: int) -> MemberState:
    """Another store is bound."""
    stage = Stage.JOINING if state.request.stage is Stage.REBINDING else state.request.stage
    return replace(state, request=replace(state.request, stage=stage, port=port))


def become_parked(state: MemberState, parked: bool, deadline: float) -> MemberState:
    """A spare from now on, or no longer: then its time counts again."""
    stage = Stage.PARKED if parked else Stage.JOINING
    return replace(state, request=replace(state.request, stage=stage, deadline=deadline))


def become_member(state: MemberState, world: ev.Accept) -> MemberState:
    """`next_rendezvous` ends with a world. Its store is spent."""
    request = replace(state.request, stage=Stage.NONE, port=0, requested=0, unreachable=None)
    return replace(state, request=request, accepted=world.round, accepted_uid=world.uid, slot=world.slot)


def become_outsider(state: MemberState) -> MemberState:
    """`next_rendezvous` ends without a world: what was asked for is taken back."""
    own = state.own if state.standing is Standing.FINISHED else state.own.saying(LEAVING)
    return replace(state, request=replace(state.request, stage=Stage.NONE), own=own)


def become_leaving(state: MemberState) -> MemberState:
    """The pod is being stopped. Who is done, or was replaced, has nothing to add."""
    if state.standing is not Standing.ACTIVE:
        return state
    return replace(state, standing=Standing.LEAVING, own=state.own.saying(LEAVING))


def become_finished(state: MemberState, success: bool) -> MemberState:
    """`shutdown()`. A node that was told to leave, and then fails, left: nobody is to blame."""
    word = SUCCEEDED if success else LEAVING if state.standing is Standing.LEAVING else FAILED
    standing = state.standing if state.standing is Standing.REPLACED else Standing.FINISHED
    return replace(state, standing=standing, own=state.own.saying(word))


def become_replaced(state: MemberState, by: Member) -> MemberState:
    """Another agent has the name: nothing is written any more."""
    return replace(state, standing=Standing.REPLACED, replaced_by=by)
