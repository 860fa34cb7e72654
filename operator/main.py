"""The operator: watches Rendezvous objects, their children and the pods that opted in, and reconciles.

Run as `kopf run operator/main.py --all-namespaces --standalone`. The handler only tells memory (`rdzv.control.cache`) what there is, and
which object wants a pass (see docs/adr/0002-kopf.md). No handler keeps state in kopf, so kopf writes neither annotations nor finalizers.

Of several processes that share a Lease one writes at a time (docs/adr/0006-election.md); all keep their memory warm. Environment:

- `RDZV_LEASE`: namespace/name of the Lease. Unset: this process is the only one.
- `RDZV_RELEASE`, `RDZV_POD_NAME`, `RDZV_POD_UID`: what the Lease says about its holder.
- `RDZV_READINESS_LISTEN`: address:port where `GET /readyz` is answered. Unset: nowhere.
- `RDZV_METRICS_LISTEN`: address:port where `GET /metrics` is answered. Unset: nowhere.
- `RDZV_ISOLATE`: `true`: a Rendezvous that does not say `spec.network.isolate` is isolated.
- `RDZV_METRICS_RENDEZVOUS`: of how many Rendezvous there are metrics of their own. Unset: of none.
- `RDZV_LOG_FORMAT`: json for lines of JSON (`rdzv.control.logs`).
- `RDZV_ROOT_SECRET`: namespace/name of the key that certificates follow from (`rdzv.control.root_key`).
- `RDZV_WEBHOOK_CONFIGURATION`, `RDZV_WEBHOOK_SECRET`, `RDZV_WEBHOOK_HOST`: where the webhook's certificates go
  (`rdzv.control.webhook_certificates`). Unset: somebody else cares for them.
"""

from __future__ import annotations

import asyncio
import datetime
import gc
import itertools
import logging
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import click
import kopf
from aiohttp import web

import rdzv
from rdzv.control import logs
from rdzv.control.apply import KubernetesAPI
from rdzv.control.cache import KINDS, RENDEZVOUS, Cache, Key
from rdzv.control.election import Candidate
from rdzv.control.feed import WATCH, Comparison, Feed, Wake, fill
from rdzv.control.leader import Leader, Leases
from rdzv.control.metrics import OperatorMetrics, Readings, serve
from rdzv.control.queue import WorkQueue
from rdzv.control.readiness import Progress, answer
from rdzv.control.reconcile import Reconciler
from rdzv.control.root_key import RootKey
from rdzv.control.transport import Transport
from rdzv.control.webhook_certificates import Place, WebhookCertificates
from rdzv.kube.api import ApiError
from rdzv.registry import backend_registry
from rdzv.spec import GROUP, PLURAL, VERSION

_log = logging.getLogger("rdzv.operator")
logs.as_asked(os.environ)  # kopf has set the log up before it reads this file

#: Seconds between passes over everything, from memory: for what depends on time, and for what nobody thought of.
RESYNC = 300.0
#: Passes at once. More would only wait for the API server, which answers writes one after the other.
PASSES = 8
#: Seconds for the last write to end before the Lease is given back.
LAST_WRITE_SECONDS = 4.0
#: Seconds between looks at whether this process leads by now.
AWAIT_TURN = 0.25
#: Seconds from one reading of the credentials to the next at the least: an API server may refuse them all for a while.
LOGIN_SECONDS = 2.0
#: Seconds of silence until kopf cancels a watch, beside the timeout of its request, which ends it long before.
NEVER = 86400.0
#: Seconds that kopf may take to end. Its shutdown can hang (seen after errors of all its watches), and would then be alive and deaf.
EXIT = 10.0


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Configures kopf, and starts the watches and the queue. kopf's events arrive only after this returns."""
    configure(settings)
    collect_seldom()
    api = await asyncio.to_thread(KubernetesAPI.from_environment)
    registry = backend_registry()
    for name, reason in registry.failed.items():
        _log.warning("backend %r: %s", name, reason)

    memo.cache = cache = Cache()
    metrics = OperatorMetrics(int(os.environ.get("RDZV_METRICS_RENDEZVOUS") or 0))
    api.client.meter = metrics.requested
    loop, executor, complete = asyncio.get_running_loop(), ThreadPoolExecutor(PASSES, "pass"), asyncio.Event()
    memo.progress = progress = Progress()
    memo.leader = leader = await asyncio.to_thread(_candidate, lambda leads: loop.call_soon_threadsafe(turn, leads))
    may_write = asyncio.Event() if leader else complete
    one_pass = _measured(Reconciler(api, cache, registry, metrics.tell), progress, metrics)

    def troubles() -> list[str]:
        """Why this process does not serve; empty texts: it does."""
        return [
            "" if complete.is_set() else "memory is not complete yet",
            progress.stuck(time.monotonic()),
            leader.deaf() if leader else "",
        ]

    async def work(key: Key) -> float | None:
        await may_write.wait()
        progress.waits(key, time.monotonic())
        return await loop.run_in_executor(executor, one_pass, key)

    memo.queue = queue = WorkQueue(work, expected=(ApiError,))

    def wake(keys: Iterable[Key]) -> None:
        """From any thread."""
        if concerned := list(keys):
            loop.call_soon_threadsafe(queue.add, *concerned)

    def turn(leads: bool) -> None:
        """What another process has done meanwhile is in memory, as everything is."""
        if not leads:
            may_write.clear()
            metrics.forget()
            return
        may_write.set()
        wake(cache.keys())

    api.learned = lambda obj: wake(cache.learn(obj))
    served = namespaces()
    feeds = [
        Feed(api, cache, kind, namespace, wake) for kind in KINDS for namespace in served if kind is not RENDEZVOUS
    ]
    memo.threads = [*feeds, Comparison(api, cache, [(kind, namespace) for kind in KINDS for namespace in served], wake)]
    for thread in memo.threads:
        thread.start()
    memo.tasks = [
        asyncio.create_task(_fill(api, cache, feeds, wake, complete)),
        asyncio.create_task(_resync(cache, queue)),
    ]
    if leader:
        api.client.fence = leader.fence
        leader.unfit = lambda: progress.stuck(time.monotonic())
        leader.meter(metrics.requested)
        memo.tasks.append(asyncio.create_task(_stand(leader, complete)))
    if place := Place.of(os.environ):
        memo.tasks.append(asyncio.create_task(_keep_certificates(place, leader, metrics)))
    metrics.readings = Readings(
        leads=lambda: leader.leads if leader else complete.is_set(),
        ready=lambda: not any(troubles()),
        waiting=lambda: progress.waiting(time.monotonic()),
    )
    memo.end_metrics = await asyncio.to_thread(_serve_metrics, metrics)
    memo.probes = await _answer_probes(lambda: answer(troubles(), _standing(leader)))
    _log.info("backends: %s", ", ".join(registry.names()))


