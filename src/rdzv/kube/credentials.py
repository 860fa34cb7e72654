"""Who the client is: bearer tokens (inline, or a file that is read again), client certificates, exec plug-ins.

Nothing here ends up in a `repr`, a log line or an exception text: those name files and commands, never their content.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rdzv.kube.kubeconfig import ConfigError

TOKEN_SECONDS = 60.0
"""A token file is read again when what is in memory is older than this. Kubelet replaces it well before it expires."""
EXEC_SECONDS = 60.0
"""How long an exec plug-in may take; some open a browser-less device flow or call a cloud's API."""
EXEC_AGAIN_SECONDS = 5.0
"""A plug-in is not run more often than this on 401: an API server that starts answers 401 to everybody."""
_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


@dataclass(frozen=True)
class Certificate:
    """A client certificate and its key: file names, or PEM texts."""

    certificate: str | bytes
    key: str | bytes = field(repr=False)


class Credentials:
    """No credentials at all, and the interface of those that follow. Thread-safe."""

    def authorization(self) -> str | None:
        """Value of the Authorization header for the next request."""
        return None

    def certificate(self) -> Certificate | None:
        """Client certificate for the next connection."""
        return None

    def refresh(self) -> bool:
        """The server answered 401: get them anew. True when they may be different now."""
        return False


class StaticCredentials(Credentials):
    """A token and/or a client certificate from a kubeconfig."""

    def __init__(self, token: str | None = None, certificate: Certificate | None = None) -> None:
        self._token, self._certificate = token, certificate

    def authorization(self) -> str | None:
        """The inline token."""
        return f"Bearer {self._token}" if self._token else None

    def certificate(self) -> Certificate | None:
        """The certificate, if there is one."""
        return self._certificate

    def refresh(self) -> bool:
        """Certificate files may have been replaced."""
        return self._certificate is not None and isinstance(self._certificate.certificate, str)


class TokenFile(Credentials):
    """A service account's projected token."""

    def __init__(self, path: str, certificate: Certificate | None = None) -> None:
        self.path = path
        self._certificate = certificate
        self._token = ""
        self._read_at = float("-inf")

    def authorization(self) -> str | None:
        """The token, not older than `TOKEN_SECONDS`."""
        if time.monotonic() - self._read_at > TOKEN_SECONDS:
            self._read()
        return f"Bearer {self._token}"

    def certificate(self) -> Certificate | None:
        """The certificate, if there is one."""
        return self._certificate

    def refresh(self) -> bool:
        """Read the file again."""
        before = self._token
        self._read()
        return self._token != before

    def _read(self) -> None:
        try:
            with open(self.path, encoding="ascii") as file:
                token = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            if self._token:
                return  # Kubelet is replacing it; the one in memory is good for minutes.
            raise ConfigError(f"the token file {self.path} cannot be read: {type(error).__name__}") from error
        if "\n" in token or "\r" in token:
            raise ConfigError(f"the token file {self.path} holds more than one line")
        # Two threads may both read: the same file, and each assignment is atomic.
        self._token, self._read_at = token, time.monotonic()


