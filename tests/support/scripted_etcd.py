"""Replies of etcd's gateway as a test writes them, behind the seam `Client(…, connect=script.connect)`: no socket.

    script = Script()
    script.says("/v3/kv/range", {"header": {"revision": "7"}})
    script.says("/v3/watch", [created(7), event(8, "job", …)], ends=True)

A request takes the first reply of its path that nobody has taken. A test that asks for more than was written fails.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rdzv.kube.api import Call
from rdzv.kube.config import Config as Server
from rdzv.kube.transport import Connection

Object = dict[str, Any]


def text(data: str) -> str:
    return base64.b64encode(data.encode()).decode()


def kv(key: str, value: Any, modified: int, created: int = 0) -> Object:
    """A key and its value, as replies have them."""
    versions = {"create_revision": str(created or modified), "mod_revision": str(modified), "version": "1"}
    return {"key": text(key), "value": text(json.dumps(value)), **versions}


def created(revision: int) -> Object:
    """What a watch says first."""
    return {"result": {"header": {"revision": str(revision)}, "created": True}}


def events(*found: Object, revision: int = 0) -> Object:
    """Changes; the header's revision is theirs unless the stream is catching up."""
    header = {"revision": str(revision or max(int(each["kv"]["mod_revision"]) for each in found))}
    return {"result": {"header": header, "events": list(found)}}


def progress(revision: int) -> Object:
    return {"result": {"header": {"revision": str(revision)}}}


def deleted(key: str, revision: int) -> Object:
    return {"type": "DELETE", "kv": {"key": text(key), "mod_revision": str(revision)}}


@dataclass
class Reply:
    """`lines` of a stream, or one body; `then`: raised where the next bytes are read."""

    status: int = 200
    body: Any = None
    lines: Sequence[Any] | None = None
    then: Exception | None = None
    will_close: bool = False
    _sent: int = field(default=0, repr=False)

    def getheader(self, name: str) -> None:
        """None of them."""

    def read1(self, _size: int) -> bytes:
        if self.lines is None or self._sent == len(self.lines):
            if self.then is not None:
                raise self.then
            return b""
        self._sent += 1
        line = self.lines[self._sent - 1]
        return line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class Seen:
    path: str
    body: Object
    headers: dict[str, str]
    server: str


class Script:
    """See the module's text."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.down: dict[str, Exception] = {}
        """What connecting to a server (host:port) raises."""
        self._replies: list[tuple[str, Reply | Exception]] = []
        self._lock = threading.Lock()

    def says(self, path: str, body: Any, status: int = 200) -> None:
        self._replies.append((path, Reply(status, body)))

    def streams(self, *lines: Any, then: Exception | None = None, path: str = "/v3/watch") -> None:
        self._replies.append((path, Reply(lines=lines, then=then)))

    def fails(self, path: str, error: Exception) -> None:
        """Sent, and no reply."""
        self._replies.append((path, error))

    def bodies(self, path: str) -> list[Object]:
        """Of the requests to a path."""
        return [seen.body for seen in self.requests if seen.path == path]

    def connect(self, server: Server, call: Call | None) -> Connection:
        del call
        address = f"{server.host}:{server.port}"
        if address in self.down:
            raise self.down[address]
        return _Scripted(self, address)

    def take(self, path: str) -> Reply | Exception:
        with self._lock:
            for index, (wanted, reply) in enumerate(self._replies):
                if wanted == path:
                    del self._replies[index]
                    return reply
        raise AssertionError(f"nothing was written for another request to {path}")


class _Scripted(Connection):
    def __init__(self, script: Script, address: str) -> None:
        self.fresh, self.patience, self.deadline = True, 0.0, 0.0
        self._script, self._address = script, address
        self._reply: Reply | Exception = Reply()

    def send(self, call: Call, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> None:
        del call, method
        self._script.requests.append(Seen(target, json.loads(body) if body else {}, dict(headers), self._address))
        self._reply = self._script.take(target)

    def reply(self, call: Call, *, patience: float, deadline: float) -> Any:
        del call, patience, deadline
        if isinstance(self._reply, Exception):
            raise self._reply
        return self._reply

    def read(self, call: Call, response: Any) -> bytes:
        del call
        body = response.body
        return body if isinstance(body, bytes) else json.dumps(body).encode()

    def alive(self) -> bool:
        return True

    def shutdown(self) -> None:
        """Nothing waits in a socket."""

    def close(self) -> None:
        """Nothing to close."""
