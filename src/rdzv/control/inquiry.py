"""What a pass asks the API server beside what memory has: seldom, little, and only for who waits without a reason.

Events, Jobs and other people's pods are not watched: there are many, and they matter to few Rendezvous. Whoever has waited for a while
causes one list of each kind in its own namespace, which serves all others there, again and again at growing intervals.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rdzv.control.nearby import Found, Warned, Workload, creation_failure, look_around, warnings_of, workload_of
from rdzv.control.phase import deciding_jobs
from rdzv.kube.api import ApiError
from rdzv.objects import Object
from rdzv.observed import Observed
from rdzv.pod_reasons import seconds
from rdzv.spec import Rendezvous

_log = logging.getLogger(__name__)

#: Seconds that a pod may wait without a reason, or a Rendezvous for a pod, until somebody asks; then, twice as far apart each time.
PATIENCE, IDLE = 10.0, 15.0
#: Seconds after the last pod ended until its Job is asked how that has: as a rule it has said so itself by then.
JOB_PATIENCE = 3.0
AGAIN_FIRST, AGAIN_MAX = 10.0, 120.0
#: Seconds for which a list serves all of a namespace.
FRESH = 8.0
#: Requests at once, and a second in the long run, of all Rendezvous together; seconds until who got none asks again.
BURST, RATE, LATER = 50.0, 2.0, 20.0
#: Parts of a list of Events (of 500) that are read, and workloads of a kind.
_PARTS, _WORKLOADS = 4, 200
#: Rendezvous and namespaces that are remembered.
_MOST = 20_000
_NAMESPACES = 100

_JOB = ("batch/v1", "Job")
_KINDS = (_JOB, ("apps/v1", "StatefulSet"), ("apps/v1", "Deployment"))


@dataclass(frozen=True)
class Question:
    """What is to be asked: about Events, about `jobs` too (their UIDs), or (`around`) about the whole neighbourhood.

    `since`: when the last one began to wait, in seconds since the epoch.
    """

    around: bool
    since: float
    jobs: frozenset[str] = frozenset()

    @property
    def due(self) -> float:
        """When it has waited for long enough."""
        return self.since + (JOB_PATIENCE if self.jobs else IDLE if self.around else PATIENCE)


def question(rendezvous: Rendezvous, observed: Observed, now: float) -> Question | None:
    """Who waits, and nobody knows why: a Rendezvous without pods, pods that have ended, that are not made, that don't start."""
    if not observed.pods:
        return Question(around=True, since=seconds(rendezvous.created) or now)
    if jobs := deciding_jobs(observed, rendezvous.nodes):
        ended = max(pod.runs.ended_at or seconds(pod.created) or now for pod in observed.pods)
        return Question(around=False, since=ended, jobs=jobs)
    silent = [seconds(pod.created) or now for pod in observed.candidates if pod.bland]
    if len(observed.candidates) < rendezvous.nodes.min and any(pod.owner for pod in observed.pods):
        silent.append(max((seconds(pod.created) or now for pod in observed.pods), default=now))
    return Question(around=False, since=max(silent)) if silent else None


@dataclass(frozen=True)
class _Asked:
    """What is known of one Rendezvous, what was asked about it and how often, and when it is time again."""

    about: Question
    found: Found
    times: int
    next_at: float


