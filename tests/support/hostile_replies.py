"""What a server, or whoever sits in its place, may answer instead of what it should; as hypothesis strategies, and on a socket."""

from __future__ import annotations

import copy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from rdzv.kube.api import Call
from rdzv.kube.config import Config
from rdzv.kube.transport import Connection

DEEP = 100_000
"""Levels of nesting, more than Python's parser follows."""
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        -1,
        1.5,
        float("inf"),
        float("nan"),
        10**400,
        1 << 63,
        "",
        "\u00b2",
        "9" * 5000,
        "\ud800",
        "x" * 100_000,
        ".",
        "a/b",
        [],
        {},
        [[]],
        [{}],
        {"": None},
    ]
).map(copy.deepcopy)  # It may be changed next.
"""Values that are nobody's; infinities as Python's parser makes them of 1e999."""
VALUES = st.recursive(
    ODD | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
GARBAGE = st.one_of(
    st.binary(max_size=64),
    st.sampled_from(
        [
            b"",
            b"null",
            b"[]",
            b"0",
            b'"x"',
            b"\xff\xfe",
            b"[" * DEEP,
            b'{"a":' * DEEP,
            b"1" * 5000,
            b'{"kind": "Status"',
        ]
    ),
)
"""Bytes that are no JSON object."""


def changed(good: Any) -> st.SearchStrategy[Any]:
    """This value of JSON with one or two things in it replaced by something else, or left out."""
    places = list(_places(good))

    @st.composite
    def one(draw: st.DrawFn) -> Any:
        found = copy.deepcopy(good)
        for place in draw(st.lists(st.sampled_from(places), min_size=1, max_size=2)):
            parent = found
            try:
                for step in place[:-1]:
                    parent = parent[step]
                if draw(st.booleans()):
                    parent[place[-1]] = draw(VALUES)
                else:
                    del parent[place[-1]]
            except (KeyError, IndexError, TypeError):
                continue  # The first change took it away.
        return found

    return one()


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


class Canned:
    """Answers each request with the next of `replies`, status and body, and with the last one for ever.

    A body may be a list: the pieces of a stream, in the sizes in which they come.
    """

    def __init__(self, *replies: tuple[int, bytes | list[bytes]]) -> None:
        self._replies = list(replies)

    def connect(self, _server: Any, _call: Call | None) -> Connection:
        return _Canned(self.take)

    def take(self) -> _Reply:
        status, body = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        return _Reply(status, [body] if isinstance(body, bytes) else list(body))


class _Reply:
    will_close = False

    def __init__(self, status: int, pieces: list[bytes]) -> None:
        self.status, self._pieces = status, pieces

    def getheader(self, _name: str) -> str:
        return "\u00b2"

    def read1(self, _size: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def close(self) -> None:
        """Nothing to close."""


class _Canned(Connection):
    def __init__(self, take: Callable[[], _Reply]) -> None:
        self.fresh, self.patience, self.deadline = True, 0.0, 0.0
        self._take = take

    def send(self, *_request: Any) -> None:
        """Taken, whatever it is."""

    def reply(self, _call: Call, *, patience: float, deadline: float) -> Any:
        del patience, deadline
        return self._take()

    def read(self, _call: Call, response: Any) -> bytes:
        body: bytes = response.read1(0)
        return body

    def alive(self) -> bool:
        return True

    def shutdown(self) -> None:
        """Nothing waits in a socket."""

    def close(self) -> None:
        """Nothing to close."""


@contextmanager
def speaking(data: bytes, *, rest: bytes = b"", then: tuple[float, bytes] = (0, b"")) -> Iterator[Config]:
    """A server that answers the first request on each connection with these bytes, then `rest` until nobody reads, then ends.

    `then`: what it says last, and after how many seconds.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                try:
                    sock.recv(65536)
                    sock.sendall(data)
                    while rest:
                        sock.sendall(rest)
                    time.sleep(then[0])
                    sock.sendall(then[1])
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    host, port = listener.getsockname()
    try:
        yield Config(server=f"http://{host}:{port}", source="a test")
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
