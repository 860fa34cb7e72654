"""One agent of the `kubernetes` backend: carries out what the pure functions of `member` and `coordinator` decide.

Threads, all daemons, ended by `stop`: the loop (sockets, times, signals), one for the own requests, one for the watch of
the Round, and those of `CoordinatorLoop` while this agent coordinates. Every event goes through `MemberLoop.feed`.
"""

from __future__ import annotations

import atexit
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from rdzv.agent.coordinator_loop import CoordinatorLoop, Shared
from rdzv.agent.interface import AgentError, AgentSettings
from rdzv.agent.liveness import Callbacks, Liveness
from rdzv.agent.loop import Loop
from rdzv.agent.member_loop import MemberLoop
from rdzv.agent.narrator import Narrator, Situation
from rdzv.agent.own_member import OwnMember
from rdzv.agent.round_reader import RoundReader
from rdzv.agent.round_record import RoundRecord
from rdzv.agent.signals import SignalPipe
from rdzv.agent.threads import Threads
from rdzv.agent.troubles import Troubles
from rdzv.kube.api import ApiError, Forbidden, Stopped
from rdzv.kube.config import ConfigError
from rdzv.kube.retry import Retry
from rdzv.protocol import member
from rdzv.protocol.coordinator_state import CoordinatorState
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
    Join,
    LeaderUnreachable,
    MemberEvent,
    Raise,
    Read,
    ReadFailed,
    Rebind,
    Refused,
    RoundSeen,
    Sigterm,
    SteppedDown,
    StoreReached,
    Tick,
    Write,
    WriteUnknown,
)
from rdzv.protocol.member_state import MemberState, Stage, Standing
from rdzv.protocol.records import CLOSED, Coordinator, Endpoint, Round

if TYPE_CHECKING:
    from rdzv.backing import Backing

__all__ = ["Agent"]

log = logging.getLogger("rdzv.agent")

UNSET_RUN = "none"
"""torchrun's `--rdzv-id` when none is given."""
_FAREWELL_SECONDS = 30.0
_CLOSING_SECONDS = 10.0
_EXIT_SECONDS = 2.0
_THREAD_SECONDS = 2.0


