"""Whether the endpoint that a process was given can be looked up, and answers: for `rdzv doctor`."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from rdzv.backends import etcd, etcd_server
from rdzv.cli.doctor import NOTE, OK, PROBLEM, Finding
from rdzv.cli.probe import BACKEND
from rdzv.env import RendezvousEnvironmentError, parse_config
from rdzv.etcd.config import ConfigError
from rdzv.etcd.diagnosis import Diagnosis, diagnose, look_up, of_settings
from rdzv.redaction import without_password

_SUBJECT = "endpoint"
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):(?P<port>[0-9]{1,5})")
_DIAL_SECONDS = 3.0


def check(environ: Mapping[str, str]) -> list[Finding]:
    """Of the backend that the environment names; backend kubernetes has no endpoint but the API server."""
    backend, text = environ.get("PET_RDZV_BACKEND", ""), environ.get("PET_RDZV_ENDPOINT", "")
    if not text or backend in ("", BACKEND):
        return []
    try:
        settings = parse_config(environ.get("PET_RDZV_CONF", ""))
    except RendezvousEnvironmentError:
        return []  # The environment's own finding says it.
    if backend in etcd.NAMES:
        found = etcd.diagnose(text, settings)
        return [_etcd(Diagnosis(f"{text} has what backend {backend} needs") if found.ok else found)]
    if backend == "etcd-v3":
        try:
            return [_etcd(diagnose(server, v2=False)) for server in etcd_server.configured(text, settings).servers]
        except ConfigError as error:
            return [_etcd(of_settings(error))]
    return [_dialled(text, backend)]


def _etcd(found: Diagnosis) -> Finding:
    return Finding(_SUBJECT, OK if found.ok else PROBLEM, found.text, fix=found.fix)


def _dialled(text: str, backend: str) -> Finding:
    match = _HOST_PORT.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        return Finding(
            _SUBJECT,
            PROBLEM,
            f"{without_password(text)[:80]!r} is not HOST:PORT",
            fix="correct spec.endpoint, or the flag",
        )
    host, port = match["host"].strip("[]"), int(match["port"])
    if wrong := look_up(host, port):
        fix = "see the pod's dnsPolicy; a Service is NAME.NAMESPACE.svc (rdzv explain POD looks at both)"
        return Finding(_SUBJECT, PROBLEM, wrong, fix=fix)
    try:
        socket.create_connection((host, port), _DIAL_SECONDS).close()
    except TimeoutError:
        cause = f"no answer within {_DIAL_SECONDS:g} s: no pod hosts the store yet, or a NetworkPolicy is in between"
        return Finding(_SUBJECT, NOTE, f"{text} does not answer", cause)
    except OSError as error:
        cause = f"no agent listens there yet: the one that hosts the store of backend {backend} does ({error.strerror})"
        return Finding(_SUBJECT, NOTE, f"{text} refuses connections", cause)
    return Finding(_SUBJECT, OK, f"{text} answers")
