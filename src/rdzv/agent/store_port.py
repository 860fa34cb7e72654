"""The port at which an agent's TCPStore would be served: bound before it is known who leads, since the request to join names it."""

from __future__ import annotations

import socket
import threading

from rdzv.agent.liveness import listen

__all__ = ["StorePort"]


class StorePort:
    """At most one listening socket at a time. Thread-safe."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def rebind(self) -> int:
        """Listen on a fresh port instead; returns it. Raises OSError."""
        fresh = listen(self.address)
        self._swap(fresh)
        return int(fresh.getsockname()[1])

    def take(self) -> int | None:
        """The socket's descriptor, which is the caller's then; None when there is none."""
        with self._lock:
            taken, self._socket = self._socket, None
        return taken.detach() if taken is not None else None

    def close(self) -> None:
        """Stop listening."""
        self._swap(None)

    def _swap(self, sock: socket.socket | None) -> None:
        with self._lock:
            before, self._socket = self._socket, sock
        if before is not None:
            before.close()
