"""etcd behind the verbs of the Kubernetes client: objects by kind, namespace and name. See `rdzv.backing`.

Each verb is one request to the JSON gateway (`json_patch`: two), a transaction on one key. Several servers are one cluster:
a request goes to the one that answered last, and to another when that one does not.
"""

from __future__ import annotations

import json
import logging
import random
import ssl
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rdzv.etcd import records
from rdzv.etcd.errors import AuthDisabled, HistoryLost, LeaseNotFound, NoGateway, error_of, explain_missing_gateway
from rdzv.etcd.json_patch import PatchError, patched
from rdzv.etcd.leases import Leases
from rdzv.etcd.records import Keys
from rdzv.etcd.watch import Watch
from rdzv.kube.api import (
    AlreadyExists,
    ApiError,
    Call,
    Conflict,
    Invalid,
    NotFound,
    Reply,
    Resource,
    ServerError,
    TooLarge,
    Unauthorized,
    Unreachable,
    Untrusted,
)
from rdzv.kube.http_client import HttpClient, Request
from rdzv.kube.retry import Retry
from rdzv.kube.transport import CALL_SECONDS, Connection
from rdzv.objects import Object, parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from rdzv.etcd.config import Config, Server

__all__ = ["Client"]

Found = tuple[list[Object], int]
"""Objects, and the revision at which they were so."""

log = logging.getLogger("rdzv.etcd")
log.addHandler(logging.NullHandler())

MAX_OBJECT = 1024 * 1024
"""Bytes of a value. etcd refuses requests of 1.5 MiB (`--max-request-bytes`)."""
CLUSTER = Resource("", "etcd")
"""What requests that are about no object are about, in messages."""
_JSON = "application/json"
_HUNG_UP = (ConnectionError, ssl.SSLError)


