"""What is wrong with an etcd server, by name and with what to do: looked up, dialled, and asked, in that order."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdzv.etcd.errors import explain_missing_gateway
from rdzv.kube.api import ApiError, Call, Resource, Unreachable, Untrusted, WrongTime
from rdzv.kube.transport import CALL_SECONDS, CONNECT_SECONDS, Connection
from rdzv.objects import parsed

if TYPE_CHECKING:
    from rdzv.etcd.config import ConfigError, Server

__all__ = ["Diagnosis", "diagnose", "look_up", "of_settings"]

_CALL = Call("get", Resource("", "etcd"))
_JSON = {"Accept": "application/json", "Content-Type": "application/json"}
_NEEDS_V2 = "use 3.5 or older, started with --enable-v2, or backend etcd-v3"


@dataclass(frozen=True)
class Diagnosis:
    """`fix` is empty when nothing is wrong."""

    text: str
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.fix

    def __str__(self) -> str:
        return f"{self.text}: {self.fix}" if self.fix else self.text


class _WrongError(Exception):
    """What is wrong."""

    def __init__(self, text: str, fix: str) -> None:
        super().__init__(text)
        self.diagnosis = Diagnosis(text, fix)


def diagnose(server: Server, *, v2: bool) -> Diagnosis:
    """Of one server. `v2`: what is needed is the v2 API, else the JSON gateway of the v3 API."""
    where = f"{server.host}:{server.port}"
    wrong = look_up(server.host, server.port)
    if wrong:
        return Diagnosis(wrong, "correct the endpoint; a Service is NAME.NAMESPACE.svc")
    try:
        connection = _connect(server, where)
        try:
            version = _version(connection, where)
            return (_v2 if v2 else _v3)(connection, where, version)
        finally:
            connection.close()
    except _WrongError as found:
        if not server.tls and _speaks_tls(server.host, server.port):
            return Diagnosis(f"{where} speaks TLS", "set protocol=https and cacert")
        return found.diagnosis


def of_settings(error: ConfigError) -> Diagnosis:
    """Of an endpoint, or settings, by which no server can be reached."""
    text, _, fix = str(error).rpartition(": ")
    return Diagnosis(text, fix)


def _speaks_tls(host: str, port: int) -> bool:
    """Whether a handshake succeeds. Nothing is sent and nothing believed, so no certificate is checked."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except OSError:
        return False


def look_up(host: str, port: int) -> str:
    """Why a name can't be looked up; empty when it can."""
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"{host} does not resolve ({error.strerror or error})"
    return ""


def _connect(server: Server, where: str) -> Connection:
    try:
        return Connection(server, _CALL)
    except Untrusted as error:
        raise _WrongError(
            f"{where} has a certificate that is not trusted ({error.message})", "correct cacert"
        ) from error
    except WrongTime as error:
        raise _WrongError(f"{where} can't be trusted now ({error.message})", error.fix) from error
    except Unreachable as error:
        raise _no_connection(where, error) from error
    except (OSError, ValueError, ApiError) as error:
        raise _WrongError(f"{where} can't be asked ({_text(error)})", "correct cacert, cert and key") from error


def _no_connection(where: str, error: Unreachable) -> _WrongError:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError):
        if isinstance(cause, ssl.SSLEOFError) or "ALERT" not in str(cause).upper():
            return _WrongError(f"{where} does not speak TLS", "leave protocol=https, cacert and cert out")
        return _refused_certificate(where, cause)
    if isinstance(cause, ConnectionRefusedError):
        return _WrongError(f"{where} refuses connections", "see whether etcd runs there and listens on that port")
    if isinstance(cause, TimeoutError):
        text = f"{where} does not answer within {CONNECT_SECONDS:g} s"
        return _WrongError(text, "correct the endpoint, or see NetworkPolicies and firewalls")
    return _WrongError(f"{where} can't be reached ({_text(cause or error)})", "correct the endpoint")


def _refused_certificate(where: str, error: BaseException) -> _WrongError:
    text = f"{where} refuses our certificate ({_text(error)})"
    return _WrongError(text, "give it one of an authority that it trusts: cert and key")


def _ask(connection: Connection, where: str, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
    try:
        connection.send(_CALL, method, target, body, _JSON)
        reply = connection.reply(_CALL, patience=CALL_SECONDS, deadline=time.monotonic() + CALL_SECONDS)
        return reply.status, connection.read(_CALL, reply)
    except Unreachable as error:
        if isinstance(error.__cause__, ssl.SSLError):
            # With TLS 1.3 a server refuses a certificate only after the handshake.
            raise _refused_certificate(where, error.__cause__) from error
        text = f"{where} hangs up ({_text(error.__cause__ or error)})"
        raise _WrongError(text, "see etcd's log") from error


def _version(connection: Connection, where: str) -> str:
    """Of etcd, as it says itself."""
    status, body = _ask(connection, where, "GET", "/version")
    found = _json(body).get("etcdserver") if status < 300 else None
    if not isinstance(found, str):
        raise _WrongError(f"{where} answers, and is no etcd", "correct the endpoint")
    return found[:40]


def _v2(connection: Connection, where: str, version: str) -> Diagnosis:
    status, _ = _ask(connection, where, "GET", "/v2/keys/")
    if status == 404:
        return Diagnosis(f"{where} answers, is etcd {version} and has no v2 API", _NEEDS_V2)
    if status == 401:
        return Diagnosis(f"{where} asks for a user", "backends etcd and etcd-v2 have none: use backend etcd-v3")
    return Diagnosis(f"{where} answers, is etcd {version} and has the v2 API")


def _v3(connection: Connection, where: str, version: str) -> Diagnosis:
    status, _ = _ask(connection, where, "POST", "/v3/maintenance/status", b"{}")
    if status == 404:
        text, _, fix = explain_missing_gateway({"etcdserver": version}, where).partition(": ")
        return Diagnosis(text, fix)
    return Diagnosis(f"{where} answers, is etcd {version} and has the JSON gateway")


def _json(body: bytes) -> dict[str, Any]:
    try:
        return parsed(body)
    except ValueError:
        return {}


def _text(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