def _measured(reconciler: Reconciler, progress: Progress, metrics: OperatorMetrics) -> Callable[[Key], float | None]:
    """A pass, as threads make it."""

    def one_pass(key: Key) -> float | None:
        progress.began(key, time.monotonic())
        try:
            with logs.about(*key), metrics.passing():
                return reconciler.reconcile(key)
        finally:
            progress.ended(key, time.monotonic())

    return one_pass


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    """Ends what `start` began. A pass cut off here is simply made again by the process that leads next."""
    if "probes" not in memo:
        return
    if memo.leader:
        memo.leader.resign()
    for task in memo.tasks:
        task.cancel()
    for thread in memo.threads:
        thread.end()
    await memo.queue.close()
    if memo.leader and await _quiet(memo.progress):
        await asyncio.to_thread(memo.leader.release)
    if memo.probes:
        await memo.probes.cleanup()
    await asyncio.to_thread(memo.end_metrics)


async def _quiet(progress: Progress) -> bool:
    """Whether the last write is through. Until then nobody else may lead, but when the Lease is over."""
    deadline = time.monotonic() + LAST_WRITE_SECONDS
    while progress.running and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return not progress.running


def _candidate(changed: Callable[[bool], object]) -> Leader | None:
    """Who takes part in the election; None: no Lease is named.

    Raises:
        ValueError: `RDZV_LEASE` is not namespace/name.
    """
    place = os.environ.get("RDZV_LEASE")
    if not place:
        return None
    namespace, _, name = place.partition("/")
    if not namespace or not name:
        raise ValueError(f"RDZV_LEASE={place}: namespace/name is wanted")
    pod = os.environ.get("RDZV_POD_NAME", "")
    identity = f"{pod or os.uname().nodename}_{uuid.uuid4().hex[:8]}"
    release = os.environ.get("RDZV_RELEASE", "unknown")
    me = Candidate(identity, release, rdzv.__version__, pod, os.environ.get("RDZV_POD_UID", ""))
    return Leader(Leases.from_environment(), (namespace, name), me, changed)


async def _stand(leader: Leader, complete: asyncio.Event) -> None:
    """Who does not know everything yet is no candidate."""
    await complete.wait()
    leader.start()


async def _keep_certificates(place: Place, leader: Leader | None, metrics: OperatorMetrics) -> None:
    """Of the webhook of this release, which serves while another release leads, too."""
    api = await asyncio.to_thread(Transport.from_environment)
    api.client.meter = metrics.requested
    if leader:
        api.client.fence = leader.fence_of_release
    keeper = WebhookCertificates(api, RootKey(api, os.environ), place)
    while True:
        while leader and not (leader.leads or leader.elsewhere):
            await asyncio.sleep(AWAIT_TURN)
        await asyncio.sleep(await asyncio.to_thread(keeper.look, time.time()))


def _standing(leader: Leader | None) -> str:
    return "" if leader is None or leader.leads else leader.standing


