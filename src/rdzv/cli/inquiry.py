"""Gathers the facts for `rdzv explain` from the API server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rdzv.cli import explain, settings, snapshot
from rdzv.cli.doctor import Finding
from rdzv.cli.pod_facts import PodFacts, names
from rdzv.cli.snapshot import PODS, Snapshot
from rdzv.control import nearby
from rdzv.control.inject import CONTAINERS_ANNOTATION, LIBRARY_ANNOTATION, is_injected
from rdzv.control.nearby import Found
from rdzv.kube.api import ApiError, Forbidden, NotFound, Resource
from rdzv.kube.client import Client
from rdzv.objects import Object, ReadOnlyObject, controller_of
from rdzv.resources import RENDEZVOUS
from rdzv.spec import LABEL

CONFIG_MAPS = Resource("v1", "configmaps")
EVENTS = Resource("v1", "events")
#: What makes pods of a template, and is looked through for labels that were meant for the pods.
_WORKLOADS = {
    "Job": Resource("batch/v1", "jobs"),
    "StatefulSet": Resource("apps/v1", "statefulsets"),
    "Deployment": Resource("apps/v1", "deployments"),
}
_GENERATIONS = 4
#: Pods of a Rendezvous that are looked at one by one.
_LOOKED_AT = 50


class NothingSuchError(Exception):
    """There is neither a pod nor a Rendezvous of this name; the text says what there is."""


def explain_name(client: Client, namespace: str, kind: str, name: str) -> list[Finding]:
    """Of a pod, or of a Rendezvous. `kind`: pod, rendezvous, or empty for whichever there is.

    Raises:
        NothingSuchError: there is neither.
        ApiError: a request failed.
    """
    if kind != "rendezvous":
        pod = _get(client, PODS, namespace, name)
        if pod is not None:
            return explain.explain_pod(_pod_facts(client, pod, {}))
    if kind != "pod":
        shown = snapshot.take(client, namespace, name)
        if shown.rendezvous is not None or shown.round is not None or kind:
            return _explain_rendezvous(client, shown)
    pods = [pod["metadata"]["name"] for pod in client.list(PODS, namespace)["items"]]
    near = nearby.meant(name, pods)
    has = f"did you mean {near}?" if near else f"there are {names(pods)}" if pods else "there is no pod at all"
    raise NothingSuchError(
        f"{kind or 'pod or rendezvous'} {namespace}/{name}: does not exist ({has}). Correct the name or --namespace"
    )


def explain_namespace(client: Client, namespace: str) -> list[Finding]:
    """Of all Rendezvous of a namespace."""
    found = []
    for name in _neighbours(client, namespace):
        found += _explain_rendezvous(client, snapshot.take(client, namespace, name))
    return found


def _explain_rendezvous(client: Client, shown: Snapshot) -> list[Finding]:
    known: dict[str, Snapshot] = {shown.name: shown}
    pods = [_pod_facts(client, pod, known) for pod in shown.pods[:_LOOKED_AT]]
    around = Found() if pods else _around(client, shown)
    return explain.explain_rendezvous(shown, pods, around)


def _around(client: Client, shown: Snapshot) -> Found:
    """As the operator looks around for a Rendezvous without pods."""
    namespace = shown.namespace
    workloads = [
        nearby.workload_of(item, kind)
        for kind, resource in _WORKLOADS.items()
        for item in _list(client, resource, namespace)
    ]
    warnings = nearby.warnings_of(_list(client, EVENTS, namespace))
    pods = _list(client, PODS, namespace)
    return nearby.look_around(shown.name, _neighbours(client, namespace), pods, workloads, warnings)


def _pod_facts(client: Client, pod: ReadOnlyObject, known: dict[str, Snapshot]) -> PodFacts:
    """`known`: what was read of Rendezvous of this namespace; what is read is added."""
    namespace = pod["metadata"]["namespace"]
    name = str((pod["metadata"].get("labels") or {}).get(LABEL) or "")
    if name and name not in known:
        known[name] = snapshot.take(client, namespace, name)
    shown = known.get(name) or Snapshot(namespace, name)
    absent = shown.rendezvous is None
    return PodFacts(
        pod,
        shown,
        neighbours=_neighbours(client, namespace) if absent else (),
        elsewhere=_elsewhere(client, namespace, name) if absent and name else (),
        owners=[] if name else _owners(client, pod),
        injects=_injects(client, namespace, pod) if name and not is_injected(pod) else None,
        config_maps=_config_maps(client, pod),
        now=time.time(),
    )


def injects(client: Client, namespace: str, pod: ReadOnlyObject) -> bool:
    """Whether a pod with the labels and annotations of this one is injected if it is made now: by a dry run.

    Raises:
        ApiError: this user may not create pods there, or the pod is refused for another reason.
    """
    annotations = pod["metadata"].get("annotations") or {}
    ours = {key: annotations[key] for key in (CONTAINERS_ANNOTATION, LIBRARY_ANNOTATION) if key in annotations}
    return is_injected(client.create(PODS, namespace, _like(pod, ours), dry_run=True))


def _injects(client: Client, namespace: str, pod: ReadOnlyObject) -> bool | None:
    """None: that can't be found out."""
    try:
        return injects(client, namespace, pod)
    except ApiError:
        return None


