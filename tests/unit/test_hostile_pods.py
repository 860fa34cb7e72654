"""Whatever tenants write on their pods, and however many there are: a pass ends, its status is one that the API server stores."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support import builders
from support.builders import pod_object, rendezvous

from rdzv.control.events import events_for, events_without_rendezvous
from rdzv.control.inject import shadowed
from rdzv.control.plan import plan
from rdzv.env import PodEnvironment
from rdzv.observed import Observed
from rdzv.pairs import LABELS, SLOT_LABEL
from rdzv.protocol.encoding import MAX_SLOTS, encode_slots
from rdzv.protocol.records import Member
from rdzv.protocol.roster import Roster
from rdzv.registry import backend_registry
from rdzv.spec import MAX_NODES, index_of

Object = dict[str, Any]

CRD = Path(__file__).parents[2] / "charts/rendezvous-operator/files/crds/rendezvous.yaml"
STATUS = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]

NOW = 1795428000.0

#: Bytes of JSON. etcd takes 1.5 MiB of an object, its managed fields included.
STORABLE = 1 << 20

HOSTILE = [
    "4000000000",
    "⁵",
    "５",
    "٣",
    " 1",
    "1 ",
    "-1",
    "+1",
    "1_0",
    "0x1",
    "1e3",
    "",
    "NaN",
    "1" * 63,
    str(10**30),
    "9" * 5000,
]


def violations(value: Any, schema: Object, path: str = "status") -> list[str]:
    """What the API server would refuse: types, bounds and lengths of the schema, in as far as ours use them."""
    found: list[str] = []
    kind = schema.get("type")
    types: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}
    if kind and not isinstance(value, types[kind]):
        return [f"{path}: not of type {kind}"]
    if kind == "object":
        properties = schema.get("properties", {})
        found += [f"{path}.{name}: missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            found += (
                violations(item, properties[name], f"{path}.{name}") if name in properties else [f"{path}.{name}: ?"]
            )
    elif kind == "array":
        if len(value) > schema.get("maxItems", len(value)):
            found.append(f"{path}: {len(value)} items")
        for number, item in enumerate(value):
            found += violations(item, schema["items"], f"{path}[{number}]")
    elif kind == "string":
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            found.append(f"{path}: {len(value)} characters")
    elif value < schema.get("minimum", value) or (schema.get("format") == "int64" and value >= 1 << 63):
        found.append(f"{path}: {value}")
    return found


def checked_status(backend: str, pods: list[Object], members: list[Member] | None = None, most: int = 4) -> Object:
    """The status of a pass over these pods; fails if the API server would not store it, or an agent not read it."""
    subject = rendezvous(backend, nodes={"min": most if backend == "static" else 1, "max": most})
    observed = Observed([builders.pod(obj) for obj in pods], members=members or [])
    status = builders.status_of(subject, observed, {}, NOW)
    assert violations(status, STATUS) == []
    assert len(json.dumps(status).encode()) < STORABLE
    if backend == "kubernetes":
        Roster.from_object(
            {"metadata": {"uid": subject.uid}, "spec": {"nodes": {"min": 1, "max": 4}}, "status": status}
        )
    decided = plan(subject, observed, backend_registry())
    overridden = {obj["metadata"]["name"]: [variable for _, variable in shadowed(obj)] for obj in pods}
    for event in (
        *events_for(subject, decided, [], observed.pods, overridden),
        *events_without_rendezvous("team", "mnist", observed.pods),
    ):
        assert len(json.dumps(event.to_object("")).encode()) < 8192
    return status


def degraded(status: Object) -> Object:
    return next(c for c in status["conditions"] if c["type"] == "Degraded")


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_index_is_none_and_the_pod_is_named(text: str) -> None:
    assert index_of(text) is None
    assert PodEnvironment.parse({"PET_RDZV_BACKEND": "c10d", "RDZV_SLOT": text}).slot is None
    pod = pod_object("bad", labels={SLOT_LABEL: text})
    for backend, last in (("c10d", MAX_NODES - 1), ("kubernetes", MAX_SLOTS - 1), ("static", MAX_NODES - 1)):
        status = checked_status(backend, [pod, pod_object("good", index=1)])
        assert degraded(status)["reason"] == "UnusableIndex"
        assert "pod bad has index" in degraded(status)["message"]
        assert f"write 0 to {last}" in degraded(status)["message"]
        assert len(degraded(status)["message"]) < 300


@pytest.mark.parametrize(("text", "index"), [("0", 0), ("7", 7), ("01", 1), ("9999", 9999)])
def test_what_is_an_index_is_one(text: str, index: int) -> None:
    assert index_of(text) == index


def test_a_large_index_takes_no_memory() -> None:
    pods = [pod_object("bad", labels={SLOT_LABEL: "4000000000"}), pod_object("large", index=9999)]
    tracemalloc.start()
    try:
        checked_status("kubernetes", pods)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20
    for slot in (MAX_SLOTS, 4_000_000_000, -1):
        with pytest.raises(ValueError, match=r"not in 0 \.\. 4095"):
            encode_slots([slot])


@pytest.mark.parametrize("count", [5_000, 7_000])
@pytest.mark.parametrize("stuck", [False, True])
def test_more_pods_than_a_world_may_have_are_counted_and_told(count: int, stuck: bool) -> None:
    pods = [pod_object(f"mnist-{index}-{'x' * 200}", index=index) for index in range(count)]
    for pod in pods if stuck else []:
        waiting = {"reason": "ImagePullBackOff", "message": "é" * 10_000}
        pod["status"]["containerStatuses"][0]["state"] = {"waiting": waiting}
    members = [Member(f"gone-{index}", "mnist", "uid-1", f"{index:036}/1", "10.0.0.1", 1, 1) for index in range(count)]
    status = checked_status("kubernetes", pods, members, most=4096)
    assert status["roster"]["expectedCount"] == count
    assert degraded(status)["reason"] == "UnusableIndex", "the first of them, by name"
    without_index = [pod_object(f"mnist-{index}") for index in range(count)]
    status = checked_status("kubernetes", without_index, members, most=4096)
    assert (degraded(status)["reason"], status["nodes"]["summary"]) == ("TooManyPods", "0/4096")
    assert status["roster"]["expectedCount"] == count


_ALPHABET = "aZ09-._/ \n\0\"'<{$é⁵漢\U0001f600"
_text = st.text(_ALPHABET, max_size=40) | st.sampled_from(HOSTILE)
_long = st.builds(lambda text, times: text * times, st.text(_ALPHABET, max_size=10), st.sampled_from([1, 30, 1000]))
_waiting = st.fixed_dictionaries({}, optional={"reason": _long, "message": _long})
_times = (
    st.sampled_from(["2026-11-23T09:00:00Z", "2026-11-23T10:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
    | _text
)
_ended = st.fixed_dictionaries(
    {},
    optional={
        "exitCode": st.integers(-(2**31), 2**31),
        "reason": _long | st.just("OOMKilled"),
        "message": _long,
        "startedAt": _times,
        "finishedAt": _times,
        "signal": st.integers(0, 64),
    },
)
_states = st.one_of(
    st.builds(lambda waiting: {"waiting": waiting}, _waiting | st.just({"reason": "CrashLoopBackOff"})),
    st.builds(lambda at: {"running": {"startedAt": at}}, _times),
    st.just({"running": {}}),
    st.just({}),
    st.builds(lambda ended: {"terminated": ended}, _ended),
)
_last_states = st.builds(lambda ended: {"terminated": ended}, _ended)
_container_statuses = st.lists(
    st.fixed_dictionaries(
        {"name": st.just("train")},
        optional={"state": _states, "lastState": _last_states, "restartCount": st.integers(0, 9)},
    ),
    max_size=3,
)
_conditions = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["PodScheduled", "Ready"]),
            "status": st.sampled_from(["True", "False", "Unknown"]),
        },
        optional={"reason": st.sampled_from(["Unschedulable", ""]) | _text, "message": _long},
    ),
    max_size=3,
)
_pod_statuses = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown", "", "Odd"]),
        "reason": _text,
        "message": _long,
        "conditions": _conditions,
        "containerStatuses": _container_statuses,
        "initContainerStatuses": _container_statuses,
    },
)


@st.composite
def hostile_pods(draw: st.DrawFn) -> list[Object]:
    pods = []
    for number in range(draw(st.integers(0, 5))):
        meta: Object = {
            "annotations": draw(st.dictionaries(st.sampled_from(["rdzv.dev/containers", "rdzv.dev/library"]), _text))
        }
        if draw(st.booleans()):
            meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        labels = draw(st.dictionaries(st.sampled_from([*LABELS, "rdzv.dev/host", "rdzv.dev/rendezvous"]), _text))
        pod = pod_object(f"pod-{number}", labels=labels, **meta)
        pod["status"] = draw(_pod_statuses)
        pods.append(pod)
    return pods


@settings(max_examples=300)
@given(pods=hostile_pods(), backend=st.sampled_from(["c10d", "static", "kubernetes"]))
def test_no_pod_stops_a_pass_or_makes_a_status_that_can_not_be_stored(pods: list[Object], backend: str) -> None:
    checked_status(backend, pods)
