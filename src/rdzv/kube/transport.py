"""One HTTP/1.1 connection to the API server: TLS, socket options, time limits, and whether a request had left."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

from rdzv.kube.api import ApiError, Call, TooLarge, Unreachable, Untrusted, WrongTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from rdzv.kube.config import Config

CONNECT_SECONDS = 3.0
"""For TCP to connect, and again for TLS."""
CALL_SECONDS = 10.0
"""For a whole reply to a call, body included: a reply that trickles is a failed one."""
MAX_REPLY = 64 * 1024 * 1024
"""Bytes. A list of a thousand members is 1 MB."""
_BUFFER = 64 * 1024
_OUT_OF_TIME = {9: "is not yet valid", 10: "has expired"}
"""By X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED (OpenSSL, x509_vfy.h)."""
# A peer that is gone without a word (node lost, NAT entry dropped) is noticed in about 25 s, below the watch's read
# timeout; that one catches what a load balancer in between keeps alive.
_SOCKET_OPTIONS = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 25_000,
}


class _TimedReader(io.RawIOBase):
    """Reads a socket under two limits: per read, and until a point in time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        connection = self._connection
        end = min(time.monotonic() + connection.patience, connection.deadline)
        while (left := end - time.monotonic()) > 0:
            connection.socket.settimeout(min(left, connection.quiet))
            try:
                return connection.socket.recv_into(buffer)
            except TimeoutError:
                connection.when_quiet()
        raise TimeoutError("the reply took too long")


class _Stream:
    """What http.client needs of a socket; its reads go through `_TimedReader`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unsent: list[Any] = []

    def sendall(self, data: Any) -> None:
        """Keeps it until `flush`: head and body leave in one piece, which is one call and one TLS record for either side."""
        self._unsent.append(data)

    def flush(self) -> None:
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._connection.socket.sendall(data)

    def makefile(self, *_args: Any) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._connection), _BUFFER)

    def close(self) -> None:
        """http.client closes when the server says so; `Connection.close` does it here."""


def _not_verified(config: Config, call: Call | None, error: ssl.SSLCertVerificationError) -> ApiError:
    where = f"the certificate of {config.host}:{config.port}"
    if out_of_time := _OUT_OF_TIME.get(error.verify_code):
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        return WrongTime(call, f"{where} {out_of_time} by the clock of this machine ({now})")
    return Untrusted(call, f"{where} does not match the CA or name of {config.source}: {error.verify_message}")


class Connection:
    """An open connection. Used by one thread at a time; only `shutdown` may come from another one."""

    def __init__(self, config: Config, call: Call | None, seconds: float = CONNECT_SECONDS) -> None:
        """Connect. `seconds`: for TCP, and again for TLS.

        Raises:
            Unreachable: refused or timed out; WrongTime: the certificate is not good now. Nothing was sent.
            Untrusted: the certificate is not the cluster's.
        """
        self.patience = CALL_SECONDS
        self.deadline = float("inf")
        self.fresh = True
        """No request was sent on it yet."""
        self.be_quiet()
        self._pid = os.getpid()
        context = config.ssl_context() if config.tls else None
        self._server = f"{config.host}:{config.port} ({config.source})"
        try:
            self.socket = socket.create_connection((config.host, config.port), seconds)
        except OSError as error:
            raise Unreachable(call, f"cannot connect to {self._server}: {_text(error)}") from error
        try:
            _set_options(self.socket)
            if context:
                self.socket = context.wrap_socket(self.socket, server_hostname=config.server_name or config.host)
        except ssl.SSLCertVerificationError as error:
            self.socket.close()
            raise _not_verified(config, call, error) from error
        except OSError as error:
            self.socket.close()
            raise Unreachable(call, f"no TLS connection to {self._server}: {_text(error)}") from error
        self._http = http.client.HTTPConnection(config.host, config.port)
        self._http.auto_open = 0
        self._stream = self._http.sock = _Stream(self)

    def send(self, call: Call, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> None:
        """Send a request.

        Raises:
            Unreachable: it did not leave completely, so the server cannot have carried it out.
        """
        self.socket.settimeout(CALL_SECONDS)
        self.fresh = False
        try:
            self._http.request(method, target, body, headers)
            self._stream.flush()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(call, f"the request could not be sent to {self._server}: {_text(error)}") from error

    def be_quiet(self, seconds: float = float("inf"), then: Callable[[], None] = lambda: None) -> None:
        """During the present reply: each time that nothing has come for so long, call `then`. What it raises ends the read."""
        self.quiet, self.when_quiet = seconds, then

    def reply(self, call: Call, *, patience: float, deadline: float) -> http.client.HTTPResponse:
        """Wait for the head of the reply; `patience` (seconds per read) and `deadline` hold for its body as well.

        Raises:
            Unreachable: `maybe_applied`, since the request had been sent.
        """
        self.patience, self.deadline = patience, deadline
        self.be_quiet()
        try:
            return self._http.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(call, error) from error

    def read(self, call: Call, response: http.client.HTTPResponse) -> bytes:
        """The body of a reply. Raises as `reply` does."""
        chunks, size = [], 0
        try:
            while chunk := response.read1(_BUFFER):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_REPLY:
                    raise TooLarge(call, f"a reply of more than {MAX_REPLY} bytes")
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            response.close()  # http.client refuses the next request on it otherwise.
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(call, error) from error
        return b"".join(chunks)

    def alive(self) -> bool:
        """Whether an idle connection can be used again: API servers close those that were quiet for 90 s."""
        try:
            poll = select.poll()
            poll.register(self.socket, select.POLLIN | select.POLLHUP | select.POLLERR)
            if not poll.poll(0):
                return True
            # Readable while nothing was asked: closed, or only TLS 1.3 session tickets, which reading consumes.
            self.socket.settimeout(0)
            self.socket.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return True
        except (OSError, ValueError):
            return False
        return False

    def shutdown(self) -> None:
        """End it from another thread: a read in progress there returns at once."""
        if self._pid != os.getpid():
            return  # A forked child has a copy of the descriptor; shutdown would end the parent's connection.
        with contextlib.suppress(OSError):  # Already gone.
            # Not SSLSocket.shutdown: it drops the TLS state under a reader, which would then see ciphertext.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor. Says nothing to the server, so a forked child may do it too."""
        self.socket.close()

    def _lost(self, call: Call, error: Exception) -> Unreachable:
        unknown = call.verb not in ("get", "list", "watch")
        return Unreachable(call, f"no reply from {self._server}: {_text(error)}", maybe_applied=unknown)


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SOCKET_OPTIONS.items():
        # Not every system has every option: laptops run this too.
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _text(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    text = str(error) if isinstance(error, OSError) else ""
    return text or type(error).__name__
