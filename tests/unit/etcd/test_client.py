"""etcd's client with replies as a test writes them: leases, users, servers, and writes whose outcome is unknown."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from support.scripted_etcd import Script, kv, text

from rdzv.etcd import records
from rdzv.etcd.client import MAX_OBJECT, Client
from rdzv.etcd.config import parse
from rdzv.etcd.errors import HistoryLost, NoGateway
from rdzv.etcd.leases import Leases
from rdzv.kube.api import Forbidden, NotFound, Resource, ServerError, TooLarge, Unauthorized, Unreachable, Untrusted
from rdzv.kube.retry import Retry

MEMBERS = Resource("rdzv.dev/v1alpha1", "rendezvousmembers")
ROUNDS = Resource("rdzv.dev/v1alpha1", "rendezvousrounds")
GRANT, KEEP, TXN, RANGE, AUTH = (
    "/v3/lease/grant",
    "/v3/lease/keepalive",
    "/v3/kv/txn",
    "/v3/kv/range",
    "/v3/auth/authenticate",
)
DONE = {"header": {"revision": "9"}, "succeeded": True, "responses": []}
NO_LEASE = {"code": 5, "message": "etcdserver: requested lease not found"}


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def secret(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "password").write_text("s3cret\n")
    return {"protocol": "http", "user": "jane", "password_file": str(tmp_path / "password")}


def client(script: Script, endpoint: str = "a:1", **settings: str) -> Client:
    return Client(parse(endpoint, settings), "run", own=(MEMBERS,), connect=script.connect)


def member(name: str = "node-0", **metadata: str) -> dict[str, Any]:
    return {"metadata": {"name": name, **metadata}}


def leases(script: Script) -> list[str]:
    """The lease of each write."""
    found = []
    for body in script.bodies(TXN):
        found += [part["request_put"]["lease"] for part in body["success"] if "request_put" in part]
    return found


def test_one_request_for_a_write_and_a_lease_of_its_own_for_what_goes_with_the_client(script: Script) -> None:
    script.says(GRANT, {"ID": "77", "TTL": "600"})
    script.says(TXN, DONE)
    script.says(TXN, DONE)
    with_client = client(script)
    made = with_client.create(MEMBERS, "run", member())
    assert made["metadata"] == {
        "name": "node-0",
        "resourceVersion": "9",
        "uid": "9",
        "creationTimestamp": f"{9:020d}",
    }
    with_client.create(MEMBERS, "run", member("node-1"))
    assert [seen.path for seen in script.requests] == [GRANT, TXN, TXN]
    assert leases(script) == ["77", "77"]
    with_client.close()


def test_what_others_share_has_a_lease_that_all_of_them_know(script: Script) -> None:
    lease = records.shared_lease("/rdzv", "run")
    script.says(GRANT, {"code": 9, "message": "etcdserver: lease already exists"}, status=400)
    script.says(KEEP, {"result": {"ID": str(lease), "TTL": "600"}})
    script.says(TXN, DONE)
    with_client = client(script)
    with_client.create(ROUNDS, "run", member("job"))
    assert script.bodies(GRANT)[0]["ID"] == str(lease)
    assert leases(script) == [str(lease)]
    with_client.close()


def test_a_lease_that_has_ended_is_replaced_and_the_write_repeated(script: Script) -> None:
    for lease in ("77", "78"):
        script.says(GRANT, {"ID": lease, "TTL": "600"})
    script.says(TXN, NO_LEASE, status=404)
    script.says(TXN, DONE)
    with_client = client(script)
    with_client.create(MEMBERS, "run", member())
    assert leases(script) == ["77", "78"]
    with_client.close()


def test_a_lease_is_kept_alive_and_its_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdzv.etcd.leases.KEEP_ALIVE_SECONDS", (0.01, 0.02))
    monkeypatch.setattr("rdzv.etcd.leases.RETRY_SECONDS", 0.01)
    asked: list[str] = []
    granted = iter(["77", "78"])
    failing, ended, kept = threading.Event(), threading.Event(), threading.Event()

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append(path)
        if path == GRANT:
            return {"ID": next(granted)}
        if len(asked) < 4:
            failing.set()
            raise Unreachable(None, "cannot connect")
        if body["ID"] == "78":
            kept.set()
            return {"result": {"ID": "78", "TTL": "600"}}
        ended.set()
        return {"result": {"ID": body["ID"]}}

    found = Leases(post)
    assert found.own() == 77
    assert failing.wait(5)
    assert ended.wait(5)
    while found.own() == 77:
        pass
    assert found.own() == 78
    assert kept.wait(5)
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "rdzv-lease"]


def test_a_lost_reply_leaves_the_outcome_open_and_a_refused_connection_does_not(script: Script) -> None:
    script.says(GRANT, {"ID": "77", "TTL": "600"})
    script.fails(TXN, Unreachable(None, "no reply", maybe_applied=True))
    with_client = client(script)
    with pytest.raises(Unreachable) as caught:
        with_client.create(MEMBERS, "run", member())
    assert caught.value.maybe_applied
    script.down["a:1"] = Unreachable(None, "cannot connect to a:1")
    with pytest.raises(Unreachable) as caught:
        with_client.create(MEMBERS, "run", member())
    assert not caught.value.maybe_applied
    with_client.close()


def test_a_lease_that_cannot_be_had_leaves_no_doubt_about_the_write(script: Script) -> None:
    script.fails(GRANT, Unreachable(None, "no reply"))
    script.fails(GRANT, Unreachable(None, "no reply"))
    with pytest.raises(Unreachable) as caught:
        client(script).create(MEMBERS, "run", member())
    assert not caught.value.maybe_applied
    assert not script.bodies(TXN)


def test_an_object_that_is_too_large_is_not_sent(script: Script) -> None:
    with pytest.raises(TooLarge, match="the limit is 1048576"):
        client(script).create(MEMBERS, "run", {**member(), "x": "y" * MAX_OBJECT})
    assert not script.requests


def test_a_revision_that_goes_back_is_an_error(script: Script) -> None:
    script.says(RANGE, {"header": {"revision": "70"}})
    script.says(RANGE, {"header": {"revision": "3"}})
    script.says(RANGE, {"header": {"revision": "3"}})
    with_client = client(script)
    with pytest.raises(NotFound):
        with_client.get(ROUNDS, "run", "job")
    # A server that is asked for what it has may be behind.
    assert with_client.list(ROUNDS, "run", resource_version="0")["metadata"]["resourceVersion"] == "3"
    with pytest.raises(HistoryLost, match="start all agents anew") as caught:
        with_client.get(ROUNDS, "run", "job")
    assert not with_client.maybe_starting(caught.value)


def test_replies_that_are_not_etcds(script: Script) -> None:
    bodies: list[Any] = [b"<html>", {"kvs": 5, "header": {"revision": "1"}}, {"kvs": []}, [], {"header": 7}]
    for body in bodies:
        script.says(RANGE, body)
        with pytest.raises(Unreachable):
            client(script).get(ROUNDS, "run", "job")


# Servers.


def test_another_server_is_tried_when_one_cannot_be_reached(script: Script) -> None:
    script.down["a:1"] = Unreachable(None, "cannot connect to a:1")
    for _ in range(4):
        script.says(RANGE, {"header": {"revision": "1"}, "kvs": [kv("/rdzv/run/rendezvousrounds/job", {}, 1)]})
        client(script, "a:1,b:2").get(ROUNDS, "run", "job")
    assert {seen.server for seen in script.requests} == {"b:2"}


def test_all_servers_are_named_when_none_can_be_reached(script: Script) -> None:
    script.down = {name: Unreachable(None, f"cannot connect to {name}") for name in ("a:1", "b:2")}
    with pytest.raises(Unreachable, match=r"cannot connect to [ab]:\d; cannot connect to [ab]:\d"):
        client(script, "a:1,b:2").get(ROUNDS, "run", "job")
    script.down = {name: Untrusted(None, f"the certificate of {name}") for name in ("a:1", "b:2")}
    with pytest.raises(Untrusted):
        client(script, "a:1,b:2").get(ROUNDS, "run", "job")


def test_a_server_that_fails_is_left_for_another(script: Script) -> None:
    script.says(RANGE, {"code": 14, "message": "etcdserver: request timed out"}, status=503)
    script.says(RANGE, {"header": {"revision": "1"}, "kvs": [kv("/rdzv/run/rendezvousrounds/job", {}, 1)]})
    client(script, "a:1,b:2").get(ROUNDS, "run", "job", retry=Retry.within(5))
    first, second = (seen.server for seen in script.requests)
    assert first != second


@pytest.mark.parametrize("reply", [b"404 page not found\n", {"code": 5, "message": "Not Found"}])
def test_a_server_without_the_gateway_is_asked_what_it_is(script: Script, reply: Any) -> None:
    script.says(RANGE, reply, status=404)
    script.says("/version", {"etcdserver": "3.7.3"})
    with pytest.raises(NoGateway, match=r"a:1 answers, is etcd 3\.7\.3, and has no JSON gateway") as caught:
        client(script).get(ROUNDS, "run", "job")
    assert "CRD" not in str(caught.value)


# Users.


def test_a_token_is_got_once_and_again_when_it_is_refused(script: Script, secret: dict[str, str]) -> None:
    found = {"header": {"revision": "1"}, "kvs": [kv("/rdzv/run/rendezvousrounds/job", {}, 1)]}
    script.says(AUTH, {"token": "one.1"})
    script.says(RANGE, found)
    script.says(RANGE, found)
    script.says(RANGE, {"code": 16, "message": "etcdserver: invalid auth token"}, status=401)
    script.says(AUTH, {"token": "two.2"})
    script.says(RANGE, found)
    with_client = client(script, **secret)
    for _ in range(3):
        with_client.get(ROUNDS, "run", "job")
    assert script.bodies(AUTH) == [{"name": "jane", "password": "s3cret"}] * 2
    tokens = [seen.headers.get("Authorization") for seen in script.requests if seen.path == RANGE]
    assert tokens == ["one.1", "one.1", "one.1", "two.2"]


def test_a_wrong_password_is_an_error_and_shown_to_nobody(
    script: Script, secret: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    script.says(
        AUTH, {"code": 3, "message": "etcdserver: authentication failed, invalid user ID or password"}, status=400
    )
    with pytest.raises(Forbidden, match="check user and password_file") as caught:
        client(script, **secret).get(ROUNDS, "run", "job", retry=Retry.within(5))
    assert "s3cret" not in f"{caught.value!r} {caplog.text}"


def test_an_etcd_that_asks_for_no_user_is_used_without(script: Script, secret: dict[str, str]) -> None:
    script.says(AUTH, {"code": 9, "message": "etcdserver: authentication is not enabled"}, status=400)
    for _ in range(2):
        script.says(RANGE, {"header": {"revision": "1"}, "kvs": [kv("/rdzv/run/rendezvousrounds/job", {}, 1)]})
    with_client = client(script, **secret)
    for _ in range(2):
        with_client.get(ROUNDS, "run", "job")
    assert not [seen for seen in script.requests if "Authorization" in seen.headers]


@pytest.mark.parametrize("token", [None, 5, "a\r\nX-Evil: 1", "ä"])
def test_a_token_that_is_none_goes_into_no_header(script: Script, secret: dict[str, str], token: Any) -> None:
    script.says(AUTH, {"token": token})
    script.says(AUTH, {"token": token})
    with pytest.raises(Unauthorized, match="etcd gave no token"):
        client(script, **secret).get(ROUNDS, "run", "job")


# What is sent.


def test_a_replace_is_conditional_on_the_version(script: Script) -> None:
    script.says(GRANT, {"ID": "77", "TTL": "600"})
    look = {"response_range": {"kvs": [{"key": text("x"), "create_revision": "4", "mod_revision": "9"}]}}
    script.says(TXN, {**DONE, "responses": [{"response_put": {}}, look]})
    with_client = client(script)
    made = with_client.replace(MEMBERS, "run", member(resourceVersion="5"))
    assert (made["metadata"]["uid"], made["metadata"]["resourceVersion"]) == ("4", "9")
    (body,) = script.bodies(TXN)
    assert {
        "target": "MOD",
        "result": "EQUAL",
        "key": text("/rdzv/run/rendezvousmembers/node-0"),
        "mod_revision": "5",
    } in body["compare"]
    stored = json.loads(records.decode(body["success"][0]["request_put"]["value"]))
    assert stored == {"metadata": {"name": "node-0"}}
    with_client.close()


def test_a_reply_that_another_thread_overtakes_is_no_history_lost(script: Script) -> None:
    """The read is carried out at revision 5, then a write of another thread, whose reply is looked at first."""
    script.says(RANGE, {"header": {"revision": "5"}, "kvs": [kv("/rdzv/run/rendezvousrounds/job", {}, 5)]})
    script.says(GRANT, {"ID": "77", "TTL": "600"})
    script.says(TXN, DONE)
    with_client = client(script)
    overtaken = with_client.run

    def run(request: Any, retry: Retry | None) -> Any:
        reply = overtaken(request, retry)
        if request.target == RANGE:
            with_client.create(MEMBERS, "run", member())
        return reply

    with_client.run = run  # type: ignore[method-assign]
    assert with_client.get(ROUNDS, "run", "job")["metadata"]["resourceVersion"] == "5"
    with_client.close()


def test_one_error_is_blamed_on_one_server_however_often_it_is_asked_about(script: Script) -> None:
    script.says(RANGE, {"code": 14, "message": "etcdserver: request timed out"}, status=503)
    script.says(RANGE, {"header": {"revision": "1"}, "kvs": [kv("/rdzv/run/rendezvousrounds/job", {}, 1)]})
    with_client = client(script, "a:1,b:2")
    with pytest.raises(ServerError) as caught:
        with_client.get(ROUNDS, "run", "job")
    assert with_client.maybe_starting(caught.value)  # As the agent asks, to tell whether it passes.
    with_client.get(ROUNDS, "run", "job")
    first, second = (seen.server for seen in script.requests)
    assert first != second


def test_what_says_nothing_of_a_lease_leaves_it_alone() -> None:
    replies: list[dict[str, Any]] = [{}, {"result": {}}, {"result": {"ID": "78", "TTL": "600"}}, {"result": 5}]
    found = Leases(lambda path, _: {"ID": "77"} if path == GRANT else replies.pop())
    found.own()
    while replies:
        with pytest.raises(Unreachable, match="the reply is not etcd's"):
            found._keep_alive(77)
    assert found.own() == 77
    found.close()
