"""A small client of the Kubernetes API, standard library only, for use inside training processes.

Objects are plain dicts. One client per agent: thread-safe, two connections kept open (one for calls, one for the watch),
more only while threads ask at the same time. See `rdzv.kube.api` for the exceptions and `rdzv.kube.watch` for watches.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from rdzv.kube.api import (
    ApiError,
    Call,
    Forbidden,
    Reply,
    Resource,
    ServerError,
    Stopped,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unreachable,
    Untrusted,
    error_of,
)
from rdzv.kube.retry import Backoff, Retry
from rdzv.kube.transport import CALL_SECONDS, Connection
from rdzv.objects import Object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from http.client import HTTPResponse

    from rdzv.kube.config import Config

__all__ = ["Client"]

log = logging.getLogger("rdzv.kube")
log.addHandler(logging.NullHandler())

IDLE = 2
"""Connections kept open when nobody uses them."""
MAX_OBJECT = 1024 * 1024
"""Bytes of a request's body. etcd refuses at 1.5 MiB, with an error that does not say which object."""
UNAUTHORIZED_SECONDS = 30.0
"""How long 401 is retried: API servers answer it for seconds while they start, to everybody."""
STARTING_SECONDS = 10.0
"""How long after an outage 403 is retried: an API server that starts refuses everything until it has read the roles."""
_JSON = "application/json"
_JSON_PATCH = "application/json-patch+json"
_STRICT = {"fieldValidation": "Strict"}
"""Of every write: a field that an older CRD lacks would be dropped without a word otherwise, and the rest be stored."""


