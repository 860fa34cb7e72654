"""Watches of one named object, or of a label selector, that never lose the current state.

`Watch.events()` runs in the caller's thread and reconnects by itself. It is level-triggered: what happens while a
connection is away may be merged into one event, but the last event of each object always becomes its current state.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from typing import NamedTuple

from rdzv.kube.api import (
    ApiError,
    Call,
    Forbidden,
    Gone,
    NotFound,
    Resource,
    ServerError,
    Stopped,
    TooManyRequests,
    Unauthorized,
    Unreachable,
    error_of,
    error_of_status,
)
from rdzv.kube.client import Client, reply_of
from rdzv.kube.retry import Backoff, Retry
from rdzv.kube.transport import CALL_SECONDS, Connection
from rdzv.objects import Object

__all__ = ["ADDED", "DELETED", "MODIFIED", "SYNCED", "Watch", "WatchEvent"]

log = logging.getLogger("rdzv.kube")
log.addHandler(logging.NullHandler())

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"
SYNCED = "SYNCED"
"""Not an object: everything that existed when the state was last read in full has been delivered."""

SERVER_SECONDS = (240.0, 300.0)
"""`timeoutSeconds`: the server ends the stream then, spread so that agents do not renew together."""
READ_SECONDS = (70.0, 75.0)
"""Silence after which a connection is taken for dead: bookmarks come about every 60 s."""
QUIET_SECONDS = 10.0
"""Silence of a watch of one object after which, while somebody waits, the object is read to see whether it has changed."""
LIST_QUIET_SECONDS = 15.0
"""The same of a watch of a selector, where that is a list."""
MAX_EVENT = 4 * 1024 * 1024
"""Bytes of one event. etcd stores 1.5 MiB at most, so a longer line is not an event."""
_HEALTHY_SECONDS = 5.0
_SHORT_STREAMS = 3
_READ = 64 * 1024


class WatchEvent(NamedTuple):
    """One change. `type` is ADDED, MODIFIED, DELETED (`object` is its last known state) or SYNCED (`object` is empty).

    Types are relative to what this watch delivered before: an object that was deleted and made again while the
    connection was away gives DELETED and ADDED.
    """

    type: str
    object: Object


class Watch:
    """A watch on one object (`name`: authorised by name, so a Role with `resourceNames` is enough) or a selector.

    With `fresh=False` it starts from what the API server has in memory (resourceVersion=0): for a named object that is
    one request instead of two, and no SYNCED comes first; the state may be old for a moment and never goes backwards.

    A connection that something in between keeps open while it lets nothing through is noticed after `READ_SECONDS` (or
    twice that), and after `QUIET_SECONDS` while `waiting()` is true: somebody waits for an event.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        namespace: str | None,
        *,
        name: str | None = None,
        label_selector: str = "",
        fresh: bool = True,
        waiting: Callable[[], bool] | None = None,
    ) -> None:
        self.client = client
        self.call = Call("watch", resource, namespace, name)
        self.contact = float("-inf")
        """When the server last said anything, on the monotonic clock."""
        self._label_selector = label_selector
        self._fresh = fresh
        self._waiting = waiting
        self._known: dict[str, Object] = {}
        self._resume: str | None = None  # Where to go on; None: read the state in full.
        self._seen = 0  # Highest resourceVersion delivered: what is not above it is old news.
        self._changes = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._pid = os.getpid()

    def close(self) -> None:
        """End `events()`, from any thread: it returns at once, also out of a read."""
        if self._pid != os.getpid():
            return  # In a forked child: the stream, and the lock's state, are the parent's.
        self._stop.set()
        with self._lock:
            if self._connection:
                self._connection.shutdown()

    def events(self, *, deadline: float = float("inf")) -> Iterator[WatchEvent]:
        """Yield events until `close()`. Can be called again after an exception: it goes on where it was.

        Args:
            deadline: on the monotonic clock; not connected by then, the last error is raised.

        Raises:
            Forbidden, Unauthorized, UnknownResource, Untrusted: at once, or after 30 s of 401.
            ApiError: the last error, when the deadline passed.
        """
        retry = Retry(deadline, self._stop)
        backoff = Backoff()
        short_streams = 0
        error: ApiError | None = None
        while not self._stop.is_set():
            started, changes = time.monotonic(), self._changes
            before, error = error, None
            try:
                yield from self._session()
            except Stopped:
                return
            except (Unauthorized, Forbidden, Gone, TooManyRequests, ServerError, Unreachable) as caught:
                error = caught
                self._note(caught)
            if isinstance(error, Gone) and not isinstance(before, Gone):
                backoff.reset()  # The server is there, and has said what to do.
            if self._changes > changes or time.monotonic() - started > _HEALTHY_SECONDS:
                backoff.reset()
                short_streams = 0
                if error is None:
                    continue
            elif error is None:
                # Some servers end a stream at once, without 410, when its version is too old for them.
                short_streams += 1
                if short_streams % _SHORT_STREAMS == 0:
                    self._resume = None
            error = error or Unreachable(self.call, "the stream ended at once")
            log.debug("watching again after: %s", error)
            try:
                retry.sleep(backoff.next(error.retry_after), error)
            except Stopped:
                return

    def _note(self, error: ApiError) -> None:
        starting = self.client.maybe_starting(error)
        if isinstance(error, Unauthorized):
            self.client.reauthorize()
        if isinstance(error, (Forbidden, Unauthorized)) and not starting:
            raise error
        if isinstance(error, Gone):
            self._resume = None
        elif "Too large resource version" in error.message:
            # etcd was restored from a backup, and versions went back (or this server lags: reading anew is right too).
            self._resume = None
            self._seen = 0

    # One connection.

    def _session(self) -> Iterator[WatchEvent]:
        if self.call.name is None and self._resume is None:
            yield from self._list()
        # A named object is not listed (that would need another permission), and its own version may be older than what
        # the server's history reaches back to, which would be 410 for ever. So: watch from anything first, then read.
        # What changed after the stream's start comes in the stream; what changed before it, the read has seen.
        read_after = self._resume is None and (self._fresh or self.contact > float("-inf"))
        # After a start from anything the first bookmark marks the end of what existed; the next was seen after 60 s, or
        # only after 120 s (Kubernetes 1.37): the usual limit would take such a healthy stream for dead once.
        patience = random.uniform(*READ_SECONDS) * (1 if self._resume else 2)  # noqa: S311 - jitter
        connection = self._take()
        reusable = False
        try:
            response = self._open(connection)
            if read_after:
                yield from self._get()
            connection.patience = patience
            connection.deadline = time.monotonic() + SERVER_SECONDS[1] + READ_SECONDS[1]
            if self._waiting is not None:
                connection.be_quiet(QUIET_SECONDS if self.call.name else LIST_QUIET_SECONDS, self._verify)
            for line in self._lines(response):
                yield from self._event(line)
            response.close()
            reusable = not response.will_close
        finally:
            with self._lock:
                self._connection = None
            self.client.release(connection, reusable=reusable)

    def _take(self) -> Connection:
        connection = self.client.acquire(self.call)
        with self._lock:
            self._connection = connection
        if self._stop.is_set():
            # close() may have looked before the connection was there to be shut down.
            connection.shutdown()
        return connection

    def _open(self, connection: Connection) -> HTTPResponse:
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._resume or "0",
            "timeoutSeconds": str(round(random.uniform(*SERVER_SECONDS))),  # noqa: S311 - jitter
            "labelSelector": self._label_selector,
            "fieldSelector": f"metadata.name={self.call.name}" if self.call.name else "",
        }
        connection.send(self.call, "GET", self.client.target(self.call, query), None, self.client.headers())
        response = connection.reply(self.call, patience=CALL_SECONDS, deadline=time.monotonic() + CALL_SECONDS)
        self.client.answered(response.status)
        if response.status >= 300:
            raise error_of(self.call, reply_of(response, connection.read(self.call, response)))
        self.contact = time.monotonic()
        return response

    def _lines(self, response: HTTPResponse) -> Iterator[bytes]:
        buffer = bytearray()
        while True:
            try:
                data = response.read1(_READ)
            except (OSError, HTTPException) as error:
                why = "silent for too long" if isinstance(error, TimeoutError) else type(error).__name__
                raise Unreachable(self.call, f"the stream broke: {why}") from error
            if not data:
                return
            self.contact = time.monotonic()
            buffer += data
            if b"\n" in data:
                *lines, rest = buffer.split(b"\n")
                buffer = bytearray(rest)
                yield from map(bytes, lines)
            if len(buffer) > MAX_EVENT:
                raise Unreachable(self.call, f"an event of more than {MAX_EVENT} bytes")

    def _verify(self) -> None:
        """The stream is quiet: while somebody waits, see whether that is because nothing has happened.

        Raises:
            Unreachable: it is deaf, or what made the question go unanswered will have made it so.
        """
        if self._waiting is None or not self._waiting():
            return
        try:
            deaf = self._present() != {name: _version(obj) for name, obj in self._known.items()}
        except (Stopped, Unreachable):
            raise
        except ApiError as error:
            log.debug("a quiet watch could not be verified: %s", error)
            return
        if deaf:
            raise Unreachable(self.call, "the stream is silent, and there is something that it did not say")

    def _present(self) -> dict[str, str]:
        """The versions of what exists now, by name."""
        client, call = self.client, self.call
        if call.name is None:
            items = client.list(call.resource, call.namespace, label_selector=self._label_selector).get("items") or []
        else:
            try:
                items = [client.get(call.resource, call.namespace, call.name)]
            except NotFound:
                items = []
        return {item["metadata"]["name"]: _version(item) for item in items}

    # From the server's words to events.

    def _event(self, line: bytes) -> Iterator[WatchEvent]:
        if not line.strip():
            return
        try:
            event = json.loads(line)
            kind, obj = event["type"], event["object"]
            version = str(obj.get("metadata", {}).get("resourceVersion", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreachable(self.call, "the stream broke: not an event") from error
        if kind == "ERROR":
            raise error_of_status(self.call, obj)
        number = _number(version)
        if number and number <= self._seen:
            return
        self._seen, self._resume = number, version or self._resume
        if kind in (ADDED, MODIFIED):
            yield from self._set(obj)
        elif kind == DELETED:
            yield from self._remove(obj["metadata"]["name"], obj)

    def _list(self) -> Iterator[WatchEvent]:
        found = self.client.list(
            self.call.resource,
            self.call.namespace,
            label_selector=self._label_selector,
            resource_version="" if self._fresh or self.contact > float("-inf") else "0",
        )
        self.contact = time.monotonic()
        items = found.get("items") or []
        present = {item["metadata"]["name"] for item in items}
        for name in [name for name in self._known if name not in present]:
            yield from self._remove(name, self._known[name])
        for item in items:
            yield from self._set(item)
        self._resume = str(found["metadata"]["resourceVersion"])
        self._seen = _number(self._resume)
        yield WatchEvent(SYNCED, {})

    def _get(self) -> Iterator[WatchEvent]:
        name = self.call.name or ""
        try:
            obj = self.client.get(self.call.resource, self.call.namespace, name)
        except NotFound:
            if name in self._known:
                yield from self._remove(name, self._known[name])
        else:
            # The read is the authority, also when versions went back.
            self._seen = _number(str(obj["metadata"]["resourceVersion"]))
            yield from self._set(obj)
        yield WatchEvent(SYNCED, {})

    def _set(self, obj: Object) -> Iterator[WatchEvent]:
        meta = obj["metadata"]
        before = self._known.get(meta["name"])
        if before is not None and before["metadata"].get("uid") != meta.get("uid"):
            yield from self._remove(meta["name"], before)
            before = None
        if before is None or before["metadata"].get("resourceVersion") != meta.get("resourceVersion"):
            self._known[meta["name"]] = obj
            self._changes += 1
            yield WatchEvent(ADDED if before is None else MODIFIED, obj)

    def _remove(self, name: str, obj: Object) -> Iterator[WatchEvent]:
        if self._known.pop(name, None) is not None:
            self._changes += 1
            yield WatchEvent(DELETED, obj)


def _version(obj: Object) -> str:
    return str(obj["metadata"].get("resourceVersion", ""))


def _number(version: str) -> int:
    # Versions of one resource are numbers that grow (KEP-5504); 0, for a server where they are not, compares nothing.
    return int(version) if version.isdigit() else 0
