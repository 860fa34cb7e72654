"""A port that leads to others on this machine: to the API server from another network namespace, or to a Service's pods."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType


class Relay:
    """Connections to a listening socket lead to the first of the ports that takes them; another one comes first each time.

    As a Service does, but for how soon it knows that a pod is gone. With no port at all nothing is answered, as if packets were lost.
    """

    def __init__(self, server: socket.socket, ports: Callable[[], Sequence[int]]) -> None:
        self.accepted = 0
        self._server, self._ports = server, ports
        self._silent: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        found: int = self._server.getsockname()[1]
        return found

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for each in self._silent:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return
            self.accepted += 1
            ports = [*self._ports()]
            first = self.accepted % len(ports) if ports else 0
            outer = _connected([*ports[first:], *ports[:first]])
            if outer is None:
                self._silent.append(inner)
            else:
                threading.Thread(target=_carry, args=(inner, outer), daemon=True).start()


def _connected(ports: Sequence[int]) -> socket.socket | None:
    for port in ports:
        with suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), timeout=5)
    return None


def _carry(inner: socket.socket, outer: socket.socket) -> None:
    """Until one of them ends."""
    outer.settimeout(None)
    other = {inner: outer, outer: inner}
    with inner, outer, suppress(OSError):
        while True:
            for source in select.select([inner, outer], [], [])[0]:
                data = source.recv(65536)
                if not data:
                    return
                other[source].sendall(data)
