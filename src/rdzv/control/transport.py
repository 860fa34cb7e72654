"""Requests of the operator to the API server (synchronous; called from threads).

Plain dicts in and out, by the official client's transport (its authentication, connection pool and token refresh) without its models:
those refuse fields that they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from rdzv.control.cache import Kind
from rdzv.objects import Object
from rdzv.resources import MEMBERS, ROUNDS
from rdzv.spec import PLURAL

_Self = TypeVar("_Self", bound="Transport")

#: Seconds to connect and to read. Without them a half-open connection blocks a thread for ever (kubernetes-client/python#1148).
TIMEOUT = (3.0, 10.0)
#: Objects in one part of a list: of whole ones, a part takes some megabytes when it is parsed; and of metadata only.
PAGE, METADATA_PAGE = 200, 500
#: Seconds until a watch is answered, and that it may be silent beyond its end.
ANSWER, GRACE = 6.0, 5.0
#: Bytes of one event: etcd stores 1.5 MiB at most.
MAX_EVENT = 4 * 1024 * 1024
_READ = 64 * 1024

JSON = "application/json"
_METADATA = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"

_PLURALS = {
    "ConfigMap": "configmaps",
    "EndpointSlice": "endpointslices",
    "Event": "events",
    "Lease": "leases",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "Rendezvous": PLURAL,
    "RendezvousMember": MEMBERS.plural,
    "RendezvousRound": ROUNDS.plural,
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "Secret": "secrets",
    "Service": "services",
    "StatefulSet": "statefulsets",
}


class RequestFailed(Exception):  # noqa: N818 - an event, named as such; `rdzv.kube.api.ApiError` is the pod side's
    """The API server refused a request (`status` is its HTTP status) or could not be reached (None). The text is one line."""

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(message)
        self.status = status


class Transport:
    """Every method may raise `RequestFailed`."""

    timeout = TIMEOUT

    def __init__(self, api_client: client.ApiClient) -> None:
        self._client = api_client
        self.fence: Callable[[], object] = lambda: None
        """Called before every write, which it may refuse by raising `RequestFailed`."""
        self.learned: Callable[[Object], object] = lambda _: None
        """Told of every object that a write left behind."""

    @classmethod
    def from_environment(cls: type[_Self]) -> _Self:
        """In a pod by its service account, else by the kubeconfig."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            config.load_kube_config(client_configuration=configuration)
        # The queue retries, with backoff and the reason in a condition.
        configuration.retries = False
        return cls(client.ApiClient(configuration))

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object as of now, or None if there is none."""
        return self._get(path(kind.api_version, kind.kind, namespace, name))

    def look(self, target: str) -> Object | None:
        """What is at this path, or None."""
        return self._get(target)

    def make(self, target: str, obj: Object) -> Object:
        """Creates an object in the collection at this path."""
        return self._request("POST", target, obj, JSON)

    def find(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object as of now, or None: there is none, or it does not have the labels of its kind."""
        query = {"fieldSelector": f"metadata.name={name}", "labelSelector": kind.selector}
        items = self._request("GET", path(kind.api_version, kind.kind, namespace), query=_given(query))["items"]
        return items[0] if items else None

    def pages(
        self, kind: Kind, namespace: str | None, *, selector: str | None = None, metadata_only: bool = False
    ) -> Iterator[Object]:
        """A list of all objects of a kind, in one namespace or all, part by part. All parts are of one moment, and say of which.

        `selector`: instead of the kind's own.

        Raises:
            RequestFailed: with status 410 when the parts were asked for too slowly: begin again.
        """
        limit = METADATA_PAGE if metadata_only else PAGE
        query = {"limit": str(limit), "labelSelector": kind.selector if selector is None else selector}
        accept = _METADATA if metadata_only else JSON
        while True:
            page = self._request(
                "GET", path(kind.api_version, kind.kind, namespace or ""), query=_given(query), accept=accept
            )
            page["items"] = page["items"] or []  # Metadata of nothing is null.
            yield page
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return

    def watch(self, kind: Kind, namespace: str | None, version: str, seconds: float) -> Iterator[Object]:
        """Events after `version`, for so many seconds; bookmarks too.

        Raises:
            RequestFailed: also for an ERROR event, and for a connection that stays silent for longer than it may last.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(round(seconds)),
            "labelSelector": kind.selector,
        }
        target = path(kind.api_version, kind.kind, namespace or "")
        response = self._send("GET", target, None, None, _given(query), timeout=(TIMEOUT[0], ANSWER))
        if response.response.connection is not None:
            response.response.connection.sock.settimeout(seconds + GRACE)
        buffer = bytearray()
        try:
            for data in response.response.stream(_READ):
                buffer += data
                *lines, rest = buffer.split(b"\n") if b"\n" in data else [buffer]
                buffer = bytearray(rest)
                for line in lines:
                    yield _event(line, target)
                if len(buffer) > MAX_EVENT:
                    raise RequestFailed(None, f"WATCH {target}: an event of more than {MAX_EVENT} bytes")
        except (HTTPError, OSError) as error:
            self._drop_idle()
            raise RequestFailed(None, f"WATCH {target}: the stream broke: {error}") from error
        finally:
            response.response.close()

    def _get(self, target: str) -> Object | None:
        return self._ignoring((404,), "GET", target)

    def _ignoring(self, statuses: Sequence[int], *args: Any) -> Object | None:
        try:
            return self._request(*args)
        except RequestFailed as error:
            if error.status not in statuses:
                raise
            return None

    def _request(
        self,
        method: str,
        target: str,
        body: Any = None,
        content_type: str | None = None,
        query: Mapping[str, str] | None = None,
        accept: str = JSON,
    ) -> Object:
        response = self._send(method, target, body, content_type, query, accept=accept)
        try:
            answer = cast("Object", json.loads(response.read()))
        except (HTTPError, ValueError) as error:
            self._drop_idle()
            raise RequestFailed(None, f"{method} {target}: the reply broke: {error}") from error
        if method in {"PATCH", "POST", "PUT"}:
            self.learned(answer)
        return answer

    def _send(
        self,
        method: str,
        target: str,
        body: Any,
        content_type: str | None,
        query: Mapping[str, str] | None,
        *,
        accept: str = JSON,
        timeout: tuple[float, float] | None = None,
    ) -> Any:
        """The response, whose body is still to be read."""
        headers = {"Accept": accept, **({"Content-Type": content_type} if content_type else {})}
        serialized = self._client.param_serialize(
            method,
            target,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        if method != "GET":
            self.fence()
        try:
            response = self._client.call_api(*serialized, _request_timeout=timeout or self.timeout)
            data = b"" if 200 <= response.status <= 299 else response.read()
        except HTTPError as error:
            self._drop_idle()
            raise RequestFailed(None, f"the API server can't be reached: {error}") from error
        if not 200 <= response.status <= 299:
            raise RequestFailed(
                response.status, f"{method} {target}: {response.status} {response.reason}: {_message(data)}"
            )
        return response

    def _drop_idle(self) -> None:
        """What made one connection go silent made the others: that is not to be found out ten seconds at a time."""
        self._client.rest_client.pool_manager.clear()


def _event(line: bytes | bytearray, target: str) -> Object:
    try:
        event = cast("Object", json.loads(line))
        if event["type"] != "ERROR":
            return event
        code, text = event["object"].get("code"), event["object"].get("message")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RequestFailed(None, f"WATCH {target}: not an event: {bytes(line[:80])!r}") from None
    raise RequestFailed(code, f"WATCH {target}: {code}: {text}")


def _given(query: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in query.items() if value}


def _message(data: bytes) -> str:
    """The API server's own words, where it sent a Status object."""
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")


def path(api_version: str, kind: str, namespace: str = "", name: str = "") -> str:
    """Of a collection, or with `name` of one object; `namespace`: empty for that of all namespaces."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    parts = [root, *(["namespaces", namespace] if namespace else []), _PLURALS[kind], *([name] if name else [])]
    return "/".join(parts)
