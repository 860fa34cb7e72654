"""The objects of a store: appending to their logs until that is known to have happened, quorum reads, and one watch.

Behind `rdzv.store.store`; what the objects hold is in `rdzv.store.records`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from torch.distributed import DistStoreError

from rdzv.kube.api import AlreadyExists, ApiError, Conflict, Invalid, NotFound, ServerError, Unreachable
from rdzv.kube.retry import Backoff, Retry
from rdzv.kube.watch import DELETED, SYNCED, Watch
from rdzv.objects import Object
from rdzv.resources import STORES
from rdzv.store import records
from rdzv.store.records import Op, State

if TYPE_CHECKING:
    from rdzv.kube.client import Client

__all__ = ["Shards"]

log = logging.getLogger("rdzv.store")
log.addHandler(logging.NullHandler())

_BATCH = 200_000  # Bytes of values that one append may carry for several threads.
_CROWDED_SECONDS = 1.0
_PATIENCE = (0.5, 10.0)  # Times what posting a letter took, until one's own attempt to append those of all.
_LAST_LOOK = 1.0  # Seconds for the read before a timeout is declared.


class _Ticket:
    """Operations of one thread that wait to be appended."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.size = sum(len(op.value) + len(op.expected) for op in ops)
        self.results: list[str] | None = None
        self.error: Exception | None = None


class Shard:
    """What this process knows of one object."""

    def __init__(self, index: int, name: str) -> None:
        self.index, self.name = index, name
        self.turn = threading.Lock()
        """Held by the thread that appends: one entry at a time, so that entries of this writer arrive in order."""
        self.tickets: deque[_Ticket] = deque()
        self.number = 0
        """Of the last entry sent. Never used twice, also if nobody knows what became of it."""
        self.object: Object | None = None
        self.version = 0
        self.deleted = False
        self.crowded_until = 0.0
        """Others were quicker just now: until then, post letters at once."""
        self._state: State | None = None

    @property
    def uid(self) -> str | None:
        return str(self.object["metadata"]["uid"]) if self.object else None

    def see(self, shard: Object) -> bool:
        """Take note of a state, from wherever it comes; whether it is news."""
        meta = shard["metadata"]
        if self.object and meta["uid"] != self.uid:
            self.deleted = True  # And another store has been made under its name.
            return True
        version = int(meta["resourceVersion"])
        if version <= self.version:
            return False
        self.object, self.version, self._state = shard, version, None
        return True

    def state(self) -> State:
        if self._state is None:
            self._state = records.replay(self.object) if self.object else State()
        return self._state


