"""What the clients of the Kubernetes API and of etcd have in common: JSON requests over kept connections, repeated or not.

A subclass says where to connect to, with which credentials, and what a refusal means.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.kube.api import (
    ApiError,
    Call,
    Forbidden,
    Reply,
    ServerError,
    Stopped,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from rdzv.kube.retry import Backoff, Retry, spread
from rdzv.kube.transport import CALL_SECONDS, Connection
from rdzv.objects import Object, parsed

if TYPE_CHECKING:
    from http.client import HTTPResponse

__all__ = ["HttpClient", "Request", "reply_of"]

log = logging.getLogger("rdzv.kube")
log.addHandler(logging.NullHandler())

IDLE = 2
"""Connections kept open when nobody uses them, unless a client is told otherwise."""
UNAUTHORIZED_SECONDS = 30.0
"""How long 401 is retried: API servers answer it for seconds while they start, to everybody."""
SLOW_SECONDS = 0.3
"""A connection to a server that was away took longer than this: it waited, with others, for the server to serve."""
STARTING_SECONDS = 20.0
"""How long after an outage 403 is retried: an API server that starts refuses everything until it has read the roles."""


@dataclass(frozen=True)
class Request:
    """One HTTP request. `safe`: it changes nothing, so it may be repeated whatever became of it. `accept`: instead of JSON."""

    call: Call
    method: str
    target: str
    body: bytes | None = None
    content: str | None = None
    safe: bool = False
    accept: str | None = None


class HttpClient(ABC):
    """Connections and requests. Thread-safe; usable after fork."""

    def __init__(self, idle: int = IDLE, call_seconds: float = CALL_SECONDS) -> None:
        """`idle`: connections kept open when nobody uses them. `call_seconds`: for a whole reply, body included."""
        self._keep, self._call_seconds = idle, call_seconds
        self.trouble: ApiError | None = None
        """Why the server does not answer; None once it has. For people, so as it is."""
        self.agents = 1
        """How many lose the server when this one does: in a crowd each comes back to it more slowly."""
        self._closed = False
        self._trouble_at = float("-inf")
        self._refused_at: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    # What a subclass says.

    @abstractmethod
    def dial(self, call: Call | None) -> Connection:
        """Open a connection. Raises Unreachable or Untrusted."""

    @abstractmethod
    def headers(self, content: str | None = None) -> dict[str, str]:
        """Headers of a request. Hold credentials: never log them."""

    @abstractmethod
    def error_of(self, call: Call, reply: Reply) -> ApiError:
        """The typed exception for a reply of 300 and above."""

    @abstractmethod
    def refresh(self) -> bool:
        """After a 401: get other credentials. True when a request may fare better now."""

    def about_to_send(self, request: Request) -> None:  # noqa: B027 - most have nothing to say here
        """Called when the connection is there. What it raises keeps the request from being sent."""

    def parsed(self, body: bytes) -> Object:
        """What a reply says. Raises ValueError: it is no JSON object."""
        return parsed(body)

    # Connections.

    def connect(self, connections: int = IDLE) -> None:
        """Open connections ahead of use: a TLS handshake costs more than a write.

        Raises:
            Unreachable, Untrusted: the server is not there, or is another one.
        """
        self.headers()  # Reads the token, or runs the plug-in, ahead of use too.
        for _ in range(connections):
            with self._guard():
                for stale in [idle for idle in self._idle if not idle.alive()]:
                    self._idle.remove(stale)
                    stale.close()
                if len(self._idle) + len(self._busy) >= connections:
                    return
            self.release(self._open(None), reusable=True)

    def acquire(self, call: Call) -> Connection:
        """A connection for the calling thread, from those kept or a new one. `release` it."""
        while True:
            with self._guard():
                if self._closed:
                    raise Stopped(call, "the client is closed")
                connection = self._idle.pop() if self._idle else None
                if connection:
                    self._busy.add(connection)
            if connection is None:
                return self._open(call)
            if connection.alive():
                return connection
            self.release(connection, reusable=False)

    def release(self, connection: Connection, *, reusable: bool) -> None:
        """Give a connection back; `reusable` when the last reply on it was read to its end."""
        with self._guard():
            self._busy.discard(connection)
            if reusable and not self._closed and len(self._idle) < self._keep:
                self._idle.append(connection)
                return
            # Under the lock: close() of another thread must not shut down a descriptor number that is in use again.
            connection.close()

    def _open(self, call: Call | None) -> Connection:
        began = time.monotonic()
        connection = self.dial(call)
        with self._guard():
            self._busy.add(connection)
        if self.trouble and time.monotonic() - began > SLOW_SECONDS:
            # A server listens before it serves: it answers at one moment all who connected meanwhile.
            self._ended.wait(random.uniform(0, spread(self.agents)))  # noqa: S311 - jitter
        return connection

    def _guard(self) -> threading.Lock:
        if self._pid != os.getpid():
            # After fork: the connections are the parent's (two processes in one TLS stream would garble both), and the
            # lock may be held by a thread that does not exist here. Closing closes our copies only.
            for connection in (*self._idle, *self._busy):
                connection.close()
            self._reset()
        return self._lock

    def _drop_idle(self) -> None:
        with self._guard():
            for connection in self._idle:
                connection.close()
            self._idle = []

    def close(self) -> None:
        """End all connections, also those that other threads wait on: their requests end with `Stopped`."""
        with self._guard():
            self._closed = True
            self._ended.set()
            for connection in self._idle:
                connection.close()
            for connection in self._busy:
                connection.shutdown()
            self._idle = []

    # Requests.

    def run(self, request: Request, retry: Retry | None) -> Object:
        """Send a request, again as `retry` allows; returns the object in the reply. Raises ApiError."""
        backoff = Backoff(agents=self.agents)
        while True:
            try:
                return self._exchange(request, retry)
            except Unauthorized as caught:
                error: ApiError = caught
                starting, changed = self.maybe_starting(caught), self.reauthorize()
                if retry is None and changed:
                    retry = Retry(deadline=float("-inf"))  # Once more, and no more than once.
                    continue
                if not starting:
                    raise
            except Forbidden as caught:
                if not self.maybe_starting(caught):
                    raise
                error = caught
            except (TooManyRequests, ServerError, Unreachable) as caught:
                error = caught
                self.maybe_starting(caught)
            if retry is None or (error.maybe_applied and not request.safe):
                raise error
            log.debug("retrying after %s", error)
            retry.sleep(backoff.next(error.retry_after), error)

    def maybe_starting(self, error: ApiError) -> bool:
        """Whether the server was away or starting a moment ago, this error included; so the error may pass by itself.

        401 is believed when nothing else was answered for `UNAUTHORIZED_SECONDS`, whoever asked.
        """
        now = time.monotonic()
        if isinstance(error, (Unreachable, ServerError, Unauthorized)):
            self._trouble_at, self.trouble = now, error
        if isinstance(error.__cause__, TimeoutError):
            # What made one connection go silent made the others: do not find that out 10 s at a time.
            self._drop_idle()
        if isinstance(error, Unauthorized):
            self._refused_at = self._refused_at or now
            return now - self._refused_at < UNAUTHORIZED_SECONDS
        return now - self._trouble_at < STARTING_SECONDS

    def answered(self, call: Call, status: int) -> None:
        """The server answered: what was wrong with it before is over, unless this answer says the same."""
        if status not in (401, 403, 429) and status < 500:
            self.trouble, self._refused_at = None, None

    def reauthorize(self) -> bool:
        """After a 401: new credentials and, since a connection keeps its client certificate, new connections."""
        changed = self.refresh()
        self._drop_idle()
        return changed

    def _exchange(self, request: Request, retry: Retry | None) -> Object:
        while True:
            connection = self.acquire(request.call)
            was_fresh = connection.fresh
            try:
                return self._once(connection, request, retry)
            except Unreachable as error:
                # The server may close a kept connection just as it is used again: that says nothing about the server.
                timed_out = isinstance(error.__cause__, TimeoutError)
                if was_fresh or timed_out or (error.maybe_applied and not request.safe):
                    raise

    def _once(self, connection: Connection, request: Request, retry: Retry | None) -> Object:
        call, reusable = request.call, False
        deadline = time.monotonic() + self._call_seconds
        if retry is not None and retry.deadline > time.monotonic():
            deadline = min(deadline, retry.deadline)
        try:
            headers = self.headers(request.content)
            if request.accept is not None:
                headers["Accept"] = request.accept
            self.about_to_send(request)
            connection.send(call, request.method, request.target, request.body, headers)
            response = connection.reply(call, patience=self._call_seconds, deadline=deadline)
            body = connection.read(call, response)
            reusable = not response.will_close
        except Unreachable as error:
            if self._closed:
                raise Stopped(call, "the client was closed", maybe_applied=error.maybe_applied) from error
            raise
        finally:
            self.release(connection, reusable=reusable)
        self.answered(call, response.status)
        if response.status >= 300:
            raise self.error_of(call, reply_of(response, body))
        try:
            return self.parsed(body)
        except ValueError:
            raise Unreachable(call, "the reply is not a JSON object", maybe_applied=not request.safe) from None


def reply_of(response: HTTPResponse, body: bytes) -> Reply:
    """A reply that was not a success, for `error_of`."""
    return Reply(response.status, body, response.getheader("Retry-After"))
