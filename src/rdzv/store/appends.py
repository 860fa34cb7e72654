"""Appending to the logs of a store's shards until it is known to have happened, alone or, in a crowd, by letters.

What became of an attempt is told by the shard itself: the results of each client's last entry are in it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed import DistStoreError

from rdzv.kube.api import ApiError, Conflict, Invalid, NotFound, ServerError, TooLarge, Unreachable
from rdzv.kube.retry import Backoff, Retry
from rdzv.objects import Object
from rdzv.resources import STORES
from rdzv.store import records, replay
from rdzv.store.records import ABORT, COMMIT, Malformed, Op
from rdzv.store.replay import DONE, State
from rdzv.store.shard import Shard, Ticket
from rdzv.store.shards import NOT_DONE, UNKNOWN, Shards

__all__ = ["Appends"]

log = logging.getLogger("rdzv.store")

_BATCH = 200_000  # Characters that the operations of several threads may have in one entry.
_CROWDED_SECONDS = 1.0
_CROWD_CAP = 0.3  # Longest pause after a conflict, seconds: those who wait long lose to all who come later.
_PATIENCE = (0.5, 10.0)  # Times what posting a letter took, until one's own attempt to append those of all.


class _Moved(Conflict):
    """The shard changed while its end was waited for: look again."""


@dataclass
class _Sent:
    """What is known of an entry's attempts."""

    unknown: bool = False
    """One of them may have been carried out, or may be yet."""
    version: int = 0
    """Of the shard that it was for: it cannot be carried out any more once there is a newer one."""
    epoch: int = 0
    """Of the shard at the first such attempt."""
    by_letter: bool = False
    """It may be carried out by anybody, at any time."""


@dataclass(frozen=True)
class _View:
    """One version of a shard, and what it says of an entry."""

    object: Object | None
    state: State
    results: list[str] | None

    def after(self, commit: bool | None) -> State:
        """The shard with its undecided entry decided, if it has one."""
        waits = self.state.prepared
        return waits.after if waits is not None and commit else self.state


