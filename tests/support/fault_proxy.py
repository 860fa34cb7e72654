"""A TLS proxy in front of a real API server that fails on request.

    with FaultProxy(kubeconfig, tmp_path) as proxy:      # proxy.kubeconfig: same cluster, same user, through the proxy
        fault = proxy.inject("lose-reply", method="POST", path="/configmaps")
        ...                                              # the next such request is carried out, its reply never comes
        assert fault.hit.wait(5)

`EtcdProxy` is the same in front of an etcd.
Works for every client that speaks HTTP/1.1: `rdzv.kube`, kopf, `kubernetes`, kubectl. Requests without an Authorization
header are forwarded with the client certificate of the kubeconfig, so both kinds of users can be tested.

Kinds of faults for one request (`inject`; the first that matches and has `times` left is used):

- `answer`: answered here with 200 and `body`
- `reply`: answered here with `status` (a `Status` object with `reason`, `message`; `retry_after` as a header)
- `cut-before`: the connection is cut; the API server never sees the request
- `lose-reply`: forwarded and carried out; the connection is cut instead of the reply
- `hold-reply`: forwarded and carried out; no reply comes, and the connection is cut when `fault.release` is set
- `black-hole`: swallowed; nothing ever comes back, the connection stays open (until `fault.release` is set)
- `delay`: forwarded after `seconds`
- `trickle`: the reply comes byte by byte, one each `seconds`
- `garbage`: 200 with a body that is not JSON (for a watch: an event that is not)
- `close-at-once`: a watch that is accepted and ends, orderly, without an event
- `error-event`: a watch that is accepted and sends an ERROR event with `status`, `reason`, `message`
- `tear`: a watch whose next event is cut in the middle of its line
- `lossy`: a watch that ends as it should and whose bookmarks arrive, but none of its events
- `late`: a watch of which everything arrives `seconds` later

And for all connections: `cut()`, `freeze()` (half-open: those that exist stay open and go silent), `down()`, `up()`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdzv.kube import config as kube_config
from rdzv.kube.credentials import Credentials

HOP_HEADERS = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class _CutError(Exception):
    """Ends a connection without another byte."""


@dataclass
class Fault:
    """One scripted failure; see the module's text for kinds. `hit` is set when it was used, `hits` counts."""

    kind: str
    method: str = ""
    path: str = ""
    times: int = 1
    status: int = 503
    reason: str = ""
    message: str = "injected"
    body: bytes = b""
    retry_after: int | None = None
    seconds: float = 0.0
    hits: int = 0
    hit: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def status_object(self) -> dict[str, Any]:
        base = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        return {**base, "code": self.status, "reason": self.reason, "message": self.message}


@dataclass(frozen=True)
class Seen:
    """A request that arrived, whatever became of it. `at` is on the monotonic clock."""

    method: str
    target: str
    at: float
    authorization: str | None


