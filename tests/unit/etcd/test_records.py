"""Objects as keys and values of etcd, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv.etcd import records
from rdzv.etcd.json_patch import PatchError, patched
from rdzv.etcd.records import Keys
from rdzv.kube.api import Resource

MEMBERS = Resource("rdzv.dev/v1alpha1", "rendezvousmembers")
KEYS = Keys("/rdzv", "job 1/a", MEMBERS)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda n: n not in (".", "..")
)


@given(NAMES, NAMES)
def test_a_name_is_one_segment_of_its_key_and_comes_back(namespace: str, name: str) -> None:
    keys = Keys("/rdzv", namespace, MEMBERS)
    key = keys.key(name)
    assert keys.name_of(key) == name
    assert key.count(b"/") == 4
    asked = keys.everything()
    assert records.decode(asked["key"]) <= key < records.decode(asked["range_end"])


@given(NAMES, NAMES)
def test_the_range_of_a_namespace_holds_no_other_one(namespace: str, other: str) -> None:
    asked, key = Keys("/rdzv", namespace, MEMBERS).everything(), Keys("/rdzv", other, MEMBERS).key("node-0")
    inside = records.decode(asked["key"]) <= key < records.decode(asked["range_end"])
    assert inside == (namespace == other)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_no_key_of_nothing(name: str) -> None:
    with pytest.raises(ValueError, match="not a part of a key"):
        KEYS.key(name)


def test_an_object_comes_back_with_the_versions_that_etcd_has() -> None:
    obj = {"kind": "X", "metadata": {"name": "a", "labels": {"k": "v"}, "resourceVersion": "5"}, "spec": {"n": 1}}
    value = records.value_of(obj)
    assert "resourceVersion" not in json.loads(value)["metadata"]
    kv = {"key": records.encode(KEYS.key("a")), "value": records.encode(value)}
    found = records.object_of(KEYS, {**kv, "create_revision": "7", "mod_revision": "12"})
    assert found == {
        "kind": "X",
        "metadata": {
            "name": "a",
            "labels": {"k": "v"},
            "resourceVersion": "12",
            "uid": "7",
            "creationTimestamp": "00000000000000000007",
        },
        "spec": {"n": 1},
    }
    assert records.stored(obj, 7, 12) == found


def test_the_name_is_that_of_the_key_whatever_the_value_says() -> None:
    value = json.dumps({"metadata": {"name": "somebody-else"}}).encode()
    kv = {"key": records.encode(KEYS.key("a")), "value": records.encode(value), "mod_revision": "1"}
    found = records.object_of(KEYS, kv)
    assert found is not None
    assert found["metadata"]["name"] == "a"


@pytest.mark.parametrize("value", [b"", b"no JSON", b"[]", b"7", b'{"metadata": 3}', b"\xff\xfe", b"[" * 100_000])
def test_a_value_that_is_no_object_has_a_name_and_versions_only(value: bytes) -> None:
    kv = {"key": records.encode(KEYS.key("a")), "value": records.encode(value), "mod_revision": "3"}
    assert records.object_of(KEYS, kv) == {"metadata": {"name": "a", **records.stored({}, 0, 3)["metadata"]}}


@pytest.mark.parametrize("written", [b"%61", b"", b".", b"a/b", b"%", b"\xff", b"a%2f"])
def test_a_key_that_no_client_writes_is_no_object(written: bytes) -> None:
    assert records.object_of(KEYS, {"key": records.encode(KEYS.directory + written)}) is None


@pytest.mark.parametrize("kv", [{"key": "%"}, {"key": 5}, {"mod_revision": "x"}, {"mod_revision": []}])
def test_what_etcd_never_sends_is_an_error(kv: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"base64|number|invalid literal"):
        records.object_of(KEYS, kv)


@given(st.integers(1, 2**62), st.integers(1, 2**62))
def test_creation_sorts_as_text_as_it_happened(one: int, other: int) -> None:
    times = [records.stored({}, number, number)["metadata"]["creationTimestamp"] for number in (one, other)]
    assert (times[0] < times[1]) == (one < other)


def test_labels() -> None:
    obj = {"metadata": {"labels": {"a/b": "x=y"}}}
    assert records.has_label(obj, "")
    assert records.has_label(obj, "a/b=x=y")
    assert not records.has_label(obj, "a/b=x")
    assert not records.has_label({"metadata": {}}, "a/b=x")
    assert not records.has_label({"metadata": {"labels": "a/b=x"}}, "a/b=x")


@given(NAMES)
def test_a_shared_lease_is_a_positive_number_that_only_one_namespace_has(namespace: str) -> None:
    lease = records.shared_lease("/rdzv", namespace)
    assert 0 < lease < 2**63
    assert lease == records.shared_lease("/rdzv", namespace)
    assert lease != records.shared_lease("/other", namespace)


def test_patches() -> None:
    obj = {"spec": {"log": [1], "a/b": {"x": 0}}, "metadata": {"resourceVersion": "4"}}
    patch: list[dict[str, Any]] = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": "4"},
        {"op": "add", "path": "/spec/log/-", "value": 2},
        {"op": "add", "path": "/spec/log/0", "value": 0},
        {"op": "replace", "path": "/spec/a~1b/x", "value": 9},
        {"op": "add", "path": "/spec/new", "value": {}},
    ]
    assert patched(obj, patch)["spec"] == {"log": [0, 1, 2], "a/b": {"x": 9}, "new": {}}
    assert obj["spec"] == {"log": [1], "a/b": {"x": 0}}, "the object itself was changed"
    assert patched(obj, [{"op": "remove", "path": "/spec/log/0"}])["spec"]["log"] == []


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": 2},
        {"op": "replace", "path": "/b", "value": 1},
        {"op": "remove", "path": "/b"},
        {"op": "add", "path": "/b/c", "value": 1},
        {"op": "replace", "path": "/list/7", "value": 1},
        {"op": "test", "path": "/list/x", "value": 1},
    ],
)
def test_patches_that_do_not_fit(operation: dict[str, Any]) -> None:
    with pytest.raises(PatchError):
        patched({"a": 1, "list": []}, [operation])
