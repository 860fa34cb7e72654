"""How long a watch waits before it opens its stream again: without a server."""

from __future__ import annotations

import itertools

import pytest
from support.scripted_api import Answer, ScriptedApi

from rdzv.kube.api import ApiError, Resource
from rdzv.kube.retry import BASE, CAP, Retry
from rdzv.kube.watch import Watch

MEMBERS = Resource("rdzv.dev/v1alpha1", "rendezvousmembers")


def test_a_server_that_is_back_and_busy_is_asked_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    api = ScriptedApi()
    watch = Watch(api.client(), MEMBERS, "train", name="a")
    pauses: list[float] = []

    def sleep(_self: Retry, seconds: float, _error: ApiError) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            api.down = False
            api.inject(Answer(code=429), "WATCH", MEMBERS.plural, times=3)
        if len(pauses) == 8:
            watch.close()

    monkeypatch.setattr(Retry, "sleep", sleep)
    monkeypatch.setattr("rdzv.kube.retry.random.uniform", lambda _least, most: most)
    api.down = True
    assert list(itertools.islice(watch.events(), 100)) == []
    longest = [BASE * 3, BASE * 9, BASE * 27, CAP, CAP]
    assert pauses == pytest.approx([*longest, BASE * 3, BASE * 9, BASE * 27])  # Busy for long: longer, as before.