class ExecCredentials(Credentials):
    """A kubeconfig's `users[].user.exec`: a command that prints an ExecCredential (v1 or v1beta1)."""

    def __init__(self, spec: Mapping[str, Any], *, cluster: Mapping[str, Any] | None, directory: str) -> None:
        self.version = spec.get("apiVersion") or ""
        if self.version not in _EXEC_VERSIONS:
            raise ConfigError(f"exec plug-in: apiVersion must be one of {', '.join(_EXEC_VERSIONS)}")
        command = spec.get("command")
        if not isinstance(command, str) or not command:
            raise ConfigError("exec plug-in: command is missing")
        if spec.get("interactiveMode") == "Always":
            raise ConfigError(f"exec plug-in {command}: interactiveMode Always needs a terminal; not usable here")
        # As kubectl: a command with a slash is relative to its kubeconfig, a bare one is looked up in PATH.
        self.command = os.path.join(directory, command) if os.path.dirname(command) else command
        self.args = [str(arg) for arg in spec.get("args") or []]
        self.env = {str(entry["name"]): str(entry["value"]) for entry in spec.get("env") or []}
        self.hint = str(spec.get("installHint") or "").strip()
        self.cluster = dict(cluster) if cluster and spec.get("provideClusterInfo") is True else None
        self._mutex, self._pid = threading.Lock(), os.getpid()
        self._status: dict[str, Any] = {}
        self._certificate: Certificate | None = None
        self._ran_at = float("-inf")
        self._expires = float("-inf")

    @property
    def _lock(self) -> threading.Lock:
        if self._pid != os.getpid():
            # A lock that another thread held at fork would stay locked in the child for ever.
            self._mutex, self._pid = threading.Lock(), os.getpid()
        return self._mutex

    def authorization(self) -> str | None:
        """The plug-in's token; runs it when there is none that is still valid."""
        token = self._current().get("token")
        return f"Bearer {token}" if token else None

    def certificate(self) -> Certificate | None:
        """The plug-in's certificate; runs it likewise."""
        self._current()
        return self._certificate

    def refresh(self) -> bool:
        """Run the plug-in again, unless it has just run."""
        with self._lock:
            if time.monotonic() - self._ran_at < EXEC_AGAIN_SECONDS:
                return False
            self._run()
            return True

    def _current(self) -> dict[str, Any]:
        with self._lock:
            # The plug-in states its expiry as a date, so this one comparison is with the wall clock.
            if time.time() >= self._expires:
                self._run()
            return self._status

    def _run(self) -> None:
        import subprocess  # noqa: PLC0415 - only laptops need it; pods start without

        info: dict[str, Any] = {"apiVersion": self.version, "kind": "ExecCredential", "spec": {"interactive": False}}
        if self.cluster is not None:
            info["spec"]["cluster"] = self.cluster
        try:
            done = subprocess.run(
                [self.command, *self.args],
                env={**os.environ, **self.env, "KUBERNETES_EXEC_INFO": json.dumps(info)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None,  # The plug-in talks to its user directly, as under kubectl; it may print secrets.
                timeout=EXEC_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            hint = f": {self.hint}" if self.hint else ""
            raise ConfigError(f"exec plug-in {self.command} is not installed{hint}") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"exec plug-in {self.command}: {type(error).__name__}") from None
        if done.returncode != 0:
            raise ConfigError(f"exec plug-in {self.command} ended with code {done.returncode}")
        self._accept(done.stdout)
        self._ran_at = time.monotonic()

    def _accept(self, output: bytes) -> None:
        problem = f"exec plug-in {self.command} did not print an ExecCredential {self.version}"
        try:
            credential = json.loads(output)
            status = credential["status"]
            if credential["apiVersion"] != self.version or credential["kind"] != "ExecCredential":
                raise ConfigError(problem)
            certificate, key = status.get("clientCertificateData"), status.get("clientKeyData")
            if not status.get("token") and not (certificate and key):
                raise ConfigError(f"{problem} with a token or a client certificate")
            expires = status.get("expirationTimestamp")
            # Python 3.10 does not read the Z.
            end = datetime.fromisoformat(expires.replace("Z", "+00:00")).timestamp() if expires else float("inf")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(problem) from None
        if certificate and key:
            self._certificate = Certificate(certificate.encode(), key.encode())
        self._status, self._expires = status, end


def bound_pod(authorization: str | None) -> tuple[str, str] | None:
    """Name and UID of the pod that a service account's token is bound to; None when it is not, or is no such token.

    The claims are taken as they are: this is about the caller's own token, which the API server checks.
    """
    parts = (authorization or "").removeprefix("Bearer ").split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        pod = claims["kubernetes.io"]["pod"]
        name, uid = pod["name"], pod["uid"]
    except (ValueError, KeyError, TypeError):
        return None
    return (name, uid) if isinstance(name, str) and isinstance(uid, str) and name and uid else None


def decoded(value: Any, what: str) -> bytes:
    """The bytes of a `…-data` field of a kubeconfig."""
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ConfigError(f"{what} is not base64") from None
