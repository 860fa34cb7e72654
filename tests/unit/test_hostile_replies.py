"""An API server or an etcd that answers nonsense: clients and watches raise what they promise, in bounded memory and time.

RDZV_FAULTS=long (`make faults`) tries a hundred times as much.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from support.hostile_replies import GARBAGE, ODD, Canned, changed, speaking
from support.scripted_etcd import created, events, kv

from rdzv.etcd import client as etcd
from rdzv.etcd import config as etcd_config
from rdzv.etcd import records
from rdzv.kube.api import ApiError, Call, Resource, Unreachable
from rdzv.kube.client import Client
from rdzv.kube.config import Config
from rdzv.kube.transport import MAX_REPLY, Connection
from rdzv.kube.watch_loop import MAX_EVENT, WatchLoop

ROUNDS = Resource("rdzv.dev/v1alpha1", "rendezvousrounds")
CONFIG = Config(server="https://10.0.0.1:6443", source="a test")
METADATA = {"name": "job", "uid": "u", "resourceVersion": "7", "labels": {"l": "x"}}
OBJECT: dict[str, Any] = {"kind": "RendezvousRound", "metadata": METADATA, "spec": {}}
LIST: dict[str, Any] = {"items": [OBJECT], "metadata": {"resourceVersion": "7"}}
STATUS: dict[str, Any] = {
    "kind": "Status",
    "code": 429,
    "reason": "TooManyRequests",
    "message": "no",
    "details": {"name": "job", "retryAfterSeconds": 1},
}
KV = kv("/rdzv/run/rendezvousrounds/job", OBJECT, 7)
HEADER = {"header": {"revision": "7"}}
RANGE: dict[str, Any] = {**HEADER, "kvs": [KV], "count": "1"}
TXN: dict[str, Any] = {**HEADER, "succeeded": True, "responses": [{"response_range": {"kvs": [KV]}}]}
GRANT = {"ID": "5", "TTL": "600"}
REFUSAL: dict[str, Any] = {"error": {"grpc_code": 8, "http_code": 429, "message": "too many requests"}}
END: dict[str, Any] = {"result": {**HEADER, "canceled": True, "compact_revision": "5", "cancel_reason": "compacted"}}

EXAMPLES = 10_000 if os.environ.get("RDZV_FAULTS") == "long" else 100
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def body(good: Any) -> st.SearchStrategy[bytes]:
    return changed(good).map(lambda value: json.dumps(value).encode()) | GARBAGE


def line(good: Any) -> st.SearchStrategy[bytes]:
    return body(good).map(lambda data: data.replace(b"\n", b" ") + b"\n")


def kube(canned: Canned) -> Client:
    return Client(CONFIG, connect=canned.connect)


def of_etcd(canned: Canned) -> etcd.Client:
    found = etcd.Client(etcd_config.parse("a:1", {}), "run", connect=canned.connect)
    found._leases._stop.set()  # No thread for each example.
    found._leases._kept.add(records.shared_lease("/rdzv", "run"))
    return found


def listed(client: Any) -> Any:
    return client.list(ROUNDS, "run", label_selector="l=x")


def deleted(client: Any) -> Any:
    return client.delete(ROUNDS, "run", "job")


VERBS: list[Callable[[Any], Any]] = [
    lambda client: client.get(ROUNDS, "run", "job"),
    listed,
    lambda client: client.create(ROUNDS, "run", OBJECT),
    lambda client: client.replace(ROUNDS, "run", OBJECT),
    lambda client: client.json_patch(ROUNDS, "run", "job", [{"op": "test", "path": "/spec", "value": {}}]),
    deleted,
]


def attempt(function: Callable[[], Any]) -> tuple[Any, ApiError | None]:
    """What it returns, or the only kind of exception that it may raise, with a text that is not too long."""
    try:
        return function(), None
    except ApiError as caught:
        error = caught
    assert len(str(error)) < 4096
    return None, error


def asked(verb: Callable[[Any], Any], client: Any) -> None:
    """What it returns can be used as an object, or a list of objects; else it raises what it says that it raises."""
    found, error = attempt(lambda: verb(client))
    if error is not None:
        assert error.retry_after is None or 0 < error.retry_after <= 60
        return
    for obj in () if verb is deleted else found["items"] if verb is listed else [found]:
        metadata = obj["metadata"]
        assert isinstance(metadata["name"], str)
        assert isinstance(metadata.get("labels") or {}, dict)


def test_each_reply_is_made_of_values_of_its_own() -> None:
    """Else one that a second change goes into is another one in all later replies, or contains itself."""
    find(ODD, lambda value: value == [[]])[0].append(1)
    find(ODD, lambda value: value == [[]])


@many
@given(st.sampled_from(VERBS), body(OBJECT) | body(LIST))
def test_a_verb_of_the_api_server_raises_an_api_error_for_any_reply(verb: Callable[[Any], Any], reply: bytes) -> None:
    asked(verb, kube(Canned((200, reply))))


@many
@given(st.sampled_from(VERBS), st.sampled_from([400, 403, 404, 409, 410, 422, 429, 500, 503]), body(STATUS))
def test_so_does_it_for_any_refusal(verb: Callable[[Any], Any], status: int, reply: bytes) -> None:
    asked(verb, kube(Canned((status, reply))))


@many
@given(st.sampled_from(VERBS), st.sampled_from([200, 400, 404, 429, 500]), body(RANGE) | body(TXN) | body(REFUSAL))
def test_so_does_a_verb_of_etcd(verb: Callable[[Any], Any], status: int, reply: bytes) -> None:
    asked(verb, of_etcd(Canned((status, reply))))


@many
@given(body(GRANT) | body({"result": GRANT}))
def test_so_does_a_lease_of_etcd(reply: bytes) -> None:
    client = etcd.Client(etcd_config.parse("a:1", {}), "run", connect=Canned((200, reply)).connect)
    client._leases._stop.set()  # No thread for each example.
    leases: list[Callable[[], Any]] = [
        client._leases.own,
        lambda: client._leases.shared(5),
        lambda: client._leases._keep_alive(5),
    ]
    for lease in leases:
        attempt(lease)


def followed(watch: WatchLoop) -> None:
    """Until it fails, which it does before long: what it yields can be used."""

    def follow() -> None:
        for event in itertools.islice(watch.events(deadline=time.monotonic()), 50):
            assert event.object == {} or isinstance(event.object["metadata"]["name"], str)

    attempt(follow)


def event(kind: str, obj: Any) -> dict[str, Any]:
    return {"type": kind, "object": obj}


LINES = st.lists(
    line(event("ADDED", OBJECT))
    | line(event("DELETED", OBJECT))
    | line(event("BOOKMARK", OBJECT))
    | line(event("ERROR", STATUS)),
    max_size=4,
)


@many
@given(st.sampled_from([None, "job"]), body(LIST), LINES)
def test_a_watch_of_the_api_server_ends_with_an_api_error(name: str | None, first: bytes, lines: list[bytes]) -> None:
    good = json.dumps(LIST if name is None else OBJECT).encode()
    for reply in (first, good):
        followed(kube(Canned((200, reply), (200, lines))).watch(ROUNDS, "run", name=name, fresh=name is None))


@many
@given(
    st.sampled_from([None, "job"]),
    body(RANGE),
    st.lists(
        line(created(7)) | line(events({"kv": KV}, {"type": "DELETE", "kv": KV})) | line(REFUSAL) | line(END),
        max_size=4,
    ),
)
def test_so_does_a_watch_of_etcd(name: str | None, first: bytes, lines: list[bytes]) -> None:
    for reply in (first, json.dumps(RANGE).encode()):
        followed(of_etcd(Canned((200, reply), (200, lines))).watch(ROUNDS, "run", name=name))


@pytest.mark.parametrize("make", [kube, of_etcd])
def test_an_event_without_end_is_given_up_in_bounded_memory(make: Callable[[Canned], Any]) -> None:
    first = json.dumps(LIST if make is kube else RANGE).encode()
    watch = make(Canned((200, first), (200, [b"x" * 65536] * (4 * MAX_EVENT // 65536)))).watch(ROUNDS, "run")
    tracemalloc.start()
    with pytest.raises(Unreachable, match="more than"):
        list(watch.events(deadline=time.monotonic()))
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_EVENT
    tracemalloc.stop()


# On a socket.

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CALL = Call("get", ROUNDS, "run", "job")


def exchanged(config: Config) -> bytes:
    connection = Connection(config, CALL)
    try:
        connection.send(CALL, "GET", "/", None, {})
        response = connection.reply(CALL, patience=3, deadline=time.monotonic() + 3)
        return connection.read(CALL, response)
    finally:
        connection.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 " + b"x" * 100_000,
        HEAD + b"x: y\r\n" * 200 + b"\r\n",
        HEAD + b"Content-Length: 100\r\n\r\n{}",
        CHUNKED + b"zz\r\n{}\r\n",
        CHUNKED + b"ffffffffffffffffffff\r\n{}",
        CHUNKED + b"2\r\n{}",
        CHUNKED + b"2\r\n{}\r\n",
        CHUNKED + b"1" * 100_000,
        CHUNKED + b"2;" + b"x" * 100_000,
    ],
)
def test_what_is_no_reply_of_http_is_no_reply(data: bytes) -> None:
    with speaking(data) as config, pytest.raises(Unreachable):
        exchanged(config)


@pytest.mark.parametrize("data", [b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED + b"0\r\n"], ids=["heads", "trailers"])
def test_heads_and_trailers_without_end_are_given_up_in_time(data: bytes) -> None:
    started = time.monotonic()
    rest = data if data.startswith(b"HTTP/1.1 100") else b"x: y\r\n"
    with speaking(data, rest=rest * 1000) as config, pytest.raises(Unreachable):
        exchanged(config)
    assert time.monotonic() < started + 60


@pytest.mark.parametrize("data", [HEAD + b"\r\n", CHUNKED + b"-5\r\n"], ids=["until closed", "a negative chunk"])
def test_a_reply_without_end_is_cut_at_its_limit(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdzv.kube.transport.MAX_REPLY", MAX_REPLY // 64)
    with speaking(data, rest=b"x" * 65536) as config, pytest.raises(ApiError):
        exchanged(config)


def test_a_stream_of_etcd_lasts_until_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not cut when the time for the head of its reply is over."""
    monkeypatch.setattr("rdzv.kube.watch_loop.CALL_SECONDS", 0.2)
    change = json.dumps(events({"kv": KV})).encode() + b"\n"
    with speaking(HEAD + b"\r\n" + json.dumps(created(6)).encode() + b"\n", then=(0.6, change)) as config:
        watch = etcd.Client(etcd_config.parse(f"{config.host}:{config.port}", {}), "run").watch(ROUNDS, "run")
        watch._resume = "6"
        assert [found.object["metadata"]["name"] for found in watch.session()] == ["job"]
