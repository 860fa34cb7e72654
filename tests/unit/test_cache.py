"""Memory ends in the truth, whatever its watches tell, lose or repeat."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import pod_object

from rdzv.control import feed
from rdzv.control.cache import CHILDREN, MEMBERS, PODS, RENDEZVOUS, Cache, Key, Kind, View, id_of
from rdzv.control.feed import Comparison, fill
from rdzv.kube.api import ApiError
from rdzv.protocol.records import Member
from rdzv.spec import LABEL

Object = dict[str, Any]

NAMES, WORLDS = ("a", "b", "c"), ("mnist", "bert", "")


class Truth:
    """What the API server has of the pods of one namespace, the events that it sent of them, and every state that there was."""

    def __init__(self) -> None:
        self.version = 0
        self.objects: dict[str, Object] = {}
        self.stream: list[tuple[str, Object]] = []
        self.past: list[Object] = []
        self.away = False

    def set(self, name: str, world: str, phase: str) -> None:
        obj = pod_object(name, phase=phase, labels={LABEL: world})
        before = self.objects.get(name)
        obj["metadata"]["uid"] = before["metadata"]["uid"] if before else f"uid-{self.version}"
        self._record("MODIFIED" if before else "ADDED", obj)
        self.objects[name] = obj

    def delete(self, name: str) -> None:
        if name in self.objects:
            self._record("DELETED", copy.deepcopy(self.objects.pop(name)))

    def _record(self, event: str, obj: Object) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.stream.append((event, obj))
        self.past.append(obj)

    # What a comparison and a list ask of the API.

    def pages(self, _kind: Kind, _namespace: str | None, **_: Any) -> Iterator[Object]:
        if self.away:
            raise ApiError(None, "nobody answers")
        items = list(self.objects.values())
        for page in (items[:2], items[2:]):
            yield {"metadata": {"resourceVersion": str(self.version)}, "items": page}

    def find(self, _kind: Kind, _namespace: str, name: str) -> Object | None:
        return self.objects.get(name)


STEPS = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(NAMES), st.sampled_from(WORLDS), st.sampled_from(["Pending", "Running"])),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
    st.tuples(st.sampled_from(["deliver", "lose", "list", "compare"])),
    st.tuples(st.just("late"), st.integers(0, 30)),
)


class Lab:
    """Memory beside the truth; every change of a view must come with its key."""

    def __init__(self) -> None:
        self.truth, self.cache = Truth(), Cache()
        self.woken: set[Key] = set()
        self.comparison = Comparison(self.truth, self.cache, [(PODS, None)], self.woken.update)  # type: ignore[arg-type]

    def views(self) -> dict[str, View]:
        return {world: self.cache.view(("team", world)) for world in WORLDS}

    def step(self, what: str, *how: Any) -> None:
        before = self.views()
        self.woken.clear()
        match what:
            case "set":
                self.truth.set(*how)
            case "delete":
                self.truth.delete(*how)
            case "late" if self.truth.past:
                self.woken |= self.cache.put(PODS, self.truth.past[how[0] % len(self.truth.past)])
            case "deliver" if self.truth.stream:
                event, obj = self.truth.stream.pop(0)
                self.woken |= (self.cache.remove if event == "DELETED" else self.cache.put)(PODS, obj)
            case "lose" if self.truth.stream:
                self.truth.stream.pop(0)
            case "list":
                fill(self.truth, self.cache, PODS, None, self.woken.update)  # type: ignore[arg-type]
                self.truth.stream.clear()
            case "compare":
                self.comparison.compare(0.0)
        changed = {("team", world) for world, view in self.views().items() if view != before[world]}
        assert changed <= self.woken

    def is_true(self) -> bool:
        fresh = Cache()
        for obj in self.truth.objects.values():
            fresh.put(PODS, obj)
        return (
            self.views() == {world: fresh.view(("team", world)) for world in WORLDS}
            and self.cache.versions(PODS, None) == fresh.versions(PODS, None)
            and set(self.cache.keys()) == set(fresh.keys())
        )


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "SETTLE", 0.0)


class Waits(threading.Event):
    """Writes down for how long somebody would have waited for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