def _like(pod: ReadOnlyObject, annotations: Mapping[str, str]) -> Object:
    """A small pod that every Pod Security Standard admits."""
    closed: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    containers = [container["name"] for container in pod["spec"]["containers"]]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "rdzv-check-",
            "labels": {LABEL: pod["metadata"]["labels"][LABEL]},
            "annotations": dict(annotations),
        },
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": name, "image": "rdzv-check", "securityContext": closed} for name in containers],
        },
    }


def _neighbours(client: Client, namespace: str) -> Sequence[str]:
    return sorted(item["metadata"]["name"] for item in _list(client, RENDEZVOUS, namespace))


def _elsewhere(client: Client, namespace: str, name: str) -> Sequence[str]:
    try:
        items = client.list(RENDEZVOUS, None, field_selector=f"metadata.name={name}")["items"]
    except ApiError:
        return ()  # Not everybody may look into every namespace.
    return sorted({item["metadata"]["namespace"] for item in items} - {namespace})


def _owners(client: Client, pod: ReadOnlyObject) -> list[Object]:
    """The pod's controller, its controller, and so on."""
    found: list[Object] = []
    obj, namespace = pod, pod["metadata"]["namespace"]
    while len(found) < _GENERATIONS:
        reference = controller_of(obj)
        if not reference:
            return found
        # Irregular plurals are none of those that make training pods.
        resource = Resource(reference["apiVersion"], f"{reference['kind'].lower()}s")
        try:
            obj = client.get(resource, namespace, reference["name"])
        except (ApiError, ValueError):
            return found
        found.append({**obj, "kind": reference["kind"]})
    return found


def _config_maps(client: Client, pod: ReadOnlyObject) -> dict[str, dict[str, str]]:
    """Those of containers that name more than one: only then does one hide another."""
    wanted: set[str] = set()
    for container in pod["spec"]["containers"]:
        named = settings.sources(container)
        wanted |= set(named) if named[1:] else set()
    found: dict[str, dict[str, str]] = {}
    for name in sorted(wanted):
        try:
            obj: Any = _get(client, CONFIG_MAPS, pod["metadata"]["namespace"], name)
        except Forbidden:
            continue
        if obj is not None:
            found[name] = dict(obj.get("data") or {})
    return found


def _get(client: Client, resource: Resource, namespace: str, name: str) -> Object | None:
    try:
        return client.get(resource, namespace, name)
    except NotFound:
        return None


def _list(client: Client, resource: Resource, namespace: str) -> list[Object]:
    """Empty where it may not be read."""
    try:
        items: list[Object] = client.list(resource, namespace)["items"]
    except Forbidden:
        return []
    return items
