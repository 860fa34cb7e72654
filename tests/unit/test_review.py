"""What the webhook takes for a review, from whoever reaches its port."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hostile_reviews import changed, review

from rdzv.control.inject import InjectionSettings, inject
from rdzv.control.review import MAX_DEPTH, NotAReview, checked_review

Object = dict[str, Any]
SETTINGS = InjectionSettings("init", "library:1", "operator:1")


def taken(data: bytes) -> bool:
    """Whether it is taken; then injection and its answer succeed, whatever is in it."""
    try:
        found = checked_review(data)
    except NotAReview:
        return False
    json.dumps(inject(found["request"]["object"], SETTINGS))
    return True


def test_a_review_of_a_pod_is_taken() -> None:
    assert taken(json.dumps(review()).encode())


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 500_000, b'{"a":' * 100_000, b"1" * 10_000]
)
def test_what_is_no_review_is_refused(data: bytes) -> None:
    assert not taken(data)


@pytest.mark.parametrize(
    "change",
    [
        {"operation": "UPDATE"},
        {"operation": "DELETE"},
        {"resource": {"group": "apps", "version": "v1", "resource": "deployments"}},
        {"subResource": "ephemeralcontainers"},
        {"uid": "u" * 1000},
        {"object": None},
        {"userInfo": None},
        {"oldObject": [None, None]},
    ],
)
def test_kopf_is_asked_about_nothing_but_the_creation_of_pods(change: Object) -> None:
    """What it was asked about an update of it remembered for ever, by the uid that was sent."""
    asked = review()
    asked["request"] |= change
    assert not taken(json.dumps(asked).encode())


@pytest.mark.parametrize("value", [None, [], "", 0, False])
@pytest.mark.parametrize("field", ["labels", "annotations"])
def test_what_is_there_instead_of_labels_is_refused(field: str, value: object) -> None:
    """kopf looks for its handlers' labels in it."""
    asked = review()
    asked["request"]["object"]["metadata"][field] = value
    assert not taken(json.dumps(asked).encode())


def test_a_pod_without_labels_is_taken() -> None:
    asked = review()
    for field in ("labels", "annotations"):
        del asked["request"]["object"]["metadata"][field]
    assert taken(json.dumps(asked).encode())


def test_a_pod_of_more_levels_than_pods_have_is_refused() -> None:
    deep: Any = {}
    for _ in range(MAX_DEPTH):
        deep = {"a": deep}
    asked = review()
    asked["request"]["object"]["status"] = deep
    assert not taken(json.dumps(asked).encode())


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_nothing_else_than_a_refusal_comes_of_any_bytes(data: bytes) -> None:
    assert not taken(data)


@given(st.randoms(use_true_random=False))
def test_nothing_fails_that_was_made_of_a_review(random: Any) -> None:
    taken(json.dumps(changed(random, copy.deepcopy(review()))).encode())
