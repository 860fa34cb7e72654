"""What a reply turns into, what its text says, and how long retries wait: without a server."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv.kube import api
from rdzv.kube.api import Call, Reply, Resource, error_of, error_of_status
from rdzv.kube.retry import BASE, CAP, CROWD_CAP, CROWD_RATE, Backoff, Retry, pauses

MEMBERS = Resource("rdzv.dev/v1alpha1", "rendezvousmembers")
GET, PATCH = Call("get", MEMBERS, "train", "mnist-0"), Call("patch", MEMBERS, "train", "mnist-0")


def status(code: int, **more: Any) -> bytes:
    return json.dumps({"kind": "Status", "apiVersion": "v1", "code": code, **more}).encode()


def test_paths() -> None:
    assert MEMBERS.path("train", "a") == "/apis/rdzv.dev/v1alpha1/namespaces/train/rendezvousmembers/a"
    assert Resource("v1", "pods").path("train") == "/api/v1/namespaces/train/pods"
    assert Resource("v1", "nodes").path(None, "n 1?") == "/api/v1/nodes/n%201%3F"
    assert (str(MEMBERS), str(Resource("v1", "pods"))) == ("rendezvousmembers.rdzv.dev", "pods")


@pytest.mark.parametrize(
    ("code", "reason", "kind", "unknown"),
    [
        (400, "BadRequest", api.Invalid, False),
        (401, "Unauthorized", api.Unauthorized, False),
        (403, "Forbidden", api.Forbidden, False),
        (404, "NotFound", api.NotFound, False),
        (405, "MethodNotAllowed", api.ApiError, False),
        (409, "Conflict", api.Conflict, False),
        (409, "AlreadyExists", api.AlreadyExists, False),
        (410, "Expired", api.Gone, False),
        (413, "RequestEntityTooLarge", api.TooLarge, False),
        (422, "Invalid", api.Invalid, False),
        (429, "TooManyRequests", api.TooManyRequests, False),
        (500, "InternalError", api.ServerError, True),
        (503, "ServiceUnavailable", api.ServerError, True),
        (504, "Timeout", api.ServerError, True),
    ],
)
def test_types(code: int, reason: str, kind: type[api.ApiError], unknown: bool) -> None:
    body = status(code, reason=reason, message="why", details={"name": "mnist-0"})
    for call in (GET, PATCH):
        error = error_of(call, Reply(code, body))
        assert type(error) is kind
        assert error.maybe_applied is (unknown and call is PATCH)  # A read has nothing to apply.
        assert (error.code, error.reason, error.message) == (code, reason, "why")
        assert str(error) == f"{call.verb} rendezvousmembers.rdzv.dev train/mnist-0: {code} {reason}: why"


def test_retry_after_from_header_and_from_details() -> None:
    assert error_of(GET, Reply(429, b"", "7")).retry_after == 7
    assert error_of(GET, Reply(429, status(429, details={"retryAfterSeconds": 3}))).retry_after == 3
    assert error_of(GET, Reply(429, b"", "Wed, 21 Oct 2026 07:28:00 GMT")).retry_after is None


def test_a_server_that_starts_is_asked_again_before_it_says() -> None:
    assert error_of(GET, Reply(503, status(503, details={"retryAfterSeconds": 5}), "5")).retry_after is None


def test_a_page_of_a_proxy_in_between() -> None:
    error = error_of(GET, Reply(502, b"<html>\n Bad   Gateway" + b"x" * 10_000))
    assert isinstance(error, api.ServerError)
    assert "<html> Bad Gateway" in str(error)
    assert len(str(error)) < 400


def test_a_missing_kind_is_not_a_missing_object() -> None:
    for body in (b"404 page not found\n", status(404, reason="NotFound", details={})):
        error = error_of(GET, Reply(404, body))
        assert type(error) is api.UnknownResource
        assert "rendezvousmembers.rdzv.dev (rdzv.dev/v1alpha1); is its CRD installed?" in str(error)
        assert not isinstance(error, api.NotFound)


def test_forbidden_names_who_what_where_and_the_rule() -> None:
    message = (
        'rendezvousmembers.rdzv.dev "mnist-0" is forbidden: User "system:serviceaccount:train:default" cannot patch '
        'resource "rendezvousmembers" in API group "rdzv.dev" in the namespace "train"'
    )
    error = error_of(PATCH, Reply(403, status(403, reason="Forbidden", message=message)))
    assert isinstance(error, api.Forbidden)
    assert error.rule == {"apiGroups": ["rdzv.dev"], "resources": ["rendezvousmembers"], "verbs": ["patch"]}
    text = str(error)
    assert "service account train/default may not patch rendezvousmembers.rdzv.dev" in text
    assert "a Role in namespace train" in text
    assert json.dumps(error.rule) in text
    assert message in text


@pytest.mark.parametrize("code", [400, 422])
def test_fields_that_an_older_crd_lacks_are_named_with_what_to_do(code: int) -> None:
    message = (
        'RendezvousMember in version "v1alpha1" cannot be handled as a RendezvousMember: strict decoding error: '
        'unknown field "spec.roundUID", unknown field "spec.seenRound"'
    )
    error = error_of(PATCH, Reply(code, status(code, reason="BadRequest", message=message, details={"name": "a"})))
    assert type(error) is api.UnknownField
    assert not error.maybe_applied
    assert str(error) == (
        "patch rendezvousmembers.rdzv.dev train/mnist-0: the API server does not know spec.roundUID, spec.seenRound: "
        "the CustomResourceDefinition rendezvousmembers.rdzv.dev is older than this program; "
        "apply the CRDs that came with it"
    )


def test_an_error_event_of_a_watch() -> None:
    error = error_of_status(Call("watch", MEMBERS), {"code": 410, "reason": "Expired", "message": "too old"})
    assert isinstance(error, api.Gone)


@given(st.floats(0.01, 1), st.floats(1, 10), st.integers(1, 30))
def test_backoff_stays_between_base_and_cap(base: float, cap: float, times: int) -> None:
    backoff = Backoff(base, cap)
    last = base
    for _ in range(times):
        pause = backoff.next()
        assert base <= pause <= min(cap, last * 3)
        last = pause
    backoff.reset()
    assert backoff.next() <= min(cap, base * 3)


@given(st.floats(0, 1000))
def test_backoff_never_goes_below_what_the_server_asked(seconds: float) -> None:
    pause = Backoff().next(seconds)
    assert seconds <= pause <= max(CAP, seconds * 1.1)


@pytest.mark.parametrize("away", [0.0, 3.0, 20.0])
def test_a_crowd_comes_back_to_a_server_one_after_the_other(away: float) -> None:
    random.seed(1)
    back = sorted(first_attempt_after(away, Backoff(agents=1000)) for _ in range(1000))
    by_second = Counter(int(at - away) for at in back)
    assert max(by_second.values()) <= 2.5 * CROWD_RATE
    assert back[-1] - away <= CROWD_CAP


def first_attempt_after(away: float, backoff: Backoff) -> float:
    """When an agent that lost the server at 0 asks it for the first time since it is back."""
    at = backoff.next()
    while at < away:
        at += backoff.next()
    return at


def test_a_few_agents_are_as_quick_as_one() -> None:
    assert pauses(1) == pauses(18) == (BASE, CAP)


def test_sleep_ends_at_the_deadline_and_at_the_stop_event() -> None:
    error = api.Unreachable(GET, "no reply")
    with pytest.raises(api.Unreachable):
        Retry(time.monotonic() + 1).sleep(500, error)
    stop = threading.Event()
    stop.set()
    with pytest.raises(api.Stopped, match=r"after: get rendezvousmembers\.rdzv\.dev train/mnist-0: no reply"):
        Retry(stop=stop).sleep(500, error)
