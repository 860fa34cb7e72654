"""Watching whatever server it is: reconnecting, and never losing the current state. What is said to the server is a subclass's.

`WatchLoop.events()` runs in the caller's thread and reconnects by itself. It is level-triggered: what happens while a
connection is away may be merged into one event, but the last event of each object always becomes its current state.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from typing import NamedTuple

from rdzv.kube.api import (
    ApiError,
    Call,
    Forbidden,
    Gone,
    ServerError,
    Stopped,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from rdzv.kube.http_client import HttpClient, reply_of
from rdzv.kube.retry import Backoff, Retry
from rdzv.kube.transport import CALL_SECONDS, Connection
from rdzv.objects import Object

__all__ = ["ADDED", "DELETED", "MODIFIED", "SYNCED", "WatchEvent", "WatchLoop"]

log = logging.getLogger("rdzv.kube")
log.addHandler(logging.NullHandler())

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"
SYNCED = "SYNCED"
"""Not an object: everything that existed when the state was last read in full has been delivered."""

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


class WatchLoop(ABC):
    """A watch of one object, or of a selection. A subclass says how a session goes: read, stream, and what lines mean.

    A connection that something in between keeps open while it lets nothing through is noticed after `QUIET_SECONDS` while
    `waiting()` is true: somebody waits for an event.
    """

    def __init__(self, client: HttpClient, call: Call, waiting: Callable[[], bool] | None = None) -> None:
        self.client, self.call = client, call
        self.contact = float("-inf")
        """When the server last said anything, on the monotonic clock."""
        self._waiting = waiting
        self._known: dict[str, Object] = {}
        self._resume: str | None = None  # Where to go on; None: read the state in full.
        self._seen = 0  # Highest resourceVersion delivered: what is not above it is old news.
        self._changes = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._pid = os.getpid()

    @abstractmethod
    def session(self) -> Iterator[WatchEvent]:
        """The events of one connection, until it ends. Without `_resume`, it reads the state in full first."""

    @abstractmethod
    def present(self) -> dict[str, str]:
        """The versions of what exists now, by name, as the server says when it is asked. Raises ApiError."""

    def was_away(self) -> None:  # noqa: B027 - one need not know
        """The server could not be reached twice in turn, so it was not only this connection that ended."""

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
        backoff = Backoff(agents=self.client.agents)
        short_streams = 0
        error: ApiError | None = None
        while not self._stop.is_set():
            started, changes = time.monotonic(), self._changes
            before, error = error, None
            try:
                yield from self.session()
            except Stopped:
                return
            except (Unauthorized, Forbidden, Gone, TooManyRequests, ServerError, Unreachable) as caught:
                error = caught
                self._note(caught)
                if isinstance(caught, Unreachable) and isinstance(before, Unreachable):
                    self.was_away()
            if isinstance(error, (Gone, TooManyRequests)) and not isinstance(before, type(error)):
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

    # For a session.

    def _take(self) -> Connection:
        connection = self.client.acquire(self.call)
        with self._lock:
            self._connection = connection
        if self._stop.is_set():
            # close() may have looked before the connection was there to be shut down.
            connection.shutdown()
        return connection

    def _answer(self, connection: Connection) -> HTTPResponse:
        """The head of the reply to a request that opens a stream. Raises ApiError for a refusal."""
        response = connection.reply(self.call, patience=CALL_SECONDS, deadline=time.monotonic() + CALL_SECONDS)
        self.client.answered(self.call, response.status)
        if response.status >= 300:
            raise self.client.error_of(self.call, reply_of(response, connection.read(self.call, response)))
        self.contact = time.monotonic()
        return response

    def _be_wary(self, connection: Connection) -> None:
        """From now on silence is looked into, while somebody waits."""
        if self._waiting is not None:
            connection.be_quiet(QUIET_SECONDS if self.call.name else LIST_QUIET_SECONDS, self._verify)

    def _lines(self, response: HTTPResponse, *, until_silent: bool = False) -> Iterator[bytes]:
        """The lines of a stream; silence for longer than the connection's patience is an error, or the end."""
        buffer = bytearray()
        while True:
            try:
                data = response.read1(_READ)
            except (OSError, HTTPException) as error:
                if until_silent and isinstance(error, TimeoutError):
                    return
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
                self._resume = None  # It would come again: a read has the state without what led to it.
                raise Unreachable(self.call, f"an event of more than {MAX_EVENT} bytes")

    def _verify(self) -> None:
        """The stream is quiet: while somebody waits, see whether that is because nothing has happened.

        Raises:
            Unreachable: it is deaf, or what made the question go unanswered will have made it so.
        """
        if self._waiting is None or not self._waiting():
            return
        try:
            deaf = self.present() != {name: _version(obj) for name, obj in self._known.items()}
        except (Stopped, Unreachable):
            raise
        except ApiError as error:
            log.debug("a quiet watch could not be verified: %s", error)
            return
        if deaf:
            raise Unreachable(self.call, "the stream is silent, and there is something that it did not say")

    def _replace_all(self, items: list[Object]) -> Iterator[WatchEvent]:
        """The state was read in full: what this watch knew and is not there any more was deleted."""
        present = {item["metadata"]["name"] for item in items}
        for name in [name for name in self._known if name not in present]:
            yield from self._remove(name, self._known[name])
        for item in items:
            yield from self._set(item)

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
