"""One agent of the `kubernetes` backend: carries out what the pure functions of `member` and `coordinator` decide.

Threads, all daemons, ended by `stop`: the loop (sockets, times, signals), one for the own requests, one for the watch of
the Round, and those of `CoordinatorLoop` while this agent coordinates. Every event goes through `_feed`, one at a time.
"""

from __future__ import annotations

import atexit
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from rdzv.agent.coordinator_loop import CoordinatorLoop, Shared
from rdzv.agent.liveness import Callbacks, Liveness
from rdzv.agent.loop import Loop
from rdzv.agent.own_member import HOPELESS, OwnMember
from rdzv.agent.round_record import RoundRecord
from rdzv.agent.signals import SignalPipe
from rdzv.kube.api import ApiError, Forbidden, NotFound, Stopped, UnknownResource
from rdzv.kube.client import Client
from rdzv.kube.config import ConfigError
from rdzv.kube.retry import Retry
from rdzv.kube.watch import SYNCED, Watch
from rdzv.objects import Object
from rdzv.protocol import member
from rdzv.protocol.coordinator_state import CoordinatorState, Policy
from rdzv.protocol.events import (
    CONNECTION,
    TIMEOUT,
    Accept,
    Action,
    Bound,
    Candidate,
    CoordinatorFound,
    CoordinatorLost,
    Finished,
    Identity,
    Join,
    LeaderUnreachable,
    MemberEvent,
    Raise,
    Read,
    Rebind,
    Refused,
    RoundSeen,
    Sigterm,
    SteppedDown,
    Tick,
    Timing,
    Wake,
    Write,
)
from rdzv.protocol.member_state import MemberState, Stage, Standing
from rdzv.protocol.records import CLOSED, Coordinator, Round
from rdzv.resources import RENDEZVOUS, ROUNDS

__all__ = ["Agent", "AgentError", "AgentSettings"]

log = logging.getLogger("rdzv.agent")

UNSET_RUN = "none"
"""torchrun's `--rdzv-id` when none is given."""
_UNSERVED_SECONDS = 8.0
_FAREWELL_SECONDS = 30.0
_CLOSING_SECONDS = 10.0
_EXIT_SECONDS = 2.0
_THREAD_SECONDS = 2.0