class Client:
    """Calls on an API server.

    Every verb takes `retry`: without it a request is tried once (a connection that had gone stale is replaced, and a 401
    makes a changed token be read, first). With it, what is safe to repeat is repeated until its deadline: reads always,
    writes only when the server is known not to have carried them out. A write with an unknown outcome raises with
    `maybe_applied`: read the object to find out.
    """

    def __init__(self, config: Config, connect: Callable[[Config, Call | None], Connection] = Connection) -> None:
        """`connect` opens a connection; tests give one that needs no server."""
        self.config = config
        self.trouble: ApiError | None = None
        """Why the API server does not answer; None once it has. For people, so as it is."""
        self._connect = connect
        self._closed = False
        self._trouble_at = float("-inf")
        self._refused_at: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    # Connections.

    def connect(self, connections: int = IDLE) -> None:
        """Open connections ahead of use: a TLS handshake costs more than a write.

        Raises:
            Unreachable, Untrusted: the API server is not there, or is another one.
        """
        self.config.authorization()  # Reads the token, or runs the plug-in, ahead of use too.
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
            if reusable and not self._closed and len(self._idle) < IDLE:
                self._idle.append(connection)
                return
            # Under the lock: close() of another thread must not shut down a descriptor number that is in use again.
            connection.close()

    def _open(self, call: Call | None) -> Connection:
        try:
            connection = self._connect(self.config, call)
        except Untrusted:
            self.config.forget_tls()  # The CA may just have been replaced.
            connection = self._connect(self.config, call)
        with self._guard():
            self._busy.add(connection)
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

    def again(self) -> Client:
        """Another client of the same API server, with connections of its own."""
        return Client(self.config, self._connect)

    def close(self) -> None:
        """End all connections, also those that other threads wait on: their requests end with `Stopped`."""
        with self._guard():
            self._closed = True
            for connection in self._idle:
                connection.close()
            for connection in self._busy:
                connection.shutdown()
            self._idle = []

    # Verbs.

    def get(self, resource: Resource, namespace: str | None, name: str, *, retry: Retry | None = None) -> Object:
        """One object, as of now (a quorum read)."""
        return self._call(Call("get", resource, namespace, name), "GET", retry=retry)

    def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
        retry: Retry | None = None,
    ) -> Object:
        """The `List` object. `resource_version="0"` takes what the server has in memory, without asking etcd."""
        query = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "resourceVersion": resource_version,
        }
        return self._call(Call("list", resource, namespace), "GET", query=query, retry=retry)

    def schemas(self, group_version: str, *, retry: Retry | None = None) -> Object:
        """The OpenAPI v3 document of an API group, which every authenticated user may read."""
        target = f"{self.config.path}/openapi/v3/apis/{group_version}"
        return self._run(_Request(Call("get", Resource(group_version, "openapi")), "GET", target, None), retry)

    def create(self, resource: Resource, namespace: str | None, obj: Object, *, retry: Retry | None = None) -> Object:
        """Create an object; returns it as stored. Raises `AlreadyExists`."""
        name = obj.get("metadata", {}).get("name")
        return self._call(Call("create", resource, namespace, name), "POST", query=_STRICT, body=obj, retry=retry)

    def replace(self, resource: Resource, namespace: str | None, obj: Object, *, retry: Retry | None = None) -> Object:
        """PUT. With `metadata.resourceVersion` it is a compare-and-set, and raises `Conflict`."""
        call = Call("update", resource, namespace, obj["metadata"]["name"])
        return self._call(call, "PUT", query=_STRICT, body=obj, retry=retry)

    def json_patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Sequence[Object],
        *,
        retry: Retry | None = None,
    ) -> Object:
        """RFC 6902 patch: carried out completely, on the state of that moment, or not at all (`Invalid`: a `test` failed)."""
        return self._call(Call("patch", resource, namespace, name), "PATCH", query=_STRICT, body=patch, retry=retry)

    def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        retry: Retry | None = None,
    ) -> Object:
        """Delete an object, in the background. With `uid` or `resource_version` only that very one (else `Conflict`)."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid or resource_version:
            body["preconditions"] = {key: value for key, value in preconditions.items() if value}
        return self._call(Call("delete", resource, namespace, name), "DELETE", body=body, retry=retry)

    # Requests.

    def _call(
        self,
        call: Call,
        method: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | Sequence[Object] | None = None,
        retry: Retry | None = None,
    ) -> Object:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        if data is not None and len(data) > MAX_OBJECT:
            raise TooLarge(call, f"the object has {len(data)} bytes of JSON, the limit is {MAX_OBJECT}")
        return self._run(_Request(call, method, self.target(call, query), data), retry)

    def _run(self, request: _Request, retry: Retry | None) -> Object:
        backoff = Backoff()
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

    def target(self, call: Call, query: Mapping[str, str] | None = None) -> str:
        """Path and query of a request."""
        name = None if call.verb in ("list", "create", "watch") else call.name
        asked = {key: value for key, value in (query or {}).items() if value}
        path = self.config.path + call.resource.path(call.namespace, name)
        return f"{path}?{urlencode(asked)}" if asked else path

    def maybe_starting(self, error: ApiError) -> bool:
        """Whether the API server was away or starting a moment ago, this error included; so the error may pass by itself.

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

    def answered(self, status: int) -> None:
        """The API server answered: what was wrong with it before is over, unless this answer says the same."""
        if status not in (401, 403, 429) and status < 500:
            self.trouble, self._refused_at = None, None

    def reauthorize(self) -> bool:
        """After a 401: new credentials and, since a connection keeps its client certificate, new connections."""
        changed = self.config.refresh()
        self._drop_idle()
        return changed

    def headers(self, content: str | None = None) -> dict[str, str]:
        """Headers of a request. Hold credentials: never log them."""
        headers = {"Accept": _JSON, "User-Agent": "rdzv"}
        if content:
            headers["Content-Type"] = content
        if authorization := self.config.authorization():
            headers["Authorization"] = authorization
        return headers

    def _exchange(self, request: _Request, retry: Retry | None) -> Object:
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

    def _once(self, connection: Connection, request: _Request, retry: Retry | None) -> Object:
        call, reusable = request.call, False
        deadline = time.monotonic() + CALL_SECONDS
        if retry is not None and retry.deadline > time.monotonic():
            deadline = min(deadline, retry.deadline)
        try:
            connection.send(call, request.method, request.target, request.body, self.headers(request.content))
            response = connection.reply(call, patience=CALL_SECONDS, deadline=deadline)
            body = connection.read(call, response)
            reusable = not response.will_close
        except Unreachable as error:
            if self._closed:
                raise Stopped(call, "the client was closed", maybe_applied=error.maybe_applied) from error
            raise
        finally:
            self.release(connection, reusable=reusable)
        self.answered(response.status)
        if response.status >= 300:
            raise error_of(call, reply_of(response, body))
        try:
            result: Object = json.loads(body)
        except ValueError:
            raise Unreachable(call, "the reply is not JSON", maybe_applied=not request.safe) from None
        return result


@dataclass(frozen=True)
class _Request:
    call: Call
    method: str
    target: str
    body: bytes | None

    @property
    def safe(self) -> bool:
        return self.method == "GET"

    @property
    def content(self) -> str | None:
        if self.body is None:
            return None
        return _JSON_PATCH if self.method == "PATCH" else _JSON


def reply_of(response: HTTPResponse, body: bytes) -> Reply:
    """A reply that was not a success, for `error_of`."""
    return Reply(response.status, body, response.getheader("Retry-After"))
