"""Watches against a real API server: whatever happens to the connection, the last thing seen is the current state."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from support.cluster_fixtures import LocalCluster, local
from support.fault_proxy import FaultProxy

from rdzv.kube import watch as watch_module
from rdzv.kube import watch_loop
from rdzv.kube.api import Forbidden, NotFound, Resource, ServerError, Unreachable
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.kube.credentials import StaticCredentials
from rdzv.kube.retry import Retry
from rdzv.kube.watch import ADDED, DELETED, MODIFIED, SYNCED, Watch
from rdzv.objects import Object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


MAPS = Resource("v1", "configmaps")
SECONDS = 30


def config_map(name: str, value: str, label: str = "x") -> Object:
    metadata = {"name": name, "labels": {"watched": label}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"v": value}}


def write(client: Client, value: str) -> bool:
    """Sets `v` of ConfigMap a, whatever becomes of single requests; twice does no harm."""
    retry = Retry.within(120)
    while True:
        try:
            return bool(client.replace(MAPS, "default", config_map("a", value), retry=retry))
        except (ServerError, Unreachable) as error:
            retry.sleep(0.1, error)


def eventually(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class Follower:
    """Runs a watch in a thread and keeps what it was told: all events, and the state they add up to."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.events: list[tuple[str, str, str]] = []
        self.state: dict[str, str] = {}
        self.error: Exception | None = None
        self.wrong: list[str] = []
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        try:
            for kind, obj in self.watch.events():
                with self.changed:
                    self.take(kind, obj)
                    self.changed.notify_all()
        except Exception as error:  # noqa: BLE001 - shown by the test that finds its state missing
            self.error = error
        with self.changed:
            self.changed.notify_all()

    def take(self, kind: str, obj: Object) -> None:
        name = obj["metadata"]["name"] if obj else ""
        self.events.append((kind, name, obj["data"]["v"] if obj else ""))
        if kind == SYNCED:
            return
        # Types fit what was told before: nothing is added twice, or changed or deleted before it was there.
        if (kind == ADDED) == (name in self.state):
            self.wrong.append(f"{kind} {name}")
        if kind == DELETED:
            del self.state[name]
        else:
            self.state[name] = obj["data"]["v"]

    def until(self, done: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: done() or self.error is not None, SECONDS), (self.state, self.events)
        if self.error is not None and not done():
            raise self.error
        assert self.wrong == []

    def shows(self, state: dict[str, str]) -> None:
        self.until(lambda: self.state == state)

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.events]


