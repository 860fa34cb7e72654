"""An API server in memory, behind the seam `Client(config, connect=api.connect)`: no socket, and replies as the test says.

    api = ScriptedApi()
    client = api.client()
    api.put("rendezvousrounds", obj)                      # as somebody else writes
    held = api.inject(Hold(), "GET", "rendezvousrounds")  # the next such reply waits for held.release
    api.inject(Lose(), "PUT", "rendezvousmembers")        # carried out, but nothing comes back

It knows what the client and its watches rest on: versions that grow, conditional writes, 404, 409, watches by name or
label. What an API server really does is tested on a real one, in tests/contract.
"""

from __future__ import annotations

import copy
import json
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rdzv.kube.api import Call, Unreachable
from rdzv.kube.client import Client
from rdzv.kube.config import Config
from rdzv.kube.transport import Connection

Object = dict[str, Any]
GROUP = "/apis/rdzv.dev/v1alpha1/namespaces/"


@dataclass
class Fault:
    """What becomes of one request. `met` is set when it has come."""

    met: threading.Event = field(default_factory=threading.Event)


@dataclass
class Answer(Fault):
    """Not carried out: answered with this status."""

    code: int = 503
    message: str = "scripted"


@dataclass
class Hold(Fault):
    """Carried out, and answered when `release` is set."""

    release: threading.Event = field(default_factory=threading.Event)


@dataclass
class Lose(Fault):
    """Carried out, and never answered."""


@dataclass
class Refuse(Fault):
    """The connection is refused."""


@dataclass
class Raise(Fault):
    """The transport raises this."""

    error: Exception = field(default_factory=RuntimeError)


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    plural: str
    name: str
    body: Object | None


class ScriptedApi:
    """See the module's text. Thread-safe."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.down = False
        self.rv = 100
        self.objects: dict[tuple[str, str], Object] = {}
        self._lock = threading.RLock()
        self._faults: list[tuple[Fault, str, str, int]] = []
        self._watches: list[_Watch] = []
        self._connections: list[_ScriptedConnection] = []

    def client(self) -> Client:
        """A client of this server."""
        return Client(Config(server="https://10.0.0.1:6443", source="a test"), self.connect)

    def connect(self, config: Config, call: Call | None) -> Connection:
        """The seam."""
        if self.down:
            cause = ConnectionRefusedError(111, "Connection refused")
            raise Unreachable(call, f"cannot connect to {config.host}:{config.port} ({config.source}): {cause}")
        connection = _ScriptedConnection(self)
        with self._lock:
            self._connections.append(connection)
        return connection

    def inject(self, fault: Any, method: str, plural: str, times: int = 1) -> Any:
        """Of the next requests of this method (WATCH for watches; empty: any) on this kind; -1 times: of all."""
        with self._lock:
            self._faults.append((fault, method, plural, times))
        return fault

    def clear(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults.clear()

    def cut(self) -> None:
        """End every connection."""
        with self._lock:
            for connection in self._connections:
                connection.shutdown()

    def open_connections(self) -> int:
        """How many were not closed."""
        with self._lock:
            return sum(not connection.closed for connection in self._connections)

    def asked(self, method: str, plural: str) -> list[Seen]:
        """The requests of this method on this kind."""
        with self._lock:
            return [seen for seen in self.requests if (seen.method, seen.plural) == (method, plural)]

    def put(self, plural: str, obj: Object) -> Object:
        """Write without a condition, as somebody else does; returns it as stored."""
        with self._lock:
            self.rv += 1
            key = (plural, obj["metadata"]["name"])
            before = self.objects.get(key)
            uid = before["metadata"]["uid"] if before else f"uid-{self.rv}"
            metadata = {**obj["metadata"], "uid": uid, "resourceVersion": str(self.rv)}
            metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            stored = {**copy.deepcopy(obj), "metadata": metadata}
            self.objects[key] = stored
            self._tell("MODIFIED" if before else "ADDED", plural, stored)
            return copy.deepcopy(stored)

    def delete(self, plural: str, name: str) -> None:
        """Delete, as somebody else does."""
        with self._lock:
            self.rv += 1
            gone = self.objects.pop((plural, name))
            gone["metadata"]["resourceVersion"] = str(self.rv)
            self._tell("DELETED", plural, gone)

    def get(self, plural: str, name: str) -> Object | None:
        """As it is now."""
        with self._lock:
            return copy.deepcopy(self.objects.get((plural, name)))

    def _tell(self, kind: str, plural: str, obj: Object) -> None:
        for watch in self._watches:
            if watch.plural == plural and watch.matches(obj):
                watch.send(kind, obj)

    def fault_for(self, method: str, plural: str) -> Fault | None:
        with self._lock:
            for index, (fault, wanted, kind, times) in enumerate(self._faults):
                if wanted in ("", method) and kind in ("", plural):
                    if times == 1:
                        del self._faults[index]
                    elif times > 1:
                        self._faults[index] = (fault, wanted, kind, times - 1)
                    fault.met.set()
                    return fault
        return None

    def handle(self, method: str, plural: str, name: str, query: dict[str, str], body: Object | None) -> _Response:
        """Carry a request out."""
        with self._lock:
            if method == "WATCH":
                return _Response(200, stream=self._watch(plural, query))
            if method == "GET" and not name:
                watch = _Watch(plural, query)
                items = [
                    obj for (kind, _), obj in sorted(self.objects.items()) if kind == plural and watch.matches(obj)
                ]
                return _Response(200, {"items": copy.deepcopy(items), "metadata": {"resourceVersion": str(self.rv)}})
            return self._on_object(method, plural, name or (body or {})["metadata"]["name"], body)

    def _on_object(self, method: str, plural: str, name: str, body: Object | None) -> _Response:
        current = self.objects.get((plural, name))
        if method == "POST" and current is not None:
            return _status(409, "AlreadyExists", plural, name)
        if method != "POST" and current is None:
            return _status(404, "NotFound", plural, name)
        if body is None:
            return _Response(200, copy.deepcopy(current))
        condition = body["metadata"].get("resourceVersion")
        if current is not None and condition not in (None, current["metadata"]["resourceVersion"]):
            return _status(409, "Conflict", plural, name)
        return _Response(200, self.put(plural, body))

    def _watch(self, plural: str, query: dict[str, str]) -> _Watch:
        watch = _Watch(plural, query)
        since = int(query.get("resourceVersion", "0"))
        for obj in sorted(self.objects.values(), key=_version):
            if (
                self.objects.get((plural, obj["metadata"]["name"])) is obj
                and watch.matches(obj)
                and _version(obj) > since
            ):
                watch.send("ADDED", obj)
        watch.send("BOOKMARK", {"metadata": {"resourceVersion": str(self.rv)}})
        self._watches.append(watch)
        return watch


class _Watch:
    def __init__(self, plural: str, query: dict[str, str]) -> None:
        self.plural = plural
        self._name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        self._label = query.get("labelSelector", "").partition("=")
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def matches(self, obj: Object) -> bool:
        metadata = obj["metadata"]
        key, _, value = self._label
        return self._name in ("", metadata["name"]) and (not key or metadata.get("labels", {}).get(key) == value)

    def send(self, kind: str, obj: Object) -> None:
        self.lines.put(json.dumps({"type": kind, "object": obj}, separators=(",", ":")).encode() + b"\n")


class _Response:
    """What the client and its watches use of http.client's HTTPResponse."""

    will_close = False

    def __init__(self, status: int, body: Object | None = None, stream: _Watch | None = None) -> None:
        self.status, self.stream = status, stream
        self._body = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()

    def getheader(self, name: str) -> None:
        """None of them."""

    def read1(self, _size: int) -> bytes:
        if self.stream is not None:
            return self.stream.lines.get()
        body, self._body = self._body, b""
        return body

    def close(self) -> None:
        """Nothing to close."""


