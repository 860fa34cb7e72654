"""How memory is filled: a watch for each kind, and a comparison with what the API server has, for what a watch has lost.

kopf watches the Rendezvous. The other kinds have watches of their own, which need a twentieth of kopf's memory and processor time for each
object (docs/adr/0002-kopf.md).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from rdzv.control.cache import Cache, Id, Key, Kind, Version, id_of, version_of
from rdzv.control.transport import Transport
from rdzv.kube.api import ApiError
from rdzv.objects import Object, ReadOnlyObject

_log = logging.getLogger(__name__)

#: Seconds. A watch ends by itself after so long and goes on where it was. One that has gone silent (a load balancer, a network that
#: swallows packets) is known by its not ending.
WATCH = 20
#: Seconds from one comparison of everything to the next, of which the lists are spread over so many: with `managedFields` the metadata of
#: a pod has 4 kB. A change that no watch told of is seen after both and `SETTLE` at the latest.
COMPARE, SPREAD = 30.0, 20.0
#: Seconds that a watch has to deliver what a list shows already.
SETTLE = 3.0
#: Seconds between attempts when the API server is away or refuses.
BACKOFF_FIRST, BACKOFF_MAX = 0.5, 5.0

Wake = Callable[[Iterable[Key]], None]


class Feed(threading.Thread):
    """Keeps one kind in memory, in one namespace or (None) in all: lists it, then follows its watch. Never gives up."""

    def __init__(self, api: Transport, cache: Cache, kind: Kind, namespace: str | None, wake: Wake) -> None:
        super().__init__(name=f"feed of {kind.kind} in {namespace or 'all namespaces'}", daemon=True)
        self.kind, self.namespace = kind, namespace
        self.synced = threading.Event()
        """Memory has all that there was when it was first listed."""
        self._api, self._cache, self._wake = api, cache, wake
        self._ended = threading.Event()

    def end(self) -> None:
        """Within `WATCH` seconds."""
        self._ended.set()

    def run(self) -> None:
        """The thread's life."""
        version, failures = "", 0
        while not self._ended.is_set():
            try:
                version = version or self._list()
                for event in self._api.watch(self.kind, self.namespace, version, random.uniform(0.75, 1.0) * WATCH):  # noqa: S311 - jitter
                    version = self._take(event) or version
                    failures = 0
                failures = 0
            except ApiError as error:
                if error.code == 410 or "Too large resource version" in str(error):
                    version = ""
                    if error.code != 410:
                        self._cache.distrust(self.kind, self.namespace)
                if error.code == 404:
                    # Its CRD is not installed: the backends that need none of it are served all the same.
                    version = ""
                    self.synced.set()
                delay = min(BACKOFF_MAX, BACKOFF_FIRST * 2**failures)
                failures = min(failures + 1, 10)
                level = logging.INFO if failures == 1 else logging.WARNING
                _log.log(level, "%s: again in %.1f s: %s", self.name, delay, error)
                self._ended.wait(random.uniform(delay / 2, delay))  # noqa: S311 - jitter
            except Exception:  # noqa: BLE001
                # Whatever one object holds must not end the watch on all of them. What it was is found by the list.
                _log.exception("%s: starts again", self.name)
                version = ""
                self._ended.wait(BACKOFF_MAX)

    def _take(self, event: ReadOnlyObject) -> str:
        obj = event["object"]
        if event["type"] in {"ADDED", "MODIFIED"}:
            self._wake(self._cache.put(self.kind, obj))
        elif event["type"] == "DELETED":
            self._wake(self._cache.remove(self.kind, obj))
        return str(obj["metadata"].get("resourceVersion", ""))

    def _list(self) -> str:
        version = fill(self._api, self._cache, self.kind, self.namespace, self._wake)
        self.synced.set()
        return version


def fill(api: Transport, cache: Cache, kind: Kind, namespace: str | None, wake: Wake) -> str:
    """Makes memory what a list of now says; returns its resourceVersion."""
    before, version = cache.versions(kind, namespace), ""
    for page in _ahead(api.pages(kind, namespace)):
        version = str(page["metadata"]["resourceVersion"])
        concerned: set[Key] = set()
        for obj in page["items"]:
            before.pop(id_of(obj), None)
            concerned |= cache.put(kind, obj)
        wake(concerned)
    for id_, known in before.items():
        wake(cache.forget(kind, id_, known))
    return version


