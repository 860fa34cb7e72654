"""One pass over one Rendezvous: look, plan, write, status last. The thin shell around the pure modules.

A pass looks into memory, so one over a Rendezvous of which nothing has changed costs no request. Where old news would do harm, it asks.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from rdzv.backends import World
from rdzv.control.apply import KubernetesAPI, OldViewError
from rdzv.control.cache import PODS, RENDEZVOUS, Cache, Key, View
from rdzv.control.children import child
from rdzv.control.events import EventToPost, events_for, events_of_status, events_without_rendezvous, gave_way
from rdzv.control.inquiry import Inquiry
from rdzv.control.nearby import Found, meant
from rdzv.control.nodes import Nodes
from rdzv.control.noted import Noted
from rdzv.control.overrides import apart, texts, unread
from rdzv.control.phase import outcome, summary_of
from rdzv.control.plan import NAME_TAKEN, REQUEST_FAILED, Failure, Plan, plan
from rdzv.control.poster import EventPoster
from rdzv.control.remembered import Remembered
from rdzv.control.root_key import RootKey
from rdzv.control.status import Beside, compute_status, look_again
from rdzv.kube.api import ApiError
from rdzv.objects import Object
from rdzv.observed import Observed
from rdzv.registry import BackendRegistry
from rdzv.spec import LABEL, Rendezvous

_log = logging.getLogger(__name__)


class Reconciler:
    """Brings a Rendezvous to what its spec says. Level-triggered: what led to a pass does not matter."""

    def __init__(
        self,
        api: KubernetesAPI,
        cache: Cache,
        registry: BackendRegistry,
        told: Callable[[Key, Mapping[str, Any] | None, str], object] = lambda key, status, formed_for: None,
    ) -> None:
        """`told`: called with the status that a pass has left, and what its latest round was formed for.

        No status: the Rendezvous is gone, or another operator's.
        """
        self._told = told
        self._isolate = os.environ.get("RDZV_ISOLATE") == "true"
        self._api, self._cache, self._registry = api, cache, registry
        self._poster = EventPoster(api.post_event)
        self._gone = Remembered()
        """UIDs of pods that are known to be gone. They never come back."""
        self._noted = Noted()
        self._root = RootKey(api, os.environ)
        self._inquiry = Inquiry(api.some)
        self._nodes = Nodes(api.node_labels)

    def reconcile(self, key: Key) -> float | None:
        """One pass over one Rendezvous (namespace, name).

        Returns after how many seconds it wants another pass (None: when something changes).

        Raises:
            ApiError: the API server refused something or could not be reached, or memory is old. The reason is in the status, if that
                could be written; the caller retries.
        """
        view = self._cache.view(key)
        if view.rendezvous is None and view.observed.pods:
            view = self._look_again(key)
        if view.rendezvous is None or "deletionTimestamp" in view.rendezvous["metadata"]:
            self._told(key, None, "")
            names = self._cache.names(key[0]) - {key[1]} if view.observed.pods else ()
            return self._post(events_without_rendezvous(*key, view.observed.pods, meant(key[1], names)))

        rendezvous = Rendezvous.from_object(view.rendezvous, isolate=self._isolate)
        observed = replace(view.observed, gone=self._confirmed_gone(key, view.observed)).told_apart(rendezvous)
        on = [pod.node for pod in observed.pods if pod.live]
        labels, nodes_again = self._nodes.labels(on, rendezvous.topology_keys, time.time())
        observed = replace(observed, node_labels=labels)
        decided = plan(rendezvous, observed, self._registry)
        previous = view.rendezvous.get("status") or {}
        world = self._registry.observe(rendezvous, observed, previous, time.time())

        secrets, unsigned, renewal = self._certificates(rendezvous, decided)
        try:
            executed = self._api.execute(decided, rendezvous, secrets, unsigned)
        except OldViewError:
            self._look_again(key)
            raise
        if executed.gave_way:
            self._told(key, None, "")
            return self._post([gave_way(rendezvous, decided.newer)])
        now = time.time()
        beside, ask_again = self._beside(rendezvous, observed, world, decided, view, now)
        computed = compute_status(rendezvous, observed, world, decided, previous, now, executed.failures, beside)
        if _differs(previous, computed.status):
            self._api.write_status(rendezvous.namespace, rendezvous.name, computed.status)
        self._told(key, computed.status, world.formed_for)
        told = events_for(rendezvous, decided, executed.failures, observed.pods, beside.overridden)
        if decided.refused is None:
            told += events_of_status(rendezvous, computed.status, now)
        later = self._post(told)
        failed = [failure.message for failure in executed.failures if failure.reason == REQUEST_FAILED]
        if failed:
            raise ApiError(None, "; ".join(failed))
        # No watch tells of somebody else's objects.
        taken = any(failure.reason == NAME_TAKEN for failure in executed.failures)
        look = random.uniform(0.8, 1.2) * look_again(previous, now) if taken else None  # noqa: S311 - jitter
        waits = [later, world.again, renewal, computed.again, ask_again, look, nodes_again]
        return min((wait for wait in waits if wait is not None), default=None)

    def _beside(
        self, rendezvous: Rendezvous, observed: Observed, world: World, decided: Plan, view: View, now: float
    ) -> tuple[Beside, float | None]:
        """What no object in memory says, and after how many seconds to ask again."""
        previous = (view.rendezvous or {}).get("status") or {}
        uid, pods, record = rendezvous.uid, len(observed.candidates), observed.round
        found, again = Found(), None
        if decided.refused is None and not outcome(observed, rendezvous.nodes, world, summary_of(previous), {}):
            found, again = self._inquiry.about(
                rendezvous, observed, lambda: self._cache.names(rendezvous.namespace), now
            )
        of_this = record is not None and record.run_id == uid
        provision = decided.provision
        unused, endpoint = (provision.unused, provision.endpoint) if provision is not None else (frozenset[str](), "")
        unused |= unread(rendezvous.launcher)
        return Beside(
            found=found,
            overridden=texts(view.overridden, unused),
            apart=apart(view.overridden, endpoint, unused),
            rounds_lately=self._noted.rounds_lately(uid, record.round, now) if record is not None and of_this else 0,
            short_for=self._noted.lasts(uid, "short", holds=0 < pods < rendezvous.nodes.min, now=now),
        ), again

    def _certificates(
        self, rendezvous: Rendezvous, plan: Plan
    ) -> tuple[Sequence[Object], Sequence[Failure], float | None]:
        """The Secrets that the plan asks for, or why there are none, and after how many seconds they are renewed."""
        wanted = plan.provision.certificates if plan.provision is not None else ()
        if not wanted:
            return [], [], None
        try:
            authority = self._root.authority()
        except ApiError as error:
            return [], [Failure(REQUEST_FAILED, str(error))], None
        now = time.time()
        secrets = [child(obj, rendezvous) for obj in authority.secrets(rendezvous, wanted, now)]
        return secrets, [], max(1.0, authority.renewal(rendezvous, now) + 1.0)

    def _look_again(self, key: Key) -> View:
        """Nobody is told that a Rendezvous does not exist only because its watch is behind that of its pods."""
        found = self._api.get(RENDEZVOUS, *key)
        if found is not None:
            self._cache.put(RENDEZVOUS, found)
        return self._cache.view(key)

    def _confirmed_gone(self, key: Key, observed: Observed) -> Set[str]:
        """UIDs that members name and no pod has. An agent is not declared dead because the watch of pods is behind that of Members."""
        missing = {member.pod_uid for member in observed.members if member.owned} - {pod.uid for pod in observed.pods}
        if any(uid not in self._gone for uid in missing):
            namespace, name = key
            pages = self._api.pages(PODS, namespace, selector=f"{LABEL}={name}", metadata_only=True)
            present = {obj["metadata"]["uid"] for page in pages for obj in page["items"]}
            self._gone.update(missing - present)
        return {uid for uid in missing if uid in self._gone}

    def _post(self, events: list[EventToPost]) -> float | None:
        return self._poster.post(events, time.time())


def _differs(previous: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    return any(previous.get(key) != value for key, value in status.items()) or bool(previous.keys() - status.keys())
