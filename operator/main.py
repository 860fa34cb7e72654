"""The operator: watches Rendezvous objects, their children and the pods that opted in, and reconciles.

Run as `kopf run operator/main.py --all-namespaces --standalone`. Handlers only say which object wants a pass (see docs/adr/0002-kopf.md):
no kopf handler keeps state, so kopf writes neither annotations nor finalizers on anything.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
from dataclasses import replace
from typing import Any

import kopf

from rdzv.control.apply import KubernetesAPI, RequestFailed
from rdzv.control.children import MANAGED_BY_LABEL, MANAGER
from rdzv.control.queue import WorkQueue
from rdzv.control.reconcile import Key, reconcile
from rdzv.registry import backend_registry
from rdzv.spec import GROUP, KIND, LABEL, PLURAL, VERSION

_log = logging.getLogger("rdzv.operator")

#: Seconds between passes over everything. Watches tell of changes; this finds what a watch lost.
RESYNC = 300.0


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Configures kopf and starts the queue. Events arrive only after this returns."""
    configure(settings)
    api = await asyncio.to_thread(KubernetesAPI.from_environment)
    registry = backend_registry()
    for name, reason in registry.failed.items():
        _log.warning("plug-in %r could not be loaded: %s", name, reason)

    async def work(key: Key) -> float | None:
        return await asyncio.to_thread(reconcile, api, registry, key)

    memo.queue = WorkQueue(work, expected=(RequestFailed,))
    memo.resync = asyncio.create_task(_resync(api, memo.queue))
    _log.info("backends: %s", ", ".join(registry.names()))


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    """Ends what `start` began. A pass cut off here is simply made again by the next process."""
    if "resync" in memo:
        memo.resync.cancel()
        await memo.queue.close()


def configure(settings: kopf.OperatorSettings) -> None:
    """kopf's settings, each with what goes wrong without it (docs/adr/0002-kopf.md)."""
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # else a line for each event of each pod
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # and one for each probe
    settings.posting.enabled = False  # our Events say what users need; kopf's say what handlers do
    settings.scanning.disabled = True  # else it needs to watch all CRDs and namespaces
    settings.admission.managed = None  # the chart owns the admission configuration
    settings.peering.standalone = True  # peering is no leader election: one replica instead
    settings.watching.server_timeout = 300  # silent stalls behind load balancers (kopf#957)
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 1
    settings.watching.chunk_size = 500  # else all pods of the cluster arrive in one response (kopf#1311)
    settings.networking.request_timeout = 15
    settings.networking.connect_timeout = 5
    settings.watching.label_selectors["pods"] = LABEL  # server side: pods that did not opt in are never sent
    for children in ("configmaps", "services", "roles", "rolebindings"):
        settings.watching.label_selectors[children] = f"{LABEL},{MANAGED_BY_LABEL}={MANAGER}"


@kopf.on.login()
def login(settings: kopf.OperatorSettings, **kwargs: Any) -> kopf.ConnectionInfo | None:
    """Re-reads the service account's token every ten minutes: kopf alone reads it once (kopf#926)."""
    info = kopf.login_with_service_account(settings=settings, **kwargs)
    if info is None:
        return kopf.login_with_kubeconfig(settings=settings, **kwargs)
    return replace(info, expiration=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=10))


@kopf.on.event(GROUP, VERSION, PLURAL)
async def rendezvous_changed(namespace: str | None, name: str, memo: kopf.Memo, **_: Any) -> None:
    """A Rendezvous came, changed or went."""
    memo.queue.add((namespace, name))


@kopf.on.event("", "v1", "pods", labels={LABEL: kopf.PRESENT})
async def pod_changed(namespace: str | None, labels: kopf.Labels, memo: kopf.Memo, **_: Any) -> None:
    """A pod that opted in came, changed or went."""
    memo.queue.add((namespace, labels[LABEL]))


@kopf.on.event(GROUP, VERSION, "rendezvousrounds", labels={LABEL: kopf.PRESENT})
@kopf.on.event(GROUP, VERSION, "rendezvousmembers", labels={LABEL: kopf.PRESENT})
async def world_changed(namespace: str | None, labels: kopf.Labels, memo: kopf.Memo, **_: Any) -> None:
    """An agent of the `kubernetes` backend wrote what it wants, or a coordinator a world."""
    memo.queue.add((namespace, labels[LABEL]))


@kopf.on.event("", "v1", "configmaps", labels={LABEL: kopf.PRESENT, MANAGED_BY_LABEL: MANAGER})
@kopf.on.event("", "v1", "services", labels={LABEL: kopf.PRESENT, MANAGED_BY_LABEL: MANAGER})
@kopf.on.event("rbac.authorization.k8s.io", "v1", "roles", labels={LABEL: kopf.PRESENT, MANAGED_BY_LABEL: MANAGER})
@kopf.on.event(
    "rbac.authorization.k8s.io", "v1", "rolebindings", labels={LABEL: kopf.PRESENT, MANAGED_BY_LABEL: MANAGER}
)
async def child_changed(namespace: str | None, meta: kopf.Meta, labels: kopf.Labels, memo: kopf.Memo, **_: Any) -> None:
    """A child was changed or deleted by hand, or by our own pass. Label and owner both name its Rendezvous: one may have been changed."""
    memo.queue.add((namespace, labels[LABEL]))
    for owner in meta.get("ownerReferences", []):
        if owner["kind"] == KIND and owner["apiVersion"].startswith(f"{GROUP}/"):
            memo.queue.add((namespace, owner["name"]))


async def _resync(api: KubernetesAPI, queue: WorkQueue[Key]) -> None:
    while True:
        await asyncio.sleep(random.uniform(0.8, 1.2) * RESYNC)  # noqa: S311 - jitter
        try:
            for key in await asyncio.to_thread(api.keys):
                queue.add(key)
        except RequestFailed as error:
            _log.warning("resync failed, again in about %.0f s: %s", RESYNC, error)