@dataclasses.dataclass
class Lab:
    """A namespace, a client that reaches it directly and one through the proxy, and what follows its objects."""

    namespace: str
    proxy: FaultProxy
    direct: Client
    client: Client
    followers: list[Follower] = dataclasses.field(default_factory=list)

    def follow(self, of: Client | None = None, **scope: Any) -> Follower:
        self.followers.append(Follower(Watch(of or self.client, MAPS, self.namespace, **scope)))
        return self.followers[-1]

    def put(self, name: str, value: str) -> None:
        """Create or change, whichever it takes."""
        try:
            change = {"op": "replace", "path": "/data/v", "value": value}
            self.direct.json_patch(MAPS, self.namespace, name, [change])
        except NotFound:
            self.direct.create(MAPS, self.namespace, config_map(name, value))

    def delete(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            self.direct.delete(MAPS, self.namespace, name)


@pytest.fixture
def lab(control_plane: LocalCluster, light_namespace: str, tmp_path: Path) -> Iterator[Lab]:
    direct = Client(from_kubeconfig(str(control_plane.kubeconfig)))
    with FaultProxy(control_plane.kubeconfig, tmp_path) as proxy:
        client = Client(from_kubeconfig(str(proxy.kubeconfig)))
        lab = Lab(light_namespace, proxy, direct, client)
        yield lab
        for follower in lab.followers:
            follower.watch.close()
            follower.thread.join(SECONDS)
        client.close()
        direct.close()
    assert not any(follower.thread.is_alive() for follower in lab.followers)


SCOPES: list[dict[str, Any]] = [{"name": "a"}, {"name": "a", "fresh": False}, {"label_selector": "watched=x"}]


IDS = ["named", "named-any", "labelled"]


@pytest.mark.parametrize("scope", SCOPES, ids=IDS)
def test_life_of_an_object(lab: Lab, scope: dict[str, Any]) -> None:
    lab.direct.create(MAPS, lab.namespace, config_map("other", "0", "not-x"))
    follower = lab.follow(**scope)
    lab.put("a", "1")
    follower.shows({"a": "1"})
    lab.put("a", "2")
    follower.shows({"a": "2"})
    lab.delete("a")
    follower.shows({})
    assert [kind for kind in follower.kinds() if kind != SYNCED] == [ADDED, MODIFIED, DELETED]


@pytest.mark.parametrize("scope", SCOPES, ids=IDS)
def test_what_exists_is_told_first(lab: Lab, scope: dict[str, Any]) -> None:
    lab.put("a", "1")
    follower = lab.follow(**scope)
    follower.shows({"a": "1"})
    if scope.get("fresh", True):
        follower.until(lambda: SYNCED in follower.kinds())
        assert follower.kinds() == [ADDED, SYNCED]


def test_an_object_that_loses_its_label_is_gone(lab: Lab) -> None:
    follower = lab.follow(label_selector="watched=x")
    lab.put("a", "1")
    follower.shows({"a": "1"})
    lab.direct.replace(MAPS, lab.namespace, config_map("a", "1", "no"))
    follower.shows({})


def test_a_named_watch_needs_no_more_than_get_and_watch_of_that_name(lab: Lab, control_plane: LocalCluster) -> None:
    lab.namespace, kubectl = lab.namespace, control_plane.kubectl
    kubectl("create", "serviceaccount", "agent", "-n", lab.namespace)
    token = kubectl("create", "token", "agent", "-n", lab.namespace).strip()
    agent = Client(
        dataclasses.replace(from_kubeconfig(str(lab.proxy.kubeconfig)), credentials=StaticCredentials(token))
    )
    with pytest.raises(Forbidden, match='"verbs": \\["watch"\\]'):
        next(Watch(agent, MAPS, lab.namespace, name="a").events())
    role = ["--verb=get,watch", "--resource=configmaps", "--resource-name=a", "-n", lab.namespace]
    kubectl("create", "role", "agent", *role)
    kubectl(
        "create", "rolebinding", "agent", "--role=agent", f"--serviceaccount={lab.namespace}:agent", "-n", lab.namespace
    )
    account = f"--as=system:serviceaccount:{lab.namespace}:agent"

    def allowed() -> bool:
        """kubectl ends with 1 for "no": the API server learns of a new Role by its own watch."""
        with contextlib.suppress(RuntimeError):
            return kubectl("auth", "can-i", "get", "configmaps/a", account, "-n", lab.namespace).strip() == "yes"
        return False

    eventually(allowed)
    follower = lab.follow(of=agent, name="a")
    lab.put("a", "1")
    follower.shows({"a": "1"})
    lab.proxy.inject("error-event", method="WATCH", status=410, reason="Expired")
    lab.proxy.cut()
    lab.put("a", "2")
    follower.shows({"a": "2"})
    agent.close()


# Whatever happens to the connection.

HTTP_410 = {"kind": "reply", "status": 410, "reason": "Expired"}
EVENT_410 = {"kind": "error-event", "status": 410, "reason": "Expired"}


@pytest.mark.parametrize("scope", SCOPES, ids=IDS)
@pytest.mark.parametrize("gone", [HTTP_410, EVENT_410], ids=["http", "event"])
def test_410_reads_everything_again_and_tells_what_was_missed(
    lab: Lab, scope: dict[str, Any], gone: dict[str, Any]
) -> None:
    lab.put("a", "1")
    lab.put("b", "1")
    labelled = "label_selector" in scope
    follower = lab.follow(**scope)
    follower.shows({"a": "1", "b": "1"} if labelled else {"a": "1"})
    # Deleted and made again, deleted, made: all while nobody looked.
    away = lab.proxy.inject("black-hole", method="WATCH")
    lab.proxy.cut()
    assert away.hit.wait(SECONDS)
    lab.delete("a")
    lab.put("a", "1")
    lab.delete("b")
    lab.put("c", "1")
    lab.proxy.inject(method="WATCH", **gone)
    seen = len(follower.events)
    away.release.set()
    follower.until(lambda: SYNCED in follower.kinds()[seen:])
    follower.shows({"a": "1", "c": "1"} if labelled else {"a": "1"})
    told = {(kind, name) for kind, name, _ in follower.events[seen:]}
    assert {(DELETED, "a"), (ADDED, "a")} <= told
    assert ((DELETED, "b") in told) is labelled


@pytest.mark.parametrize("scope", SCOPES, ids=IDS)
def test_an_object_that_is_deleted_during_an_outage_is_told(lab: Lab, scope: dict[str, Any]) -> None:
    lab.put("a", "1")
    follower = lab.follow(**scope)
    follower.shows({"a": "1"})
    lab.proxy.down()
    lab.delete("a")
    lab.proxy.up()
    follower.shows({})


@pytest.mark.parametrize("scope", SCOPES, ids=IDS)
def test_a_server_that_was_away_is_not_asked_for_what_it_has_forgotten(lab: Lab, scope: dict[str, Any]) -> None:
    """The history of one that was started again begins at its start: going on from before would be 410, and a herd's request more."""

    def resumed(since: int) -> list[bool]:
        """Of the streams that were opened, whether they went on from where they were."""
        return [
            "resourceVersion=0&" not in seen.target for seen in lab.proxy.requests[since:] if seen.method == "WATCH"
        ]

    lab.put("a", "1")
    follower = lab.follow(**scope)
    follower.shows({"a": "1"})
    lab.put("a", "2")
    follower.shows({"a": "2"})  # It was told in the stream, which can go on from here.
    seen = len(lab.proxy.requests)
    lab.proxy.cut()
    lab.put("a", "3")
    follower.shows({"a": "3"})
    assert resumed(seen) == [True]
    lab.proxy.down()
    time.sleep(1)  # Several attempts.
    lab.put("a", "4")
    seen, told = len(lab.proxy.requests), len(follower.events)
    lab.proxy.up()
    follower.shows({"a": "4"})
    follower.until(lambda: SYNCED in follower.kinds()[told:])
    eventually(lambda: resumed(seen) == ["label_selector" in scope])
    assert sum(request.method == "GET" for request in lab.proxy.requests[seen:]) == 1


def test_a_read_that_is_put_off_does_not_cost_the_stream(lab: Lab) -> None:
    """An API server that has just started says 429 to many; each of a herd would open its stream again as well."""
    lab.put("a", "1")
    put_off = lab.proxy.inject("reply", method="GET", status=429, times=3)
    follower = lab.follow(name="a")
    follower.shows({"a": "1"})
    assert put_off.hit.is_set()
    assert [seen.method for seen in lab.proxy.requests] == ["WATCH", *["GET"] * 4]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "tear"},
        {"kind": "garbage"},
        {"kind": "close-at-once", "times": 4},
        {"kind": "cut-before"},
        {"kind": "reply", "status": 429, "retry_after": 1},
        {"kind": "reply", "status": 500, "times": 2},
        {"kind": "reply", "status": 401, "times": 2},
        {"kind": "error-event", "status": 500, "reason": "InternalError"},
        {
            "kind": "error-event",
            "status": 504,
            "reason": "Timeout",
            "message": "Too large resource version: 9, current: 5",
        },
    ],
    ids=lambda fault: "-".join(str(part) for part in list(fault.values())[:2]),
)
@pytest.mark.parametrize("scope", [SCOPES[0], SCOPES[2]], ids=[IDS[0], IDS[2]])
def test_a_broken_stream_loses_nothing(lab: Lab, scope: dict[str, Any], fault: dict[str, Any]) -> None:
    follower = lab.follow(**scope)
    lab.put("a", "1")
    follower.shows({"a": "1"})
    injected = lab.proxy.inject(method="WATCH", **fault)
    lab.proxy.cut()
    assert injected.hit.wait(SECONDS)
    lab.put("a", "2")
    follower.shows({"a": "2"})
    lab.put("a", "3")
    follower.shows({"a": "3"})


