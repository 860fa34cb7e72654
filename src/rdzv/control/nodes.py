"""Reads labels of nodes, one node at a time, for those Rendezvous whose ranks follow them and no other.

Nodes are not watched: there are many, they change every few seconds, and their labels seldom do.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from rdzv.kube.api import ApiError
from rdzv.topology import NodeLabels

_log = logging.getLogger(__name__)

#: Seconds for which what was read of a node holds; until nodes that could not be read are asked for again; and until those are that
#: had to wait, as a pass reads so many at most.
FRESH, AGAIN, LATER = 60.0, 30.0, 0.2
AT_ONCE = 200
#: Nodes that are remembered, each with the keys that were asked for.
_MOST = 20_000

NO_RIGHT = "the operator may not read nodes: set topology.enabled in the chart's values, or remove spec.ranks"


class Nodes:
    """Thread-safe. Nothing here fails a pass: what can't be read is not known, and ranks follow what is."""

    def __init__(self, read: Callable[[str], Mapping[str, str] | None]) -> None:
        """`read` is `Transport.node_labels`."""
        self._read = read
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, tuple[str, ...]], tuple[float, tuple[str, ...] | None]] = OrderedDict()
        self._refused_at, self._why = float("-inf"), ""

    def labels(self, names: Sequence[str], keys: tuple[str, ...], now: float) -> tuple[NodeLabels, float | None]:
        """What the labels `keys` of these nodes say, and after how many seconds to come again (None: there is nothing to read).

        Args:
            names: of nodes.
            keys: of labels; none: nothing is read.
            now: seconds since the epoch.
        """
        if not keys:
            return NodeLabels(), None
        wanted = sorted({name for name in names if name})
        stale = [name for name in wanted if not self._is_fresh((name, keys), now)]
        why = self._read_all(stale[:AT_ONCE], keys, now)
        with self._lock:
            found = {name: self._known[name, keys][1] for name in wanted if (name, keys) in self._known}
        values = {name: value for name, value in found.items() if value is not None}
        later = LATER if stale[AT_ONCE:] and not why else AGAIN if len(values) < len(wanted) else None
        return NodeLabels(values, why), later

    def _is_fresh(self, entry: tuple[str, tuple[str, ...]], now: float) -> bool:
        with self._lock:
            return entry in self._known and 0 <= now - self._known[entry][0] < FRESH

    def _read_all(self, names: Sequence[str], keys: tuple[str, ...], now: float) -> str:
        """Reads these nodes; returns why that could not be done, for all that are left. Nobody is asked again at once who refused."""
        if not names:
            return ""
        with self._lock:
            if 0 <= now - self._refused_at < AGAIN:
                return self._why
        for name in names:
            try:
                labels = self._read(name)
            except (ApiError, ValueError) as error:
                why = NO_RIGHT if isinstance(error, ApiError) and error.code == 403 else str(error)
                _log.info("the labels of node %.253s could not be read: %s", name, error)
                with self._lock:
                    self._refused_at, self._why = now, why
                return why
            with self._lock:
                self._known[name, keys] = (now, None if labels is None else tuple(labels.get(key, "") for key in keys))
                self._known.move_to_end((name, keys))
                while len(self._known) > _MOST:
                    self._known.popitem(last=False)
        return ""