class AgentError(Exception):
    """`join` ended without a world. `kind` is one of `rdzv.protocol.events`: closed, timeout, connection, graceful."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class AgentSettings:
    """Who the agent is and how it behaves.

    Attributes:
        identity: its `port` is filled in. Run ID `none` becomes the UID of the Rendezvous, if there is one.
        rebind: closes the store bound for the last request, binds a fresh one and returns its port.
    """

    namespace: str
    identity: Identity
    timing: Timing
    policy: Policy
    rebind: Callable[[], int]


class Agent:
    """Create it early: its connections and watches are made in the background. Thread-safe."""

    def __init__(self, client: Client, settings: AgentSettings) -> None:
        self._client, self._settings = client, settings
        self._lock = threading.RLock()
        self._told = threading.Condition(self._lock)
        self._inbox: list[MemberEvent] = []
        self._stepping = False
        self._outcome: Accept | Raise | None = None
        self._error: Exception | None = None
        self._unserved = 0.0
        self._state: MemberState | None = None
        self._round = RoundRecord(
            client, settings.namespace, settings.identity.rendezvous, self._lock, self._round_changed
        )
        self._coordinator: CoordinatorLoop | None = None
        self._stop = threading.Event()
        self._requests: queue.SimpleQueue[Write | Read | None] = queue.SimpleQueue()
        name = settings.identity.name
        self._record = OwnMember(client, settings.namespace, name, self._failed)
        self._loop = Loop(f"rdzv-loop-{name}")
        callbacks = Callbacks(
            lost=lambda target: self._feed(CoordinatorLost(target)),
            found=lambda target: self._feed(CoordinatorFound(target)),
            peers=self._poke,
        )
        me = settings.identity
        self._liveness = Liveness(self._loop, me.incarnation, me.address, callbacks, me.key)
        self._identity = replace(me, port=self._liveness.port)
        self._signals = SignalPipe(self._loop, {signal.SIGTERM, signal.SIGINT}, self._sigterm)
        name_of_round = settings.identity.rendezvous
        self._watch = Watch(client, ROUNDS, settings.namespace, name=name_of_round, waiting=self._misses_a_round)
        self._threads = [
            threading.Thread(target=self._watching, name=f"rdzv-round-{name}", daemon=True),
            threading.Thread(target=self._requesting, name=f"rdzv-requests-{name}", daemon=True),
        ]
        self._loop.start()
        for thread in self._threads:
            thread.start()
        atexit.register(self._at_exit)

    # What the handler asks.

    def join(self, port: int) -> Accept:
        """Ask to be counted, with a store bound at `port`, and wait for the world.

        Raises:
            AgentError: there will be none.
        """
        self._await_start()
        return self._wait_for_outcome(Join(port))

    def rejoin(self, number: int) -> Accept:
        """The leader's store of the accepted round cannot be reached: ask for another round. Raises as `join`."""
        return self._wait_for_outcome(LeaderUnreachable(number))

    def num_nodes_waiting(self) -> int:
        """1 when the world is to be formed anew, else 0. No I/O, no lock."""
        state = self._state
        return member.num_nodes_waiting(state) if state is not None else 0

    def is_closed(self) -> bool:
        """Whether the Rendezvous was closed, as far as this agent has seen, since it started."""
        state = self._state
        return state is not None and member.is_closed(state)

    def run_id(self) -> str:
        """Of the identity, or of the Rendezvous that it was taken from."""
        return self._identity.run_id

    def close(self, reason: str) -> None:
        """Close the Rendezvous for everybody.

        Raises:
            ApiError: it could not be written.
        """
        self._await_start()
        me, retry = self._identity, Retry.within(_FAREWELL_SECONDS, self._stop)
        self._round.close(me.run_id, reason, me.name, retry, self._is_closed_by)
        self._after_round()

    def _is_closed_by(self, record: Round) -> bool:
        state = self._state
        return state is not None and member.is_closed_by(state, record)

    def finish(self, success: bool) -> bool:
        """Say how it ended, wait until that is known to the others, and end. Returns whether it became known."""
        known = self._say_goodbye(success) if self._state is not None else True
        self.stop()
        return known

    def stop(self) -> None:
        """End all threads and connections, without a word to the others."""
        atexit.unregister(self._at_exit)
        self._stop.set()
        with self._lock:
            coordinator = self._coordinator
            self._told.notify_all()
        self._requests.put(None)
        self._watch.close()
        if coordinator is not None:
            coordinator.stop()
        self._client.close()
        self._signals.close()
        self._loop.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_THREAD_SECONDS)
        if coordinator is not None:
            coordinator.join(_THREAD_SECONDS)

    # Waiting.

    def _await_start(self) -> None:
        deadline = time.monotonic() + self._settings.timing.join_timeout
        with self._told:
            while self._state is None and self._error is None and not self._stop.is_set():
                if not self._told.wait(deadline - time.monotonic()):
                    raise AgentError(CONNECTION, "the API server was not reached in time")
            if self._state is None:
                self._check_error()

    def _check_error(self) -> None:
        if self._stop.is_set():
            raise AgentError(CONNECTION, "the rendezvous handler was shut down")
        if self._error is not None:
            error, self._error = self._error, None
            raise AgentError(CONNECTION, str(error)) from error

    def _wait_for_outcome(self, event: MemberEvent) -> Accept:
        with self._told:
            self._outcome = self._error = None  # What was refused while nobody waited may be allowed by now.
            self._feed(event)
            while self._outcome is None:
                self._check_error()
                self._told.wait()
            outcome = self._outcome
        if isinstance(outcome, Accept):
            return outcome
        missing = self._missing() if outcome.kind == TIMEOUT else ""
        raise AgentError(outcome.kind, f"{outcome.message}: {missing}" if missing else outcome.message)

    def _missing(self) -> str:
        loop = self._coordinator or self._new_coordinator()
        return loop.missing(self._settings.policy, self._identity.run_id)

    def _say_goodbye(self, success: bool) -> bool:
        with self._lock:
            self._error = None
        self._feed(Finished(success))
        deadline = time.monotonic() + _FAREWELL_SECONDS
        with self._told:
            while not self._heard() and self._error is None and time.monotonic() < deadline:
                self._told.wait(deadline - time.monotonic())
            known = self._heard()
            # Somebody has to close the round that all have finished; the others may leave at once.
            closing = min(deadline, time.monotonic() + _CLOSING_SECONDS) if success and self._coordinates() else 0.0
            while not self._over() and time.monotonic() < closing:
                self._told.wait(closing - time.monotonic())
        return known

    def _heard(self) -> bool:
        state = self._state
        if state is None or state.own.desired is None or state.standing is Standing.REPLACED:
            return True
        return state.own.acked == state.own.desired

    def _over(self) -> bool:
        state = self._state
        if state is None or not state.accepted:
            return True
        return state.known.record is not None and state.known.record.phase == CLOSED

    def _coordinates(self) -> bool:
        return self._coordinator is not None and self._coordinator.active

    def _at_exit(self) -> None:
        """After SIGTERM torch ends without a word to the handler; what was to be written should get through."""
        deadline = time.monotonic() + _EXIT_SECONDS
        with self._told:
            while self._state is not None and self._state.ending and not self._heard():
                if not self._told.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    break
        self.stop()

    # Events and actions.

    def _feed(self, event: MemberEvent) -> None:
        """One event at a time; those that arise while an action is carried out come after it."""
        with self._lock:
            self._inbox.append(event)
            if self._stepping or self._state is None:
                return
            self._stepping = True
            try:
                while self._inbox:
                    self._state, actions = member.step(self._state, self._inbox.pop(0), time.monotonic())
                    wake = None
                    for action in actions:
                        if isinstance(action, Wake):
                            wake = action.at
                        else:
                            self._do(action)
                    self._loop.at("member", wake, lambda: self._feed(Tick()))
            finally:
                self._stepping = False
            self._told.notify_all()

    def _do(self, action: Action) -> None:
        match action:
            case Write() | Read():
                self._requests.put(action)
            case Rebind():
                self._inbox.append(Bound(self._settings.rebind()))
            case Accept() | Raise():
                self._outcome = action
            case Candidate(lost):
                self._coordinate(lost)

    def _coordinate(self, lost: Coordinator | None) -> None:
        state = self._state
        if state is None or self._stop.is_set():
            return
        if self._coordinator is None:
            self._coordinator = self._new_coordinator()
        start = CoordinatorState(self._identity, self._settings.policy)
        self._coordinator.start(replace(start, lost=lost))

    def _new_coordinator(self) -> CoordinatorLoop:
        shared = Shared(
            client=self._client,
            namespace=self._settings.namespace,
            latest=lambda: self._round.latest,
            highest_seen=lambda: self._state.known.highest_seen if self._state is not None else 0,
            take=self._take,
            stepped_down=self._stepped_down,
            refused=lambda reason: self._feed(Refused(reason)),
            failed=self._failed,
        )
        return CoordinatorLoop(shared, self._liveness, self._identity.rendezvous)

    def _stepped_down(self, rv: int) -> None:
        with self._lock:
            self._coordinator = None
        self._feed(SteppedDown(rv))

    def _poke(self) -> None:
        coordinator = self._coordinator
        if coordinator is not None:
            coordinator.poke()

    def _sigterm(self) -> None:
        log.info("told to stop: leaving Rendezvous %s", self._identity.rendezvous)
        self._feed(Sigterm())

    def _failed(self, error: Exception) -> None:
        """A request that will not do better when repeated ends `join`; any other one is only worth a word."""
        passing = isinstance(error, ApiError) and self._client.maybe_starting(error)
        if isinstance(error, UnknownResource):
            # While a CRD is replaced by another version its objects are not served for a moment.
            now = time.monotonic()
            self._unserved = self._unserved or now
            passing = now < self._unserved + _UNSERVED_SECONDS
        if passing or not isinstance(error, HOPELESS):
            log.info("%s", error)
            return
        log.error("%s", error)
        with self._told:
            self._error = error
            self._told.notify_all()

    # The Round.

    def _watching(self) -> None:
        self._start()
        while not self._stop.is_set():
            try:
                for event in self._watch.events():
                    if event.type == SYNCED:
                        self._none_yet()
                    elif self._round.event(event.type, event.object):
                        self._after_round()
            except Stopped:
                return
            except (ApiError, ConfigError) as error:
                self._failed(error)
                self._stop.wait(self._settings.timing.retry_max)

    def _misses_a_round(self) -> bool:
        """Whether the watch of the Round should have something to say.

        The agent was told of a Round that it has not seen, or it waits, and nobody is there to tell it.
        """
        state, liveness = self._state, self._liveness
        joining = state is not None and state.request.stage in (Stage.JOINING, Stage.REBINDING)
        return (joining and not liveness.linked) or liveness.announced > (self._round.latest.rv or 0)

    def _none_yet(self) -> None:
        state = self._state
        if state is not None and not state.known.observed:
            self._feed(RoundSeen(None, 0))

    def _start(self) -> None:
        """Opens connections, finds out the run ID, and only then lets events through."""
        try:
            self._client.connect(2)
        except (ApiError, ConfigError) as error:
            self._failed(error)
        me = self._identity
        if me.run_id == UNSET_RUN:
            me = replace(me, run_id=self._uid_of_rendezvous() or UNSET_RUN)
        with self._lock:
            self._identity = me
            self._state = MemberState(me, self._settings.timing)
            if me.slot == 0:
                # The first to coordinate, most likely: then its caches should be there.
                self._coordinator = self._new_coordinator()
                self._coordinator.prepare()
            self._told.notify_all()

    def _uid_of_rendezvous(self) -> str | None:
        namespace, name = self._settings.namespace, self._identity.rendezvous
        while not self._stop.is_set():
            try:
                uid = self._client.get(RENDEZVOUS, namespace, name, retry=Retry(stop=self._stop))["metadata"]["uid"]
            except (NotFound, UnknownResource, Forbidden, Stopped):
                return None
            except (ApiError, ConfigError) as error:
                self._failed(error)
                self._stop.wait(self._settings.timing.retry_max)
            else:
                return str(uid)
        return None

    def _take(self, obj: Object | None) -> None:
        if self._round.take(obj):
            self._after_round()

    def _round_changed(self, record: Round | None, rv: int) -> None:
        self._unserved = 0.0
        self._feed(RoundSeen(record, rv))

    def _after_round(self) -> None:
        self._follow(self._round.latest.record)
        self._poke()

    def _follow(self, record: Round | None) -> None:
        target = record.coordinator if record is not None and record.run_id == self._identity.run_id else None
        mine = target is not None and target.incarnation == self._identity.incarnation
        self._liveness.follow(None if mine else target)
        self._liveness.announce(self._round.latest.rv or 0)
        with self._lock:
            prepared = self._coordinator
            if prepared is None or prepared.active or target is None or mine:
                return
            self._coordinator = None  # Somebody else coordinates: the caches made ahead are not needed.
        prepared.stop()

    # The own Member.

    def _requesting(self) -> None:
        while (action := self._requests.get()) is not None:
            try:
                self._feed(self._record.write(action) if isinstance(action, Write) else self._record.read())
            except Stopped:
                return