def _ahead(pages: Iterator[Object]) -> Iterator[Object]:
    """The same, each asked for while the one before it goes into memory: the API server needs as long to write one as we to read it."""
    with ThreadPoolExecutor(1, "list") as executor:
        coming = executor.submit(next, pages, None)
        while (page := coming.result()) is not None:
            coming = executor.submit(next, pages, None)
            yield page


@dataclass(frozen=True)
class _Doubt:
    """What a list knows and memory does not: lost by the watch if that has not delivered it by `settled`, on the monotonic clock."""

    kind: Kind
    namespace: str | None
    differing: Mapping[Id, Version | None]
    settled: float


class Comparison(threading.Thread):
    """Compares memory with what the API server has, again and again, and reads what differs.

    Watches lose changes: kopf does not tell of deletions that happened while it was cut off, and an API server may lose events. Only
    UIDs and versions are listed, so in quiet it costs one small request for each 500 objects.
    """

    def __init__(self, api: Transport, cache: Cache, scopes: Sequence[tuple[Kind, str | None]], wake: Wake) -> None:
        super().__init__(name="comparison", daemon=True)
        self._api, self._cache, self._scopes, self._wake = api, cache, scopes, wake
        self._ended = threading.Event()

    def end(self) -> None:
        """Soon."""
        self._ended.set()

    def run(self) -> None:
        """The thread's life."""
        wait, pages = COMPARE, len(self._scopes)
        while not self._ended.wait(random.uniform(0.9, 1.0) * wait):  # noqa: S311 - jitter
            began = time.monotonic()
            # One in an outage has counted nothing: spread over that, the next would take minutes.
            pages = self.compare(SPREAD / pages) or pages
            wait = max(1.0, COMPARE - (time.monotonic() - began))

    def compare(self, pause: float) -> int:
        """Everything once, with so many seconds between the parts of the lists.

        Returns how many there were; 0: not all could be read.
        """
        parts, doubts = list[int](), list[_Doubt]()
        for kind, namespace in self._scopes:
            if self._ended.is_set():
                return 0
            with self._going_on(kind):
                count, differing = self._list(kind, namespace, pause)
                parts.append(count)
                doubts += [_Doubt(kind, namespace, differing, time.monotonic() + SETTLE)] if differing else []
            while doubts and doubts[0].settled <= time.monotonic():
                self._settle(doubts.pop(0))
        # One wait for all: with one for each kind, what all watches had lost was found after more than a minute.
        if doubts:
            self._ended.wait(max(0.0, doubts[-1].settled - time.monotonic()))
        for doubt in doubts:
            self._settle(doubt)
        return sum(parts) if len(parts) == len(self._scopes) else 0

    @contextmanager
    def _going_on(self, kind: Kind) -> Iterator[None]:
        """Whatever becomes of one kind, the next one may go well."""
        try:
            yield
        except ApiError as error:
            _log.info("%s could not be compared: %s", kind.kind, error)
        except Exception:  # noqa: BLE001
            _log.exception("%s could not be compared", kind.kind)

    def _list(self, kind: Kind, namespace: str | None, pause: float) -> tuple[int, dict[Id, Version | None]]:
        """How many parts the list had, and what differs from it, with the version that is known."""
        listed: dict[Id, Version] = {}
        at = pages = 0
        for page in self._api.pages(kind, namespace, metadata_only=True):
            listed |= {id_of(obj): version_of(obj) for obj in page["items"]}
            at = version_of(page).number
            pages += 1
            self._ended.wait(pause)
        return pages, self._cache.differing(kind, namespace, listed, at)

    def _settle(self, doubt: _Doubt) -> None:
        """Reads what its watch has not delivered meanwhile."""
        kind, differing = doubt.kind, doubt.differing
        with self._going_on(kind):
            known = self._cache.versions(kind, doubt.namespace)
            missed = [id_ for id_, version in differing.items() if known.get(id_) == version]
            if missed:
                _log.warning(
                    "%d changes of kind %s were lost by its watch, %s the first", len(missed), kind.kind, missed[0]
                )
            for id_ in missed:
                self._read(kind, id_, differing[id_])

    def _read(self, kind: Kind, id_: Id, known: Version | None) -> None:
        found = self._api.find(kind, *id_)
        if found is not None:
            self._wake(self._cache.put(kind, found))
        elif known is not None:
            self._wake(self._cache.forget(kind, id_, known))
