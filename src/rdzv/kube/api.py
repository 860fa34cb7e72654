"""The words of the Kubernetes API: resources, calls on them, and what a call can end in.

No exception text carries a credential: texts are built from the call, the server's ``Status`` and the operating
system's error, never from headers, kubeconfig lines or a plug-in's output.
"""
# ruff: noqa: N818 - the exceptions carry Kubernetes' own names for what happened (Status.reason).

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote

from rdzv.objects import Object, parsed

_TEXT_LIMIT = 1000
_REASON_LIMIT = 100
RETRY_AFTER_SECONDS = 60.0
"""A server that asks to be left alone for longer is asked again after this."""
_CANNOT = re.compile(r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource')
_UNKNOWN_FIELD = re.compile(r'unknown field "([^"]*)"')


class Resource(NamedTuple):
    """One kind of object: ``Resource("apps/v1", "deployments")``, ``Resource("v1", "pods")``."""

    group_version: str
    plural: str

    @property
    def group(self) -> str:
        """The API group; the empty string is the core group, as in RBAC rules."""
        return self.group_version.rpartition("/")[0]

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """URL path of the collection, or of one object in it. ``namespace=None``: cluster-scoped."""
        parts = ["apis" if self.group else "api", self.group_version]
        if namespace is not None:
            parts += ["namespaces", _segment(namespace, "namespace")]
        parts.append(self.plural)
        if name is not None:
            parts.append(_segment(name, "name"))
        return "/" + "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _segment(value: str, what: str) -> str:
    # An empty name would silently turn GET into LIST, and DELETE into the deletion of the whole collection.
    if not value or "/" in value or value in (".", ".."):
        raise ValueError(f"not a {what} of a Kubernetes object: {value!r}")
    return quote(value, safe="")


@dataclass(frozen=True)
class Call:
    """One request in RBAC's terms; `verb` is get, list, watch, create, update, patch or delete."""

    verb: str
    resource: Resource
    namespace: str | None = None
    name: str | None = None
    subresource: str = ""

    def __str__(self) -> str:
        place = "/".join(part for part in (self.namespace, self.name, self.subresource) if part)
        return f"{self.verb} {self.resource} {place}".rstrip()


class ApiError(Exception):
    """A request that did not do what was asked. `str()` says which request, what the server answered and what to do."""

    maybe_applied: bool
    """Outcome unknown: the server may have carried out the write. Re-read before repeating it."""

    def __init__(
        self,
        call: Call | None,
        message: str,
        *,
        code: int = 0,
        reason: str = "",
        retry_after: float | None = None,
        maybe_applied: bool = False,
    ) -> None:
        self.call = call
        self.message = message
        """The server's `Status.message`, or what the operating system said."""
        self.code = code
        """HTTP status; 0 when there was no reply."""
        self.reason = reason
        """`Status.reason`, such as AlreadyExists; empty when the reply was not a `Status`."""
        self.retry_after = retry_after
        """Seconds the server asked to wait, if it did."""
        self.maybe_applied = maybe_applied
        super().__init__(self._text())

    def _text(self) -> str:
        subject = f"{self.call}: " if self.call else ""
        answer = f"{self.code} {self.reason}".strip() + ": " if self.code else ""
        return f"{subject}{answer}{self.message}"


class NotFound(ApiError):
    """The object (or its namespace) does not exist."""


class UnknownResource(ApiError):
    """The server does not serve this kind of object at all: its CRD is not installed."""

    def _text(self) -> str:
        kind = f"{self.call.resource} ({self.call.resource.group_version})" if self.call else "this resource"
        return f"{super()._text()}: the API server does not serve {kind}; is its CRD installed?"


class Conflict(ApiError):
    """409: the object changed since it was read (`resourceVersion`), or its uid is not the one expected."""


class AlreadyExists(Conflict):
    """409 on create: an object of this name exists."""


class Gone(ApiError):
    """410, `Expired`: the resourceVersion is too old to go on from; list or get again."""


class Unauthorized(ApiError):
    """401: the credentials were not accepted, also after they were read again."""


class Forbidden(ApiError):
    """403. `rule` is the RBAC rule to add, or None when something other than RBAC refused (a policy, a quota)."""

    rule: Object | None = None

    def _text(self) -> str:
        refused = _CANNOT.search(self.message)
        if not refused or self.call is None:
            return super()._text()
        call = self.call
        self.rule = {"apiGroups": [call.resource.group], "resources": [call.resource.plural], "verbs": [call.verb]}
        user = refused["user"].split(":")
        account = user[:2] == ["system", "serviceaccount"] and len(user) == 4
        who = f"service account {user[2]}/{user[3]}" if account else f"user {refused['user']}"
        where = f"a Role in namespace {call.namespace}" if call.namespace else "a ClusterRole"
        return (
            f"{call}: 403 Forbidden: {who} may not {call.verb} {call.resource}. Add to {where} that is bound to it: "
            f"{json.dumps(self.rule)}. The server said: {self.message}"
        )


class TooManyRequests(ApiError):
    """429: the server is busy and did not look at the request. `retry_after` says for how long."""


class Invalid(ApiError):
    """400 or 422: the server refused the object; the message says which field and why."""


class UnknownField(Invalid):
    """A field that was sent is not in the schema of its kind: its CRD is older than who writes it."""

    def _text(self) -> str:
        fields = ", ".join(_UNKNOWN_FIELD.findall(self.message))
        crd = f"CustomResourceDefinition {self.call.resource}" if self.call else "CustomResourceDefinition"
        return (
            f"{self.call or 'write'}: the API server does not know {fields}: the {crd} is older than this program; "
            "apply the CRDs that came with it"
        )


class TooLarge(ApiError):
    """The object is larger than what an API server stores (1 MiB here, 1.5 MiB at etcd)."""


class ServerError(ApiError):
    """5xx. For a write the outcome is unknown."""


class Unreachable(ApiError):
    """No reply: connection refused, cut or timed out. `maybe_applied` tells whether the request had been sent."""


class WrongTime(Unreachable):
    """The server's certificate is not yet good, or no longer, by this machine's clock. It passes when one of them is put right."""

    fix = "set the clock right, or renew the certificate"


class Untrusted(ApiError):
    """The server's certificate does not match the cluster's CA or name. Not worth a retry."""


class Stopped(ApiError):
    """The caller's stop event was set, or the client was closed, while a request waited."""


_BY_CODE: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: TooLarge,
    422: Invalid,
    429: TooManyRequests,
}


