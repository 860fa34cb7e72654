"""Where the API server is and how to prove who asks: the pod's service account, or a kubeconfig.

`load()` decides as kubectl does: `$KUBECONFIG` when it names a file, else the service account of the pod this runs in,
else `~/.kube/config`.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rdzv.kube import kubeconfig
from rdzv.kube.credentials import Certificate, Credentials, ExecCredentials, StaticCredentials, TokenFile, decoded
from rdzv.kube.kubeconfig import ConfigError

__all__ = ["Config", "ConfigError", "from_kubeconfig", "in_cluster", "load"]

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where kubelet mounts `token`, `ca.crt` and `namespace`."""
_READS = 3
"""How often a certificate and its key are read until they fit."""
_REFUSED = {
    "proxy-url": "a proxy is not supported; use a cluster entry that is reached directly",
    "username": "API servers no longer accept passwords; use a token, a certificate or an exec plug-in",
    "auth-provider": "auth-provider was removed from Kubernetes; use its exec plug-in",
    "as": "impersonation is not supported; use a user entry that acts as itself",
}


@dataclass
class Config:
    """An API server and the credentials for it. Thread-safe; several clients may share one."""

    server: str
    """`https://host:port[/path]`"""
    namespace: str = "default"
    """The namespace that is meant when none is named."""
    source: str = "code"
    """Where this came from, for messages: "service account of this pod", "kubeconfig FILE, context NAME"."""
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    ca_file: str | None = None
    ca_data: str | None = field(default=None, repr=False)
    insecure: bool = False
    """Do not check the server's certificate (`insecure-skip-tls-verify`)."""
    server_name: str | None = None
    """Name to expect in the certificate instead of the host (`tls-server-name`)."""

    def __post_init__(self) -> None:
        url = urlsplit(self.server)
        try:
            port = url.port
        except ValueError:
            port = -1
        if url.scheme not in ("https", "http") or not url.hostname or port == -1 or url.username:
            raise ConfigError(f"{self.source}: the server is not an address like https://host:port")
        self.tls = url.scheme == "https"
        self.host: str = url.hostname
        self.port: int = port or (443 if self.tls else 80)
        self.path = url.path.rstrip("/")
        self._context: tuple[Certificate | None, ssl.SSLContext] | None = None

    def authorization(self) -> str | None:
        """The Authorization header for the next request. Never sent in the clear."""
        value = self.credentials.authorization() if self.tls else None
        if value and not (value.isascii() and value.isprintable()):
            # http.client would refuse it as well, with a text that holds the token.
            raise ConfigError(f"{self.source}: the token has characters that no token has")
        return value

    def refresh(self) -> bool:
        """After a 401: read the credentials again. True when a request may fare better now."""
        changed = self.credentials.refresh()
        if changed:
            self.forget_tls()
        return changed

    def forget_tls(self) -> None:
        """Read the CA and the client certificate again for the next connection: they are replaced when they rotate."""
        self._context = None

    def ssl_context(self) -> ssl.SSLContext:
        """The TLS settings for a connection, made once.

        Raises:
            ConfigError: a certificate, key or CA file cannot be used.
        """
        certificate = self.credentials.certificate()
        current = self._context
        if current is None or current[0] != certificate:
            # Two threads may both make one: alike, and the assignment is atomic. No lock, so nothing to mind at fork.
            current = self._context = (certificate, self._make_context(certificate))
        return current[1]

    def _make_context(self, certificate: Certificate | None) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file, cadata=self.ca_data)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.source}: the CA certificate cannot be used: {type(error).__name__}") from None
        # Python 3.13 turned this on. Go, hence every other client, does not ask it of a cluster's own CA: many CAs that
        # were made by hand or by older installers have no key identifier, and would be refused.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if certificate:
            _load_certificate(context, certificate, self.source)
        return context


def _load_certificate(context: ssl.SSLContext, certificate: Certificate, source: str) -> None:
    try:
        if isinstance(certificate.certificate, str) and isinstance(certificate.key, str):
            _load_files(context, certificate.certificate, certificate.key)
            return
        # OpenSSL's Python binding takes files only. Mode 0600, gone before the next line runs.
        with tempfile.NamedTemporaryFile(prefix="rdzv-") as file:
            file.write(_pem(certificate.certificate) + b"\n" + _pem(certificate.key))
            file.flush()
            context.load_cert_chain(file.name, password=_no_password)
    except (OSError, ValueError) as error:
        problem = f"{source}: the client certificate and its key cannot be used: {type(error).__name__}"
        raise ConfigError(problem) from None