def test_streams_that_close_at_once_are_not_asked_for_in_a_loop(lab: Lab) -> None:
    fault = lab.proxy.inject("close-at-once", method="WATCH", times=-1)
    follower = lab.follow(label_selector="watched=x")
    assert fault.hit.wait(SECONDS)
    follower.until(lambda: follower.kinds().count(SYNCED) >= 3)
    lists = sum(seen.method == "GET" for seen in lab.proxy.requests)
    watches = [seen.at for seen in lab.proxy.requests if seen.method == "WATCH"]
    assert lists <= 4  # Each list stands for three streams.
    assert len(watches) >= 6
    assert all(later - earlier >= 0.04 for earlier, later in pairwise(watches))


@pytest.mark.parametrize("scope", SCOPES, ids=IDS)
def test_a_half_open_connection_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch, scope: dict[str, Any]) -> None:
    monkeypatch.setattr(watch_module, "READ_SECONDS", (1.0, 1.2))
    lab.put("a", "1")
    follower = lab.follow(**scope)
    follower.shows({"a": "1"})
    lab.put("a", "1b")
    follower.shows({"a": "1b"})  # So the stream is open.
    lab.proxy.freeze()
    lab.put("a", "2")
    follower.shows({"a": "2"})


def test_the_end_that_the_server_announces_is_not_an_error(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "SERVER_SECONDS", (1.0, 1.0))
    follower = lab.follow(name="a")
    for value in "12345":
        lab.put("a", value)
        follower.shows({"a": value})
        time.sleep(0.5)
    assert sum(seen.method == "WATCH" for seen in lab.proxy.requests) >= 2
    assert len(lab.client._idle) <= 2