async def _answer_probes(readiness: Callable[[], tuple[int, str]]) -> web.AppRunner | None:
    """Answers `GET /readyz` from now on. kopf's own `/healthz` is always 200, and says only that its loop turns."""
    listen = os.environ.get("RDZV_READINESS_LISTEN")
    if not listen:
        return None

    async def readyz(_: web.Request) -> web.Response:
        status, text = readiness()
        return web.Response(status=status, text=text)

    app = web.Application()
    app.add_routes([web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    await web.TCPSite(runner, host or None, int(port)).start()
    return runner


def _serve_metrics(metrics: OperatorMetrics) -> Callable[[], None]:
    """Returns what ends it."""
    listen = os.environ.get("RDZV_METRICS_LISTEN")
    return serve(metrics.registry, listen) if listen else lambda: None


def configure(settings: kopf.OperatorSettings) -> None:
    """kopf's settings, each with what goes wrong without it (docs/adr/0002-kopf.md)."""
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # else a line for each event of each object
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # and one for each probe
    settings.posting.enabled = False  # our Events say what users need; kopf's say what handlers do
    settings.scanning.disabled = True  # else it needs to watch all CRDs and namespaces
    settings.admission.managed = None  # the chart owns the admission configuration
    settings.peering.standalone = True  # peering is no leader election; ours is `rdzv.control.leader`
    settings.process.ultimate_exiting_timeout = EXIT
    settings.watching.server_timeout = WATCH // 2  # a watch that goes silent is known by its not ending (kopf#957)
    settings.watching.client_timeout = WATCH // 2 + 4  # of the whole request, so that it is also the answer's
    # Not the same: both would run out in one turn of a loop that was late, and kopf ends with a RuntimeError then.
    settings.watching.inactivity_timeout = NEVER
    settings.watching.connect_timeout = 5
    settings.watching.reconnect_backoff = 1
    settings.watching.chunk_size = 500  # else all objects of the cluster arrive in one response (kopf#1311)
    settings.networking.request_timeout = 15
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = Backoffs()
    settings.queueing.idle_timeout = 0.5  # a task, with the object, is kept for so long after each event


def collect_seldom() -> None:
    """Python looks for cycles whenever 700 objects were made. A list of pods is millions, and no cycle: looking costs more than reading."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class Backoffs:
    """Seconds between attempts of a request of kopf's, without end: kopf's own sequence ends after 54 s, and the operator with it."""

    def __iter__(self) -> Iterator[float]:
        """Of one request."""
        return itertools.chain((1.0, 1.0, 2.0, 3.0), (random.uniform(2.5, 5.0) for _ in itertools.count()))  # noqa: S311 - jitter


def namespaces() -> list[str | None]:
    """Those that kopf was told to serve (`--namespace`); [None]: all. kopf itself does not tell its handlers.

    Raises:
        ValueError: a pattern, which would need to watch all namespaces.
    """
    context = click.get_current_context(silent=True)
    given: list[str] = list((context.params if context else {}).get("namespaces") or ())
    for pattern in given:
        if not pattern.replace("-", "").isalnum():
            raise ValueError(f"--namespace {pattern}: name each namespace, patterns are not supported")
    return [*dict.fromkeys(given)] or [None]


async def _fill(api: KubernetesAPI, cache: Cache, feeds: Sequence[Feed], wake: Wake, complete: asyncio.Event) -> None:
    """Passes begin when memory has everything: they would take pods that were not read yet for gone.

    kopf does not say when it has listed the Rendezvous, hence a list of our own.
    """
    for namespace in {feed.namespace for feed in feeds}:
        while True:
            try:
                await asyncio.to_thread(fill, api, cache, RENDEZVOUS, namespace, wake)
                break
            except ApiError as error:
                _log.warning("Rendezvous could not be listed, again in a second: %s", error)
                await asyncio.sleep(1.0)
    while not all(feed.synced.is_set() for feed in feeds):
        await asyncio.sleep(0.05)
    complete.set()


@kopf.on.login()
async def login(settings: kopf.OperatorSettings, memo: kopf.Memo, **kwargs: Any) -> kopf.ConnectionInfo | None:
    """Reads the credentials again every ten minutes, and when the API server has refused them.

    kopf alone reads a token once (kopf#926), ends when the same credentials are refused twice, and asks for others without pause.
    """
    now = time.monotonic()
    memo.login_at = max(now, memo.get("login_at", -math.inf) + LOGIN_SECONDS)
    await asyncio.sleep(memo.login_at - now)
    for way in (kopf.login_with_service_account, kopf.login_with_kubeconfig):
        if info := way(settings=settings, **kwargs):
            # What expires later is not the same to kopf.
            expiration = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=10)
            return replace(info, expiration=expiration)
    return None


@kopf.on.event(GROUP, VERSION, PLURAL)
async def rendezvous_changed(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """A Rendezvous came, changed or went."""
    tell = memo.cache.remove if event["type"] == "DELETED" else memo.cache.put
    for key in tell(RENDEZVOUS, event["object"]):
        memo.queue.add(key)


async def _resync(cache: Cache, queue: WorkQueue[Key]) -> None:
    while True:
        await asyncio.sleep(random.uniform(0.8, 1.2) * RESYNC)  # noqa: S311 - jitter
        for key in await asyncio.to_thread(cache.keys):
            queue.add(key)
