"""How the operator reads: lines of a watch, what an event may be, and connections that are kept for the passes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripted_api import Answer, ScriptedApi

from rdzv.control import transport
from rdzv.control.cache import PODS, ROUNDS
from rdzv.control.transport import CONNECTIONS, OperatorClient, Transport, without_managed_fields
from rdzv.kube.api import ApiError, Call, Resource, Unreachable
from rdzv.kube.config import Config
from rdzv.kube.transport import Connection
from rdzv.resources import ROUNDS as ROUND

CALL = Call("watch", Resource("v1", "pods"))
CONFIG = Config(server="https://10.0.0.1:6443", source="a test")


def client_of(api: ScriptedApi) -> OperatorClient:
    client = OperatorClient(CONFIG)
    client._connect = api.connect
    return client


class Stream:
    """Gives a reply's body in these pieces."""

    def __init__(self, pieces: Sequence[bytes | Exception]) -> None:
        self._pieces = iter([*pieces, b""])

    def read1(self, _size: int) -> bytes:
        piece = next(self._pieces)
        if isinstance(piece, Exception):
            raise piece
        return piece


def lines(*pieces: bytes | Exception) -> list[bytes]:
    stream: Any = Stream(pieces)
    return [bytes(line) for line in transport._lines(CALL, stream)]


def test_lines_are_whole_however_they_arrive() -> None:
    assert lines(b'{"a":', b'1}\n{"b"', b":2}\n") == [b'{"a":1}', b'{"b":2}']
    assert lines(b"1\n2\n3\n") == [b"1", b"2", b"3"]
    assert lines(b"1\n{cut") == [b"1"]


def test_a_line_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_EVENT", 100)
    with pytest.raises(Unreachable, match="more than 100 bytes"):
        lines(b"x" * 60, b"x" * 60)


def test_a_silent_stream_is_no_end_of_it() -> None:
    with pytest.raises(Unreachable, match="the stream broke") as caught:
        lines(b"1\n", TimeoutError("the reply took too long"))
    assert isinstance(caught.value.__cause__, TimeoutError), "the idle connections are dropped for that"


def test_an_error_event_says_which() -> None:
    status = b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}'
    with pytest.raises(ApiError, match="too old") as caught:
        transport._event(CALL, bytearray(status))
    assert caught.value.code == 410


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"3", b'{"object":{}}', b'{"type":"ERROR"}', b'{"type":"ERROR","object":3}']
)
def test_what_is_no_event_breaks_the_watch_and_nothing_else(line: bytes) -> None:
    with pytest.raises(Unreachable, match="not an event"):
        transport._event(CALL, bytearray(line))


def test_a_watch_goes_on_after_the_version_it_was_given() -> None:
    api = ScriptedApi()
    api.put(
        "rendezvousrounds",
        {"metadata": {"name": "old", "namespace": "train", "labels": {"rdzv.dev/rendezvous": "old"}}},
    )
    since = str(api.rv)
    api.put("rendezvousrounds", {"metadata": {"name": "new", "namespace": "train"}})
    reader = Transport(client_of(api))
    events = reader.watch(ROUNDS, "train", since, 20)
    assert next(events)["type"] == "BOOKMARK", "without the label it is not ours"
    api.put(
        "rendezvousrounds", {"metadata": {"name": "new", "namespace": "train", "labels": {"rdzv.dev/rendezvous": ""}}}
    )
    assert next(events)["object"]["metadata"]["name"] == "new"
    api.cut()
    assert list(events) == []


def test_connections_are_kept_for_all_passes_and_lists() -> None:
    api = ScriptedApi()
    client = client_of(api)
    call = Call("list", Resource("v1", "pods"))
    for _ in range(2):
        for connection in [client.acquire(call) for _ in range(CONNECTIONS)]:
            client.release(connection, reusable=True)
    assert api.open_connections() == len(api._connections) == CONNECTIONS


def test_what_the_fence_refuses_is_not_sent_and_reads_are_not_asked() -> None:
    api = ScriptedApi()
    api.put("rendezvousrounds", {"metadata": {"name": "a", "namespace": "train"}})
    client = client_of(api)

    def refuse() -> None:
        assert api._connections, "it is asked last, when the connection is open"
        raise ApiError(None, "another one leads")

    client.fence = refuse
    obj = {"metadata": {"name": "b"}}
    with pytest.raises(ApiError, match="another one leads"):
        client.create(ROUND, "train", obj)
    with pytest.raises(ApiError, match="another one leads"):
        client.delete(ROUND, "train", "a")
    assert api.requests == []
    assert client.get(ROUND, "train", "a")["metadata"]["name"] == "a"


def test_requests_are_metered_by_verb_and_code_each_attempt_once() -> None:
    api = ScriptedApi()
    client, metered = client_of(api), list[tuple[str, int]]()
    client.meter = lambda verb, code: metered.append((verb, code))
    api.put("rendezvousrounds", {"metadata": {"name": "a", "namespace": "train"}})
    client.get(ROUND, "train", "a")
    with pytest.raises(ApiError):
        client.get(ROUND, "train", "b")
    api.inject(Answer(code=429), "DELETE", "rendezvousrounds")
    with pytest.raises(ApiError):
        client.delete(ROUND, "train", "a")
    assert metered == [("get", 200), ("get", 404), ("delete", 429)]
    metered.clear()
    for _ in Transport(client).watch(ROUNDS, "train", "1", 1.0):
        break
    assert metered == [("watch", 200)]
    metered.clear()
    api.down = True
    api.cut()
    with pytest.raises(Unreachable):
        client.get(ROUND, "train", "a")
    assert metered == [("get", 0)]