def test_what_every_watch_has_lost_is_found_after_one_wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "SETTLE", 3.0)
    lab, waits = Lab(), Waits()
    lab.truth.set(NAMES[0], WORLDS[0], "Running")
    lab.comparison = Comparison(lab.truth, lab.cache, [(PODS, None)] * 5, lab.woken.update)  # type: ignore[arg-type]
    monkeypatch.setattr(lab.comparison, "_ended", waits)
    lab.comparison.compare(0.0)
    assert lab.is_true()
    assert 2.0 < sum(waits.seconds) <= 3.0


class Turns(Waits):
    """Writes down how long each comparison waits; during the second one the API server is away. Ends after the third."""

    def __init__(self, truth: Truth) -> None:
        super().__init__()
        self.turns: list[float] = []
        self._truth = truth

    def wait(self, timeout: float | None = None) -> bool:
        if (timeout or 0.0) < 0.9 * feed.COMPARE:
            self.turns[-1] += timeout or 0.0
            return False
        self.turns.append(0.0)
        self._truth.away = len(self.turns) == 2
        return len(self.turns) > 3


def test_after_an_outage_the_next_comparison_takes_no_longer_than_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no list to spread it over, the whole time would be waited after each part of the next: minutes, for eleven kinds."""
    lab = Lab()
    lab.comparison = Comparison(lab.truth, lab.cache, [(PODS, None)] * 5, lab.woken.update)  # type: ignore[arg-type]
    turns = Turns(lab.truth)
    monkeypatch.setattr(lab.comparison, "_ended", turns)
    lab.comparison.run()
    first, away, after, _ = turns.turns
    # Each of the five lists has two parts, which is known after the first comparison.
    assert (first, away, after) == (2 * feed.SPREAD, 0.0, feed.SPREAD)


@given(st.lists(STEPS, max_size=30))
@settings(max_examples=200, deadline=None)
def test_after_a_comparison_memory_is_true_whatever_was_lost(steps: list[tuple[Any, ...]]) -> None:
    lab = Lab()
    for step in steps:
        lab.step(*step)
    lab.step("compare")
    assert lab.is_true()


@given(st.lists(STEPS, max_size=30))
@settings(max_examples=200, deadline=None)
def test_a_watch_that_loses_nothing_needs_no_comparison_and_late_replies_do_no_harm(
    steps: list[tuple[Any, ...]],
) -> None:
    lab = Lab()
    for step in steps:
        if step[0] in {"set", "delete", "deliver"}:
            lab.step(*step)
    while lab.truth.stream:
        lab.step("deliver")
    for number in range(len(lab.truth.past)):
        lab.step("late", number)
    assert lab.is_true()


def put(cache: Cache, obj: Object, version: int, kind: Kind = PODS) -> set[Key]:
    obj = copy.deepcopy(obj)
    obj["metadata"]["resourceVersion"] = str(version)
    return cache.put(kind, obj)


def test_a_relabelled_pod_concerns_both_its_old_and_its_new_rendezvous() -> None:
    cache = Cache()
    put(cache, pod_object("a"), 1)
    assert put(cache, pod_object("a", labels={LABEL: "bert"}), 2) == {("team", "mnist"), ("team", "bert")}
    assert cache.view(("team", "mnist")).observed.pods == []


def test_what_no_decision_rests_on_leads_to_no_pass() -> None:
    cache = Cache()
    put(cache, pod_object("a"), 1)
    assert put(cache, pod_object("a", annotations={"seen": "2"}), 2) == set()
    assert put(cache, pod_object("a", ip="10.1.2.4"), 3) == {("team", "mnist")}


def test_of_labels_that_name_nobody_nothing_is_left_when_their_pods_are_gone() -> None:
    cache = Cache()
    for number in range(50):
        put(cache, pod_object("a", labels={LABEL: f"nobody-{number}"}), number + 1)
    assert cache.keys() == [("team", "nobody-49")]
    obj = pod_object("a", labels={LABEL: "nobody-49"})
    obj["metadata"]["resourceVersion"] = "51"
    cache.remove(PODS, obj)
    assert cache.keys() == []


@pytest.mark.parametrize("label", ["", None])
def test_an_empty_label_names_nobody(label: str | None) -> None:
    obj = pod_object("a", labels={LABEL: label} if label is not None else {})
    if label is None:
        del obj["metadata"]["labels"][LABEL]
    assert put(Cache(), obj, 1) == set()


def test_a_record_that_is_not_as_it_should_be_is_left_aside_and_its_last_good_state_with_it() -> None:
    cache = Cache()
    member = Member("a", "mnist", "uid-1", "uid-of-a/1", "10.0.0.1", 29400, 1)
    good = member.to_object("team")
    assert put(cache, good, 1, MEMBERS) == {("team", "mnist")}
    bad = copy.deepcopy(good)
    bad["spec"]["port"] = "a string"
    assert put(cache, bad, 2, MEMBERS) == {("team", "mnist")}
    assert cache.view(("team", "mnist")).observed.members == []
    assert put(cache, good, 3, MEMBERS) == {("team", "mnist")}


def test_a_child_concerns_its_owner_and_whom_it_names_and_is_seen_with_its_kind() -> None:
    cache = Cache()
    owner = {"apiVersion": "rdzv.dev/v1alpha1", "kind": "Rendezvous", "name": "mnist", "uid": "uid-1"}
    child = {
        "metadata": {
            "name": "rdzv-mnist",
            "namespace": "team",
            "labels": {LABEL: "bert"},
            "ownerReferences": [owner],
            "managedFields": [{"manager": "somebody"}],
        },
        "data": {"a": "b"},
    }
    config_map = CHILDREN[0]
    assert put(cache, child, 1, config_map) == {("team", "mnist"), ("team", "bert")}
    (seen,) = cache.view(("team", "mnist")).observed.children
    assert (seen["kind"], seen["data"]) == ("ConfigMap", {"a": "b"})
    assert "managedFields" not in seen["metadata"]


def rendezvous(version: int, generation: int = 1, **status: Any) -> Object:
    metadata = {"name": "mnist", "namespace": "team", "uid": "uid-1", "generation": generation}
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "Rendezvous",
        "metadata": {**metadata, "resourceVersion": str(version)},
        "spec": {"backend": "c10d"},
        "status": status,
    }


def test_our_own_status_leads_to_no_pass_but_a_spec_changed_just_before_does() -> None:
    cache = Cache()
    cache.put(RENDEZVOUS, rendezvous(1))
    assert cache.learn(rendezvous(2, round=1)) == set()
    assert cache.put(RENDEZVOUS, rendezvous(2, round=1)) == set(), "its echo by the watch"
    # The watch's word of generation 2 (version 3) comes after the reply to our write (version 4), and is old news then.
    assert cache.learn(rendezvous(4, generation=2, round=2)) == {("team", "mnist")}
    assert cache.put(RENDEZVOUS, rendezvous(3, generation=2, round=1)) == set()
    assert cache.put(RENDEZVOUS, rendezvous(5, generation=2)) == {("team", "mnist")}, "a status changed by hand"


def test_after_a_restore_older_versions_count_again() -> None:
    cache = Cache()
    put(cache, pod_object("a", phase="Running"), 100)
    assert put(cache, pod_object("a"), 7) == set()
    cache.distrust(PODS, None)
    assert put(cache, pod_object("a"), 7) == {("team", "mnist")}
    assert id_of(pod_object("a")) == ("team", "a")


@pytest.mark.parametrize("spoiled", ["metadata.labels", "spec", "status"])
def test_an_object_that_cannot_be_read_at_all_does_not_stop_the_others(spoiled: str) -> None:
    truth, cache = Truth(), Cache()
    truth.set("a", "mnist", "Running")
    truth.set("b", "mnist", "Running")
    inner = truth.objects["a"]
    *path, last = spoiled.split(".")
    for name in path:
        inner = inner[name]
    inner[last] = "not an object"
    fill(truth, cache, PODS, None, lambda _: None)  # type: ignore[arg-type]
    assert [pod.name for pod in cache.view(("team", "mnist")).observed.pods] == ["b"]