class Client(HttpClient):
    """Calls on an etcd cluster.

    Args:
        config: which one.
        namespace: the one that is meant when none is named.
        own: kinds of objects that go with this client, some minutes after its process has ended; others go with the last
            client that has written any in their namespace.
        connect: opens a connection; tests give one that needs no server.
    """

    def __init__(
        self,
        config: Config,
        namespace: str,
        own: Collection[Resource] = (),
        connect: Callable[[Server, Call | None], Connection] = Connection,
    ) -> None:
        self.config, self.namespace = config, namespace
        self._own, self._connect = frozenset(own), connect
        self._turn = random.randrange(len(config.servers))  # noqa: S311 - spreads agents over the servers
        self._revision = 0
        """The highest that a linearizable reply has shown."""
        self._spoken = False
        super().__init__()
        self._leases = Leases(self._post)

    def _reset(self) -> None:
        super()._reset()
        self._token = ""
        self._token_lock = threading.Lock()

    def again(self) -> Client:
        """Another client of the same cluster, with connections of its own."""
        return Client(self.config, self.namespace, self._own, self._connect)

    def close(self) -> None:
        """End all connections, and keep no lease alive."""
        super().close()
        self._leases.close()

    # Verbs.

    def get(self, resource: Resource, namespace: str | None, name: str, *, retry: Retry | None = None) -> Object:
        """One object, as of now (a linearizable read)."""
        call = Call("get", resource, namespace, name)
        found = self.read(call, self.keys(call).one(name), retry=retry)[0]
        if not found:
            raise NotFound(call, f"there is no {name}", code=404)
        return found[0]

    def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        resource_version: str = "",
        retry: Retry | None = None,
    ) -> Object:
        """The objects with a label. `resource_version="0"`: what the server that is asked has, which may be behind."""
        call = Call("list", resource, namespace)
        found, revision = self.read(call, self.keys(call).everything(), local=resource_version == "0", retry=retry)
        items = [item for item in found if records.has_label(item, label_selector)]
        return {"items": items, "metadata": {"resourceVersion": str(revision)}}

    def create(self, resource: Resource, namespace: str | None, obj: Object, *, retry: Retry | None = None) -> Object:
        """Create an object; returns it as stored. Raises `AlreadyExists`."""
        call = Call("create", resource, namespace, obj["metadata"]["name"])
        key, value = self._key_and_value(call, obj)
        reply = self._write(call, lambda lease: records.create_txn(key, value, lease), retry)
        if not reply.get("succeeded"):
            raise AlreadyExists(call, "an object of this name exists", code=409, reason="AlreadyExists")
        with _of_etcd(call):
            created = self._note(reply)
        return records.stored(obj, created, created)

    def replace(self, resource: Resource, namespace: str | None, obj: Object, *, retry: Retry | None = None) -> Object:
        """Write an object that exists. With `metadata.resourceVersion` a compare-and-set, which raises `Conflict`."""
        call = Call("update", resource, namespace, obj["metadata"]["name"])
        key, value = self._key_and_value(call, obj)
        version = str(obj["metadata"].get("resourceVersion") or "")
        reply = self._write(call, lambda lease: records.replace_txn(key, value, lease, version), retry)
        with _of_etcd(call):
            found = records.looked_up(reply)
            if found is None:
                raise NotFound(call, f"there is no {call.name}", code=404)
            created, modified = (records.revision(found, name) for name in ("create_revision", "mod_revision"))
            if not reply.get("succeeded"):
                raise Conflict(call, f"it is at version {modified}, not {version}", code=409)
            return records.stored(obj, created, self._note(reply))

    def json_patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Sequence[Object],
        *,
        retry: Retry | None = None,
    ) -> Object:
        """RFC 6902 patch of what is there now; `Conflict` when somebody writes meanwhile, `Invalid` when a `test` failed."""
        obj = self.get(resource, namespace, name, retry=retry)
        try:
            changed = patched(obj, patch)
        except PatchError as error:
            raise Invalid(Call("patch", resource, namespace, name), str(error), code=422) from None
        return self.replace(resource, namespace, changed, retry=retry)

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
        """Delete an object. With `uid` or `resource_version` only that very one (else `Conflict`)."""
        call = Call("delete", resource, namespace, name)
        txn = records.delete_txn(self.keys(call).one(name)["key"], uid or "", resource_version or "")
        reply = self.run(self._request(call, "/v3/kv/txn", txn), retry)
        if not reply.get("succeeded"):
            with _of_etcd(call):
                if records.looked_up(reply) is None:
                    raise NotFound(call, f"there is no {name}", code=404)
            raise Conflict(call, "it is another one, or was changed", code=409)
        return {}

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
        """A watch of one object or of a selection; see `rdzv.etcd.watch`."""
        return Watch(self, Call("watch", resource, namespace, name), label_selector, fresh=fresh, waiting=waiting)

    # For verbs and watches.

    def keys(self, call: Call) -> Keys:
        """Where the objects of a call are."""
        return Keys(self.config.prefix, call.namespace or self.namespace, call.resource)

    def read(self, call: Call, which: Object, *, local: bool = False, retry: Retry | None = None) -> Found:
        """The objects of a range of keys, and the revision at which that was so.

        Raises:
            HistoryLost: that revision is before one that this client has seen.
        """
        known = self._revision
        reply = self.run(self._request(call, "/v3/kv/range", {**which, "serializable": local}, safe=True), retry)
        keys = self.keys(call)
        try:
            found = [obj for kv in reply.get("kvs") or () if (obj := records.object_of(keys, kv)) is not None]
            revision = records.revision(reply["header"], "revision")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreachable(call, f"the reply is not etcd's: {error}") from None
        if not local:
            # Of what was known before the request: another thread's reply may be younger, and have come first.
            if revision < known:
                text = f"etcd's revision went back from {known} to {revision}: "
                raise HistoryLost(
                    call, f"{text}it was restored from a backup, or has lost its data; start all agents anew"
                )
            self._saw(revision)
        return found, revision

    def _saw(self, revision: int) -> None:
        with self._guard():
            self._revision = max(self._revision, revision)

    def _key_and_value(self, call: Call, obj: Object) -> tuple[str, bytes]:
        value = records.value_of(obj)
        if len(value) > MAX_OBJECT:
            raise TooLarge(call, f"the object has {len(value)} bytes of JSON, the limit is {MAX_OBJECT}")
        return self.keys(call).one(call.name or "")["key"], value

    def _write(self, call: Call, txn: Callable[[int], Object], retry: Retry | None) -> Object:
        for _ in range(2):
            lease = self._lease(call)
            try:
                return self.run(self._request(call, "/v3/kv/txn", txn(lease)), retry)
            except LeaseNotFound:  # It ended while nobody looked.
                self._leases.lost(lease)
        raise ServerError(call, "a lease that was just granted is not there")

    def _lease(self, call: Call) -> int:
        if call.resource in self._own:
            return self._leases.own()
        return self._leases.shared(records.shared_lease(self.config.prefix, call.namespace or self.namespace))

    def _note(self, reply: Mapping[str, Any]) -> int:
        """The revision that a write was made at."""
        revision = records.revision(reply.get("header") or {}, "revision")
        self._saw(revision)
        return revision

    # Requests.

    def run(self, request: Request, retry: Retry | None) -> Object:
        """As any client's; a server that hangs up without a word may want to be spoken to otherwise."""
        try:
            return super().run(request, retry)
        except Unreachable as error:
            if not self._spoken and isinstance(error.__cause__, _HUNG_UP):
                tls = self.config.servers[0].tls
                hint = (
                    "it may ask for a certificate: set cert and key"
                    if tls
                    else "it may speak https: set protocol=https"
                )
                raise Unreachable(
                    request.call, f"{error.message}; {hint}", maybe_applied=error.maybe_applied
                ) from error
            raise

    def answered(self, call: Call, status: int) -> None:
        """It has answered."""
        self._spoken = True
        super().answered(call, status)

    def _request(self, call: Call, path: str, body: Object, *, safe: bool = False) -> Request:
        return Request(call, "POST", path, json.dumps(body, separators=(",", ":")).encode(), _JSON, safe)

    def _post(self, path: str, body: Object) -> Object:
        # Granting a lease, or keeping one alive, twice does no harm.
        return self.run(self._request(Call("get", CLUSTER), path, body, safe=True), None)

    def dial(self, call: Call | None) -> Connection:
        """Connect to the server that answered last, or to the first other one that can be reached."""
        servers, problems = self.config.servers, []
        for turn in range(self._turn, self._turn + len(servers)):
            try:
                connection = self._connect(servers[turn % len(servers)], call)
            except (Unreachable, Untrusted) as error:
                servers[turn % len(servers)].forget_tls()  # Certificates may have been replaced.
                problems.append(error)
                continue
            self._turn = turn % len(servers)
            return connection
        text = "; ".join(error.message for error in problems)
        kind = Untrusted if all(isinstance(error, Untrusted) for error in problems) else Unreachable
        raise kind(call, text) from problems[0]

    def maybe_starting(self, error: ApiError) -> bool:
        """Whether etcd was away or electing a leader a moment ago, this error included; so the error may pass by itself."""
        if isinstance(error, (Unreachable, ServerError)) and error is not self.trouble:
            # This server may be cut off from the others, or refuse a certificate that was renewed meanwhile.
            self._turn = (self._turn + 1) % len(self.config.servers)
            for server in self.config.servers:
                server.forget_tls()
            self._drop_idle()
        return super().maybe_starting(error) and not isinstance(error, HistoryLost)

    def headers(self, content: str | None = None) -> dict[str, str]:
        """Headers of a request. Hold credentials: never log them."""
        headers = {"Accept": _JSON, "User-Agent": "rdzv"}
        if content:
            headers["Content-Type"] = content
        if self.config.user and (token := self._authenticated()):
            headers["Authorization"] = token
        return headers

    def refresh(self) -> bool:
        """After a 401: tokens end after some minutes without use, or when etcd is started anew."""
        self._token = ""
        return bool(self.config.user)

    def _authenticated(self) -> str:
        with self._token_lock:
            if not self._token:
                self._token = self._authenticate()
            return self._token if self._token != _NONE else ""

    def _authenticate(self) -> str:
        call = Call("get", CLUSTER)
        body = {"name": self.config.user, "password": self.config.password()}
        try:
            reply = self._alone(call, "POST", "/v3/auth/authenticate", json.dumps(body).encode())
        except AuthDisabled:
            log.warning("etcd asks for no user and password: those that are set are not used")
            return _NONE
        token = reply.get("token")
        # A line break in it would be a header of its own.
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Unauthorized(call, "etcd gave no token")
        return token

    def _alone(self, call: Call, method: str, target: str, body: bytes | None) -> Object:
        """A request without credentials, on a connection of its own."""
        connection = self.dial(call)
        try:
            connection.send(call, method, target, body, {"Content-Type": _JSON})
            response = connection.reply(call, patience=CALL_SECONDS, deadline=time.monotonic() + CALL_SECONDS)
            data = connection.read(call, response)
        finally:
            connection.close()
        if response.status >= 300:
            raise error_of(call, Reply(response.status, data), self.config.user)
        try:
            return parsed(data)
        except ValueError:
            return {}

    def error_of(self, call: Call, reply: Reply) -> ApiError:
        """From gRPC's code and etcd's text; a server without the gateway is asked what it is."""
        error = error_of(call, reply, self.config.user)
        if not isinstance(error, NoGateway):
            return error
        server = self.config.servers[self._turn]
        try:
            version = self._alone(call, "GET", "/version", None)
        except ApiError:
            version = None
        return NoGateway(call, explain_missing_gateway(version, f"{server.host}:{server.port}"), code=reply.code)


@contextmanager
def _of_etcd(call: Call) -> Iterator[None]:
    """What a reply to a write does not say as etcd does leaves open whether it was carried out."""
    try:
        yield
    except ValueError as error:
        raise Unreachable(call, f"the reply is not etcd's: {error}", maybe_applied=True) from None


_NONE = " "
"""In place of a token, of an etcd that asks for none."""
