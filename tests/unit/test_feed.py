"""How memory is filled from a list that comes part by part."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rdzv.control.cache import CHILDREN, Cache, Kind
from rdzv.control.feed import fill
from rdzv.kube.api import ApiError

CONFIG_MAPS = next(kind for kind in CHILDREN if kind.kind == "ConfigMap")


def config_map(number: int) -> dict[str, Any]:
    labels = {"rdzv.dev/rendezvous": f"world-{number}"}
    meta = {
        "name": f"c{number}",
        "namespace": "ns",
        "uid": f"uid-{number}",
        "resourceVersion": str(number + 1),
        "labels": labels,
    }
    return {"kind": "ConfigMap", "metadata": meta}


class Parts:
    """A list in parts of one object each. `asked`: how many parts were."""

    def __init__(self, count: int, ends_with: ApiError | None = None) -> None:
        self.asked = threading.Semaphore(0)
        self._count, self._ends_with = count, ends_with

    def pages(self, kind: Kind, namespace: str | None) -> Iterator[dict[str, Any]]:
        for number in range(self._count):
            self.asked.release()
            yield {"metadata": {"resourceVersion": "9"}, "items": [config_map(number)]}
        if self._ends_with is not None:
            raise self._ends_with


def test_the_next_part_is_asked_for_while_one_goes_into_memory() -> None:
    api, cache = Parts(2), Cache()
    woken: list[object] = []

    def wake(keys: Any) -> None:
        if not woken:
            assert api.asked.acquire(timeout=10)
            assert api.asked.acquire(timeout=10), "the second part was not asked for before the first one was taken"
        woken.extend(keys)

    assert fill(api, cache, CONFIG_MAPS, None, wake) == "9"  # type: ignore[arg-type]
    assert woken == [("ns", "world-0"), ("ns", "world-1")]
    assert len(cache.versions(CONFIG_MAPS, None)) == 2


def test_a_list_that_breaks_off_is_an_error_and_what_came_before_is_in_memory() -> None:
    cache = Cache()
    with pytest.raises(ApiError, match="too old"):
        fill(Parts(3, ApiError(None, "too old", code=410)), cache, CONFIG_MAPS, None, lambda _: None)  # type: ignore[arg-type]
    assert len(cache.versions(CONFIG_MAPS, None)) == 3
