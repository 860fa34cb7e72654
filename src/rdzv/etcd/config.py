"""Which etcd servers, how to reach them, and who asks: parsed from what torchrun passes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rdzv.kube.config import Config as Server
from rdzv.kube.credentials import Certificate, StaticCredentials
from rdzv.kube.kubeconfig import ConfigError
from rdzv.redaction import without_password

__all__ = ["Config", "ConfigError", "Server", "parse"]

PORT = 2379
PREFIX = "/rdzv"
SOURCE = "--rdzv-endpoint"
_MAX_SERVERS = 16
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+)(:(?P<port>[0-9]{1,5}))?")
_PROTOCOLS = ("http", "https")


@dataclass(frozen=True)
class Config:
    """One etcd cluster. `credentials`, if given, is a directory; see `parse`."""

    servers: tuple[Server, ...]
    prefix: str = PREFIX
    """Of all keys."""
    user: str = ""
    password_file: str = field(default="", repr=False)

    def password(self) -> str:
        """Read anew each time: it may be changed while a job runs.

        Raises:
            ConfigError: the file cannot be read.
        """
        return _read(self.password_file, "password")


def parse(endpoint: str, settings: Mapping[str, Any]) -> Config:
    """From `--rdzv-endpoint` (HOST:PORT, several separated by commas) and `--rdzv-conf`.

    Settings: `protocol` (http, or https, which a CA or a certificate implies), `cacert`, `cert`, `key` (files, named as for
    torch's backend etcd), `user` and `password_file`, `prefix` of all keys, and `credentials`: a directory in which the files
    ca.crt, tls.crt, tls.key, username and password are used if they are there, as in a mounted Secret.

    Raises:
        ConfigError: something in it cannot be; what to do is in the text after the last ": ".
    """
    given = {
        key: str(settings.get(key) or "") for key in ("protocol", "cacert", "cert", "key", "user", "password_file")
    }
    directory = str(settings.get("credentials") or "")
    if directory:
        given |= {key: value for key, value in _in_directory(directory).items() if not given[key]}
    _check(given)
    tls = given["protocol"] == "https" or bool(given["cacert"] or given["cert"])
    if given["protocol"] == "http" and tls:
        raise ConfigError("protocol=http has no use for cacert, cert and key: write protocol=https, or leave them out")
    if given["user"] and not given["protocol"] and not tls:
        raise ConfigError(
            "user and password would go over the network in the clear: set protocol=https, or protocol=http if that is meant"
        )
    certificate = Certificate(given["cert"], given["key"]) if given["cert"] else None
    servers = [
        Server(
            server=f"{'https' if tls else 'http'}://{address}",
            source=SOURCE,
            credentials=StaticCredentials(None, certificate),
            ca_file=given["cacert"] or None,
        )
        for address in _addresses(endpoint)
    ]
    prefix = "/" + str(settings.get("prefix") or PREFIX).strip("/")
    return Config(tuple(servers), prefix, given["user"], given["password_file"])


def _addresses(endpoint: str) -> list[str]:
    found = []
    for part in (part.strip() for part in (endpoint or "").split(",")):
        match = _HOST_PORT.fullmatch(part)
        if match is None or not 0 < int(match["port"] or PORT) < 65536:
            raise ConfigError(
                f"endpoint {without_password(endpoint)!r} of backend etcd-v3: write HOST:PORT of an etcd server, several separated by "
                "commas"
            )
        found.append(f"{match['host']}:{match['port'] or PORT}")
    if len(found) > _MAX_SERVERS:
        raise ConfigError(
            f"endpoint {without_password(endpoint)[:80]!r}… of backend etcd-v3: name {_MAX_SERVERS} servers at most"
        )
    return found


def _in_directory(directory: str) -> dict[str, str]:
    if not os.path.isdir(directory):
        raise ConfigError(f"credentials={directory} is no directory: mount one there, or correct it")
    names = {"cacert": "ca.crt", "cert": "tls.crt", "key": "tls.key", "password_file": "password"}
    paths = {key: os.path.join(directory, name) for key, name in names.items()}
    found = {key: path for key, path in paths.items() if os.path.exists(path)}
    username = os.path.join(directory, "username")
    if os.path.exists(username):
        found["user"] = _read(username, "user")
    return found


def _check(given: Mapping[str, str]) -> None:
    if given["protocol"] not in ("", *_PROTOCOLS):
        raise ConfigError(f"protocol={given['protocol']}: write http or https")
    if bool(given["cert"]) != bool(given["key"]):
        raise ConfigError("one of cert and key is missing: set both")
    if bool(given["user"]) != bool(given["password_file"]):
        raise ConfigError("one of user and password_file is missing: set both")


def _read(path: str, what: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(4096).strip("\r\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the {what} cannot be read from {path} ({type(error).__name__}): correct the file") from None