def test_the_operator_is_told_from_an_agent_and_names_itself_in_what_it_writes() -> None:
    client = OperatorClient(CONFIG)
    agent = client.headers()["User-Agent"].partition("/")[0]
    assert agent == "rendezvous-operator", "the API server takes it for the name in managedFields"


def test_head_and_body_of_a_request_leave_in_one_piece() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[bytes] = []

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                accepted.append(peer.recv(65536))

        thread = threading.Thread(target=serve)
        thread.start()
        host, port = server.getsockname()
        connection = Connection(Config(server=f"http://{host}:{port}", source="a test"), CALL)
        sent: list[bytes] = []
        real = connection.socket

        class Counting:
            def sendall(self, data: bytes) -> None:
                sent.append(data)
                real.sendall(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        connection.socket = Counting()  # type: ignore[assignment]
        connection.send(CALL, "POST", "/pods", b'{"a":1}', {"Content-Type": "application/json"})
        thread.join(5)
        connection.close()
    assert len(sent) == 1
    assert sent[0].startswith(b"POST /pods HTTP/1.1\r\n")
    assert sent[0].endswith(b'\r\n\r\n{"a":1}')


def test_a_part_of_a_list_says_what_it_is_for() -> None:
    api = ScriptedApi()
    seen: list[tuple[str, str]] = []

    class Noting(OperatorClient):
        def run(self, request: Any, retry: Any) -> Any:
            seen.append((request.target, request.accept or ""))
            more = "token" if len(seen) == 1 else ""
            return {"metadata": {"resourceVersion": "7", "continue": more}, "items": None}

    client = Noting(CONFIG)
    client._connect = api.connect
    assert [page["items"] for page in Transport(client).pages(PODS, None, metadata_only=True)] == [[], []]
    assert [target for target, _ in seen] == [
        "/api/v1/pods?limit=500&labelSelector=rdzv.dev%2Frendezvous",
        "/api/v1/pods?limit=500&labelSelector=rdzv.dev%2Frendezvous&continue=token",
    ]
    assert all("PartialObjectMetadataList" in accept for _, accept in seen)


TEXTS = st.text(st.sampled_from('ab"\\[]{},:') | st.characters(), max_size=8) | st.just(',"managedFields":[')
FIELDS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(TEXTS, st.just({}), max_size=3), lambda inner: st.dictionaries(TEXTS, inner, max_size=3)
)


@given(FIELDS, TEXTS, TEXTS)
def test_who_set_which_field_is_left_out_and_nothing_else_whatever_texts_say(
    fields: dict[str, Any], manager: str, text: str
) -> None:
    managed = [{"manager": manager, "fieldsV1": fields}, {"manager": "kubelet", "fieldsV1": {"f:status": {}}}]
    metadata = {"name": text, "labels": {text: text}}
    pods = [{"metadata": metadata | fields, "spec": {text: [text]}} for fields in ({}, {"managedFields": managed}) * 2]
    whole = {"kind": "PodList", "items": pods}
    sent = json.dumps(whole, separators=(",", ":")).encode()
    found = without_managed_fields(bytearray(sent))
    for pod in (*found["items"], *pods):
        pod["metadata"].pop("managedFields", None)
    assert found == whole


def test_who_set_which_field_is_not_read() -> None:
    key = 'k:{\\"type\\":\\"Ready\\"}'
    managed = '[{"fieldsV1":{"f:status":{"KEY":{}}}}]'.replace("KEY", key)
    pod = f'{{"metadata":{{"name":"a","managedFields":{managed}}},"spec":{{}}}}'
    assert without_managed_fields(pod.encode()) == {"metadata": {"name": "a"}, "spec": {}}


@pytest.mark.parametrize(
    "metadata",
    [
        '{"name":"a","managedFields":[[1],{"b":[2]}],"uid":"u"}',
        '{"name":"a","managedFields":[{"b":[2],"uid":"v"}],"uid":"u"}',
        '{"name":"a","managedFields":[{"]":1}],"uid":"u"}',
        '{"name":"a","managedFields":[{"\\\\":"]"}],"uid":"u"}',
        '{"managedFields":[],"name":"a","uid":"u"}',
        '{"name":"a","managedFields":null,"uid":"u"}',
    ],
)
def test_lists_that_no_api_server_writes_are_read_as_they_are(metadata: str) -> None:
    pod = f'{{"metadata":{metadata},"spec":{{}}}}'
    assert without_managed_fields(pod.encode()) == json.loads(pod)


@pytest.mark.parametrize("data", [b'{"a":1,"managedFields":[', b"", b"[]", b'{"a":1,"managedFields":[{}'])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        without_managed_fields(data)


def test_replies_and_events_say_nothing_of_who_set_which_field() -> None:
    api, managed = ScriptedApi(), [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]
    metadata = {"name": "a", "namespace": "train", "labels": {"rdzv.dev/rendezvous": ""}, "managedFields": managed}
    api.put("rendezvousrounds", {"metadata": metadata})
    client = client_of(api)
    reader = Transport(client)
    (page,) = reader.pages(ROUNDS, "train")
    read = [client.get(ROUND, "train", "a"), *page["items"]]
    since = str(api.rv)
    api.put("rendezvousrounds", {"metadata": metadata})
    events = reader.watch(ROUNDS, "train", since, 20)
    read.append(next(event["object"] for event in events if event["type"] != "BOOKMARK"))
    assert [obj["metadata"].get("managedFields") for obj in read] == [None] * 3
    assert [obj["metadata"]["name"] for obj in read] == ["a"] * 3
