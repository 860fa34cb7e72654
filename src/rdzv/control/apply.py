"""The operator's hands: the only module that talks to the API server to read and to write (synchronous; called from threads).

Plain dicts in and out, by the official client's transport (its authentication, connection pool and token refresh) without its models:
those refuse fields that they do not know.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from rdzv.control.events import Event
from rdzv.control.plan import MANAGED_BY_LABEL, MANAGER, RBAC, Plan, PodPatch
from rdzv.objects import Object
from rdzv.resources import MEMBERS, ROUNDS
from rdzv.spec import API_VERSION, LABEL, PLURAL

_log = logging.getLogger(__name__)

#: Seconds to connect and to read. Without them a half-open connection blocks a thread for ever (kubernetes-client/python#1148).
TIMEOUT = (3.0, 10.0)

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"

_PLURALS = {
    "ConfigMap": "configmaps",
    "Event": "events",
    "Pod": "pods",
    "Rendezvous": PLURAL,
    "RendezvousMember": MEMBERS.plural,
    "RendezvousRound": ROUNDS.plural,
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "Service": "services",
}

#: The kinds of children that a backend may ask for.
CHILD_KINDS = (("v1", "ConfigMap"), ("v1", "Service"), (RBAC, "Role"), (RBAC, "RoleBinding"))


class APIError(Exception):
    """The API server refused a request (`status` is its HTTP status) or could not be reached (None). The text is one line."""

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(message)
        self.status = status


class KubernetesAPI:
    """Reads what a pass observes and writes what it planned. Every method may raise `APIError`."""

    def __init__(self, api_client: client.ApiClient) -> None:
        self._client = api_client

    @classmethod
    def from_environment(cls) -> KubernetesAPI:
        """In a pod by its service account, else by the kubeconfig."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            config.load_kube_config(client_configuration=configuration)
        # The queue retries, with backoff and the reason in a condition.
        configuration.retries = False
        return cls(client.ApiClient(configuration))

    def rendezvous(self, namespace: str, name: str) -> Object | None:
        """The object, or None if there is none."""
        return self._get(_path(API_VERSION, "Rendezvous", namespace, name))

    def pods(self, namespace: str, name: str) -> list[Object]:
        """The pods that opted in to Rendezvous `name`."""
        return self._list(_path("v1", "Pod", namespace), f"{LABEL}={name}")

    def children(self, namespace: str, name: str, child_name: str) -> list[Object]:
        """Objects that the operator made for Rendezvous `name`, and whatever has the name that its children have."""
        found: list[Object] = []
        for api_version, kind in CHILD_KINDS:
            here = self._list(_path(api_version, kind, namespace), f"{LABEL}={name},{MANAGED_BY_LABEL}={MANAGER}")
            if not any(child["metadata"]["name"] == child_name for child in here):
                named = self._get(_path(api_version, kind, namespace, child_name))
                here += [named] if named is not None else []
            found += [{"apiVersion": api_version, "kind": kind, **child} for child in here]
        return found

    def round(self, namespace: str, name: str) -> Object | None:
        """The `kubernetes` backend's world record, or None."""
        return self._get(_path(API_VERSION, "RendezvousRound", namespace, name))

    def members(self, namespace: str, name: str) -> list[Object]:
        """The `kubernetes` backend's members."""
        return self._list(_path(API_VERSION, "RendezvousMember", namespace), f"{LABEL}={name}")

    def keys(self) -> set[tuple[str, str]]:
        """(namespace, name) of every Rendezvous, and of every one that a pod asks for."""
        keys = {
            (obj["metadata"]["namespace"], obj["metadata"]["name"])
            for obj in self._list(_path(API_VERSION, "Rendezvous"), "")
        }
        for pod in self._list(_path("v1", "Pod"), LABEL):
            keys.add((pod["metadata"]["namespace"], pod["metadata"]["labels"][LABEL]))
        return keys

    def execute(self, plan: Plan, namespace: str) -> None:
        """Writes a plan, in its order. Repeating it, or stopping anywhere in it, does no harm."""
        for child in plan.delete:
            self._delete(child)
        for obj in plan.apply:
            self._apply(obj)
        for patch in plan.patches:
            self._patch_pod(namespace, patch)

    def write_status(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        """Replaces what the operator owns of the status."""
        body = {
            "apiVersion": API_VERSION,
            "kind": "Rendezvous",
            "metadata": {"name": name, "namespace": namespace},
            "status": status,
        }
        path = _path(API_VERSION, "Rendezvous", namespace, name) + "/status"
        self._request("PATCH", path, body, APPLY, _apply_query())

    def post_events(self, events: Iterable[Event], now: str) -> None:
        """Creates Events; those that exist already stay as they are. An Event that can't be written is only logged."""
        for event in events:
            try:
                self._request("POST", _path("v1", "Event", event.namespace), event.to_object(now), "application/json")
            except APIError as error:
                if error.status != 409:
                    _log.warning("event %s on %s %s not written: %s", event.reason, event.kind, event.name, error)

    def _apply(self, obj: Mapping[str, Any]) -> None:
        meta = obj["metadata"]
        path = _path(obj["apiVersion"], obj["kind"], meta["namespace"], meta["name"])
        self._request("PATCH", path, obj, APPLY, _apply_query())
        _log.info("applied %s %s/%s", obj["kind"], meta["namespace"], meta["name"])

    def _delete(self, obj: Mapping[str, Any]) -> None:
        """Deletes exactly this incarnation: an object re-created since under its name is left alone."""
        meta = obj["metadata"]
        path = _path(obj["apiVersion"], obj["kind"], meta["namespace"], meta["name"])
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": meta["uid"]}}
        self._ignoring((404, 409), "DELETE", path, options, "application/json")
        _log.info("deleted %s %s/%s", obj["kind"], meta["namespace"], meta["name"])

    def _patch_pod(self, namespace: str, patch: PodPatch) -> None:
        # With the uid in it the patch fails with 409 for a pod re-created under the same name.
        body = {"metadata": {"uid": patch.uid, "labels": dict(patch.labels)}}
        self._ignoring(
            (404, 409), "PATCH", _path("v1", "Pod", namespace, patch.name), body, MERGE, {"fieldManager": MANAGER}
        )
        _log.info("patched Pod %s/%s: %s", namespace, patch.name, dict(patch.labels))

    def _get(self, path: str) -> Object | None:
        return self._ignoring((404,), "GET", path)

    def _list(self, path: str, selector: str) -> list[Object]:
        items: list[Object] = []
        query = {"limit": "500", **({"labelSelector": selector} if selector else {})}
        while True:
            page = self._request("GET", path, query=query)
            items += page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return items
            query["continue"] = token

    def _ignoring(self, statuses: Sequence[int], *args: Any) -> Object | None:
        try:
            return self._request(*args)
        except APIError as error:
            if error.status not in statuses:
                raise
            return None

    def _request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Object:
        headers = {"Accept": "application/json", **({"Content-Type": content_type} if content_type else {})}
        serialized = self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._client.call_api(*serialized, _request_timeout=TIMEOUT)
            data = response.read()
        except HTTPError as error:
            raise APIError(None, f"the API server can't be reached: {error}") from error
        if not 200 <= response.status <= 299:
            raise APIError(response.status, f"{method} {path}: {response.status} {response.reason}: {_message(data)}")
        return cast("Object", json.loads(data))


def _message(data: bytes) -> str:
    """The API server's own words, where it sent a Status object."""
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")


def _apply_query() -> dict[str, str]:
    # Forced: nobody else has a say in fields that we set, and a conflict would only come back on every pass.
    return {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}


def _path(api_version: str, kind: str, namespace: str = "", name: str = "") -> str:
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    parts = [root, *(["namespaces", namespace] if namespace else []), _PLURALS[kind], *([name] if name else [])]
    return "/".join(parts)