class Appends:
    """The writing half of a store: to what `Shards` reads, it appends."""

    def __init__(self, core: Shards) -> None:
        self.core = core

    def run(self, index: int, ops: Sequence[Op], retry: Retry) -> list[str]:
        """Append operations on one shard, together with those of other threads; returns their results.

        Raises:
            DistStoreError: they were not carried out, or it is unknown whether they were; the text says which.
        """
        shard, ticket = self.core.shards[index], Ticket(ops)
        shard.tickets.append(ticket)
        if not _take_turn(shard, retry):
            try:
                shard.tickets.remove(ticket)
                outcome = NOT_DONE
            except ValueError:
                outcome = UNKNOWN
            raise DistStoreError(f"{shard.name}: timeout waiting for an earlier operation; {outcome}")
        try:
            while ticket.results is None and ticket.error is None:
                self._send(shard, retry)
        finally:
            shard.turn.release()
        if isinstance(ticket.error, ApiError):
            outcome = UNKNOWN if ticket.error.maybe_applied else NOT_DONE
            raise self.core.error(f"{ops[0].kind} of key {ops[0].key[:200]!r}", ticket.error, outcome)
        if ticket.results is None:
            raise ticket.error or DistStoreError(f"{shard.name}: {UNKNOWN}")
        return ticket.results

    def _send(self, shard: Shard, retry: Retry) -> None:
        batch = [shard.tickets.popleft()]
        while shard.tickets and sum(ticket.size for ticket in batch) + shard.tickets[0].size < _BATCH:
            batch.append(shard.tickets.popleft())
        shard.number += 1
        entry = records.entry_of(self.core.writer, shard.number, [op for ticket in batch for op in ticket.ops])
        try:
            results = iter(self._append(shard, entry, retry))
        except BaseException as error:
            # Also Ctrl-C: the threads whose operations were on board would take it for still to be sent.
            for ticket in batch:
                ticket.error = error if isinstance(error, Exception) else DistStoreError(f"interrupted; {UNKNOWN}")
            if not isinstance(error, Exception):
                raise
            return
        for ticket in batch:
            ticket.results = [next(results) for _ in ticket.ops]

    def set_all(self, index: int, ops: Sequence[Op], retry: Retry, until: tuple[str, int] | None = None) -> list[str]:
        """Set keys of one shard in one entry of their own; if there is no room for one of them, none is set.

        Args:
            index: of the shard.
            ops: to set keys.
            retry: until when to try.
            until: name of the decision that the entry waits for, and how long to leave it alone, in seconds.

        Returns:
            The results; none when the entry was prepared, and then aborted by somebody else.

        Raises:
            ApiError: `maybe_applied` when it is unknown whether they were set.
            DistStoreError: the shard is deleted or malformed.
        """
        shard = self.core.shards[index]
        if not _take_turn(shard, retry):
            raise Conflict(None, f"timeout waiting for an earlier operation on {shard.name}")
        try:
            shard.number += 1
            entry = records.entry_of(self.core.writer, shard.number, ops)
            return self._append(shard, records.prepared(entry, *until) if until else entry, retry, whole=True)
        finally:
            shard.turn.release()

    def _append(self, shard: Shard, entry: Object, retry: Retry, *, whole: bool = False) -> list[str]:
        sent = _Sent()
        try:
            results = self._alone(shard, entry, retry, sent, whole=whole)
            return self._post(shard, entry, retry, sent) if results is None else results
        except ApiError as error:
            error.maybe_applied = sent.unknown
            raise
        except DistStoreError as error:
            raise DistStoreError(f"{error}; {UNKNOWN if sent.unknown else NOT_DONE}") from error

    def _alone(self, shard: Shard, entry: Object, retry: Retry, sent: _Sent, *, whole: bool) -> list[str] | None:
        """Append an entry; None when others are quicker all the time, and it can be posted to them.

        It can't if it sets all as a `whole`, nor where all is kept in one object: letters are found by a list.
        """
        persist = whole or self.core.kept_in is not None
        backoff, crowd = Backoff(), Backoff(cap=_CROWD_CAP)
        look, looked = shard.object is None, False
        while persist or time.monotonic() > shard.crowded_until:
            try:
                if look:
                    self.core.get(shard, retry)
                    look, looked = False, True
                view = self._view(shard, entry, sent)
                if view.results is not None:
                    return view.results
                commit = self._settle(shard, view, retry)
                if whole:
                    results = replay.fits(view.after(commit), entry)
                    if any(result != DONE for result in results):
                        return results
                self._write(shard, view, [entry], commit, retry, sent)
            except (Conflict, Invalid, NotFound) as error:
                # What is known of the shard was old; or this very append had happened, and its reply was lost.
                log.debug("conflict: %s", error)
                if looked and persist:
                    retry.sleep(crowd.next(error.retry_after), error)
                elif looked and not isinstance(error, _Moved):
                    break
                look = True
            except (ServerError, Unreachable) as error:
                log.debug("appending again after: %s", error)
                retry.sleep(backoff.next(error.retry_after), error)
                look, looked = True, False
        return None

    def _view(self, shard: Shard, entry: Object, sent: _Sent) -> _View:
        """The newest version of a shard that is known, and the results of an entry if it is in the log."""
        with self.core.changed:
            state = shard.state()
            try:
                results = replay.results_of(state, entry)
            except Malformed as error:
                raise DistStoreError(f"{shard.name} holds what no client writes: {error}") from error
            if results is None and sent.unknown:
                if state.horizon > sent.epoch:
                    raise DistStoreError(f"{shard.name}: more than {records.MAX_WRITERS} others have written meanwhile")
                sent.unknown = sent.by_letter or shard.version <= sent.version
            return _View(shard.object, state, results)

    def _write(
        self, shard: Shard, view: _View, entries: Sequence[Object], commit: bool | None, retry: Retry, sent: _Sent
    ) -> None:
        core = self.core
        try:
            if view.object is None:
                fresh = records.new_shard(core.name, shard.name, entries[0], core.owners)
                stored = core.client.create(STORES, core.namespace, fresh, retry=retry)
            else:
                patch = replay.append_patch(view.object, entries, commit)
                stored = core.client.json_patch(STORES, core.namespace, shard.name, patch, retry=retry)
        except BaseException as error:
            if not isinstance(error, ApiError) or error.maybe_applied:
                sent.epoch = sent.epoch if sent.unknown else view.state.epoch
                sent.unknown = True
                sent.version = int(view.object["metadata"]["resourceVersion"]) if view.object else 0
            raise
        core.see(shard, stored)

    def _settle(self, shard: Shard, view: _View, retry: Retry) -> bool | None:
        """Whether the entry that was prepared in this version of a shard is committed; None when there is none.

        Its writer is waited for, but not for ever: it may be gone. Who comes first, that writer or this, decides.
        """
        core, waits = self.core, view.state.prepared
        if waits is None:
            return None
        until = time.monotonic() + waits.patience
        while True:
            with core.changed:
                if core.committed(waits.decision):
                    return True
            decision = core.decision(shard, waits, retry)
            if decision is not None:
                return decision == COMMIT
            if time.monotonic() >= until:
                log.info("%s: ending a multi_set whose client is silent: %s", shard.name, waits.decision)
                made = core.make(records.new_decision(core.name, waits.decision, ABORT, core.owners), retry)
                return core.note_decision(made) == COMMIT
            core.get(shard, retry)  # If it goes on without waiting, all of it is over, the decision included.
            with core.changed:
                core.start_watch()
                core.changed.wait_for(
                    lambda: core.committed(waits.decision) or shard.object is not view.object or core.stop.is_set(),
                    min(until, retry.deadline) - time.monotonic(),
                )
                core.raise_if_hopeless([shard.index])
                if shard.object is not view.object:
                    raise _Moved(None, f"{shard.name} has changed")
            if time.monotonic() >= retry.deadline:
                raise Conflict(None, f"timeout: {shard.name} waits for the end of a multi_set")

    # A crowd.

    def _post(self, shard: Shard, entry: Object, retry: Retry, sent: _Sent) -> list[str]:
        """Append together with others who are at it: each posts a letter, and whoever comes first appends all of them."""
        core = self.core
        posted = records.letter(core.name, shard.index, entry, self._view(shard, entry, sent).state.epoch, core.owners)
        started = time.monotonic()
        shard.crowded_until = started + _CROWDED_SECONDS
        try:
            version = self._send_letter(posted, retry, sent)
            pause, look = time.monotonic() - started, False
            while time.monotonic() < retry.deadline:
                patience = pause * random.uniform(*_PATIENCE)  # noqa: S311 - jitter
                if (results := self._watch_for(shard, entry, sent, patience)) is not None:
                    return results
                try:
                    if look:
                        core.get(shard, retry)
                    look = True
                    self._collect(shard, entry, version, retry, sent)
                except (ServerError, Unreachable, Conflict, Invalid, NotFound) as error:
                    log.debug("collecting again after: %s", error)
            raise Conflict(None, f"timeout: too many others write to {shard.name}")
        finally:
            core.discard(posted["metadata"]["name"])

    def _send_letter(self, posted: Object, retry: Retry, sent: _Sent) -> str:
        before = sent.unknown
        sent.epoch = sent.epoch if before else posted["spec"]["epoch"]
        sent.unknown = sent.by_letter = True
        try:
            return str(self.core.make(posted, retry)["metadata"]["resourceVersion"])
        except ApiError as error:
            sent.unknown = before or error.maybe_applied
            raise

    def _watch_for(self, shard: Shard, entry: Object, sent: _Sent, seconds: float) -> list[str] | None:
        core, until = self.core, time.monotonic() + seconds
        with core.changed:
            core.start_watch()
            while (results := self._view(shard, entry, sent).results) is None:
                left = until - time.monotonic()
                if left <= 0 or not core.changed.wait(left):
                    break
                core.raise_if_hopeless([shard.index])
        return results

    def _collect(self, shard: Shard, entry: Object, version: str, retry: Retry, sent: _Sent) -> None:
        """Append the entries of all letters that there are, one's own first: others could post too many to be listed."""
        core, letters = self.core, list[Object]()
        selector = f"{records.SHARD}={shard.name}"
        try:
            letters = core.client.list(
                STORES, core.namespace, label_selector=selector, resource_version=version, retry=retry
            )["items"]
        except TooLarge as error:
            log.warning("the letters of others are not read: %s", error)
        view = self._view(shard, entry, sent)
        if view.results is None:
            commit = self._settle(shard, view, retry)
            entries = replay.pending(view.after(commit), shard.index, letters, [entry])
            if len(entries) == 1:
                shard.crowded_until = 0.0
            self._write(shard, view, entries, commit, retry, sent)


def _take_turn(shard: Shard, retry: Retry) -> bool:
    return shard.turn.acquire(timeout=min(max(retry.deadline - time.monotonic(), 0), threading.TIMEOUT_MAX))
