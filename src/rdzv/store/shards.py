"""The objects of a store as this process knows them: quorum reads, reads of one moment, one watch, and waiting.

What the objects hold is in `rdzv.store.records` and `rdzv.store.replay`; `rdzv.store.appends` changes them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from torch.distributed import DistStoreError

from rdzv.kube.api import AlreadyExists, ApiError, Conflict, Invalid, NotFound, ServerError, Unreachable
from rdzv.kube.retry import Backoff, Retry
from rdzv.kube.watch import DELETED, SYNCED
from rdzv.objects import Object, ReadOnlyObject
from rdzv.resources import ROUNDS, STORES
from rdzv.store import records
from rdzv.store.records import Malformed
from rdzv.store.replay import Prepared, State
from rdzv.store.shard import Shard, replayed

if TYPE_CHECKING:
    from rdzv.backing import Backing
    from rdzv.kube.watch_loop import WatchLoop

__all__ = ["NOT_DONE", "UNKNOWN", "Shards"]

log = logging.getLogger("rdzv.store")
log.addHandler(logging.NullHandler())

UNKNOWN = "whether it was carried out is unknown"
NOT_DONE = "it was not carried out"
_LAST_LOOK = 1.0  # Seconds for the read before a timeout is declared.
_COMMITS_KEPT = 1000  # Commits are forgotten with their objects; this is for a process that has no watch.


class Shards:
    """The objects of one store, as this process sees them; shared by clones. Raises DistStoreError for whatever goes wrong."""

    def __init__(
        self,
        client: Backing,
        namespace: str,
        name: str,
        owners: Sequence[Object],
        own_client: bool,
        kept_in: str | None = None,
    ) -> None:
        self.client, self.namespace, self.name, self.owners = client, namespace, name, owners
        self.kept_in = kept_in
        """The one object that all is kept in, where an earlier store of the owner may still be."""
        self._own_client = own_client
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # A forked child is a writer of its own: with its parent's name and numbers one's entries would hide the other's.
        self.writer = secrets.token_hex(6)
        self.stop = threading.Event()
        self.changed = threading.Condition()
        """Guards what is known of the shards; notified of each change."""
        names = [self.kept_in] if self.kept_in else [records.shard_name(self.name, i) for i in range(records.SHARDS)]
        self.shards = [Shard(i, name) for i, name in enumerate(names)]
        self._by_name = {shard.name: shard for shard in self.shards}
        self.numbers = itertools.count(1)
        """Of this client's decisions."""
        self._commits: set[str] = set()
        self._watch: WatchLoop | None = None
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
            with self.changed:
                watch, thread = self._watch, self._thread
                self.changed.notify_all()
            if watch:
                watch.close()
            if thread and thread is not threading.current_thread():
                thread.join()
            if self._own_client:
                self.client.close()

    def shard_of(self, key: str) -> int:
        """The shard that a key lives in."""
        return records.shard_of(key, len(self.shards))

    # Objects.

    def make(self, obj: Object, retry: Retry) -> Object:
        """Create an object whose name is used once only; returns what has that name then, also if somebody was quicker.

        Raises:
            ApiError: `maybe_applied` if any attempt may have created it.
        """
        name, backoff, sent = obj["metadata"]["name"], Backoff(), False
        while True:
            try:
                return self.client.create(STORES, self.namespace, obj, retry=retry)
            except AlreadyExists:
                sent = True  # Perhaps by an earlier attempt whose reply was lost.
            except ApiError as error:
                sent = error.maybe_applied = sent or error.maybe_applied
                if not isinstance(error, (Conflict, ServerError, Unreachable)):
                    raise
                retry.sleep(backoff.next(error.retry_after), error)
                continue
            try:
                return self.client.get(STORES, self.namespace, name, retry=retry)
            except NotFound:
                log.debug("%s was deleted just now", name)
            except ApiError as error:
                error.maybe_applied = True
                raise

    def discard(self, name: str) -> None:
        """Delete an object that has no effect any more."""
        try:
            with contextlib.suppress(NotFound):
                self.client.delete(STORES, self.namespace, name)
        except ApiError as error:
            log.debug("%s stays behind, to no effect: %s", name, error)

    def decision(self, shard: Shard, waits: Prepared, retry: Retry) -> str | None:
        """What decides the undecided entry of a shard; None when there is no such object."""
        self._check_name(shard, waits)
        try:
            return self.note_decision(self.client.get(STORES, self.namespace, waits.decision, retry=retry))
        except NotFound:
            return None

    def _check_name(self, shard: Shard, waits: Prepared) -> None:
        if not records.is_decision(self.name, waits.decision):
            raise DistStoreError(f"{shard.name} holds what no client writes: a decision {waits.decision[:100]!r}")

    def note_decision(self, found: ReadOnlyObject) -> str:
        """What a decision says, noted for the shards that wait for it."""
        name = str(found["metadata"]["name"])
        try:
            decision = records.checked_decision(found)
        except Malformed as error:
            raise DistStoreError(f"{name} holds what no client writes: {error}") from error
        if decision == records.COMMIT:
            with self.changed:
                if len(self._commits) >= _COMMITS_KEPT:
                    self._commits.clear()
                self._commits.add(name)
                self.changed.notify_all()
        return decision

    def delete(self, retry: Retry) -> None:
        """Delete all shards, and letters and decisions that were left behind."""
        try:
            names = [shard.name for shard in self.shards]
            if self.kept_in:
                self.get(self.shards[0], retry)
            for label in () if self.kept_in else (records.LABEL, records.LETTER):
                found = self.client.list(STORES, self.namespace, label_selector=f"{label}={self.name}", retry=retry)
                names += [item["metadata"]["name"] for item in found["items"]]
            for name in dict.fromkeys(names):
                with contextlib.suppress(NotFound):
                    self.client.delete(STORES, self.namespace, name, retry=retry)
        except ApiError as error:
            raise self.error("delete", error) from error

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

    def state(self, shard: Shard) -> State:
        """A shard as of the newest version that is known. Hold `changed`."""
        state = shard.state()
        waits = state.prepared
        return waits.after if waits is not None and self.committed(waits.decision) else state

    def committed(self, name: str) -> bool:
        """Whether a decision of this name is known, and is to commit. Hold `changed`."""
        return name in self._commits

    def read(self, index: int, retry: Retry) -> State:
        """State of a shard, not older than this call."""
        shard, undecided = self.shards[index], ""
        try:
            while True:
                self.get(shard, retry)
                with self.changed:
                    state = self.state(shard)
                waits = state.prepared
                if waits is None or waits.decision == undecided:
                    return state
                decision = self.decision(shard, waits, retry)
                if decision is not None:
                    return waits.after if decision == records.COMMIT else state
                # Not decided yet, if the shard still waits for it; otherwise all of it is over, the decision included.
                undecided = waits.decision
        except ApiError as error:
            raise self.error("read", error) from error

    def read_all(self, retry: Retry) -> list[State]:
        """States of all shards at one moment, not before this call."""
        if self.kept_in:
            return [self.read(0, retry)]
        known = {shard.name for shard in self.shards if shard.object is not None}  # Before asking, as in `get`.
        try:
            found = self.client.list(STORES, self.namespace, label_selector=f"{records.LABEL}={self.name}", retry=retry)
        except ApiError as error:
            raise self.error("list", error) from error
        items = {item["metadata"]["name"]: item for item in found["items"]}
        states = []
        for shard in self.shards:
            item = items.get(shard.name)
            if item is not None:
                self.see(shard, item)
            shard.deleted = shard.deleted or (item is None and shard.name in known)
            if shard.deleted:
                raise self._deleted(shard)
            state = shard.state() if item is shard.object else replayed(item)
            waits = state.prepared
            if waits is not None:
                self._check_name(shard, waits)
                decided = items.get(waits.decision)
                state = waits.after if decided and self.note_decision(decided) == records.COMMIT else state
            states.append(state)
        return states

    def get(self, shard: Shard, retry: Retry) -> None:
        """Read a shard, if it exists."""
        known = shard.object is not None  # Before asking: it may be made, and be seen by the watch, meanwhile.
        backoff, read = Backoff(), False
        try:
            while not read and not shard.deleted:
                found = self.client.get(STORES, self.namespace, shard.name, retry=retry)
                if not self._is_anothers(found):
                    self.see(shard, found)
                    read = True
                elif known or self._is_over(found, retry):
                    shard.deleted = True
                else:
                    read = self._begin(shard, found, backoff, retry)
        except NotFound:
            shard.deleted = shard.deleted or known
        if shard.deleted:
            raise self._deleted(shard)

    def _is_anothers(self, found: ReadOnlyObject) -> bool:
        return self.kept_in is not None and not records.is_of(self.name, found)

    def _is_over(self, found: ReadOnlyObject, retry: Retry) -> bool:
        """Whether the store that is found where this one is kept came after it."""
        follows = records.follows(self.name, found)
        if follows is not None:
            return follows
        # The other one's owner is another Round, and there is but one Round of a name at a time.
        owner = self.owners[0]
        try:
            return bool(
                self.client.get(ROUNDS, self.namespace, owner["name"], retry=retry)["metadata"]["uid"] != owner["uid"]
            )
        except NotFound:
            return True

    def _begin(self, shard: Shard, found: Object, backoff: Backoff, retry: Retry) -> bool:
        """Begin this store where an earlier one is kept, in one write: there is no moment with neither. False: look again."""
        patch = records.begin_patch(self.name, found, self.owners)
        try:
            self.see(shard, self.client.json_patch(STORES, self.namespace, shard.name, patch, retry=retry))
        except (Conflict, Invalid, ServerError, Unreachable) as error:
            log.debug("%s: beginning again after: %s", self.name, error)
            retry.sleep(backoff.next(error.retry_after), error)
            return False
        return True

    def _deleted(self, shard: Shard) -> DistStoreError:
        return DistStoreError(f"store {self.namespace}/{self.name} was deleted: {shard.name} is gone")

    def see(self, shard: Shard, found: Object) -> None:
        """Take note of a shard that was read."""
        with self.changed:
            if shard.see(found):
                self.changed.notify_all()

    # Waiting.

    def wait(self, tests: Mapping[int, Callable[[State], bool]], retry: Retry) -> dict[int, State]:
        """Wait until each shard passed its test; returns the states that did, all of them unless time ran out."""
        all_now = self.read_all(retry) if len(tests) > 1 else None
        states: dict[int, State] = {}
        for index, passes in tests.items():
            state = all_now[index] if all_now else self.read(index, retry)
            if passes(state):
                states[index] = state
        left = {index: passes for index, passes in tests.items() if index not in states}
        if not left:
            return states
        with self.changed:
            self.start_watch()
            while left and (seconds := retry.deadline - time.monotonic()) > 0:
                self.raise_if_hopeless(left)
                for index in [index for index, passes in left.items() if passes(self.state(self.shards[index]))]:
                    states[index] = self.state(self.shards[index])
                    del left[index]
                if left:
                    self.changed.wait(min(seconds, threading.TIMEOUT_MAX))
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

    def raise_if_hopeless(self, indexes: Iterable[int]) -> None:
        """Raise DistStoreError if no change of these shards will be seen. Hold `changed`."""
        if self.stop.is_set():
            raise DistStoreError(f"store {self.namespace}/{self.name} was closed")
        if any(self.shards[index].deleted for index in indexes):
            raise DistStoreError(f"store {self.namespace}/{self.name} was deleted")
        if self._watch_error is not None:
            raise self.error("wait", self._watch_error)

    def start_watch(self) -> None:
        """Be told of changes from now on. Hold `changed`."""
        if self._thread is None and not self._closed:
            self._watch_error = None
            selector = "" if self.kept_in else f"{records.LABEL}={self.name}"
            self._watch = self.client.watch(
                STORES, self.namespace, name=self.kept_in, label_selector=selector, fresh=False
            )
            self._thread = threading.Thread(target=self._follow, args=(self._watch,), name="rdzv-store", daemon=True)
            self._thread.start()

    def _follow(self, watch: WatchLoop) -> None:
        error: ApiError | None = None
        try:
            for event in watch.events():
                if event.type == SYNCED:
                    continue
                name = event.object["metadata"]["name"]
                shard = self._by_name.get(name)
                with self.changed:
                    if shard is None:
                        self._follow_decision(name, event.object, gone=event.type == DELETED)
                    elif self._is_anothers(event.object):
                        if int(event.object["metadata"]["resourceVersion"]) > shard.version:
                            follows = records.follows(self.name, event.object)
                            shard.deleted |= shard.object is not None or bool(follows)
                    elif event.type == DELETED:
                        shard.deleted = shard.deleted or event.object["metadata"]["uid"] == shard.uid
                    else:
                        shard.see(event.object)
                    self.changed.notify_all()
        except ApiError as caught:
            error = caught
        finally:
            with self.changed:
                self._watch_error, self._thread = error, None
                self.changed.notify_all()

    def _follow_decision(self, name: str, found: ReadOnlyObject, *, gone: bool) -> None:
        if gone:
            self._commits.discard(name)
            return
        try:
            self.note_decision(found)
        except DistStoreError as error:
            log.warning("%s", error)

    # Errors.

    @contextlib.contextmanager
    def legible(self, index: int) -> Iterator[None]:
        """Keys or values of a shard are decoded in here: that one cannot be is DistStoreError."""
        try:
            yield
        except Malformed as error:
            raise DistStoreError(f"{self.shards[index].name} holds what no client writes: {error}") from error

    def error(self, what: str, error: ApiError, outcome: str = "") -> DistStoreError:
        """The error to raise for one of the client's: what was tried, whether it took effect, and why not."""
        ended = isinstance(error, (Unreachable, ServerError)) or error.code in (401, 409, 429)
        timeout = "timeout: the server did not do it in time" if ended else ""
        why = "; ".join(part for part in (timeout, outcome) if part)
        caused = DistStoreError(
            ": ".join(p for p in (f"store {self.namespace}/{self.name}: {what}", why, str(error)) if p)
        )
        caused.__cause__ = error
        return caused
