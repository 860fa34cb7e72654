"""A TLS server on the loopback whose certificate is good at another time than now."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rdzv.control.certificates import PERIOD, Authority

EXPIRED, NOT_YET = -4 * PERIOD, 4 * PERIOD
"""Seconds from now until about the middle of the time in which the certificate is good."""


@contextlib.contextmanager
def dated_server(directory: Path, middle: float) -> Iterator[tuple[str, Path]]:
    """Its HOST:PORT, and the file of the authority. It speaks with nobody who finds the certificate good: there is nobody."""
    files = Authority(b"a key for tests, and of no use else").webhook("127.0.0.1", time.time() + middle).data
    for name, content in files.items():
        (directory / name).write_bytes(base64.b64decode(content))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with contextlib.suppress(OSError), connection, context.wrap_socket(connection, server_side=True):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", directory / "ca.crt"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)