class Shards:
    """The objects of one store, as this process sees them; shared by clones. Raises DistStoreError for whatever goes wrong."""

    def __init__(self, client: Client, namespace: str, name: str, owners: Sequence[Object], own_client: bool) -> None:
        self.client, self.namespace, self.name = client, namespace, name
        self._owners, self._own_client = owners, own_client
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # A forked child is a writer of its own: with its parent's name and numbers one's entries would hide the other's.
        self._writer = secrets.token_hex(6)
        self.stop = threading.Event()
        self._changed = threading.Condition()
        self._shards = [Shard(i, records.shard_name(self.name, i)) for i in range(records.SHARDS)]
        self._by_name = {shard.name: shard for shard in self._shards}
        self._watch: Watch | None = None
        self._thread: threading.Thread | None = None
        self._watch_error: ApiError | None = None

    def check_process(self) -> None:
        """Begin anew after fork.

        Raises:
            DistStoreError: the store is closed.
        """
        if self._pid != os.getpid():
            self._reset()
        if self._closed:
            raise DistStoreError(f"store {self.namespace}/{self.name} is closed")

    def close(self) -> None:
        """End everything."""
        self._closed = True
        if self._pid == os.getpid():
            self.stop.set()
            with self._changed:
                watch, thread = self._watch, self._thread
                self._changed.notify_all()
            if watch:
                watch.close()
            if thread and thread is not threading.current_thread():
                thread.join()
            if self._own_client:
                self.client.close()

    # Mutations.

    def run(self, index: int, ops: Sequence[Op], retry: Retry) -> list[str]:
        """Append operations on one shard, together with those of other threads; returns their results."""
        shard, ticket = self._shards[index], _Ticket(ops)
        shard.tickets.append(ticket)
        if not shard.turn.acquire(timeout=min(max(retry.deadline - time.monotonic(), 0), threading.TIMEOUT_MAX)):
            try:
                shard.tickets.remove(ticket)
                outcome = "it was not carried out"
            except ValueError:
                outcome = "whether it will be carried out is unknown"
            raise DistStoreError(f"{shard.name}: timeout waiting for an earlier operation; {outcome}")
        try:
            while ticket.results is None and ticket.error is None:
                self._send(shard, retry)
        finally:
            shard.turn.release()
        if ticket.results is None:
            raise self._error(f"{ops[0].kind} of key {ops[0].key[:200]!r}", ticket.error)
        return ticket.results

    def _send(self, shard: Shard, retry: Retry) -> None:
        batch = [shard.tickets.popleft()]
        while shard.tickets and sum(ticket.size for ticket in batch) + shard.tickets[0].size < _BATCH:
            batch.append(shard.tickets.popleft())
        shard.number += 1
        entry = records.entry_of(self._writer, shard.number, [op for ticket in batch for op in ticket.ops])
        try:
            results = iter(self._append(shard, entry, retry))
        except BaseException as error:
            # Also Ctrl-C: the threads whose operations were on board would take it for still to be sent.
            for ticket in batch:
                ticket.error = error if isinstance(error, Exception) else DistStoreError("interrupted")
            if not isinstance(error, Exception):
                raise
            return
        for ticket in batch:
            ticket.results = [next(results) for _ in ticket.ops]

    def _append(self, shard: Shard, entry: Object, retry: Retry) -> list[str]:
        backoff, look, looked = Backoff(), shard.object is None, False
        while time.monotonic() > shard.crowded_until:
            try:
                if look:
                    self._get(shard, retry)
                    look, looked = False, True
                results = self._results(shard, entry)
                if results is not None:
                    return results
                self._write(shard, [entry], retry)
            except (Conflict, Invalid, NotFound) as error:
                # What is known of the shard was old; or this very append had happened, and its reply was lost.
                log.debug("conflict: %s", error)
                if looked:
                    break
                look = True
            except (ServerError, Unreachable) as error:
                log.debug("appending again after: %s", error)
                retry.sleep(backoff.next(error.retry_after), error)
                look, looked = True, False
        return self._post(shard, entry, retry)

    def _write(self, shard: Shard, entries: Sequence[Object], retry: Retry) -> None:
        if shard.object is None:
            fresh = records.new_shard(self.name, shard.index, entries[0], self._owners)
            self._see(shard, self.client.create(STORES, self.namespace, fresh, retry=retry))
        else:
            patch = records.append_patch(shard.object, entries)
            self._see(shard, self.client.json_patch(STORES, self.namespace, shard.name, patch, retry=retry))

    def _results(self, shard: Shard, entry: Object) -> list[str] | None:
        with self._changed:
            return records.results_of(shard.state(), entry["writer"], entry["seq"])

    def _post(self, shard: Shard, entry: Object, retry: Retry) -> list[str]:
        """Append together with others who are at it: each posts a letter, and whoever comes first appends all of them."""
        posted = records.letter(self.name, shard.index, entry, self._owners)
        shard.crowded_until = time.monotonic() + _CROWDED_SECONDS
        try:
            started = time.monotonic()
            sent = self._send_letter(posted, retry)
            pause = time.monotonic() - started
            look = False
            while time.monotonic() < retry.deadline:
                patience = pause * random.uniform(*_PATIENCE)  # noqa: S311 - jitter
                if (results := self._watch_for(shard, entry, patience)) is not None:
                    return results
                try:
                    if look:
                        self._get(shard, retry)
                    look = True
                    if self._results(shard, entry) is None:
                        self._collect(shard, sent, retry)
                except (ServerError, Unreachable, Conflict, Invalid, NotFound) as error:
                    log.debug("collecting again after: %s", error)
            raise Conflict(None, f"timeout: too many others write to {shard.name}")
        finally:
            self._discard(posted["metadata"]["name"])

    def _watch_for(self, shard: Shard, entry: Object, seconds: float) -> list[str] | None:
        until = time.monotonic() + seconds
        with self._changed:
            self._start_watch()
            while (results := records.results_of(shard.state(), entry["writer"], entry["seq"])) is None:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
                self._raise_if_hopeless([shard.index])
        return results

    def _send_letter(self, posted: Object, retry: Retry) -> str:
        name, backoff = posted["metadata"]["name"], Backoff()
        while True:
            try:
                found = self.client.create(STORES, self.namespace, posted, retry=retry)
            except AlreadyExists:  # The reply to the first attempt was lost.
                found = self.client.get(STORES, self.namespace, name, retry=retry)
            except (Conflict, ServerError, Unreachable) as error:
                retry.sleep(backoff.next(error.retry_after), error)
                continue
            return str(found["metadata"]["resourceVersion"])

    def _collect(self, shard: Shard, sent: str, retry: Retry) -> None:
        selector = f"{records.SHARD}={shard.name}"
        found = self.client.list(STORES, self.namespace, label_selector=selector, resource_version=sent, retry=retry)
        with self._changed:
            entries = records.pending(shard.state(), found["items"])
        if len(entries) == 1:
            shard.crowded_until = 0.0
        if entries:
            self._write(shard, entries, retry)

    def _discard(self, name: str) -> None:
        try:
            self.client.delete(STORES, self.namespace, name)
        except ApiError as error:
            log.debug("a letter stays behind, to no effect: %s", error)

    def delete(self, retry: Retry) -> None:
        """Delete all shards, and letters that were left behind."""
        try:
            selector = f"{records.LETTER}={self.name}"
            letters = self.client.list(STORES, self.namespace, label_selector=selector, retry=retry)["items"]
            for name in [shard.name for shard in self._shards] + [item["metadata"]["name"] for item in letters]:
                with contextlib.suppress(NotFound):
                    self.client.delete(STORES, self.namespace, name, retry=retry)
        except ApiError as error:
            raise self._error("delete", error) from error

    def delete_others(self, names: Set[str]) -> None:
        """Delete the shards and letters of other stores. Nobody waits for it: that it fails is worth a word only."""
        try:
            for item in self.client.list(STORES, self.namespace, resource_version="0")["items"]:
                meta = item["metadata"]
                labels = meta.get("labels", {})
                if not names.isdisjoint((labels.get(records.LABEL), labels.get(records.LETTER))):
                    with contextlib.suppress(NotFound, Conflict):
                        self.client.delete(STORES, self.namespace, meta["name"], uid=meta["uid"])
        except ApiError as error:
            log.info("other stores are left behind: %s", error)

    # Reads.

    def read(self, index: int, retry: Retry) -> State:
        """State of a shard, not older than this call."""
        shard = self._shards[index]
        try:
            self._get(shard, retry)
        except ApiError as error:
            raise self._error("read", error) from error
        with self._changed:
            return shard.state()

    def read_all(self, retry: Retry) -> list[State]:
        """States of all shards at one moment, not before this call."""
        try:
            found = self.client.list(STORES, self.namespace, label_selector=f"{records.LABEL}={self.name}", retry=retry)
        except ApiError as error:
            raise self._error("list", error) from error
        return [records.replay(item) for item in found["items"]]

    def _get(self, shard: Shard, retry: Retry) -> None:
        known = shard.object is not None  # Before asking: it may be made, and be seen by the watch, meanwhile.
        try:
            self._see(shard, self.client.get(STORES, self.namespace, shard.name, retry=retry))
        except NotFound:
            shard.deleted = shard.deleted or known
        if shard.deleted:
            raise DistStoreError(f"store {self.namespace}/{self.name} was deleted: {shard.name} is gone")

    def _see(self, shard: Shard, found: Object) -> None:
        with self._changed:
            if shard.see(found):
                self._changed.notify_all()

    # Waiting.

    def wait(self, tests: Mapping[int, Callable[[State], bool]], retry: Retry) -> dict[int, State]:
        """Wait until each shard passed its test; returns the states that did, all of them unless time ran out."""
        states: dict[int, State] = {}
        for index, passes in tests.items():
            state = self.read(index, retry)
            if passes(state):
                states[index] = state
        left = {index: passes for index, passes in tests.items() if index not in states}
        if not left:
            return states
        with self._changed:
            self._start_watch()
            while left and (seconds := retry.deadline - time.monotonic()) > 0:
                self._raise_if_hopeless(left)
                for index in [index for index, passes in left.items() if passes(self._shards[index].state())]:
                    states[index] = self._shards[index].state()
                    del left[index]
                if left:
                    self._changed.wait(min(seconds, threading.TIMEOUT_MAX))
        for index, passes in left.items():
            # A watch may be silent for a minute before it is taken for dead: look once more before saying no.
            try:
                state = self.read(index, Retry.within(_LAST_LOOK, self.stop))
            except DistStoreError as error:
                log.debug("no last look: %s", error)
                break
            if passes(state):
                states[index] = state
        return states

    def _raise_if_hopeless(self, indexes: Iterable[int]) -> None:
        if self.stop.is_set():
            raise DistStoreError(f"store {self.namespace}/{self.name} was closed")
        if any(self._shards[index].deleted for index in indexes):
            raise DistStoreError(f"store {self.namespace}/{self.name} was deleted")
        if self._watch_error is not None:
            raise self._error("wait", self._watch_error)

    def _start_watch(self) -> None:
        if self._thread is None and not self._closed:
            self._watch_error = None
            selector = f"{records.LABEL}={self.name}"
            self._watch = Watch(self.client, STORES, self.namespace, label_selector=selector, fresh=False)
            self._thread = threading.Thread(target=self._follow, args=(self._watch,), name="rdzv-store", daemon=True)
            self._thread.start()

    def _follow(self, watch: Watch) -> None:
        error: ApiError | None = None
        try:
            for event in watch.events():
                if event.type != SYNCED and (shard := self._by_name.get(event.object["metadata"]["name"])):
                    with self._changed:
                        if event.type == DELETED:
                            shard.deleted = shard.deleted or event.object["metadata"]["uid"] == shard.uid
                        else:
                            shard.see(event.object)
                        self._changed.notify_all()
        except ApiError as caught:
            error = caught
        finally:
            with self._changed:
                self._watch_error, self._thread = error, None
                self._changed.notify_all()

    def _error(self, what: str, error: Exception | None) -> Exception:
        if isinstance(error, ApiError):
            ended = isinstance(error, (Unreachable, ServerError)) or error.code in (401, 409, 429)
            unknown = "; whether it was carried out is unknown" if error.maybe_applied else ""
            why = f"timeout: the API server did not do it in time{unknown}: " if ended else ""
            text = f"store {self.namespace}/{self.name}: {what}: {why}{error}"
            caused: Exception = DistStoreError(text)
            caused.__cause__ = error
            return caused
        return error or DistStoreError(f"store {self.namespace}/{self.name}: {what}: failed")