def test_close_returns_at_once_and_a_forked_child_cannot_close_the_parents(lab: Lab) -> None:
    follower = lab.follow(name="a")
    lab.put("a", "1")
    follower.shows({"a": "1"})
    child = os.fork()
    if child == 0:
        follower.watch.close()
        follower.watch.client.close()
        os._exit(0)
    os.waitpid(child, 0)
    before = len(follower.events)
    lab.put("a", "2")
    follower.shows({"a": "2"})
    assert len(follower.events) == before + 1
    started = time.monotonic()
    follower.watch.close()
    follower.thread.join(SECONDS)
    assert time.monotonic() - started < 5
    assert follower.error is None


@pytest.mark.parametrize("scope", SCOPES, ids=IDS)
@pytest.mark.parametrize("others", ["open", "frozen too"])
def test_a_stream_that_went_deaf_is_noticed_within_30_s_by_who_waits(
    lab: Lab, scope: dict[str, Any], others: str
) -> None:
    """Something in between keeps the connection open and lets nothing through: no error, no end, no bookmark."""
    lab.put("a", "1")
    follower = lab.follow(**scope, waiting=lambda: True)
    follower.shows({"a": "1"})
    if others == "frozen too":
        lab.client.get(MAPS, lab.namespace, "a")
    lab.proxy.freeze()
    lab.put("a", "2")
    follower.shows({"a": "2"})
    lab.proxy.freeze()
    lab.delete("a")
    follower.shows({})


def test_who_does_not_wait_asks_nothing_of_a_quiet_stream(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_loop, "QUIET_SECONDS", 0.2)
    lab.put("a", "1")
    waiting = threading.Event()
    follower = lab.follow(name="a", waiting=waiting.is_set)
    follower.shows({"a": "1"})
    before = len(lab.proxy.requests)
    time.sleep(2)
    assert len(lab.proxy.requests) == before
    waiting.set()
    eventually(lambda: len(lab.proxy.requests) >= before + 2)
    assert {seen.method for seen in lab.proxy.requests[before:]} == {"GET"}
    assert follower.kinds() == [ADDED, SYNCED], "a quiet stream that is right is kept"
    lab.put("a", "2")
    follower.shows({"a": "2"})


