"""Watches of etcd, as `rdzv.kube.watch_loop` promises them: a read, then a stream from the next revision on.

The gateway turns etcd's stream into lines of JSON. A stream that was silent for `READ_SECONDS` is opened anew where it was:
by default etcd says nothing for ten minutes (`--watch-progress-notify-interval`), and nothing tells such a stream from one
whose other end is gone.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rdzv.etcd import records
from rdzv.etcd.errors import error_of_cancel, error_of_code
from rdzv.kube.api import ApiError, Call, Gone, Unreachable
from rdzv.kube.watch_loop import SYNCED, WatchEvent, WatchLoop
from rdzv.objects import parsed

if TYPE_CHECKING:
    from rdzv.etcd.client import Client, Found
    from rdzv.kube.transport import Connection
    from rdzv.objects import Object

__all__ = ["Watch"]

READ_SECONDS = (60.0, 75.0)
_JSON = "application/json"


class Watch(WatchLoop):
    """A watch on one object (`call.name`) or on those of a kind that have a label."""

    def __init__(
        self, client: Client, call: Call, label_selector: str, *, fresh: bool, waiting: Callable[[], bool] | None
    ) -> None:
        super().__init__(client, call, waiting)
        self.etcd = client
        self._label_selector, self._fresh = label_selector, fresh
        self._keys = client.keys(call)
        self._which = self._keys.one(call.name) if call.name is not None else self._keys.everything()

    def session(self) -> Iterator[WatchEvent]:
        """A read, if need be, and a stream."""
        if self._resume is None:
            yield from self._read()
        connection = self._take()
        try:
            response = self._open(connection)
            connection.patience = random.uniform(*READ_SECONDS)  # noqa: S311 - jitter
            connection.deadline = float("inf")  # The one so far was for the head.
            self._be_wary(connection)
            for line in self._lines(response, until_silent=True):
                yield from self._event(line)
        finally:
            with self._lock:
                self._connection = None
            self.client.release(connection, reusable=False)

    def present(self) -> dict[str, str]:
        """By a read of the keys."""
        found = self._selected(self._ask(local=False)[0])
        return {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in found}

    def _ask(self, *, local: bool) -> Found:
        verb = "list" if self.call.name is None else "get"
        return self.etcd.read(replace(self.call, verb=verb), self._which, local=local)

    def _selected(self, items: list[Object]) -> list[Object]:
        return [item for item in items if records.has_label(item, self._label_selector)]

    def _read(self) -> Iterator[WatchEvent]:
        found, revision = self._ask(local=not self._fresh and self.contact == float("-inf"))
        self.contact = time.monotonic()
        yield from self._replace_all(self._selected(found))
        self._resume = str(revision)
        yield WatchEvent(SYNCED, {})

    def _open(self, connection: Connection) -> Any:
        start = str(int(self._resume or 0) + 1)
        body = {"create_request": {**self._which, "start_revision": start, "progress_notify": True}}
        # The stream is to end when this server is cut off from the others: it would be silent otherwise.
        headers = {**self.client.headers(_JSON), "Grpc-Metadata-Hasleader": "true"}
        connection.send(self.call, "POST", "/v3/watch", json.dumps(body).encode(), headers)
        return self._answer(connection)

    def _event(self, line: bytes) -> Iterator[WatchEvent]:
        if not line.strip():
            return
        try:
            message = parsed(line)
            if "error" in message:
                raise self._refusal(message["error"])
            result = message["result"]
            revision, events = records.revision(result.get("header") or {}, "revision"), result.get("events") or ()
            if result.get("canceled"):
                raise self._end(result)
            if result.get("created"):
                self._check_history(revision)
                return
            for event in events:
                yield from self._change(event)
            if events:
                # Of a stream that catches up the header is ahead of what is still to come.
                revision = max(records.revision(event["kv"], "mod_revision") for event in events)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Unreachable(self.call, "the stream broke: not an event") from None
        self._resume = str(max(revision, int(self._resume or 0)))

    def _change(self, event: Object) -> Iterator[WatchEvent]:
        kv = event["kv"]
        name, version = self._keys.name_of(records.decode(kv["key"])), records.revision(kv, "mod_revision")
        known = self._known.get(name)
        if known is not None and version <= int(known["metadata"]["resourceVersion"]):
            return
        if event.get("type") == "DELETE":
            if known is not None:
                gone = {**known, "metadata": {**known["metadata"], "resourceVersion": str(version)}}
                yield from self._remove(name, gone)
            return
        obj = records.object_of(self._keys, kv)
        if obj is not None and records.has_label(obj, self._label_selector):
            yield from self._set(obj)

    def _check_history(self, revision: int) -> None:
        """A server that is behind has yet to catch up; a cluster that is behind has lost what it knew."""
        if revision < int(self._resume or 0):
            self._ask(local=False)

    def _refusal(self, error: Object) -> ApiError:
        code = records.revision(error, "grpc_code") or records.revision(error, "code") or 2
        text = error.get("message")
        status = records.revision(error, "http_code")
        return error_of_code(self.call, code, text if isinstance(text, str) else "no message", status)

    def _end(self, result: Object) -> ApiError:
        if records.revision(result, "compact_revision"):
            return Gone(self.call, "etcd has compacted the history since then")
        reason = result.get("cancel_reason")
        return error_of_cancel(self.call, reason if isinstance(reason, str) else "", self.etcd.config.user)
