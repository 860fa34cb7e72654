"""One pass over one Rendezvous: read, plan, write, status last. The thin shell around the pure modules."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from rdzv.control.apply import APIError, KubernetesAPI
from rdzv.control.events import events_for, events_without_rendezvous
from rdzv.control.inject import shadowed
from rdzv.control.observed import Observed, Pod
from rdzv.control.plan import plan
from rdzv.control.status import compute_status
from rdzv.registry import BackendRegistry
from rdzv.spec import Rendezvous

_log = logging.getLogger(__name__)

Key = tuple[str, str]


def reconcile(api: KubernetesAPI, registry: BackendRegistry, key: Key) -> None:
    """Brings one Rendezvous (namespace, name) to what its spec says. Level-triggered: what led here does not matter.

    Raises:
        APIError: the API server refused something or could not be reached. The reason is in the status, if that could be written;
            the caller retries.
    """
    namespace, name = key
    obj = api.rendezvous(namespace, name)
    pod_objects = api.pods(namespace, name)
    pods = [Pod.from_object(pod) for pod in pod_objects]
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    if obj is None or "deletionTimestamp" in obj["metadata"]:
        api.post_events(events_without_rendezvous(namespace, name, pods), now)
        return

    rendezvous = Rendezvous.from_object(obj)
    observed = Observed(pods=pods, children=api.children(namespace, name, rendezvous.child_name))
    decided = plan(rendezvous, observed, registry)
    previous = obj.get("status") or {}
    try:
        api.execute(decided, namespace)
    except APIError as error:
        _write_status_if_changed(
            api, rendezvous, previous, compute_status(rendezvous, observed, decided, previous, now, str(error))
        )
        raise
    _write_status_if_changed(api, rendezvous, previous, compute_status(rendezvous, observed, decided, previous, now))
    overridden = {
        pod["metadata"]["name"]: [f"{name} in container {c}" for c, name in shadowed(pod)] for pod in pod_objects
    }
    api.post_events(events_for(rendezvous, decided, pods, overridden), now)


def _write_status_if_changed(
    api: KubernetesAPI, rendezvous: Rendezvous, previous: Mapping[str, Any], status: Mapping[str, Any]
) -> None:
    if any(previous.get(key) != value for key, value in status.items()) or previous.keys() - status.keys():
        api.write_status(rendezvous.namespace, rendezvous.name, status)