class Agent:
    """Create it early: its connections and watches are made in the background. Thread-safe.

    `open_liveness` is `Liveness` but for tests.
    """

    def __init__(
        self,
        client: Backing,
        settings: AgentSettings,
        open_liveness: Callable[[Loop, str, str, Callbacks, str], Liveness] = Liveness,
    ) -> None:
        self._client, self._settings = client, settings
        name, rendezvous = settings.identity.name, settings.identity.rendezvous
        self._stop = threading.Event()
        self._outcome: Accept | Raise | None = None
        self._error: Exception | None = None
        self._troubles = Troubles(client)
        self._narrator = Narrator(client, settings.namespace, rendezvous, self._situation)
        self._coordinator: CoordinatorLoop | None = None
        self._requests: queue.SimpleQueue[Write | Read | None] = queue.SimpleQueue()
        self._loop = Loop(f"rdzv-loop-{name}")
        self._member = MemberLoop(self._perform, lambda at: self._loop.at("member", at, lambda: self._feed(Tick())))
        self._round = RoundRecord(client, settings.namespace, rendezvous, self._member.lock, self._round_changed)
        self._record = OwnMember(client, settings.namespace, name, rendezvous, self._failed)
        callbacks = Callbacks(
            lost=lambda target: self._feed(CoordinatorLost(target)),
            found=lambda target: self._feed(CoordinatorFound(target)),
            peers=self._poke,
        )
        me = settings.identity
        self._liveness = open_liveness(self._loop, me.incarnation, me.address, callbacks, me.key)
        self._identity = replace(me, port=self._liveness.port)
        self._signals = SignalPipe(self._loop, {signal.SIGTERM, signal.SIGINT}, self._sigterm)
        self._reader = RoundReader(
            self._round, self._stop, self._failed, settings.timing.retry_max, self._misses_a_round
        )
        self._loop.start()
        self._threads = Threads(self._stop)
        self._threads.spawn(f"rdzv-round-{name}", self._watching)
        self._threads.spawn(f"rdzv-requests-{name}", self._requesting)
        atexit.register(self._at_exit)

    # What the handler asks.

    def join(self, port: int) -> Accept:
        """Ask to be counted, with a store bound at `port`, and wait for the world.

        Raises:
            AgentError: there will be none.
        """
        called = time.monotonic()
        self._await_start()
        return self._wait_for_outcome(Join(port, time.monotonic() - called))

    def rejoin(self, number: int, store: Endpoint | None) -> Accept:
        """The accepted round has no store: ask for another one. Raises as `join`.

        `store` is where it was tried for long enough to blame somebody; None: the round was over before.
        """
        return self._wait_for_outcome(LeaderUnreachable(number, store))

    def store_elsewhere(self) -> Endpoint | None:
        """While `rejoin` waits: the store of those who went on without this agent. No I/O, no lock."""
        state = self._member.state
        return member.store_elsewhere(state) if state is not None else None

    def store_reached(self, store: Endpoint) -> None:
        """It can be connected to now."""
        self._member.feed(StoreReached(store))

    def num_nodes_waiting(self) -> int:
        """1 when the world is to be formed anew, else 0. No I/O, no lock."""
        state = self._member.state
        return member.num_nodes_waiting(state) if state is not None else 0

    def wait(self, until: Callable[[], bool]) -> None:
        """Until this is true, which is looked at after each `wake`, or the world is to be formed anew."""
        self._member.wait(lambda: until() or bool(self.num_nodes_waiting()))

    def wake(self) -> None:
        """Something that `wait` waits for has changed."""
        self._member.poke()

    def is_closed(self) -> bool:
        """Whether the Rendezvous was closed, as far as this agent has seen, since it started."""
        state = self._member.state
        return state is not None and member.is_closed(state)

    def run_id(self) -> str:
        """Of the identity, or of the Rendezvous that it was taken from."""
        return self._identity.run_id

    def close(self, reason: str) -> None:
        """Close the Rendezvous for everybody; also after `stop`, with connections of its own.

        Raises:
            ApiError, ConfigError: it could not be written.
            AgentError: this agent never learned which run it is of.
        """
        self._await_start()
        if not self._stop.is_set():
            self._close(self._round, reason, Retry.within(_FAREWELL_SECONDS, self._stop))
            return
        client = self._client.again()
        try:
            self._close(replace(self._round, client=client), reason, Retry.within(_FAREWELL_SECONDS))
        finally:
            client.close()

    def _close(self, record: RoundRecord, reason: str, retry: Retry) -> None:
        record.close(self._identity.run_id, reason, self._identity.name, retry, self._is_closed_by)

    def _is_closed_by(self, record: Round) -> bool:
        state = self._member.state
        return state is not None and member.is_closed_by(state, record)

    def finish(self, success: bool) -> bool:
        """Say how it ended, wait until that is known to the others, and end. Returns whether it became known."""
        known = self._say_goodbye(success) if self._member.state is not None else True
        self.stop()
        return known

    def abandon(self) -> None:
        """`stop`, soon and in another thread: takes no lock, so that garbage collection may call it.

        An exception upon SIGTERM drops the handler on its way out: that the agent leaves should get through.
        """
        self._loop.call(lambda: self._next_turn("abandon", self._end))

    def stop(self) -> None:
        """End all threads and connections, without a word to the others."""
        atexit.unregister(self._at_exit)
        self._stop.set()
        self._member.poke()
        self._requests.put(None)
        self._reader.close()
        with self._member.lock:
            coordinator = self._coordinator  # After `_stop` was set nobody makes another one.
        if coordinator is not None:
            coordinator.stop()
        self._client.close()
        self._signals.close()
        self._loop.stop()
        self._threads.join(_THREAD_SECONDS)
        if coordinator is not None:
            coordinator.join(_THREAD_SECONDS)

    # Waiting.

    def _await_start(self) -> None:
        timeout = self._settings.timing.join_timeout
        there = self._member.wait(
            lambda: self._member.state is not None or self._error is not None or self._stop.is_set(),
            time.monotonic() + timeout,
        )
        if self._member.state is None:
            self._check_error()
        if not there:
            raise AgentError(
                CONNECTION, self._explained(f"the server that keeps the records was not reached within {timeout:g} s")
            )

    def _check_error(self) -> None:
        if self._stop.is_set():
            raise AgentError(CONNECTION, "the rendezvous handler was shut down")
        if self._error is not None:
            error, self._error = self._error, None
            raise AgentError(CONNECTION, self._narrator.fate or str(error)) from error

    def _explained(self, message: str, detail: str = "") -> str:
        """With what became of the Rendezvous, who is missing or, if nobody is known to be, why the API server does not answer."""
        trouble = self._client.trouble
        detail = self._narrator.fate or detail or (str(trouble) if trouble is not None else "")
        return f"{message}: {detail}" if detail else message

    def _wait_for_outcome(self, event: MemberEvent) -> Accept:
        with self._member.lock:
            self._outcome = self._error = None  # What was refused while nobody waited may be allowed by now.
            self._feed(event)
        self._narrator.attend(
            self._member, lambda: self._outcome is not None or self._error is not None or self._stop.is_set()
        )
        with self._member.lock:
            outcome = self._outcome
            if outcome is None:
                self._check_error()
        if isinstance(outcome, Accept):
            return outcome
        assert outcome is not None  # noqa: S101 - for mypy: there was an error otherwise
        if outcome.kind not in (TIMEOUT, CONNECTION):
            raise AgentError(outcome.kind, outcome.message)
        missing = self._missing() if outcome.kind == TIMEOUT else ""
        raise AgentError(outcome.kind, self._explained(outcome.message, missing))

    def _situation(self) -> Situation:
        known = self._coordinator.waiting_for if self._coordinator is not None else ""
        most = self._settings.policy.max_nodes
        return Situation(self._identity, self._round.latest.record, most, known, self._coordinates())

    def _missing(self) -> str:
        loop = self._coordinator or self._new_coordinator()
        return loop.missing(self._settings.policy, self._identity.run_id)

    def _say_goodbye(self, success: bool) -> bool:
        self._error = None
        self._feed(Finished(success))
        deadline = time.monotonic() + _FAREWELL_SECONDS
        self._member.wait(lambda: self._heard() or self._error is not None, deadline)
        known = self._heard()
        if success and self._coordinates():
            # Somebody has to close the round that all have finished; the others may leave at once.
            self._member.wait(self._over, min(deadline, time.monotonic() + _CLOSING_SECONDS))
        return known

    def _heard(self) -> bool:
        state = self._member.state
        if state is None or state.own.desired is None or state.standing is Standing.REPLACED:
            return True
        return state.own.acked == state.own.desired

    def _over(self) -> bool:
        state = self._member.state
        if state is None or not state.accepted:
            return True
        return state.known.record is not None and state.known.record.phase == CLOSED

    def _coordinates(self) -> bool:
        return self._coordinator is not None and self._coordinator.active

    def _at_exit(self) -> None:
        """After SIGTERM torch ends without a word to the handler; what was to be written should get through."""
        noticed = threading.Event()

        def notice() -> None:
            noticed.set()
            self._member.poke()

        self._next_turn("exit", notice)
        self._member.wait(lambda: noticed.is_set() or self._stop.is_set(), time.monotonic() + _EXIT_SECONDS)
        self._end()

    def _next_turn(self, key: str, function: Callable[[], None]) -> None:
        """In the turn after the one that the loop may be in: a signal that came before this is seen by then."""
        now = self._loop.clock()
        self._loop.at(key, now, lambda: self._loop.at(key, now, function))

    def _end(self) -> None:
        state = self._member.state
        if state is not None and state.ending:
            self._member.wait(self._heard, time.monotonic() + _EXIT_SECONDS)
        self.stop()

    # Events and actions.

    def _feed(self, event: MemberEvent) -> None:
        self._member.feed(event)

    def _perform(self, action: Action) -> None:
        match action:
            case Write() | Read():
                self._requests.put(action)
            case Rebind():
                self._rebind()
            case Accept() | Raise():
                self._outcome = action
            case Candidate(lost):
                self._coordinate(lost)

    def _rebind(self) -> None:
        try:
            self._feed(Bound(self._settings.rebind()))
        except OSError as error:
            self._error = error

    def _coordinate(self, lost: Coordinator | None) -> None:
        state = self._member.state
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
            round=self._round,
            met=lambda: self._member.state is not None and self._member.state.known.met,
            highest_seen=lambda: self._member.state.known.highest_seen if self._member.state is not None else 0,
            stepped_down=self._stepped_down,
            refused=lambda reason: self._feed(Refused(reason)),
            failed=self._failed,
        )
        return CoordinatorLoop(shared, self._liveness, self._identity.rendezvous)

    def _stepped_down(self, rv: int) -> None:
        with self._member.lock:
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
        if isinstance(error, Forbidden):
            self._narrator.look()
        if self._troubles.hopeless(error, explained=bool(self._narrator.fate)):
            with self._member.lock:
                self._error = error
            self._member.poke()

    # The Round.

    def _watching(self) -> None:
        if self._member.state is None:
            self._start()
        self._reader.follow(self._none_yet)

    def _misses_a_round(self) -> bool:
        """Whether the watch of the Round should have something to say.

        The agent was told of a Round that it has not seen, or it waits, and nobody is there to tell it.
        """
        state, liveness = self._member.state, self._liveness
        joining = state is not None and state.request.stage in (Stage.JOINING, Stage.REBINDING)
        return (joining and not liveness.linked) or liveness.announced > (self._round.latest.rv or 0)

    def _none_yet(self) -> None:
        state = self._member.state
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
            me = replace(me, run_id=self._reader.uid_of_rendezvous() or UNSET_RUN)
        with self._member.lock:
            self._identity = me
            if me.is_first and not self._stop.is_set():
                # The first to coordinate, most likely: then its caches should be there.
                self._coordinator = self._new_coordinator()
                self._coordinator.prepare()
            self._member.start(MemberState(me, self._settings.timing))

    def _round_changed(self, record: Round | None, rv: int) -> None:
        self._troubles.over()
        self._narrator.note(self._round.latest)
        self._narrator.name(record.left_out if record is not None else ())
        self._feed(RoundSeen(record, rv))
        self._follow(record)
        self._poke()

    def _follow(self, record: Round | None) -> None:
        target = record.coordinator if record is not None and record.run_id == self._identity.run_id else None
        mine = target is not None and target.incarnation == self._identity.incarnation
        self._liveness.follow(None if mine else target)
        self._liveness.announce(self._round.latest.rv or 0)
        prepared = self._coordinator
        if prepared is not None and not prepared.active and target is not None and not mine:
            self._coordinator = None  # Somebody else coordinates: the caches made ahead are not needed.
            prepared.stop()

    # The own Member.

    def _requesting(self) -> None:
        while (action := self._requests.get()) is not None:
            try:
                self._feed(self._record.write(action) if isinstance(action, Write) else self._record.read())
            except Stopped:
                return
            except Exception:
                # Without an answer the state machine would wait for one for ever.
                self._feed(WriteUnknown() if isinstance(action, Write) else ReadFailed())
                raise
