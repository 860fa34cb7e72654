"""What is measured of the operator and of the webhook, for Prometheus (docs/operations/monitoring.md).

Both count in registries of their own. What is known of Rendezvous is put together when somebody asks, from what passes told last, so that
nothing is left of one that is gone. Labels have few values, but for the series of single Rendezvous, which have a limit.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rdzv.control.cache import Key
from rdzv.kube.api import ApiError
from rdzv.protocol import reforms

#: How a pass ends: it is through, the API server refused something or was not reached, or it is a mistake of ours.
DONE, REFUSED, CRASHED = "done", "refused", "crashed"
OUTCOMES = (DONE, REFUSED, CRASHED)
#: First words of a status' summary (`rdzv.control.phase`).
FORMING, RUNNING, DEGRADED = "Forming", "Running", "Degraded"
PHASES = ("Waiting", "Suspended", FORMING, RUNNING, DEGRADED, "Succeeded", "Failed")
OTHER_PHASE = "other"
#: A world that forms may have a problem meanwhile. One that has a problem while it runs does not form.
_ON_THE_WAY = (FORMING, DEGRADED)
#: How a review ends: the pod is let through; it was no review of a pod's creation; not read, or not its turn, in time; our mistake.
ALLOWED, MALFORMED, LATE, BUSY, ERROR = "allowed", "malformed", "late", "busy", "error"
RESULTS = (ALLOWED, MALFORMED, LATE, BUSY, ERROR)
#: The code of a request that was not answered.
UNANSWERED = "none"

_PASS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_FORM_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_REVIEW_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

#: Seconds that somebody who has connected may be silent: each connection has a thread.
READ_SECONDS = 10.0


@dataclass(frozen=True)
class Told:
    """What the last pass over a Rendezvous put into its status."""

    phase: str
    expected: int
    joined: int
    run_id: str
    round: int
    formed_for: str = reforms.OTHER

    @classmethod
    def by(cls, status: Mapping[str, Any], formed_for: str = "") -> Told:
        """Of a status that a pass has computed. `formed_for`: by the backend, which may be anybody's."""
        word = str(status.get("summary", "")).partition(" ")[0].rstrip(":")
        nodes = status.get("nodes") or {}
        return cls(
            phase=word if word in PHASES else OTHER_PHASE,
            expected=nodes.get("expected", 0),
            joined=nodes.get("joined", 0),
            run_id=status.get("runID", ""),
            round=status.get("round", 0),
            formed_for=formed_for if formed_for in reforms.KINDS else reforms.OTHER,
        )


@dataclass(frozen=True)
class Readings:
    """What is read off the process when somebody asks; called in the thread that answers."""

    leads: Callable[[], bool] = lambda: False
    ready: Callable[[], bool] = lambda: False
    waiting: Callable[[], tuple[int, float]] = lambda: (0, 0.0)
    """How many passes wait for their turn, and for how many seconds the first of them has."""


