"""What etcd's refusals turn into, and that their texts help. The bodies are those of etcd 3.7.3 and 3.4.23."""

from __future__ import annotations

import json

import pytest

from rdzv.etcd import errors
from rdzv.etcd.errors import error_of, error_of_cancel, explain_missing_gateway
from rdzv.kube import api
from rdzv.kube.api import Call, Reply, Resource

MEMBERS = Resource("rdzv.dev/v1alpha1", "rendezvousmembers")
GET, CREATE = Call("get", MEMBERS, "job", "node-0"), Call("create", MEMBERS, "job", "node-0")

CASES = [
    (400, 3, "etcdserver: request is too large", api.TooLarge, False),
    (400, 3, "etcdserver: user name is empty", api.Forbidden, False),
    (400, 3, "etcdserver: authentication failed, invalid user ID or password", api.Forbidden, False),
    (400, 3, "etcdserver: revision of auth store is old", api.Unauthorized, False),
    (400, 3, "unexpected EOF", api.Invalid, False),
    (401, 16, "etcdserver: invalid auth token", api.Unauthorized, False),
    (403, 7, "etcdserver: permission denied", api.Forbidden, False),
    (404, 5, "etcdserver: requested lease not found", errors.LeaseNotFound, False),
    (404, 5, "Not Found", errors.NoGateway, False),
    (400, 9, "etcdserver: lease already exists", errors.LeaseExists, False),
    (400, 9, "etcdserver: authentication is not enabled", errors.AuthDisabled, False),
    (429, 8, "etcdserver: mvcc: database space exceeded", api.ServerError, False),
    (429, 8, "etcdserver: too many requests", api.TooManyRequests, False),
    (400, 11, "etcdserver: mvcc: required revision has been compacted", api.Gone, False),
    (400, 11, "etcdserver: mvcc: required revision is a future revision", errors.HistoryLost, False),
    (501, 12, "method not implemented", errors.NoGateway, False),
    (503, 14, "etcdserver: leader changed", api.ServerError, True),
    (503, 14, "etcdserver: request timed out", api.ServerError, True),
    (504, 4, "context deadline exceeded", api.ServerError, True),
    (500, 2, "who knows", api.ServerError, True),
    (500, 99, "a code of the future", api.ServerError, True),
]


@pytest.mark.parametrize(("status", "code", "message", "kind", "unknown"), CASES)
@pytest.mark.parametrize("old", [False, True], ids=["3.7", "3.4"])
def test_types(status: int, code: int, message: str, kind: type[api.ApiError], unknown: bool, old: bool) -> None:
    body = {"code": code, "message": message} | ({"error": message} if old else {})
    for call in (GET, CREATE):
        error = error_of(call, Reply(status, json.dumps(body).encode()))
        assert type(error) is kind
        assert error.maybe_applied is (unknown and call is CREATE)
        assert message in str(error)
        assert str(error).startswith(f"{call.verb} rendezvousmembers.rdzv.dev job/node-0: {status}")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b"404 page not found\n", errors.NoGateway),
        (400, b"Client sent an HTTP request to an HTTPS server.\n", api.Invalid),
        (502, b"<html>Bad Gateway</html>", api.ServerError),
        (503, b"", api.ServerError),
        (500, b"[1]", api.ServerError),
    ],
)
def test_replies_that_are_not_the_gateways(status: int, body: bytes, kind: type[api.ApiError]) -> None:
    assert type(error_of(GET, Reply(status, body))) is kind


@pytest.mark.parametrize("name", ["grpc_code", "code"])
def test_the_refusal_of_a_stream(name: str) -> None:
    body = {"error": {name: 16, "http_code": 401, "message": "etcdserver: invalid auth token"}}
    assert type(error_of(GET, Reply(401, json.dumps(body).encode()))) is api.Unauthorized


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token", api.Unauthorized),
        ("rpc error: code = PermissionDenied desc = etcdserver: permission denied", api.Forbidden),
        ("etcdserver: no leader", api.ServerError),
        ("rpc error: code = Unavailable desc = etcdserver: no leader", api.ServerError),
        ("", api.ServerError),
    ],
)
def test_a_watch_that_etcd_ended(reason: str, kind: type[api.ApiError]) -> None:
    assert type(error_of_cancel(GET, reason)) is kind


def test_texts_say_what_to_do() -> None:
    def text(code: int, message: str) -> str:
        return str(error_of(CREATE, Reply(400, json.dumps({"code": code, "message": message}).encode()), "jane"))

    assert "user jane may not write" in text(7, "etcdserver: permission denied")
    assert "etcdctl role grant-permission" in text(7, "etcdserver: permission denied")
    assert "set user and password_file" in text(3, "etcdserver: user name is empty")
    assert "check user and password_file" in text(3, "etcdserver: authentication failed, invalid user ID or password")
    assert "etcdctl alarm disarm" in text(8, "etcdserver: mvcc: database space exceeded")


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (
            {"etcdserver": "3.7.3"},
            "is etcd 3.7.3, and has no JSON gateway: start it without --enable-grpc-gateway=false",
        ),
        ({"etcdserver": "2.3.8"}, "is etcd 2.3.8, and has no v3 gateway at /v3: use 3.4 or later"),
        ({"etcdserver": "3.3.27"}, "is etcd 3.3.27, and has no v3 gateway"),
        ({"etcdserver": "3.10.1"}, "has no JSON gateway"),
        ({"etcdserver": {}}, "answers, and is no etcd"),
        ({}, "answers, and is no etcd"),
        (None, "answers, and is no etcd"),
    ],
)
def test_a_server_without_the_gateway_is_named(version: dict[str, object] | None, says: str) -> None:
    assert says in explain_missing_gateway(version, "etcd:2379")
