"""Watches of the Kubernetes API: of one named object, or of a label selector. See `rdzv.kube.watch_loop` for what they promise."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from typing import TYPE_CHECKING

from rdzv.kube.api import Call, NotFound, Resource, Unreachable, checked, error_of_status
from rdzv.kube.retry import Retry
from rdzv.kube.transport import CALL_SECONDS, Connection
from rdzv.kube.watch_loop import ADDED, DELETED, MODIFIED, SYNCED, WatchEvent, WatchLoop
from rdzv.objects import parsed

if TYPE_CHECKING:
    from rdzv.kube.client import Client

__all__ = ["ADDED", "DELETED", "MODIFIED", "SYNCED", "Watch", "WatchEvent"]

SERVER_SECONDS = (240.0, 300.0)
"""`timeoutSeconds`: the server ends the stream then, spread so that agents do not renew together."""
READ_SECONDS = (70.0, 75.0)
"""Silence after which a connection is taken for dead: bookmarks come about every 60 s."""
_DIGITS = 20
"""Of a number of 64 bits."""


class Watch(WatchLoop):
    """A watch on one object (`name`: authorised by name, so a Role with `resourceNames` is enough) or a selector.

    With `fresh=False` it starts from what the API server has in memory (resourceVersion=0): for a named object that is
    one request instead of two, and no SYNCED comes first; the state may be old for a moment and never goes backwards.
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
        super().__init__(client, Call("watch", resource, namespace, name), waiting)
        self.api = client
        self._label_selector = label_selector
        self._fresh = fresh

    def session(self) -> Iterator[WatchEvent]:
        """A list or a read, if need be, and a stream."""
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
            self._be_wary(connection)
            for line in self._lines(response):
                yield from self._event(line)
            response.close()
            reusable = not response.will_close
        finally:
            with self._lock:
                self._connection = None
            self.client.release(connection, reusable=reusable)

    def _open(self, connection: Connection) -> HTTPResponse:
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._resume or "0",
            "timeoutSeconds": str(round(random.uniform(*SERVER_SECONDS))),  # noqa: S311 - jitter
            "labelSelector": self._label_selector,
            "fieldSelector": f"metadata.name={self.call.name}" if self.call.name else "",
        }
        connection.send(self.call, "GET", self.api.target(self.call, query), None, self.client.headers())
        return self._answer(connection)

    def was_away(self) -> None:
        """It may have been started again, and not know what was before: to go on from there would be one request more, for 410."""
        self._resume = None

    def present(self) -> dict[str, str]:
        """By a list, or a read."""
        api, call = self.api, self.call
        if call.name is None:
            items = api.list(call.resource, call.namespace, label_selector=self._label_selector)["items"]
        else:
            try:
                items = [api.get(call.resource, call.namespace, call.name)]
            except NotFound:
                items = []
        return {item["metadata"]["name"]: str(item["metadata"].get("resourceVersion", "")) for item in items}

    # From the server's words to events.

    def _event(self, line: bytes) -> Iterator[WatchEvent]:
        if not line.strip():
            return
        try:
            event = parsed(line)
        except ValueError as error:
            raise Unreachable(self.call, "the stream broke: not an event") from error
        kind, obj = event.get("type"), event.get("object")
        if kind == "ERROR":
            raise error_of_status(self.call, obj if isinstance(obj, dict) else {})
        obj = checked(self.call, obj or {}, named=kind in (ADDED, MODIFIED, DELETED))
        version = obj.get("metadata", {}).get("resourceVersion", "")
        number = _number(version)
        if number and number <= self._seen:
            return
        self._seen, self._resume = number, version or self._resume
        if kind in (ADDED, MODIFIED):
            yield from self._set(obj)
        elif kind == DELETED:
            yield from self._remove(obj["metadata"]["name"], obj)

    def _list(self) -> Iterator[WatchEvent]:
        found = self.api.list(
            self.call.resource,
            self.call.namespace,
            label_selector=self._label_selector,
            resource_version="" if self._fresh or self.contact > float("-inf") else "0",
        )
        self.contact = time.monotonic()
        yield from self._replace_all(found["items"])
        self._resume = found["metadata"]["resourceVersion"]
        self._seen = _number(self._resume)
        yield WatchEvent(SYNCED, {})

    def _get(self) -> Iterator[WatchEvent]:
        name = self.call.name or ""
        # The stream is open meanwhile: it need not be opened again because a server that has just started says 429.
        retry = Retry.within(CALL_SECONDS, self._stop)
        try:
            obj = self.api.get(self.call.resource, self.call.namespace, name, retry=retry)
        except NotFound:
            if name in self._known:
                yield from self._remove(name, self._known[name])
        else:
            # The read is the authority, also when versions went back.
            self._seen = _number(obj["metadata"].get("resourceVersion", ""))
            yield from self._set(obj)
        yield WatchEvent(SYNCED, {})


def _number(version: str) -> int:
    # Versions of one resource are numbers that grow (KEP-5504); 0, for a server where they are not, compares nothing.
    return int(version) if version.isascii() and version.isdigit() and len(version) <= _DIGITS else 0