class OperatorMetrics:
    """Of the operator. Thread-safe."""

    def __init__(self, limit: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit`: of how many Rendezvous there are series of their own."""
        self._clock = clock
        self.registry = CollectorRegistry()
        self._passes = Histogram(
            "rdzv_pass_seconds",
            "Duration of passes over one Rendezvous, by how they ended.",
            ["outcome"],
            buckets=_PASS_BUCKETS,
            registry=self.registry,
        )
        self._requests = Counter(
            "rdzv_api_requests",
            "Requests to the API server by verb and HTTP status (none: not answered). kopf's own watch of Rendezvous is not among them.",
            ["verb", "code"],
            registry=self.registry,
        )
        self._rounds = Counter(
            "rdzv_rounds",
            "Rounds that the operator saw begin after the first that it knew of a run, which means: worlds formed anew, by what for.",
            ["reason"],
            registry=self.registry,
        )
        self._forming = Histogram(
            "rdzv_time_to_form_seconds",
            "From the moment that a world was seen to form until it was whole, at first and again.",
            buckets=_FORM_BUCKETS,
            registry=self.registry,
        )
        for outcome in OUTCOMES:
            self._passes.labels(outcome)
        for reason in reforms.KINDS:
            self._rounds.labels(reason)
        self._world = _World(limit)
        self.registry.register(self._world)

    @property
    def readings(self) -> Readings:
        """Of the process: to be set when there is something to read."""
        return self._world.readings

    @readings.setter
    def readings(self, readings: Readings) -> None:
        self._world.readings = readings

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Around a pass."""
        began, outcome = time.monotonic(), CRASHED
        try:
            yield
            outcome = DONE
        except ApiError:
            outcome = REFUSED
            raise
        finally:
            self._passes.labels(outcome).observe(time.monotonic() - began)

    def requested(self, verb: str, code: int) -> None:
        """A request has ended; `code` 0: without an answer."""
        self._requests.labels(verb, str(code) if code else UNANSWERED).inc()

    def tell(self, key: Key, status: Mapping[str, Any] | None, formed_for: str = "") -> None:
        """The status that a pass has left; None: there is no such Rendezvous, or it is another operator's.

        Counts for nothing when this process does not lead any more: a pass may end after that, and the one that does tells of it.

        Args:
            key: of the Rendezvous.
            status: its status.
            formed_for: what its latest round was formed for.
        """
        if not self.readings.leads():
            return
        told = None if status is None else Told.by(status, formed_for)
        news = self._world.tell(key, told, self._clock())
        if told is not None and news.rounds:
            # Of those before the last nobody has seen what they were for.
            self._rounds.labels(told.formed_for).inc()
            self._rounds.labels(reforms.OTHER).inc(news.rounds - 1)
        if news.formed_after is not None:
            self._forming.observe(news.formed_after)

    def forget(self) -> None:
        """This process does not lead any more."""
        self._world.forget()


@dataclass(frozen=True)
class _News:
    """What has happened since the same run was told of: rounds that began; seconds from forming to being whole, if that is now."""

    rounds: int = 0
    formed_after: float | None = None


class _World(Collector):
    """All Rendezvous, as passes left them, and the readings."""

    def __init__(self, limit: int) -> None:
        self._limit, self.readings = limit, Readings()
        self._lock = threading.Lock()
        self._told: dict[Key, Told] = {}
        self._forming: dict[Key, float] = {}
        """Those that form, and since when (of any clock that goes forward)."""

    def tell(self, key: Key, told: Told | None, now: float) -> _News:
        with self._lock:
            before = self._told.pop(key, None)
            since = self._forming.pop(key, None)
            if told is None:
                return _News()
            self._told[key] = told
            if before is None or before.run_id != told.run_id:
                before, since = None, None
            if told.phase in _ON_THE_WAY and (since is not None or told.phase == FORMING):
                self._forming[key] = now if since is None else since
        rounds = max(0, told.round - before.round) if before is not None and before.round else 0
        return _News(rounds, now - since if since is not None and told.phase == RUNNING else None)

    def forget(self) -> None:
        with self._lock:
            self._told.clear()
            self._forming.clear()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called for each answer."""
        with self._lock:
            told = dict(self._told)
        yield from _process(self.readings)
        yield from _totals(told)
        yield from _singles(told, self._limit)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Names for the registry, which refuses two families of one name."""
        return self.collect()


def _process(readings: Readings) -> Iterator[GaugeMetricFamily]:
    count, oldest = readings.waiting()
    yield GaugeMetricFamily("rdzv_leads", "1: this process writes. 0: it stands by.", float(readings.leads()))
    yield GaugeMetricFamily("rdzv_ready", "1: this process serves, or could.", float(readings.ready()))
    yield GaugeMetricFamily("rdzv_queue_depth", "Passes that wait for their turn.", count)
    yield GaugeMetricFamily("rdzv_queue_oldest_seconds", "For how long the first of them has waited.", oldest)


def _totals(told: Mapping[Key, Told]) -> Iterator[GaugeMetricFamily]:
    phases = Tally(each.phase for each in told.values())
    family = GaugeMetricFamily("rdzv_rendezvous", "Rendezvous by the first word of their status.", labels=["phase"])
    for phase in (*PHASES, OTHER_PHASE):
        family.add_metric([phase], phases[phase])
    yield family
    expected, joined = sum(each.expected for each in told.values()), sum(each.joined for each in told.values())
    yield GaugeMetricFamily("rdzv_nodes_expected", "Nodes that all worlds should have now.", expected)
    yield GaugeMetricFamily("rdzv_nodes_joined", "Nodes that are there.", joined)


def _singles(told: Mapping[Key, Told], limit: int) -> Iterator[GaugeMetricFamily]:
    """Of the first in the order of names, so that they are the same ones every time."""
    labels = ["rendezvous_namespace", "rendezvous"]
    expected = GaugeMetricFamily(
        "rdzv_rendezvous_nodes_expected", "Nodes that its world should have now.", labels=labels
    )
    joined = GaugeMetricFamily("rdzv_rendezvous_nodes_joined", "Nodes of its world that are there.", labels=labels)
    rounds = GaugeMetricFamily(
        "rdzv_rendezvous_round", "Number of its round, where the operator sees it.", labels=labels
    )
    for key in sorted(told)[:limit]:
        expected.add_metric(key, told[key].expected)
        joined.add_metric(key, told[key].joined)
        rounds.add_metric(key, told[key].round)
    yield from (expected, joined, rounds)


class WebhookMetrics:
    """Of the webhook."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._reviews = Histogram(
            "rdzv_admission_seconds",
            "Duration of reviews of pods, by how they ended.",
            ["result"],
            buckets=_REVIEW_BUCKETS,
            registry=self.registry,
        )
        self._expires = Gauge(
            "rdzv_webhook_certificate_expires_timestamp_seconds",
            "Until when the certificate in use is good, in seconds since the epoch.",
            registry=self.registry,
        )
        for result in RESULTS:
            self._reviews.labels(result)

    def certified(self, until: float) -> None:
        """A certificate is in use from now on that is good until then (seconds since the epoch)."""
        self._expires.set(until)

    def reviewed(self, result: str, seconds: float) -> None:
        """A review has ended."""
        self._reviews.labels(result).observe(seconds)


def serve(registry: CollectorRegistry, listen: str) -> Callable[[], None]:
    """Answers `GET /metrics` on `listen` (address:port) in threads of its own, so also while all else is stuck. Returns what ends it.

    Raises:
        OSError: it can't listen there.
        ValueError: `listen` has no port.
    """
    host, _, port = listen.rpartition(":")
    server, thread = start_http_server(int(port), host or "0.0.0.0", registry)  # noqa: S104 - of a pod
    cast("type[WSGIRequestHandler]", server.RequestHandlerClass).timeout = READ_SECONDS

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