class FaultProxy:
    """See the module's text. Thread-safe; a context manager that leaves no thread and no socket behind."""

    def __init__(self, kubeconfig: str | Path, directory: Path) -> None:
        upstream = kube_config.from_kubeconfig(str(kubeconfig))
        # With a client certificate the API server would not look at a token, so requests with one go without it.
        self._serve(upstream, dataclasses.replace(upstream, credentials=Credentials()), directory)
        self.kubeconfig = directory / "proxy.kubeconfig"
        self.kubeconfig.write_text(json.dumps(self.kubeconfig_for(self.upstream.authorization())))

    def _serve(self, upstream: kube_config.Config, anonymous: kube_config.Config, directory: Path) -> None:
        """`anonymous` takes the requests that have an Authorization header."""
        self.upstream, self.anonymous = upstream, anonymous
        self.requests: list[Seen] = []
        self.decide: Callable[[str, str, bytes], Fault | None] = lambda method, target, body: None
        """Asked first which fault a request gets, by its method, target and body."""
        self.lost = 0
        """Requests that were carried out, and whose reply was not passed on."""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._handlers: set[_Handler] = set()
        self._frozen: set[_Handler] = set()
        certificate, key = directory / "proxy.crt", directory / "proxy.key"
        _make_certificate(certificate, key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._server: _Server | None = None
        self._address = ("127.0.0.1", 0)
        self.up()
        self.server = f"https://127.0.0.1:{self._address[1]}"
        self.ca_file = certificate

    def kubeconfig_for(self, authorization: str | None = None) -> dict[str, Any]:
        """A kubeconfig through the proxy for a bearer token, or for the cluster's own user."""
        user = {"token": authorization.removeprefix("Bearer ")} if authorization else {}
        cluster = {"server": self.server, "certificate-authority": str(self.ca_file)}
        context = {"cluster": "proxy", "user": "proxy", "namespace": self.upstream.namespace}
        entries = {"cluster": cluster, "user": user, "context": context}
        document = {f"{kind}s": [{"name": "proxy", kind: entry}] for kind, entry in entries.items()}
        return {**document, "apiVersion": "v1", "kind": "Config", "current-context": "proxy"}

    def inject(self, kind: str, **settings: Any) -> Fault:
        """Script a fault: `method` ("WATCH" for watches), `path` (a regular expression), `times` (-1: for ever)."""
        fault = Fault(kind, **settings)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Drop all faults; those in progress end."""
        with self._lock:
            for fault in self._faults:
                fault.release.set()
            self._faults.clear()

    def fault_for(self, method: str, target: str, body: bytes) -> Fault | None:
        if chosen := self.decide(method, target, body):
            return chosen
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method in ("", method) and re.search(fault.path, target):
                    fault.times -= 1
                    fault.hits += 1
                    fault.hit.set()
                    return fault
        return None

    def cut(self) -> None:
        """Cut every connection."""
        with self._lock:
            for handler in self._handlers:
                handler.shutdown()

    def freeze(self) -> None:
        """Every connection of now stays open and never gets another byte; new ones work."""
        with self._lock:
            self._frozen |= self._handlers

    def frozen(self, handler: _Handler) -> bool:
        with self._lock:
            return handler in self._frozen

    def register(self, handler: _Handler, *, alive: bool) -> None:
        with self._lock:
            (self._handlers.add if alive else self._handlers.discard)(handler)

    def up(self) -> None:
        """Listen (again), on the same port."""
        self._server = _Server(self._address, self, self._context)
        self._address = ("127.0.0.1", self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fault-proxy").start()

    def down(self) -> None:
        """The API server is away: connections are cut, new ones refused."""
        if self._server:
            self._server.shutdown()
            self._server.socket.close()
            self.clear()
            self.cut()
            self._server.server_close()  # Waits for the connections' threads.
            self._server = None

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()


class EtcdProxy(FaultProxy):
    """In front of an etcd, its JSON gateway: `endpoint` and `settings` are what its clients have to be told."""

    def __init__(self, upstream: kube_config.Config, directory: Path) -> None:
        self._serve(upstream, upstream, directory)
        self.endpoint = self.server.removeprefix("https://")
        self.settings = {"cacert": str(self.ca_file)}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], proxy: FaultProxy, context: ssl.SSLContext) -> None:
        self.proxy, self._context = proxy, context
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The handshake happens in the connection's own thread, with its first read.
        return self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are what this is for."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.up: dict[bool, http.client.HTTPConnection] = {}
        self.server.proxy.register(self, alive=True)

    def finish(self) -> None:
        self.server.proxy.register(self, alive=False)
        for connection in self.up.values():
            connection.close()
        with contextlib.suppress(OSError):
            super().finish()

    def shutdown(self) -> None:
        for sock in (self.connection, *(connection.sock for connection in list(self.up.values()))):
            with contextlib.suppress(OSError):
                if sock:
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Quiet."""

    def do_GET(self) -> None:
        proxy, length = self.server.proxy, int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        watch = self.path == "/v3/watch" or (
            self.command == "GET" and re.search(r"[?&]watch=(1|true|True)\b", self.path)
        )
        method = "WATCH" if watch else self.command
        proxy.requests.append(Seen(method, self.path, time.monotonic(), self.headers.get("Authorization")))
        fault = proxy.fault_for(method, self.path, body)
        try:
            while proxy.frozen(self) and self.rfile.read(1):
                pass
            if not (fault and self.local(fault)):
                self.forward(body, fault)
        except (_CutError, OSError, http.client.HTTPException):
            self.close_connection = True
            self.shutdown()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the base class looks for these names

    def local(self, fault: Fault) -> bool:
        """Faults that need no upstream. True: answered, or never to be."""
        if fault.kind == "cut-before":
            raise _CutError
        if fault.kind == "black-hole":
            fault.release.wait()
            raise _CutError
        if fault.kind == "delay":
            fault.release.wait(fault.seconds)
        event = json.dumps({"type": "ERROR", "object": fault.status_object()}).encode() + b"\n"
        bodies = {
            "answer": fault.body,
            "close-at-once": b"",
            "garbage": b'{"type": "ADDED", "obj\n',
            "error-event": event,
        }
        if fault.kind in bodies:
            self.answer(200, bodies[fault.kind])
        elif fault.kind == "reply":
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            self.answer(fault.status, json.dumps(fault.status_object()).encode(), headers)
        else:
            return False
        return True

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def upstream_reply(self, body: bytes) -> http.client.HTTPResponse:
        own = "Authorization" in self.headers
        if own not in self.up:
            self.up[own] = _connect(self.server.proxy.anonymous if own else self.server.proxy.upstream)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in {*HOP_HEADERS, "host"}}
        self.up[own].request(self.command, self.path, body or None, headers)
        return self.up[own].getresponse()

    def lose(self, response: http.client.HTTPResponse, fault: Fault) -> None:
        response.read()
        self.server.proxy.lost += 1
        if fault.kind == "hold-reply":
            fault.hit.set()
            fault.release.wait()
        raise _CutError

    def forward(self, body: bytes, fault: Fault | None) -> None:
        response = self.upstream_reply(body)
        kind = fault.kind if fault else ""
        if fault and kind in {"lose-reply", "hold-reply"}:
            self.lose(response, fault)
        self.send_response(response.status)
        for key, value in response.getheaders():
            if key.lower() not in {*HOP_HEADERS, "date", "server"}:
                self.send_header(key, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        rest = b""
        while data := response.read1(65536):
            if kind == "lossy":
                *lines, rest = (rest + data).split(b"\n")
                data = b"".join(line + b"\n" for line in lines if b'"type":"BOOKMARK"' in line)
            if kind == "tear":
                self.chunk(data[: len(data) // 2])
                raise _CutError
            if self.server.proxy.frozen(self):
                continue
            if fault and kind == "late":
                fault.release.wait(fault.seconds)
            for part in [data[i : i + 1] for i in range(len(data))] if kind == "trickle" else [data] if data else []:
                self.chunk(part)
                if fault and kind == "trickle" and fault.release.wait(fault.seconds):
                    raise _CutError
        response.close()  # http.client refuses the next request on this connection otherwise.
        if self.server.proxy.frozen(self):
            return
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def _connect(target: kube_config.Config) -> http.client.HTTPConnection:
    if target.tls:
        return http.client.HTTPSConnection(target.host, target.port, context=target.ssl_context())
    return http.client.HTTPConnection(target.host, target.port)


def _make_certificate(certificate: Path, key: Path) -> None:
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=fault-proxy"
    name = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *options.split(), *name, *files], check=True, capture_output=True)