@dataclass(frozen=True)
class Reply:
    """A reply that was not a success, as it came."""

    code: int
    body: bytes
    retry_after: str | None = field(default=None)


def checked(call: Call, obj: Object, *, named: bool = True) -> Object:
    """An object of a reply, once its metadata has the form that Kubernetes' own has.

    Args:
        named: it has a name.

    Raises:
        Unreachable: it is no object of Kubernetes'.
    """
    metadata = obj.get("metadata", None if named else {}) if isinstance(obj, dict) else None
    if isinstance(metadata, dict):
        texts = [metadata.get(name, "") for name in ("name", "uid", "resourceVersion")]
        labels = metadata.get("labels")
        well = all(isinstance(text, str) for text in texts) and (labels is None or _is_labels(labels))
        if well and (texts[0] or not named):
            return obj
    unknown = call.verb not in ("get", "list", "watch")
    raise Unreachable(call, "the reply is not an object of Kubernetes'", maybe_applied=unknown)


def _is_labels(labels: object) -> bool:
    return isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values())


def checked_list(call: Call, found: Object) -> Object:
    """A list of such objects, at a version. Raises as `checked`."""
    items, metadata = found.get("items"), found.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(items, (list, type(None))) or not version:
        raise Unreachable(call, "the reply is not a list of Kubernetes'")
    for item in items or ():
        checked(call, item)
    checked(call, found, named=False)
    return {**found, "items": items or []}


def error_of(call: Call, reply: Reply) -> ApiError:
    """The typed exception for a reply of 300 and above."""
    status = _status(reply.body)
    if status is None:
        # A load balancer's page, or the plain "404 page not found" of a server that lacks the whole API group.
        text = " ".join(reply.body[:200].decode("utf-8", "replace").split())
        status = {"message": text or "empty reply"}
    if status.get("code", reply.code) != reply.code:
        status = {**status, "code": reply.code}
    return error_of_status(call, {"code": reply.code, **status}, _seconds(reply.retry_after))


def error_of_status(call: Call, status: Object, retry_after: float | None = None) -> ApiError:
    """The typed exception for a `Status` object, from a reply or from an ERROR event of a watch."""
    code = status.get("code")
    if not isinstance(code, int) or not 300 <= code < 600:
        code = 500
    reason = _words(status.get("reason"))[:_REASON_LIMIT]
    details = status.get("details")
    if not isinstance(details, dict):
        details = {}
    if retry_after is None:
        retry_after = _bounded(details.get("retryAfterSeconds"))
    if code == 503:
        # An API server that starts says so for a second, and asks to be left alone for five; one that is busy says 429.
        retry_after = None
    text = _words(status.get("message"))[:_TEXT_LIMIT]
    kind: type[ApiError] = _BY_CODE.get(code, ServerError if code >= 500 else ApiError)
    if reason == "AlreadyExists":
        kind = AlreadyExists
    elif kind is NotFound and not details.get("name"):
        kind = UnknownResource
    elif kind is Invalid and _UNKNOWN_FIELD.search(text):
        kind = UnknownField
    unknown = kind is ServerError and call.verb not in ("get", "list", "watch")
    return kind(
        call, text or reason or "no message", code=code, reason=reason, retry_after=retry_after, maybe_applied=unknown
    )


def _words(value: object) -> str:
    return value if isinstance(value, str) else ""


def _status(body: bytes) -> Object | None:
    try:
        status = parsed(body)
    except ValueError:
        return None
    return status if status.get("kind") == "Status" else None


def _seconds(value: str | None) -> float | None:
    # The other form of Retry-After, a date, is not sent by API servers; it would need the two clocks to agree.
    # isdigit() alone also admits digits that float() refuses, such as superscripts.
    return _bounded(float(value)) if value and value.isascii() and value.isdigit() else None


def _bounded(seconds: object) -> float | None:
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds > 0:
        return None
    return float(min(seconds, RETRY_AFTER_SECONDS))
