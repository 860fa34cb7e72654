"""The coordinator function of one agent: watches of Members and of the Rendezvous, and the loop around `coordinator.step`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.agent.conditional import OutcomeUnknownError
from rdzv.agent.threads import Threads
from rdzv.kube.api import ApiError, Forbidden, Invalid, NotFound, Stopped, Unauthorized, UnknownResource
from rdzv.kube.config import ConfigError
from rdzv.kube.retry import Backoff, Retry
from rdzv.kube.watch import DELETED, SYNCED
from rdzv.objects import Object
from rdzv.protocol import coordinator
from rdzv.protocol.completion import missing
from rdzv.protocol.coordinator_state import CoordinatorState, Decision, Policy, View
from rdzv.protocol.events import INVALID_SECONDS
from rdzv.protocol.records import LIVE, RUNNING, Member, Round, resource_version
from rdzv.protocol.roster import Roster
from rdzv.resources import MEMBERS, RENDEZVOUS
from rdzv.spec import API_VERSION, LABEL

if TYPE_CHECKING:
    from rdzv.agent.liveness import Liveness
    from rdzv.agent.round_record import RoundRecord
    from rdzv.backing import Backing
    from rdzv.kube.watch_loop import WatchLoop

__all__ = ["CoordinatorLoop", "Shared"]

log = logging.getLogger("rdzv.agent")

_EXPECT_SECONDS = 0.25
_SAY_SECONDS = 10.0
_UNREADABLE_SECONDS = 60.0
"""Between looks at a Rendezvous that there is none of, or that may not be read."""
_POWERLESS_SECONDS = 10.0
"""How long the own credentials may be no good before the coordination is given up."""
_AFTERWARDS_SECONDS = 5.0
"""How long the others have to take over from an agent that gave up."""
_REFUSED_KEPT = 10_000


@dataclass(frozen=True)
class Shared:
    """What the coordinator function shares with its agent.

    Attributes:
        client: of the API server.
        namespace: of the Rendezvous.
        round: what the agent knows of the Round.
        highest_seen: `KnownRound.highest_seen`.
        met: `KnownRound.met`.
        stepped_down: since the Round of this resourceVersion another agent may coordinate.
        refused: takes why there is no place for the agent's run.
        failed: takes an error of a request.
    """

    client: Backing
    namespace: str
    round: RoundRecord
    highest_seen: Callable[[], int]
    met: Callable[[], bool]
    stepped_down: Callable[[int], None]
    refused: Callable[[str], None]
    failed: Callable[[Exception], None]


class CoordinatorLoop:
    """Use: `prepare()` any time ahead to fill the caches, `start()` when this agent is a candidate, `stop()` at the end."""

    def __init__(self, shared: Shared, liveness: Liveness, name: str) -> None:
        self.shared = shared
        self.waiting_for = ""
        """Who is missing, for people."""
        self.active = False
        """Whether the function runs."""
        self._liveness = liveness
        self._name = name
        self._changed = threading.Condition()
        self._dirty = False
        self._members: dict[str, tuple[Member, int]] = {}
        self._members_rv = 0
        self._roster: Roster | None = None
        self._synced = {MEMBERS: False, RENDEZVOUS: False}
        self._stop = threading.Event()
        self._watches: list[WatchLoop] = []
        self._threads = Threads(self._stop)
        self._expected_at = 0.0
        self._powerless_since = 0.0
        self._said = ("", 0.0)
        self._refused: set[tuple[str, str]] = set()
        self._strangers: frozenset[str] = frozenset()

    def prepare(self) -> None:
        """Start the watches."""
        if self._watches:
            return
        client, namespace = self.shared.client, self.shared.namespace
        selector = f"{LABEL}={self._name}"
        members = client.watch(MEMBERS, namespace, label_selector=selector, fresh=False, waiting=self._misses_a_member)
        rendezvous = client.watch(RENDEZVOUS, namespace, name=self._name)
        self._watches = [members, rendezvous]
        self._threads.spawn(f"rdzv-members-{self._name}", lambda: self._watch(members, self._take_member))
        self._threads.spawn(f"rdzv-rendezvous-{self._name}", lambda: self._watch(rendezvous, self._take_rendezvous))

    def start(self, state: CoordinatorState) -> None:
        """Run the function until it steps down or is stopped."""
        self.prepare()
        self.active = True
        self._liveness.serve(True)
        self._threads.spawn(f"rdzv-coordinator-{self._name}", lambda: self._run(state), self._give_up)

    def stop(self) -> None:
        """End it, watches included."""
        self.active = False
        self._stop.set()
        for watch in self._watches:
            watch.close()
        self.poke()
        self._liveness.expect(())
        self._liveness.probe({})
        self._liveness.ask(frozenset())

    def join(self, seconds: float) -> None:
        """Wait for its threads, which `stop` has told to end."""
        self._threads.join(seconds)

    def poke(self) -> None:
        """Something that the function looks at has changed."""
        with self._changed:
            self._dirty = True
            self._changed.notify_all()

    # Caches.

    def _watch(self, watch: WatchLoop, take: Callable[[str, Object], None]) -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                for event in watch.events():
                    backoff.reset()
                    take(event.type, event.object)
                return  # It was closed.
            except Stopped:
                return
            except (ApiError, ConfigError) as error:
                self._stop.wait(self._unreadable(watch, error, backoff))

    def _unreadable(self, watch: WatchLoop, error: ApiError | ConfigError, backoff: Backoff) -> float:
        """Seconds until it is watched again."""
        if watch.call.resource == RENDEZVOUS and isinstance(error, (Forbidden, UnknownResource)):
            # Standalone use may have no Rendezvous: torch's own timeouts apply then.
            log.info("going on without the Rendezvous: %s", error)
            self._take_rendezvous(SYNCED, {})
            return _UNREADABLE_SECONDS
        self.shared.failed(error)
        return backoff.next()

    def _misses_a_member(self) -> bool:
        """Whether the watch of Members should have something to say: somebody is waited for, or came without a Member."""
        with self._changed:
            strangers = self._liveness.connected - {member.incarnation for member, _ in self._members.values()}
        # Once for each: a Member that somebody deleted by hand stays away.
        newcomers, self._strangers = strangers - self._strangers, strangers
        return self.active and bool(self.waiting_for or newcomers)

    def _take_member(self, kind: str, obj: Object) -> None:
        if kind == SYNCED:
            self._synced[MEMBERS] = True
            self.poke()
            return
        rv = resource_version(obj)
        with self._changed:
            self._members_rv = max(self._members_rv, rv)
            if kind == DELETED:
                self._members.pop(obj["metadata"]["name"], None)
            else:
                entry = self._readable(obj)
                if entry is None:
                    self._members.pop(obj["metadata"]["name"], None)
                else:
                    self._members[obj["metadata"]["name"]] = entry
            self._dirty = True
            self._changed.notify_all()

    def _take_rendezvous(self, kind: str, obj: Object) -> None:
        if kind == SYNCED:
            self._synced[RENDEZVOUS] = True
        else:
            try:
                self._roster = None if kind == DELETED else Roster.from_object(obj)
            except ValueError as error:
                log.warning("the Rendezvous is not readable: %s", error)
        self.poke()

    # The function.

    def _run(self, state: CoordinatorState) -> None:
        log.info("coordinating Rendezvous %s", self._name)
        backoff, look_again, pause = Backoff(), 0.0, 0.0
        while not self._stop.is_set():
            with self._changed:
                while not (self._dirty and all(self._synced.values())) and not self._stop.is_set():
                    left = look_again - time.monotonic() if look_again else None
                    if left is not None and left <= 0:
                        break
                    self._changed.wait(left)
            # At most every other moment: N members that join together are one burst of work, not N.
            if self._stop.wait(pause):
                break
            began = time.monotonic()
            state, decision = coordinator.step(state, self._view(), began)
            pause = time.monotonic() - began
            look_again = decision.look_again or 0.0
            if decision.step_down:
                self._step_down()
                return
            self._liveness.probe(decision.probe)
            self._liveness.ask(decision.ask)
            self._say(decision)
            self._say_refused(decision.refused_members)
            if decision.refused:
                self.shared.refused(decision.refused)
            if again := self._expect():
                look_again = min(look_again or again, again)
            if decision.write is not None:
                self._commit(decision, backoff)

    def _view(self) -> View:
        with self._changed:
            self._dirty = False  # Before anything is read: what changes from now on is for the next view.
            latest = self.shared.round.latest
            return View(
                members=dict(self._members),
                members_rv=self._members_rv,
                roster=self._roster,
                round=latest.record,
                round_rv=latest.rv if latest.record is not None else None,
                dead=self._liveness.dead,
                suspected=self._liveness.suspected,
                doubted=self._liveness.doubted,
                connected=self._liveness.connected,
                highest_seen=self.shared.highest_seen(),
                met=self.shared.met(),
                probes=self._liveness.probes,
            )

    def _commit(self, decision: Decision, backoff: Backoff) -> None:
        """One compare-and-set. Whatever comes of it, the next step decides anew, on what is known of the Round by then."""
        record = decision.write
        if record is None:
            return
        log.debug("writing round %d of Rendezvous %s, %s: %s", record.round, self._name, record.phase, decision.why)
        try:
            self.shared.round.write(record, decision.rv, Retry(stop=self._stop), self._owner(record))
        except Stopped:
            return
        except OutcomeUnknownError as error:
            log.info("the Round was not written: %s", error)
        except (ApiError, ConfigError) as error:
            self.shared.failed(error)
            self._own_trouble(error)
            after = error.retry_after if isinstance(error, ApiError) else None
            self._stop.wait(INVALID_SECONDS if isinstance(error, Invalid) else backoff.next(after))
        else:
            backoff.reset()
            self._powerless_since = 0.0
        self.poke()

    def _own_trouble(self, error: Exception) -> None:
        """Raises the error when this agent's own credentials are no good for long: another one's may be."""
        now = time.monotonic()
        if not isinstance(error, (ConfigError, Unauthorized)):
            self._powerless_since = 0.0
            return
        self._powerless_since = self._powerless_since or now
        if now >= self._powerless_since + _POWERLESS_SECONDS:
            raise error

    def _owner(self, record: Round) -> Object | None:
        roster = self._roster
        if roster is None or roster.run_id != record.run_id:
            return None
        return {"apiVersion": API_VERSION, "kind": "Rendezvous", "name": self._name, "uid": roster.run_id}

    def _step_down(self) -> None:
        log.info("another agent coordinates Rendezvous %s", self._name)
        self.stop()
        self.shared.stepped_down(self.shared.round.latest.rv or 0)

    def _give_up(self) -> None:
        """After an unexpected error: peers are sent away, so that another agent takes over; if none does, this one may again."""
        log.warning("giving up the coordination of Rendezvous %s", self._name)
        self.active = False
        self._liveness.serve(False)
        self._stop.wait(_AFTERWARDS_SECONDS)
        self.stop()
        self.shared.stepped_down(self.shared.round.latest.rv or 0)

    def _expect(self) -> float | None:
        """Tells liveness who ought to be connected: who is in the world, or asks to be. Returns when to do so again."""
        record, now = self.shared.round.latest.record, time.monotonic()
        if record is None or record.coordinator is None:
            return None
        if record.coordinator.incarnation != self._liveness.incarnation:
            return None
        if now < self._expected_at + _EXPECT_SECONDS:
            return self._expected_at + _EXPECT_SECONDS
        self._expected_at = now
        with self._changed:
            members = [member for member, _ in self._members.values()]
        running = record.phase == RUNNING
        self._liveness.expect(
            member.incarnation
            for member in members
            if member.state == LIVE
            and member.run_id == record.run_id
            and (member.want_round > record.round or (running and record.rank_of(member.incarnation) is not None))
        )
        return None

    def _say(self, decision: Decision) -> None:
        self.waiting_for = decision.waiting_for
        now, (text, at) = time.monotonic(), self._said
        urgent = decision.foreign and decision.waiting_for != text
        if urgent or (decision.waiting_for and decision.waiting_for != text and now > at + _SAY_SECONDS):
            if text or urgent:
                log.info("Rendezvous %s: %s", self._name, decision.waiting_for)
            self._said = (decision.waiting_for, now)

    def _say_refused(self, refused: Mapping[str, str]) -> None:
        """Once each, however often it is seen; the set is forgotten when it gets large, because others fill it."""
        if len(self._refused) > _REFUSED_KEPT:
            self._refused.clear()
        for name, why in refused.items():
            if (name, why) not in self._refused:
                self._refused.add((name, why))
                log.warning("RendezvousMember %s counts for nothing: %s", name, why)

    def missing(self, policy: Policy, run_id: str) -> str:
        """Who is missing, read anew from the API; empty when that is not known or may not be read."""
        shared = self.shared
        retry = Retry.within(2.0)
        try:
            found = shared.client.list(MEMBERS, shared.namespace, label_selector=f"{LABEL}={self._name}", retry=retry)
            listed = [entry for item in found["items"] if (entry := self._readable(item)) is not None]
            roster = self._read_roster(retry)
        except (ApiError, ConfigError, ValueError):
            return ""
        return missing(listed, roster, shared.round.latest.record, policy, run_id)

    def _readable(self, obj: Object) -> tuple[Member, int] | None:
        try:
            return Member.from_object(obj), resource_version(obj)
        except ValueError as error:
            self._say_refused({obj["metadata"]["name"]: str(error)})
            return None

    def _read_roster(self, retry: Retry) -> Roster | None:
        try:
            obj = self.shared.client.get(RENDEZVOUS, self.shared.namespace, self._name, retry=retry)
        except (NotFound, UnknownResource, Forbidden):
            return None
        return Roster.from_object(obj)