def _load_files(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Again at once if they do not fit: whoever renews them may do so between the reads of the one and the other."""
    for _ in range(_READS - 1):
        with contextlib.suppress(ssl.SSLError, FileNotFoundError):
            context.load_cert_chain(certificate, key, password=_no_password)
            return
    context.load_cert_chain(certificate, key, password=_no_password)


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and an agent without one would hang.
    raise ValueError("the key is encrypted")


def _pem(value: str | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    with open(value, "rb") as file:
        return file.read()


def load(environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration that this process should use.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    explicit = bool(environ.get("KUBECONFIG"))
    if explicit and kubeconfig.paths(environ):
        return from_kubeconfig(environ=environ)
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster(environ)
    if not explicit and kubeconfig.paths(environ):
        return from_kubeconfig(environ=environ)
    looked = "KUBECONFIG names no file that exists" if explicit else "KUBECONFIG is not set, ~/.kube/config is missing"
    raise ConfigError(f"no Kubernetes API server is configured: {looked}, and this is not a pod")


def in_cluster(environ: Mapping[str, str] = os.environ, directory: str = SERVICE_ACCOUNT) -> Config:
    """The service account of the pod this runs in.

    Raises:
        ConfigError: not in a pod, or the pod has no service account token.
    """
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    token = os.path.join(directory, "token")
    if not host:
        raise ConfigError("KUBERNETES_SERVICE_HOST is not set: this is not a pod")
    if not os.path.exists(token):
        raise ConfigError(f"{token} is missing: does the pod set automountServiceAccountToken: false?")
    try:
        with open(os.path.join(directory, "namespace"), encoding="utf-8") as file:
            namespace = file.read().strip()
    except OSError:
        namespace = environ.get("RDZV_NAMESPACE", "")
    return Config(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        namespace=namespace or "default",
        source="service account of this pod",
        credentials=TokenFile(token),
        ca_file=os.path.join(directory, "ca.crt"),
    )


def from_kubeconfig(
    path: str | None = None, *, context: str | None = None, environ: Mapping[str, str] = os.environ
) -> Config:
    """One context of a kubeconfig: the named one, else its current one. Without `path`, what kubectl would read.

    Raises:
        ConfigError: no such file or context, or something in it that cannot be used; the text says what.
    """
    files = [path] if path else kubeconfig.paths(environ)
    if not files:
        raise ConfigError("no kubeconfig: KUBECONFIG names no file that exists, and ~/.kube/config is missing")
    merged = kubeconfig.read(files)
    name = context or merged["current-context"]
    source = f"kubeconfig {files[0]}, context {name or '(none)'}"
    if name not in merged["contexts"]:
        known = ", ".join(sorted(merged["contexts"])) or "none"
        raise ConfigError(f"{source}: no such context; known: {known}. Choose one: kubectl config use-context NAME")
    chosen = merged["contexts"][name]
    cluster = _entry(merged["clusters"], chosen.get("cluster"), f"{source}: cluster")
    user = _entry(merged["users"], chosen.get("user"), f"{source}: user") if chosen.get("user") else {}
    ca_data = cluster.get("certificate-authority-data")
    return Config(
        server=str(cluster.get("server") or ""),
        namespace=str(chosen.get("namespace") or "default"),
        source=source,
        credentials=_credentials(user, cluster, source),
        ca_file=None if ca_data else _path(cluster, "certificate-authority"),
        ca_data=decoded(ca_data, f"{source}: certificate-authority-data").decode("latin-1") if ca_data else None,
        insecure=cluster.get("insecure-skip-tls-verify") is True,
        server_name=cluster.get("tls-server-name") or None,
    )


def _entry(entries: dict[str, Any], name: Any, what: str) -> dict[str, Any]:
    if name not in entries:
        raise ConfigError(f"{what} {name!r} is not in the file")
    entry: dict[str, Any] = entries[name]
    for key, why in _REFUSED.items():
        if entry.get(key):
            raise ConfigError(f"{what} {name!r} has {key}: {why}")
    return entry


def _path(entry: dict[str, Any], key: str) -> str | None:
    return os.path.join(entry["directory"], str(entry[key])) if entry.get(key) else None


def _credentials(user: dict[str, Any], cluster: dict[str, Any], source: str) -> Credentials:
    certificate = _certificate(user, source)
    if user.get("exec"):
        # What a plug-in is told about the cluster, in ExecCredential's spelling.
        info = {
            "server": cluster.get("server"),
            "tls-server-name": cluster.get("tls-server-name"),
            "insecure-skip-tls-verify": cluster.get("insecure-skip-tls-verify"),
            "certificate-authority-data": cluster.get("certificate-authority-data"),
        }
        info = {key: value for key, value in info.items() if value}
        return ExecCredentials(user["exec"], cluster=info, directory=user["directory"])
    if user.get("tokenFile"):
        return TokenFile(os.path.join(user["directory"], user["tokenFile"]), certificate)
    token = user.get("token")
    return StaticCredentials(str(token) if token else None, certificate)


def _certificate(user: dict[str, Any], source: str) -> Certificate | None:
    parts: list[str | bytes] = []
    for key in ("client-certificate", "client-key"):
        if user.get(f"{key}-data"):
            parts.append(decoded(user[f"{key}-data"], f"{source}: {key}-data"))
        elif path := _path(user, key):
            parts.append(path)
    if len(parts) == 1:
        raise ConfigError(f"{source}: client-certificate and client-key belong together, one is missing")
    return Certificate(parts[0], parts[1]) if parts else None
