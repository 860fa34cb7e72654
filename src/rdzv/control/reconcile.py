"""One pass over one Rendezvous: read, plan, write, status last. The thin shell around the pure modules."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from rdzv.control.apply import KubernetesAPI, RequestFailed
from rdzv.control.events import events_for, events_without_rendezvous, gave_way
from rdzv.control.inject import is_injected, shadowed
from rdzv.control.plan import NAME_TAKEN, REQUEST_FAILED, plan
from rdzv.control.status import compute_status, look_again, rfc3339
from rdzv.objects import ReadOnlyObject
from rdzv.observed import Observed, Pod
from rdzv.protocol.records import Member, Round
from rdzv.registry import BackendRegistry
from rdzv.spec import Rendezvous

_log = logging.getLogger(__name__)

Key = tuple[str, str]

Record = TypeVar("Record")


def reconcile(api: KubernetesAPI, registry: BackendRegistry, key: Key) -> float | None:
    """Brings one Rendezvous (namespace, name) to what its spec says. Level-triggered: what led here does not matter.

    Returns after how many seconds it wants another pass (None: when something changes).

    Raises:
        RequestFailed: the API server refused something or could not be reached. The reason is in the status, if that could be written;
            the caller retries.
    """
    namespace, name = key
    if not name:  # An empty label: the pod did not opt in.
        return None
    obj = api.rendezvous(namespace, name)
    if obj is None or "deletionTimestamp" in obj["metadata"]:
        waiting = _pods(api.pods(namespace, name))
        api.post_events(events_without_rendezvous(namespace, name, waiting), rfc3339(time.time()))
        return None

    rendezvous = Rendezvous.from_object(obj)
    # Members before pods: whose pod is not there then was deleted, not created in between.
    record, members = _read_world(api, rendezvous)
    pod_objects = api.pods(namespace, name)
    observed = Observed(
        pods=_pods(pod_objects),
        children=api.children(namespace, name, rendezvous.child_name),
        round=record,
        members=members,
    )
    decided = plan(rendezvous, observed, registry)
    previous = obj.get("status") or {}
    world = registry.observer(rendezvous.backend)(rendezvous, observed, previous, time.time())

    outcome = api.execute(decided, rendezvous)
    now = time.time()
    if outcome.gave_way:
        api.post_events([gave_way(rendezvous, decided.newer)], rfc3339(now))
        return None
    status = compute_status(rendezvous, observed, world, decided, previous, now, outcome.failures)
    _write_status_if_changed(api, rendezvous, previous, status)
    overridden = {
        pod["metadata"]["name"]: [f"{variable} in container {c}" for c, variable in shadowed(pod)]
        for pod in pod_objects
    }
    api.post_events(events_for(rendezvous, decided, outcome.failures, observed.pods, overridden), rfc3339(now))
    failed = [failure.message for failure in outcome.failures if failure.reason == REQUEST_FAILED]
    if failed:
        raise RequestFailed(None, "; ".join(failed))
    # No watch tells of somebody else's objects.
    taken = any(failure.reason == NAME_TAKEN for failure in outcome.failures)
    waits = [world.again, random.uniform(0.8, 1.2) * look_again(previous, now) if taken else None]  # noqa: S311 - jitter
    return min((wait for wait in waits if wait is not None), default=None)


def _pods(objects: Sequence[ReadOnlyObject]) -> list[Pod]:
    return [Pod.from_object(obj, injected=is_injected(obj)) for obj in objects]


def _read_world(api: KubernetesAPI, rendezvous: Rendezvous) -> tuple[Round | None, list[Member]]:
    """The records that agents wrote. One that is not as it should be is as good as none, for us and for them."""
    record = api.round(rendezvous.namespace, rendezvous.name)
    found = [record] if record is not None else []
    rounds = _readable(Round.from_object, found)
    members = _readable(Member.from_object, api.members(rendezvous.namespace, rendezvous.name))
    return (rounds[0] if rounds else None), members


def _readable(read: Callable[[Mapping[str, Any]], Record], objects: Sequence[Mapping[str, Any]]) -> list[Record]:
    records = []
    for obj in objects:
        try:
            records.append(read(obj))
        except ValueError as error:
            metadata = obj["metadata"]
            _name_unreadable(obj.get("kind", "record"), metadata.get("namespace", ""), metadata["name"], str(error))
    return records


@lru_cache(maxsize=10_000)
def _name_unreadable(kind: str, namespace: str, name: str, why: str) -> None:
    """Once each, though every pass finds it again; bounded, because others write them."""
    _log.warning("%s %s/%s counts for nothing: %s", kind, namespace, name, why)


def _write_status_if_changed(
    api: KubernetesAPI, rendezvous: Rendezvous, previous: Mapping[str, Any], status: Mapping[str, Any]
) -> None:
    if any(previous.get(key) != value for key, value in status.items()) or previous.keys() - status.keys():
        api.write_status(rendezvous.namespace, rendezvous.name, status)
