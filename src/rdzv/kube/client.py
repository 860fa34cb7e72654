"""A small client of the Kubernetes API, standard library only, for use inside training processes.

Objects are plain dicts. One client per agent: thread-safe, two connections kept open (one for calls, one for the watch),
more only while threads ask at the same time. See `rdzv.kube.api` for the exceptions and `rdzv.kube.watch` for watches.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from rdzv.kube.api import (
    ApiError,
    Call,
    Reply,
    Resource,
    TooLarge,
    Untrusted,
    WrongTime,
    checked,
    checked_list,
    error_of,
)
from rdzv.kube.http_client import IDLE, HttpClient, Request
from rdzv.kube.retry import Retry
from rdzv.kube.transport import CALL_SECONDS, Connection
from rdzv.kube.watch import Watch
from rdzv.objects import Object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rdzv.kube.config import Config

__all__ = ["Client"]

log = logging.getLogger("rdzv.kube")
log.addHandler(logging.NullHandler())

MAX_OBJECT = 1024 * 1024
"""Bytes of a request's body. etcd refuses at 1.5 MiB, with an error that does not say which object."""
_JSON = "application/json"
_JSON_PATCH = "application/json-patch+json"
_STRICT = {"fieldValidation": "Strict"}
"""Of every write: a field that an older CRD lacks would be dropped without a word otherwise, and the rest be stored."""


class Client(HttpClient):
    """Calls on an API server.

    Every verb takes `retry`: without it a request is tried once (a connection that had gone stale is replaced, and a 401
    makes a changed token be read, first). With it, what is safe to repeat is repeated until its deadline: reads always,
    writes only when the server is known not to have carried them out. A write with an unknown outcome raises with
    `maybe_applied`: read the object to find out.
    """

    def __init__(
        self,
        config: Config,
        connect: Callable[[Config, Call | None], Connection] = Connection,
        *,
        idle: int = IDLE,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        """`connect` opens a connection; tests give one that needs no server. The others: as `HttpClient` has them."""
        super().__init__(idle, call_seconds)
        self.config, self.namespace = config, config.namespace
        self._connect = connect

    def again(self) -> Client:
        """Another client of the same API server, with connections of its own."""
        return Client(self.config, self._connect)

    # Verbs.

    def get(self, resource: Resource, namespace: str | None, name: str, *, retry: Retry | None = None) -> Object:
        """One object, as of now (a quorum read)."""
        call = Call("get", resource, namespace, name)
        return checked(call, self._call(call, "GET", retry=retry))

    def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
        retry: Retry | None = None,
    ) -> Object:
        """The `List` object. `resource_version="0"` takes what the server has in memory, without asking etcd."""
        query = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "resourceVersion": resource_version,
        }
        call = Call("list", resource, namespace)
        return checked_list(call, self._call(call, "GET", query=query, retry=retry))

    def kinds(self, group_version: str, *, retry: Retry | None = None) -> Sequence[str]:
        """Plurals of the kinds of an API group that the server serves. Raises `UnknownResource`: it does not know the group."""
        target = f"{self.config.path}/apis/{group_version}"
        call = Call("get", Resource(group_version, "kinds"))
        found = self.run(Request(call, "GET", target, safe=True), retry).get("resources")
        kinds = [kind for kind in found if isinstance(kind, dict)] if isinstance(found, list) else []
        return [name for kind in kinds if isinstance(name := kind.get("name"), str) and "/" not in name]

    def schemas(self, group_version: str, *, retry: Retry | None = None) -> Object:
        """The OpenAPI v3 document of an API group, which every authenticated user may read."""
        target = f"{self.config.path}/openapi/v3/apis/{group_version}"
        return self.run(Request(Call("get", Resource(group_version, "openapi")), "GET", target, safe=True), retry)

    def create(
        self,
        resource: Resource,
        namespace: str | None,
        obj: Object,
        *,
        dry_run: bool = False,
        retry: Retry | None = None,
    ) -> Object:
        """Create an object; returns it as stored. Raises `AlreadyExists`. `dry_run`: as it would be, admission included."""
        name = obj.get("metadata", {}).get("name")
        query = {**_STRICT, "dryRun": "All"} if dry_run else _STRICT
        call = Call("create", resource, namespace, name)
        return checked(call, self._call(call, "POST", query=query, body=obj, retry=retry), named=bool(name))

    def replace(self, resource: Resource, namespace: str | None, obj: Object, *, retry: Retry | None = None) -> Object:
        """PUT. With `metadata.resourceVersion` it is a compare-and-set, and raises `Conflict`."""
        call = Call("update", resource, namespace, obj["metadata"]["name"])
        return checked(call, self._call(call, "PUT", query=_STRICT, body=obj, retry=retry))

    def json_patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Sequence[Object],
        *,
        subresource: str = "",
        retry: Retry | None = None,
    ) -> Object:
        """RFC 6902 patch: carried out completely, on the state of that moment, or not at all (`Invalid`: a `test` failed)."""
        call = Call("patch", resource, namespace, name, subresource)
        return checked(call, self._call(call, "PATCH", query=_STRICT, body=patch, retry=retry))

    def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        retry: Retry | None = None,
    ) -> Object:
        """Delete an object, in the background. With `uid` or `resource_version` only that very one (else `Conflict`)."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid or resource_version:
            body["preconditions"] = {key: value for key, value in preconditions.items() if value}
        return self._call(Call("delete", resource, namespace, name), "DELETE", body=body, retry=retry)

    # Requests.

    def _call(
        self,
        call: Call,
        method: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | Sequence[Object] | None = None,
        retry: Retry | None = None,
    ) -> Object:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        if data is not None and len(data) > MAX_OBJECT:
            raise TooLarge(call, f"the object has {len(data)} bytes of JSON, the limit is {MAX_OBJECT}")
        content = None if data is None else _JSON_PATCH if method == "PATCH" else _JSON
        return self.run(Request(call, method, self.target(call, query), data, content, method == "GET"), retry)

    def target(self, call: Call, query: Mapping[str, str] | None = None) -> str:
        """Path and query of a request."""
        name = None if call.verb in ("list", "create", "watch") else call.name
        asked = {key: value for key, value in (query or {}).items() if value}
        path = self.config.path + call.resource.path(call.namespace, name)
        if call.subresource:
            path += f"/{call.subresource}"
        return f"{path}?{urlencode(asked)}" if asked else path

    def watch(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        name: str | None = None,
        label_selector: str = "",
        fresh: bool = True,
        waiting: Callable[[], bool] | None = None,
    ) -> Watch:
        """A watch of one object or of a selection; see `rdzv.kube.watch`."""
        return Watch(self, resource, namespace, name=name, label_selector=label_selector, fresh=fresh, waiting=waiting)

    def dial(self, call: Call | None) -> Connection:
        """Connect to the API server."""
        try:
            return self._connect(self.config, call)
        except (Untrusted, WrongTime):
            self.config.forget_tls()  # The CA may just have been replaced.
            return self._connect(self.config, call)

    def refresh(self) -> bool:
        """Read the credentials again."""
        return self.config.refresh()

    def error_of(self, call: Call, reply: Reply) -> ApiError:
        """From the `Status` in the reply."""
        return error_of(call, reply)

    def headers(self, content: str | None = None) -> dict[str, str]:
        """Headers of a request. Hold credentials: never log them."""
        headers = {"Accept": _JSON, "User-Agent": "rdzv"}
        if content:
            headers["Content-Type"] = content
        if authorization := self.config.authorization():
            headers["Authorization"] = authorization
        return headers