class Inquiry:
    """Thread-safe. Nothing here fails a pass: what can't be read is not known."""

    def __init__(self, read: Callable[..., Sequence[Object]]) -> None:
        """`read` is `Transport.some`."""
        self._read = read
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        # By namespace its lists, each with when it was made.
        self._near: OrderedDict[str, dict[str, tuple[float, Any]]] = OrderedDict()
        self._left, self._at = BURST, float("-inf")

    def about(
        self, rendezvous: Rendezvous, observed: Observed, names: Callable[[], Collection[str]], now: float
    ) -> tuple[Found, float | None]:
        """What is known beside, and after how many seconds to come again (None: there is nothing to ask).

        Args:
            rendezvous: the object.
            observed: its pods.
            names: gives those of all Rendezvous of the namespace.
            now: seconds since the epoch.
        """
        wanted = question(rendezvous, observed, now)
        with self._lock:
            if wanted is None:
                self._asked.pop(rendezvous.uid, None)
                return Found(), None
            asked = _with_news(self._asked.get(rendezvous.uid), wanted)
            self._asked[rendezvous.uid] = asked
            self._asked.move_to_end(rendezvous.uid)
            while len(self._asked) > _MOST:
                self._asked.popitem(last=False)
        if now < asked.next_at:
            return asked.found, asked.next_at - now
        asked = self._ask(rendezvous, observed, names, wanted, asked, now)
        with self._lock:
            self._asked[rendezvous.uid] = asked
        return asked.found, asked.next_at - now

    def _ask(
        self,
        rendezvous: Rendezvous,
        observed: Observed,
        names: Callable[[], Collection[str]],
        wanted: Question,
        asked: _Asked,
        now: float,
    ) -> _Asked:
        wait = min(AGAIN_MAX, AGAIN_FIRST * 2 ** min(asked.times, 10))
        try:
            found = self._find(rendezvous, observed, names, wanted, now)
        except _TooManyError:
            return replace(asked, next_at=now + LATER)
        except ApiError as error:
            _log.info("what is near %s/%s is not known: %s", rendezvous.namespace, rendezvous.name, error)
            found = replace(asked.found, jobs=dict.fromkeys(wanted.jobs))
        return _Asked(wanted, found, asked.times + 1, now + wait)

    def _find(
        self,
        rendezvous: Rendezvous,
        observed: Observed,
        names: Callable[[], Collection[str]],
        wanted: Question,
        now: float,
    ) -> Found:
        if wanted.around:
            return self._look_around(rendezvous, names(), now)
        found = self._events(rendezvous, observed, now)
        if not wanted.jobs:
            return found
        jobs = {job.uid: job for job in self._workloads(rendezvous.namespace, *_JOB, now) if job.uid in wanted.jobs}
        return replace(
            found,
            suspended=next((job.title for job in jobs.values() if job.suspended), ""),
            jobs={uid: jobs[uid].ended if uid in jobs else None for uid in wanted.jobs},
        )

    def _events(self, rendezvous: Rendezvous, observed: Observed, now: float) -> Found:
        warnings = self._warnings(rendezvous.namespace, now)
        concerned = {pod.uid for pod in observed.pods}
        newest = max((seconds(pod.created) or 0.0 for pod in observed.candidates), default=0.0)
        return Found(
            warnings={uid: warned for uid, warned in warnings.items() if uid in concerned},
            not_created=creation_failure({pod.owner for pod in observed.pods} - {""}, warnings, newest),
        )

    def _look_around(self, rendezvous: Rendezvous, names: Collection[str], now: float) -> Found:
        namespace = rendezvous.namespace
        workloads = [workload for kind in _KINDS for workload in self._workloads(namespace, *kind, now)]
        pods = self._listed(namespace, "pods", now, lambda: self._read("v1", "Pod", namespace, metadata_only=True))
        warnings, since = self._warnings(namespace, now), seconds(rendezvous.created) or 0.0
        found = look_around(rendezvous.name, names, pods, workloads, warnings, since)
        return replace(found, warnings={})

    def _warnings(self, namespace: str, now: float) -> Mapping[str, Warned]:
        def read() -> Mapping[str, Warned]:
            events = self._read("v1", "Event", namespace, fields="type=Warning", parts=_PARTS)
            return warnings_of(events)

        found: Mapping[str, Warned] = self._listed(namespace, "events", now, read)
        return found

    def _workloads(self, namespace: str, api_version: str, kind: str, now: float) -> Sequence[Workload]:
        def read() -> Sequence[Workload]:
            objects: Sequence[Object] = self._read(api_version, kind, namespace, limit=_WORKLOADS)
            return [workload_of(obj, kind) for obj in objects]

        found: Sequence[Workload] = self._listed(namespace, kind, now, read)
        return found

    def _listed(self, namespace: str, what: str, now: float, read: Callable[[], Any]) -> Any:
        """A list that is fresh, or was made just now."""
        with self._lock:
            near = self._near.setdefault(namespace, {})
            self._near.move_to_end(namespace)
            while len(self._near) > _NAMESPACES:
                self._near.popitem(last=False)
            at, known = near.get(what, (float("-inf"), None))
            if 0 <= now - at < FRESH:
                return known
            self._left = min(BURST, self._left + max(0.0, now - self._at) * RATE)
            self._at = now
            if self._left < 1:
                raise _TooManyError
            self._left -= 1
        found = read()
        with self._lock:
            near[what] = now, found
        return found


def _with_news(asked: _Asked | None, wanted: Question) -> _Asked:
    """Whoever begins to wait is not made to wait for the turn of those who have waited for long."""
    if asked is None or (asked.about.around, asked.about.jobs) != (wanted.around, wanted.jobs):
        return _Asked(wanted, Found(), 0, wanted.due)
    if asked.about != wanted:
        return _Asked(wanted, asked.found, 0, min(asked.next_at, wanted.due))
    return asked


class _TooManyError(Exception):
    """The API server is asked enough already."""
