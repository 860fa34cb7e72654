"""Requests of the operator to the API server (synchronous; called from threads), by the client that the agents use.

It asks for what they never need: parts of long lists, metadata alone, and watches that leave to memory what is known already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from rdzv import __version__
from rdzv.control.cache import Kind
from rdzv.kube.api import ApiError, Call, Resource, Unauthorized, Unreachable, error_of_status
from rdzv.kube.client import Client
from rdzv.kube.config import Config, ConfigError, from_kubeconfig, in_cluster
from rdzv.kube.http_client import Request, reply_of
from rdzv.kube.transport import CALL_SECONDS, CONNECT_SECONDS, Connection
from rdzv.objects import Object, parsed
from rdzv.resources import MEMBERS, RENDEZVOUS, ROUNDS
from rdzv.spec import MANAGER

if TYPE_CHECKING:
    from http.client import HTTPResponse

_Self = TypeVar("_Self", bound="Transport")

#: Seconds to connect, and for a whole reply.
TIMEOUT = (CONNECT_SECONDS, CALL_SECONDS)
#: Objects in one part of a list: of whole ones, a part takes some megabytes when it is parsed; and of metadata only.
PAGE, METADATA_PAGE = 200, 500
#: Seconds until a watch is answered, and that it may be silent beyond its end.
ANSWER, GRACE = 6.0, 5.0
#: Bytes of one event: etcd stores 1.5 MiB at most.
MAX_EVENT = 4 * 1024 * 1024
#: Connections kept open: one for each pass that is made at the same time (a handshake costs more than a write), and for lists.
CONNECTIONS = 12
_READ = 64 * 1024
#: How it begins, with the comma after what comes before it: quotes within a string of JSON have a backslash, so this is never in one.
_MANAGED_FIELDS = b',"managedFields":['

_METADATA = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
_METADATA_OF_ONE = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"

_PLURALS = {
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "EndpointSlice": "endpointslices",
    "Event": "events",
    "Job": "jobs",
    "NetworkPolicy": "networkpolicies",
    "Node": "nodes",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "Rendezvous": RENDEZVOUS.plural,
    "RendezvousMember": MEMBERS.plural,
    "RendezvousRound": ROUNDS.plural,
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "Secret": "secrets",
    "Service": "services",
    "StatefulSet": "statefulsets",
}


class OperatorClient(Client):
    """Says who asks, which is also who changed a field (`managedFields`), and keeps a connection for each pass."""

    def __init__(self, config: Config, timeout: tuple[float, float] = TIMEOUT) -> None:
        """`timeout`: seconds to connect, and for a reply."""
        super().__init__(config, partial(Connection, seconds=timeout[0]), idle=CONNECTIONS, call_seconds=timeout[1])
        self.fence: Callable[[], object] = lambda: None
        """Called right before every write is sent, which it may refuse by raising `ApiError`."""
        self.meter: Callable[[str, int], object] = lambda verb, code: None
        """Called after every request with its verb and the HTTP status, 0 if it was not answered."""

    def headers(self, content: str | None = None) -> dict[str, str]:
        """Headers of a request. Hold credentials: never log them."""
        return super().headers(content) | {"User-Agent": f"{MANAGER}/{__version__}"}

    def parsed(self, body: bytes) -> Object:
        """What a reply says, but for who set which field."""
        return without_managed_fields(body)

    def about_to_send(self, request: Request) -> None:
        """The connection is open: what is refused now has not left."""
        if not request.safe:
            self.fence()

    def answered(self, call: Call, status: int) -> None:
        """The server answered."""
        super().answered(call, status)
        self.meter(call.verb, status)

    def maybe_starting(self, error: ApiError) -> bool:
        """Whether the server was away or starting a moment ago."""
        if isinstance(error, Unreachable) and error.call is not None:
            self.meter(error.call.verb, 0)
        return super().maybe_starting(error)


class Transport:
    """Reads objects. Every method may raise `ApiError`."""

    timeout = TIMEOUT

    def __init__(self, client: OperatorClient) -> None:
        self.client = client

    @classmethod
    def from_environment(cls: type[_Self]) -> _Self:
        """In a pod by its service account, else by the kubeconfig, as kopf does.

        Raises:
            ConfigError: there is neither, or it can't be used.
        """
        try:
            config = in_cluster()
        except ConfigError:
            config = from_kubeconfig()
        return cls(OperatorClient(config, cls.timeout))

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object as of now, or None if there is none."""
        return self.look(resource_of(kind.api_version, kind.kind), namespace, name)

    def find(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object as of now, or None: there is none, or it does not have the labels of its kind."""
        resource, field = resource_of(kind.api_version, kind.kind), f"metadata.name={name}"
        items = self.client.list(resource, namespace, field_selector=field, label_selector=kind.selector)["items"]
        return items[0] if items else None

    def pages(
        self, kind: Kind, namespace: str | None, *, selector: str | None = None, metadata_only: bool = False
    ) -> Iterator[Object]:
        """A list of all objects of a kind, in one namespace or all, part by part. All parts are of one moment, and say of which.

        `selector`: instead of the kind's own.

        Raises:
            ApiError: with code 410 when the parts were asked for too slowly: begin again.
        """
        call = Call("list", resource_of(kind.api_version, kind.kind), namespace)
        query = {
            "limit": str(METADATA_PAGE if metadata_only else PAGE),
            "labelSelector": kind.selector if selector is None else selector,
        }
        return self._parts(call, query, metadata_only=metadata_only)

    def some(
        self,
        api_version: str,
        kind: str,
        namespace: str,
        *,
        fields: str = "",
        limit: int = METADATA_PAGE,
        parts: int = 1,
        metadata_only: bool = False,
    ) -> list[Object]:
        """The first objects of a kind that is not kept, in one namespace: at most `limit` in each of so many parts."""
        call = Call("list", resource_of(api_version, kind), namespace)
        query = {"limit": str(limit), "fieldSelector": fields}
        pages = islice(self._parts(call, query, metadata_only=metadata_only), parts)
        return [obj for page in pages for obj in page["items"]]

    def _parts(self, call: Call, query: dict[str, str], *, metadata_only: bool) -> Iterator[Object]:
        """A list part by part, each when it is asked for."""
        accept = _METADATA if metadata_only else None
        while True:
            page = self.client.run(
                Request(call, "GET", self.client.target(call, query), safe=True, accept=accept), None
            )
            page["items"] = page["items"] or []  # Metadata of nothing is null.
            yield page
            query = {**query, "continue": page["metadata"].get("continue", "")}
            if not query["continue"]:
                return

    def watch(self, kind: Kind, namespace: str | None, version: str, seconds: float) -> Iterator[Object]:
        """Events after `version`, for so many seconds; bookmarks too.

        Raises:
            ApiError: also for an ERROR event, and for a connection that stays silent for longer than it may last.
        """
        call = Call("watch", resource_of(kind.api_version, kind.kind), namespace)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(round(seconds)),
            "labelSelector": kind.selector,
        }
        client, reusable = self.client, False
        connection = client.acquire(call)
        try:
            connection.send(call, "GET", client.target(call, query), None, client.headers())
            response = connection.reply(call, patience=ANSWER, deadline=time.monotonic() + ANSWER)
            client.answered(call, response.status)
            if response.status >= 300:
                raise client.error_of(call, reply_of(response, connection.read(call, response)))
            connection.patience, connection.deadline = seconds + GRACE, float("inf")
            for line in _lines(call, response):
                yield _event(call, line)
            response.close()
            reusable = not response.will_close
        except ApiError as error:
            client.maybe_starting(error)
            if isinstance(error, Unauthorized):
                client.reauthorize()
            raise
        finally:
            client.release(connection, reusable=reusable)

    def node_labels(self, name: str) -> Mapping[str, str] | None:
        """The labels of a node as of now, or None if there is none. The rest of it is not sent."""
        call = Call("get", resource_of("v1", "Node"), None, name)
        request = Request(call, "GET", self.client.target(call), safe=True, accept=_METADATA_OF_ONE)
        found = _if_there(lambda: self.client.run(request, None))
        return None if found is None else found["metadata"].get("labels") or {}

    def look(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """One object as of now, or None if there is none."""
        return _if_there(lambda: self.client.get(resource, namespace, name))


def _if_there(read: Callable[[], Object]) -> Object | None:
    try:
        return read()
    except ApiError as error:
        if error.code != 404:
            raise
        return None


def _lines(call: Call, response: HTTPResponse) -> Iterator[bytearray]:
    """The lines of a stream, until it ends."""
    rest = bytearray()
    while True:
        try:
            data = response.read1(_READ)
        except (OSError, HTTPException) as error:
            raise Unreachable(call, f"the stream broke: {error}") from error
        if not data:
            return
        rest += data
        if b"\n" in data:
            *lines, rest = rest.split(b"\n")
            yield from lines
        if len(rest) > MAX_EVENT:
            raise Unreachable(call, f"an event of more than {MAX_EVENT} bytes")


def _event(call: Call, line: bytearray) -> Object:
    try:
        event = without_managed_fields(line)
        if event["type"] != "ERROR":
            return event
        status: Object = {**event["object"]}
    except (ValueError, KeyError, TypeError):
        raise Unreachable(call, f"not an event: {bytes(line[:80])!r}") from None
    raise error_of_status(call, status)


def without_managed_fields(data: bytes | bytearray) -> Object:
    """What JSON of objects says, but for who set which field: of a pod that is two thirds of the time to read it, and nobody looks at it.

    An object that is written without it keeps it, so it is left out, not emptied.

    Raises:
        ValueError: as `parsed`.
    """
    kept, begin, start = [], 0, data.find(_MANAGED_FIELDS)
    while start >= 0:
        end = data.find(b"]", start) + 1
        fields = data[start:end]
        # A bracket in a string is no end. Whether it is in one is not clear after an escaped backslash.
        if fields and b"\\\\" not in fields and (fields.count(b'"') - fields.count(b'\\"')) % 2 == 0:
            kept.append(data[begin:start])
            begin = end
        start = data.find(_MANAGED_FIELDS, start + 1)
    try:
        return parsed(b"".join((*kept, data[begin:])))
    except ValueError:
        # It is no JSON, or there was a list in the list: what is left has a bracket too many then.
        return parsed(data)


def resource_of(api_version: str, kind: str) -> Resource:
    """What objects of a kind are called in URLs."""
    return Resource(api_version, _PLURALS[kind])


#: What a write is refused with when the object is gone, or is not what was seen.
CHANGED = (404, 409)


@contextmanager
def unless_changed() -> Iterator[None]:
    """A write that is not made, and not missed, when the object is gone or is not what was seen."""
    try:
        yield
    except ApiError as error:
        if error.code not in CHANGED:
            raise