class _ScriptedConnection(Connection):
    """Only what is above the socket."""

    def __init__(self, api: ScriptedApi) -> None:
        self.fresh, self.closed = True, False
        self.patience = self.deadline = 0.0
        self._api = api
        self._cut = threading.Event()
        self._fault: Fault | None = None
        self._carry_out: Callable[[], _Response] | None = None
        self._response: _Response | None = None

    def send(self, call: Call, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> None:
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        plural, _, name = url.path.removeprefix(GROUP).partition("/")[2].partition("/")
        method = "WATCH" if query.get("watch") else method
        obj = json.loads(body) if body else None
        self.fresh = False
        self._api.requests.append(Seen(method, plural, name, obj))
        self._fault = self._api.fault_for(method, plural)
        if isinstance(self._fault, Raise):
            raise self._fault.error
        if self._api.down or self._cut.is_set() or isinstance(self._fault, Refuse):
            self.fresh = True  # As a new connection that was refused: nothing is tried again on another one.
            raise Unreachable(call, "the request could not be sent to 10.0.0.1:6443 (a test): Connection refused")
        self._carry_out = lambda: self._api.handle(method, plural, name, query, obj)

    def reply(self, call: Call, *, patience: float, deadline: float) -> Any:
        assert self._carry_out is not None
        if isinstance(self._fault, Answer):
            self._response = _status(self._fault.code, "", call.resource.plural, call.name or "", self._fault.message)
            return self._response
        self._response = self._carry_out()
        if isinstance(self._fault, Hold):
            while not (self._fault.release.wait(0.01) or self._cut.is_set()):
                pass
        if isinstance(self._fault, Lose) or self._cut.is_set():
            raise Unreachable(call, "no reply", maybe_applied=call.verb not in ("get", "list", "watch"))
        return self._response

    def read(self, call: Call, response: Any) -> bytes:
        found: bytes = response.read1(0)
        return found

    def alive(self) -> bool:
        return not self._cut.is_set()

    def shutdown(self) -> None:
        self._cut.set()
        if self._response is not None and self._response.stream is not None:
            self._response.stream.lines.put(b"")

    def close(self) -> None:
        self.closed = True


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _status(code: int, reason: str, plural: str, name: str, message: str = "") -> _Response:
    details = {"name": name, "kind": plural}
    body = {"kind": "Status", "code": code, "reason": reason, "message": message or reason, "details": details}
    return _Response(code, body)
