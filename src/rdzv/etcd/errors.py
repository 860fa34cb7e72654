"""What a refusal of etcd's gateway means, in the exceptions of `rdzv.kube.api`. Pure.

The gateway answers with gRPC's status codes (https://grpc.github.io/grpc/core/md_doc_statuscodes.html) and etcd's texts
(`api/v3rpc/rpctypes/error.go` in etcd), the same from 3.4 to 3.7.
"""
# ruff: noqa: N818 - as in rdzv.kube.api

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rdzv.kube.api import (
    ApiError,
    Call,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Reply,
    ServerError,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    UnknownResource,
    Untrusted,
)
from rdzv.objects import parsed

_TEXT_LIMIT = 1000
_READS = ("get", "list", "watch")
_CANCELLED = re.compile(r"rpc error: code = (?P<code>\w+) desc = (?P<text>.*)", re.DOTALL)
_CODES = {
    "Canceled": 1,
    "Unknown": 2,
    "InvalidArgument": 3,
    "DeadlineExceeded": 4,
    "NotFound": 5,
    "PermissionDenied": 7,
    "ResourceExhausted": 8,
    "FailedPrecondition": 9,
    "OutOfRange": 11,
    "Unimplemented": 12,
    "Unavailable": 14,
    "Unauthenticated": 16,
}
_FULL = "etcd's database is full: make room (etcdctl compact, defrag, or a larger --quota-backend-bytes), then etcdctl alarm disarm"


class LeaseNotFound(NotFound):
    """A lease has expired, or was revoked: what was tied to it is gone."""


class LeaseExists(ApiError):
    """A lease of this ID was granted before."""


class AuthDisabled(ApiError):
    """A user and password were sent to an etcd that asks for none."""


class NoGateway(UnknownResource):
    """Something answers there, and it is not the JSON gateway of an etcd 3.4 or later."""

    def _text(self) -> str:
        return ApiError._text(self)


class HistoryLost(Untrusted):
    """etcd's revisions went back: it was restored from a backup, or began anew with an empty disk."""


def error_of(call: Call, reply: Reply, user: str = "") -> ApiError:
    """The typed exception for a reply of 300 and above. A bare 404 is the caller's to explain (`NoGateway`)."""
    found = _json(reply.body)
    if found is not None and isinstance(found.get("error"), dict):
        found = found["error"]  # Of a stream.
        found.setdefault("code", found.get("grpc_code"))
    if found is None or not isinstance(found.get("code"), int):
        text = " ".join(reply.body[:200].decode("utf-8", "replace").split()) or "empty reply"
        kind = NoGateway if reply.code in (404, 405, 501) else ServerError if reply.code >= 500 else Invalid
        return kind(call, text, code=reply.code, maybe_applied=kind is ServerError and call.verb not in _READS)
    message = str(found.get("message") or found.get("error") or "no message")
    return error_of_code(call, int(found["code"]), message, reply.code, user)


def error_of_cancel(call: Call, reason: str, user: str = "") -> ApiError:
    """The typed exception for a watch that etcd ended, from its `cancel_reason`."""
    match = _CANCELLED.search(reason)
    if match is None:
        return ServerError(call, reason[:_TEXT_LIMIT] or "etcd ended the watch")
    return error_of_code(call, _CODES.get(match["code"], 2), match["text"], 0, user)


def error_of_code(call: Call, code: int, message: str, status: int = 0, user: str = "") -> ApiError:
    """The typed exception for one of gRPC's codes and etcd's text; `status` is that of HTTP."""
    kind, advice = _kind(code, message)
    text = message[:_TEXT_LIMIT]
    if kind is Forbidden and not advice:
        advice = _permission(call, user)
    if advice:
        text = f"{text}: {advice}"
    unknown = kind is ServerError and call.verb not in _READS and advice != _FULL
    return kind(call, text, code=status, maybe_applied=unknown)


def _kind(code: int, message: str) -> tuple[type[ApiError], str]:
    for part, kind, advice in _BY_TEXT:
        if part in message:
            return kind, advice
    return _BY_CODE.get(code, ServerError), ""


_BY_TEXT: tuple[tuple[str, type[ApiError], str], ...] = (
    ("lease not found", LeaseNotFound, ""),
    ("lease already exists", LeaseExists, ""),
    ("request is too large", TooLarge, ""),
    ("has been compacted", Gone, ""),
    ("future revision", HistoryLost, "it was restored from a backup, or has lost its data"),
    ("authentication is not enabled", AuthDisabled, ""),
    ("authentication failed", Forbidden, "check user and password_file"),
    ("user name is empty", Forbidden, "etcd asks for a user and a password: set user and password_file"),
    ("invalid auth token", Unauthorized, ""),
    ("revision of auth store is old", Unauthorized, ""),
    ("database space exceeded", ServerError, _FULL),
)
_BY_CODE: dict[int, type[ApiError]] = {
    3: Invalid,
    5: NoGateway,
    7: Forbidden,
    8: TooManyRequests,
    9: Invalid,
    11: Gone,
    12: NoGateway,
    16: Unauthorized,
}


def _permission(call: Call, user: str) -> str:
    who = f"user {user}" if user else "this client"
    return (
        f"{who} may not {'read' if call.verb in _READS else 'write'} here. Grant its role readwrite on the keys' prefix: "
        "etcdctl role grant-permission ROLE --prefix=true readwrite PREFIX"
    )


def explain_missing_gateway(version: Mapping[str, Any] | None, address: str) -> str:
    """Why `address`, which answers 404, has no /v3, from what it says at /version (None: nothing)."""
    found = str((version or {}).get("etcdserver") or "")[:40]
    if not found:
        return f"{address} answers, and is no etcd"
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in found.split(".")[:2]]
    if numbers < [3, 4]:
        return f"{address} answers, is etcd {found}, and has no v3 gateway at /v3: use 3.4 or later, or backend etcd-v2"
    return f"{address} answers, is etcd {found}, and has no JSON gateway: start it without --enable-grpc-gateway=false"


def _json(body: bytes) -> dict[str, Any] | None:
    try:
        return parsed(body)
    except ValueError:
        return None