@pytest.mark.parametrize("status", [429, 500, 403])
def test_a_quiet_stream_that_cannot_be_verified_is_kept(lab: Lab, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(watch_loop, "QUIET_SECONDS", 0.2)
    lab.put("a", "1")
    waiting = threading.Event()
    follower = lab.follow(name="a", waiting=waiting.is_set)
    follower.shows({"a": "1"})
    fault = lab.proxy.inject("reply", method="GET", status=status, times=3)
    before = len(lab.proxy.requests)
    waiting.set()
    eventually(lambda: fault.hits == 3)
    assert not [seen for seen in lab.proxy.requests[before:] if seen.method == "WATCH"]
    lab.put("a", "2")
    follower.shows({"a": "2"})


def test_a_deadline_ends_reconnecting(lab: Lab) -> None:
    lab.proxy.down()
    watch = Watch(lab.client, MAPS, lab.namespace, name="a")
    with pytest.raises(Unreachable):
        next(watch.events(deadline=time.monotonic() + 0.5))


def test_an_api_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """The real thing: its memory of versions and roles is gone, and it refuses everybody while it reads them again."""
    start = ("up", "--dir", tmp_path / "c", "--name", "test-restart", "--light")
    with contextlib.ExitStack() as stack:
        stack.callback(local, "down", "--dir", tmp_path / "c")
        local(*start)
        plane = LocalCluster.at(tmp_path / "c")
        kubectl = plane.kubectl
        kubectl("create", "serviceaccount", "agent", "-n", "default")
        kubectl("create", "role", "agent", "--verb=get,list,watch,update", "--resource=configmaps", "-n", "default")
        kubectl("create", "rolebinding", "agent", "--role=agent", "--serviceaccount=default:agent", "-n", "default")
        kubectl("create", "configmap", "a", "--from-literal=v=0", "-n", "default")
        kubectl("label", "configmap", "a", "watched=x", "-n", "default")
        token = StaticCredentials(kubectl("create", "token", "agent", "-n", "default").strip())
        config = dataclasses.replace(from_kubeconfig(str(plane.kubeconfig)), credentials=token)
        agent = stack.enter_context(contextlib.closing(Client(config)))
        followers = [Follower(Watch(agent, MAPS, "default", **scope)) for scope in SCOPES]
        for follower in followers:
            stack.callback(follower.thread.join, SECONDS)
            stack.callback(follower.watch.close)
            follower.shows({"a": "0"})
        for turn in ("1", "2"):
            state = json.loads((tmp_path / "c/state.json").read_text())
            os.kill(state["processes"]["kube-apiserver"]["pid"], signal.SIGKILL)
            with ThreadPoolExecutor(1) as pool:
                written = pool.submit(write, agent, turn)
                local(*start)
                assert written.result(60)
            for follower in followers:
                follower.shows({"a": turn})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scope", SCOPES, ids=IDS)
def test_the_last_state_wins_whatever_happens(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, scope: dict[str, Any], seed: int
) -> None:
    """Random changes among random faults: in the end the watch shows what a list shows."""
    monkeypatch.setattr(watch_module, "READ_SECONDS", (1.0, 1.2))
    chance = random.Random(seed)
    faults = ["tear", "garbage", "close-at-once", "cut-before", "error-event", "reply", "delay", "trickle"]
    follower = lab.follow(**scope)
    for step in range(40):
        name = chance.choice("ab")
        if chance.random() < 0.3:
            lab.delete(name)
        else:
            lab.put(name, str(step))
        if chance.random() < 0.3:
            status = chance.choice([410, 410, 500, 429])
            lab.proxy.inject(chance.choice(faults), method=chance.choice(["WATCH", ""]), status=status, seconds=0.001)
        if chance.random() < 0.3:
            chance.choice([lab.proxy.cut, lab.proxy.cut, lab.proxy.freeze])()
        time.sleep(chance.random() * 0.1)
    lab.proxy.clear()
    items = lab.direct.list(MAPS, lab.namespace, label_selector="watched=x")["items"]
    final = {item["metadata"]["name"]: item["data"]["v"] for item in items}
    follower.shows(final if "label_selector" in scope else {key: final[key] for key in final if key == "a"})
