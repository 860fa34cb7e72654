"""One thread per agent that waits on sockets, timers and signals; nothing in it may block."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Loop", "pipe"]

log = logging.getLogger("rdzv.agent")

_IDLE = 3600.0
_JOIN_SECONDS = 2.0
_LOOPS: weakref.WeakSet[Loop] = weakref.WeakSet()


class Loop:
    """Callbacks for sockets and times, run one at a time in one daemon thread. `call` and `at` may come from any thread.

    `clock`: seconds that only grow; all times that the loop is given are of this clock.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._selector = selectors.DefaultSelector()
        self._reader, self._writer = pipe()
        self._lock = threading.Lock()
        self._paused: set[socket.socket] = set()
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}
        self._sleeps_until = 0.0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.watch(self._reader, selectors.EVENT_READ, self._drain)
        _LOOPS.add(self)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close every socket it watches."""
        self._stopped = True
        self._wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_SECONDS)
        self.close_sockets()
        self._selector.close()
        self._writer.close()

    def call(self, function: Callable[[], None]) -> None:
        """Run it in the loop's thread, soon."""
        self._calls.append(function)
        self._wake()

    def at(self, key: str, when: float | None, function: Callable[[], None]) -> None:
        """Run it at this time of the clock; replaces, or with None removes, what is planned under `key`."""
        with self._lock:
            if when is None:
                self._timers.pop(key, None)
                return
            self._timers[key] = (when, function)
            early = when < self._sleeps_until
        if early:
            self._wake()

    def watch(self, sock: socket.socket, events: int, callback: Callable[[], None]) -> None:
        """Call back when the socket is ready. In the loop's thread only, as are `pause` and `forget`."""
        self._paused.discard(sock)
        try:
            self._selector.modify(sock, events, callback)
        except KeyError:
            self._selector.register(sock, events, callback)

    def pause(self, sock: socket.socket) -> None:
        """Do not look at the socket until it is watched again; it is closed with the others."""
        self.release(sock)
        self._paused.add(sock)

    def forget(self, sock: socket.socket) -> None:
        """Stop watching the socket, and close it."""
        self.release(sock)
        sock.close()

    def release(self, sock: socket.socket) -> None:
        """Stop watching the socket, which stays open."""
        self._paused.discard(sock)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def close_sockets(self) -> None:
        """Close this process's descriptors, without a word to the selector (which a forked child shares with its parent)."""
        for key in list((self._selector.get_map() or {}).values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        for sock in list(self._paused):
            sock.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # Full: it will wake anyway. Closed: nobody is left to wake.
            self._writer.send(b"\0")

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            self._reader.recv(4096)

    def turn(self, most: float = _IDLE) -> None:
        """Wait for at most so many seconds, then run what is ready, asked for or due. The thread does nothing else."""
        for ready, _ in self._selector.select(min(most, self._plan())):
            # What ran before in this turn may have closed the socket, and its number be another one's by now.
            key = (self._selector.get_map() or {}).get(ready.fd)
            if key is not None and key.fileobj is ready.fileobj:
                self._guarded(key.data)
        while self._calls:
            self._guarded(self._calls.popleft())
        for function in self._due():
            self._guarded(function)

    def _run(self) -> None:
        while not self._stopped:
            self.turn()

    def _plan(self) -> float:
        now = self.clock()
        with self._lock:
            first = min((when for when, _ in self._timers.values()), default=now + _IDLE)
            self._sleeps_until = now if self._calls or self._stopped else first
        return max(0.0, self._sleeps_until - now)

    def _due(self) -> list[Callable[[], None]]:
        now = self.clock()
        with self._lock:
            due = sorted((when, key) for key, (when, _) in self._timers.items() if when <= now)
            return [self._timers.pop(key)[1] for _, key in due]

    def _guarded(self, function: Callable[..., Any]) -> None:
        try:
            function()
        except Exception:  # One bad callback must not end the thread that notices dead peers.
            if not self._stopped:
                log.exception("error in the agent's loop")


def pipe() -> tuple[socket.socket, socket.socket]:
    """A reader and a writer that never block."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    return reader, writer


def _after_fork() -> None:
    # A worker that is forked holds copies of the agent's sockets; the agent's death would not close them, so nobody
    # would notice it.
    for loop in list(_LOOPS):
        loop.close_sockets()


os.register_at_fork(after_in_child=_after_fork)
