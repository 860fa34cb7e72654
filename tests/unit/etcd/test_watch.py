"""Watches of etcd with replies as a test writes them: where they go on, and what each line means."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.scripted_etcd import Script, created, deleted, events, kv, progress, text

from rdzv.etcd.client import Client
from rdzv.etcd.config import parse
from rdzv.etcd.errors import HistoryLost
from rdzv.etcd.watch import Watch
from rdzv.kube.api import Forbidden, Resource
from rdzv.kube.watch_loop import WatchEvent

ROUNDS = Resource("rdzv.dev/v1alpha1", "rendezvousrounds")
KEY = "/rdzv/run/rendezvousrounds/"
RANGE, WATCH = "/v3/kv/range", "/v3/watch"


@pytest.fixture
def script() -> Script:
    return Script()


def watch(script: Script, name: str | None = "job", label: str = "", **settings: str) -> Watch:
    client = Client(parse("a:1,b:2", settings), "run", connect=script.connect)
    return client.watch(ROUNDS, "run", name=name, label_selector=label)


def read(script: Script, revision: int, *kvs: Any) -> None:
    script.says(RANGE, {"header": {"revision": str(revision)}, "kvs": list(kvs), "count": str(len(kvs))})


def obj(n: int = 0, label: str = "x") -> dict[str, Any]:
    return {"metadata": {"labels": {"l": label}}, "n": n}


def put(name: str, modified: int, created_at: int = 0, label: str = "x") -> dict[str, Any]:
    return {"kv": kv(KEY + name, obj(modified, label), modified, created_at)}


def take(watch: Watch, count: int) -> list[tuple[str, str, str]]:
    """The next events: what, of whom, at which version."""

    def shown(event: WatchEvent) -> tuple[str, str, str]:
        meta = event.object.get("metadata", {})
        return event.type, meta.get("name", ""), meta.get("resourceVersion", "")

    found: Iterator[WatchEvent] = watch.events(deadline=time.monotonic() + 10)
    taken = [shown(event) for event in itertools.islice(found, count)]
    watch.close()
    return taken


def starts(script: Script) -> list[str]:
    return [body["create_request"]["start_revision"] for body in script.bodies(WATCH)]


def test_a_read_and_then_a_stream_from_the_next_revision_on(script: Script) -> None:
    read(script, 7, kv(KEY + "job", obj(), 5))
    script.streams(created(7), events(put("job", 9, 5)))
    assert take(watch(script), 3) == [("ADDED", "job", "5"), ("SYNCED", "", ""), ("MODIFIED", "job", "9")]
    (body,) = script.bodies(WATCH)
    assert body["create_request"] == {"key": text(KEY + "job"), "start_revision": "8", "progress_notify": True}
    assert script.requests[-1].headers["Grpc-Metadata-Hasleader"] == "true"


def test_a_stream_that_breaks_goes_on_after_the_last_event(script: Script) -> None:
    read(script, 7)
    script.streams(created(7), events(put("job", 9)), then=ConnectionResetError())
    script.streams(created(9), events(put("job", 11, 9)))
    assert take(watch(script), 3) == [("SYNCED", "", ""), ("ADDED", "job", "9"), ("MODIFIED", "job", "11")]
    assert starts(script) == ["8", "10"]
    assert len(script.bodies(RANGE)) == 1


def test_silence_is_the_end_of_a_stream_and_no_trouble(script: Script) -> None:
    read(script, 7)
    script.streams(created(7), then=TimeoutError())
    script.streams(created(9), events(put("job", 9)))
    found = watch(script)
    assert take(found, 2)[1] == ("ADDED", "job", "9")
    assert found.client.trouble is None


def test_a_line_cut_in_the_middle_is_read_again(script: Script) -> None:
    read(script, 7)
    script.streams(created(7), b'{"result": {"events": [{"kv": {"ke')
    script.streams(created(7), events(put("job", 9)))
    assert take(watch(script), 2)[1] == ("ADDED", "job", "9")
    assert starts(script) == ["8", "8"]


def test_progress_moves_the_resume_point(script: Script) -> None:
    read(script, 7)
    script.streams(created(7), progress(50), then=ConnectionResetError())
    script.streams(created(50), events(put("job", 51)))
    take(watch(script), 2)
    assert starts(script) == ["8", "51"]


def test_a_stream_that_catches_up_has_a_header_that_is_ahead(script: Script) -> None:
    read(script, 7)
    script.streams(created(100), events(put("job", 9), revision=100), then=ConnectionResetError())
    script.streams(created(100), events(put("job", 60, 9)))
    take(watch(script), 3)
    assert starts(script) == ["8", "10"], "events between 9 and 100 would be lost"


def test_history_that_is_compacted_is_replaced_by_a_read(script: Script) -> None:
    read(script, 7, kv(KEY + "job", obj(), 5))
    script.streams(created(7), then=ConnectionResetError())
    script.streams(created(40), {"result": {"header": {}, "canceled": True, "compact_revision": "30"}})
    read(script, 40)
    script.streams(created(40), events(put("job", 41)))
    assert take(watch(script), 5) == [
        ("ADDED", "job", "5"),
        ("SYNCED", "", ""),
        ("DELETED", "job", "5"),
        ("SYNCED", "", ""),
        ("ADDED", "job", "41"),
    ]
    assert starts(script) == ["8", "8", "41"]


def test_made_again_meanwhile_is_deleted_and_added(script: Script) -> None:
    read(script, 7, kv(KEY + "job", obj(), 5))
    script.streams(created(7), events(put("job", 9, 9)))
    assert take(watch(script), 4)[2:] == [("DELETED", "job", "5"), ("ADDED", "job", "9")]


def test_a_deletion_has_the_version_of_the_deletion(script: Script) -> None:
    read(script, 7, kv(KEY + "job", obj(), 5))
    script.streams(created(7), events(deleted(KEY + "job", 12)))
    assert take(watch(script), 3)[2] == ("DELETED", "job", "12")


def test_a_lease_that_ends_deletes_several_keys_at_one_revision(script: Script) -> None:
    read(script, 7, kv(KEY + "a", obj(), 5), kv(KEY + "b", obj(), 6))
    script.streams(created(7), events(deleted(KEY + "a", 12), deleted(KEY + "b", 12)))
    assert take(watch(script, None), 5)[3:] == [("DELETED", "a", "12"), ("DELETED", "b", "12")]


def test_events_that_come_again_are_old_news(script: Script) -> None:
    read(script, 7, kv(KEY + "job", obj(), 6))
    script.streams(created(7), events(put("job", 5)), events(deleted(KEY + "job", 6)), events(put("job", 9, 6)))
    assert take(watch(script), 3)[2] == ("MODIFIED", "job", "9")


def test_only_what_has_the_label(script: Script) -> None:
    read(script, 7, kv(KEY + "a", obj(label="x"), 5), kv(KEY + "b", obj(label="y"), 6))
    script.streams(created(7), events(put("c", 8, label="y"), put("d", 8, label="x"), deleted(KEY + "b", 8)))
    assert take(watch(script, None, "l=x"), 3) == [("ADDED", "a", "5"), ("SYNCED", "", ""), ("ADDED", "d", "8")]


def test_a_server_that_is_behind_is_waited_for(script: Script) -> None:
    read(script, 70)
    script.streams(created(40), events(put("job", 71)))
    read(script, 70)  # The cluster itself is where it was.
    assert take(watch(script), 2)[1] == ("ADDED", "job", "71")


def test_a_cluster_that_has_lost_its_history_is_an_error(script: Script) -> None:
    read(script, 70)
    script.streams(created(70), then=ConnectionResetError())
    script.streams(created(3))
    read(script, 3)
    with pytest.raises(HistoryLost, match="went back from 70 to 3"):
        take(watch(script), 2)


def test_permission_denied_is_an_error_at_once(script: Script) -> None:
    read(script, 7)
    reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    script.streams({"result": {"created": True, "canceled": True, "cancel_reason": reason}})
    with pytest.raises(Forbidden, match="etcdctl role grant-permission"):
        take(watch(script), 2)


def test_an_expired_token_is_replaced(script: Script, tmp_path: Any) -> None:
    (tmp_path / "password").write_text("s3cret")
    script.says("/v3/auth/authenticate", {"token": "one"})
    read(script, 7)
    reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
    script.streams({"result": {"created": True, "canceled": True, "cancel_reason": reason}})
    script.says("/v3/auth/authenticate", {"token": "two"})
    script.streams(created(7), events(put("job", 9)))
    assert take(watch(script, protocol="http", user="jane", password_file=str(tmp_path / "password")), 2)[1] == (
        "ADDED",
        "job",
        "9",
    )
    tokens = [seen.headers.get("Authorization") for seen in script.requests if seen.path == WATCH]
    assert tokens == ["one", "two"]


def test_a_server_without_a_leader_is_left_for_another(script: Script) -> None:
    read(script, 7)
    reason = "rpc error: code = Unavailable desc = etcdserver: no leader"
    script.streams(created(7), {"result": {"canceled": True, "cancel_reason": reason}})
    script.streams(created(7), events(put("job", 9)))
    assert take(watch(script), 2)[1] == ("ADDED", "job", "9")
    first, second = (seen.server for seen in script.requests if seen.path == WATCH)
    assert first != second


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON\n",
        b"[]\n",
        b'{"result": {"events": 5}}\n',
        b'{"result": {"events": [{}]}}\n',
        b'{"result": {"events": [{"kv": {"key": "%", "mod_revision": "9"}}]}}\n',
        b'{"result": {"header": {"revision": "x"}}}\n',
        b'{"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: stopped"}}\n',
        b'{"error": {"code": 14, "message": "etcdserver: stopped"}}\n',
    ],
)
def test_lines_that_are_no_events_end_the_stream(script: Script, line: bytes) -> None:
    read(script, 7)
    script.streams(created(7), line)
    script.streams(created(7), events(put("job", 9)))
    assert take(watch(script), 2)[1] == ("ADDED", "job", "9")


def test_history_that_is_too_much_for_one_line_is_replaced_by_a_read(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdzv.kube.watch_loop.MAX_EVENT", 1000)
    read(script, 7)
    script.streams(created(70), b"x" * 2000)
    read(script, 70, kv(KEY + "job", obj(), 60))
    script.streams(created(70), events(put("job", 71, 60)))
    assert take(watch(script), 4) == [
        ("SYNCED", "", ""),
        ("ADDED", "job", "60"),
        ("SYNCED", "", ""),
        ("MODIFIED", "job", "71"),
    ]
    assert starts(script) == ["8", "71"]
