"""etcd's client against real servers, the current one and the oldest: verbs, watches, leases, faults, certificates, users."""

from __future__ import annotations

import contextlib
import http.server
import json
import random
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.etcd_servers import EtcdCluster, EtcdServer
from support.fault_proxy import EtcdProxy

from rdzv.etcd import leases as leases_module
from rdzv.etcd import watch as watch_module
from rdzv.etcd.client import MAX_OBJECT, Client
from rdzv.etcd.config import parse
from rdzv.etcd.errors import HistoryLost, NoGateway
from rdzv.etcd.watch import Watch
from rdzv.kube.api import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Resource,
    Stopped,
    Unreachable,
    Untrusted,
)
from rdzv.kube.retry import Retry
from rdzv.kube.watch_loop import ADDED, DELETED, MODIFIED, SYNCED
from rdzv.objects import Object

MAPS = Resource("example.org/v1", "maps")
OTHERS = Resource("example.org/v1", "others")
SECONDS = 30.0
Open = Callable[..., Client]


@pytest.fixture(params=["etcd", "oldest_etcd"])
def server(request: pytest.FixtureRequest) -> EtcdServer:
    found: EtcdServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def run() -> str:
    return f"run-{secrets.token_hex(4)}"


@pytest.fixture
def opener(run: str) -> Iterator[Open]:
    """Makes clients of one namespace."""
    made: list[Client] = []

    def make(endpoint: str, **settings: str) -> Client:
        made.append(Client(parse(endpoint, settings), run, own=(MAPS,)))
        return made[-1]

    yield make
    for client in made:
        client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "rdzv-lease"]


@pytest.fixture
def client(server: EtcdServer, opener: Open) -> Client:
    return opener(server.endpoint)


@pytest.fixture
def proxy(server: EtcdServer, tmp_path: Path) -> Iterator[EtcdProxy]:
    found = EtcdProxy(parse(server.endpoint, {}).servers[0], tmp_path)
    with found:
        yield found


def obj(name: str, value: Any = "", label: str = "x") -> Object:
    return {"kind": "Map", "metadata": {"name": name, "labels": {"watched": label}}, "data": value}


def version(found: Object) -> int:
    return int(found["metadata"]["resourceVersion"])


def eventually(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# Verbs.


def test_what_is_created_is_read_as_it_was_returned(client: Client) -> None:
    made = client.create(MAPS, None, obj("a", {"ä": [1, None]}))
    assert client.get(MAPS, None, "a") == made
    with pytest.raises(AlreadyExists):
        client.create(MAPS, None, obj("a"))
    with pytest.raises(NotFound):
        client.get(OTHERS, None, "a")
    with pytest.raises(NotFound):
        client.get(MAPS, "another-run", "a")


def test_a_replace_is_a_compare_and_set(client: Client) -> None:
    with pytest.raises(NotFound):
        client.replace(MAPS, None, obj("a"))
    made = client.create(MAPS, None, obj("a", 1))
    changed = client.replace(MAPS, None, {**made, "data": 2})
    assert client.get(MAPS, None, "a") == changed
    assert version(changed) > version(made)
    assert changed["metadata"]["uid"] == made["metadata"]["uid"]
    with pytest.raises(Conflict, match="it is at version"):
        client.replace(MAPS, None, {**made, "data": 3})
    assert client.replace(MAPS, None, obj("a", 4))["data"] == 4, "without a version it is unconditional"
    client.delete(MAPS, None, "a")
    with pytest.raises(NotFound):
        client.replace(MAPS, None, changed)


def test_versions_of_all_kinds_are_one_row_of_numbers(client: Client) -> None:
    numbers = [version(client.create(kind, None, obj(f"n-{i}"))) for i in range(3) for kind in (MAPS, OTHERS)]
    assert numbers == sorted(set(numbers))


def test_a_deletion_is_of_the_very_one(client: Client) -> None:
    first = client.create(MAPS, None, obj("a"))["metadata"]
    client.delete(MAPS, None, "a", uid=first["uid"])
    with pytest.raises(NotFound):
        client.delete(MAPS, None, "a")
    second = client.create(MAPS, None, obj("a"))["metadata"]
    assert second["uid"] != first["uid"]
    for condition in ({"uid": first["uid"]}, {"resource_version": first["resourceVersion"]}):
        with pytest.raises(Conflict):
            client.delete(MAPS, None, "a", **condition)
    client.delete(MAPS, None, "a", resource_version=second["resourceVersion"])
    with pytest.raises(NotFound):
        client.get(MAPS, None, "a")


def test_a_list_has_what_has_the_label_and_a_version_not_below_theirs(client: Client) -> None:
    made = [client.create(MAPS, None, obj(name, label=label)) for name, label in (("a", "x"), ("b", "y"), ("c", "x"))]
    client.create(OTHERS, None, obj("d"))
    found = client.list(MAPS, None, label_selector="watched=x")
    assert found["items"] == [made[0], made[2]]
    assert int(found["metadata"]["resourceVersion"]) >= version(made[2])
    assert len(client.list(MAPS, None, resource_version="0")["items"]) == 3
    assert client.list(MAPS, "another-run")["items"] == []


def test_a_patch_holds_for_the_version_that_it_tests(client: Client) -> None:
    made = client.create(MAPS, None, obj("a", {"log": []}))
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": made["metadata"]["resourceVersion"]}
    add = {"op": "add", "path": "/data/log/-", "value": 1}
    assert client.json_patch(MAPS, None, "a", [test, add])["data"] == {"log": [1]}
    with pytest.raises(Invalid):
        client.json_patch(MAPS, None, "a", [test, add])
    with pytest.raises(NotFound):
        client.json_patch(MAPS, None, "b", [add])


def test_no_increment_is_lost_among_many_clients(server: EtcdServer, opener: Open) -> None:
    clients = [opener(server.endpoint) for _ in range(8)]
    clients[0].create(MAPS, None, obj("n", 0))

    def count(client: Client) -> None:
        for _ in range(10):
            while True:
                current = client.get(MAPS, None, "n")
                with contextlib.suppress(Conflict):
                    client.replace(MAPS, None, {**current, "data": current["data"] + 1})
                    break

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, clients))
    assert clients[0].get(MAPS, None, "n")["data"] == 80


@pytest.mark.parametrize("name", ["a/b", "ä ö", "%2F", "..a", "A.b-c_d"])
def test_names_are_taken_as_they_are(client: Client, name: str) -> None:
    client.create(MAPS, None, obj(name))
    assert [item["metadata"]["name"] for item in client.list(MAPS, None)["items"]] == [name]
    client.delete(MAPS, None, name)


def test_values_that_somebody_else_wrote_break_no_list(client: Client, server: EtcdServer, run: str) -> None:
    values = [b"", b"no JSON", b"[1]", b'{"metadata": 5}', b"\xff", b"[" * 100_000]
    for index, value in enumerate(values):
        server.put(f"/rdzv/{run}/maps/bad-{index}", value)
    for key in ("%67ood", "a/b", "", "%"):  # Not as any client writes a name.
        server.put(f"/rdzv/{run}/maps/{key}", b"{}")
    client.create(MAPS, None, obj("good", 1))
    found = client.list(MAPS, None)["items"]
    assert len(found) == len(values) + 1
    assert [item["data"] for item in client.list(MAPS, None, label_selector="watched=x")["items"]] == [1]
    server.delete_below(f"/rdzv/{run}/")


def test_an_object_of_nearly_a_megabyte(client: Client, follow: Callable[[Watch], Follower]) -> None:
    """The workers' store has shards of more than half a megabyte."""
    follower = follow(client.watch(MAPS, None, name="a"))
    large = "x" * (MAX_OBJECT - 1000)
    made = client.create(MAPS, None, obj("a", large))
    client.replace(MAPS, None, {**made, "data": large[1:]})
    eventually(lambda: follower.state == {"a": large[1:]})


# Faults.


def test_a_lost_reply_says_that_the_outcome_is_unknown(proxy: EtcdProxy, opener: Open) -> None:
    through = opener(proxy.endpoint, **proxy.settings)
    through.create(MAPS, None, obj("first"))
    proxy.inject("lose-reply", path="/v3/kv/txn")
    with pytest.raises(Unreachable) as caught:
        through.create(MAPS, None, obj("a"))
    assert caught.value.maybe_applied
    assert through.get(MAPS, None, "a")
    proxy.inject("cut-before", path="/v3/kv/txn")
    with pytest.raises(Unreachable):
        through.create(MAPS, None, obj("b"))
    with pytest.raises(NotFound):
        through.get(MAPS, None, "b")


@pytest.mark.parametrize("kind", ["cut-before", "lose-reply", "garbage"])
def test_reads_are_repeated(proxy: EtcdProxy, opener: Open, kind: str) -> None:
    through = opener(proxy.endpoint, **proxy.settings)
    made = through.create(MAPS, None, obj("a"))
    fault = proxy.inject(kind, path="/v3/kv/range", times=3)
    assert through.get(MAPS, None, "a", retry=Retry.within(20)) == made
    assert fault.hits == 3


def test_a_closed_client_ends_what_waits(proxy: EtcdProxy, opener: Open) -> None:
    through = opener(proxy.endpoint, **proxy.settings)
    through.create(MAPS, None, obj("a"))
    hole = proxy.inject("black-hole", path="/v3/kv/range")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(through.get, MAPS, None, "a", retry=Retry.within(60))
        assert hole.hit.wait(10)
        through.close()
        with pytest.raises(Stopped):
            waiting.result(5)


# Watches.


class Follower:
    """Runs a watch in a thread; keeps the state that its events add up to, and what in them did not fit."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.state: dict[str, Any] = {}
        self.kinds: list[str] = []
        self.wrong: list[str] = []
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        try:
            for kind, found in self.watch.events():
                self.take(kind, found)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def take(self, kind: str, found: Object) -> None:
        self.kinds.append(kind)
        if kind == SYNCED:
            return
        name = found["metadata"]["name"]
        if (kind == ADDED) == (name in self.state):
            self.wrong.append(f"{kind} {name}")
        if kind == DELETED:
            del self.state[name]
        else:
            assert kind in (ADDED, MODIFIED)
            self.state[name] = found["data"]

    def end(self) -> None:
        self.watch.close()
        self.thread.join(5)
        assert not self.thread.is_alive(), "close() did not end the watch"


@pytest.fixture
def follow() -> Iterator[Callable[[Watch], Follower]]:
    made: list[Follower] = []

    def start(watch: Watch) -> Follower:
        made.append(Follower(watch))
        return made[-1]

    yield start
    for follower in made:
        follower.end()
        assert follower.wrong == []


def scribble(client: Client, seed: int, names: list[str], steps: int) -> None:
    """Random writes to some objects."""
    chance = random.Random(seed)
    for step in range(steps):
        name = chance.choice(names)
        with contextlib.suppress(Conflict, NotFound):
            match chance.randrange(3):
                case 0:
                    client.create(MAPS, None, obj(name, step))
                case 1:
                    client.replace(MAPS, None, obj(name, step))
                case 2:
                    client.delete(MAPS, None, name)


def state(client: Client, name: str | None = None) -> dict[str, Any]:
    items = client.list(MAPS, None, label_selector="watched=x")["items"]
    return {item["metadata"]["name"]: item["data"] for item in items if name in (None, item["metadata"]["name"])}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_the_connection_the_last_state_arrives(
    server: EtcdServer,
    proxy: EtcdProxy,
    opener: Open,
    client: Client,
    follow: Callable[[Watch], Follower],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setattr(watch_module, "READ_SECONDS", (0.3, 0.6))
    through = opener(proxy.endpoint, **proxy.settings)
    everything = follow(through.watch(MAPS, None, label_selector="watched=x"))
    one = follow(through.watch(MAPS, None, name="n-0", fresh=False))
    chance = random.Random(seed)
    for part in range(6):
        for kind in chance.sample(["tear", "close-at-once", "garbage", "cut-before", "reply"], 2):
            proxy.inject(kind, method="WATCH", path="/v3/watch")
        scribble(client, seed * 100 + part, [f"n-{i}" for i in range(4)], 25)
        if chance.random() < 0.5:
            proxy.cut()
        if chance.random() < 0.5:
            server.compact()
    proxy.clear()
    client.create(MAPS, None, obj("last", "here"))
    eventually(lambda: everything.state == state(client) and one.state == state(client, "n-0"))
    assert everything.error is None
    assert one.error is None


def test_connections_that_go_silent_are_replaced(
    proxy: EtcdProxy,
    opener: Open,
    client: Client,
    follow: Callable[[Watch], Follower],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_module, "READ_SECONDS", (1.0, 1.5))
    follower = follow(opener(proxy.endpoint, **proxy.settings).watch(MAPS, None, name="a"))
    eventually(lambda: any(seen.method == "WATCH" for seen in proxy.requests))
    proxy.freeze()
    client.create(MAPS, None, obj("a", 1))
    eventually(lambda: follower.state == {"a": 1})


def test_a_watch_costs_nothing_while_nothing_happens(
    server: EtcdServer, opener: Open, follow: Callable[..., Follower]
) -> None:
    with_client = opener(server.endpoint)
    follower = follow(with_client.watch(MAPS, None, label_selector="watched=x"))
    eventually(lambda: SYNCED in follower.kinds)
    time.sleep(1)
    before = server.requests()
    time.sleep(3)
    after = server.requests()
    assert {name for name in after if after[name] != before.get(name, 0)} <= {"Check", "Status"}


# Leases.


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LEASE_SECONDS", 2)
    monkeypatch.setattr(leases_module, "KEEP_ALIVE_SECONDS", (0.3, 0.5))


@pytest.mark.usefixtures("short_leases")
def test_nothing_stays_when_nobody_is_left(server: EtcdServer, opener: Open, run: str) -> None:
    first, second = opener(server.endpoint), opener(server.endpoint)
    for client, name in ((first, "a"), (second, "b")):
        client.create(MAPS, None, obj(name))
        client.create(OTHERS, None, obj(name))
    time.sleep(5)  # More than twice as long as a lease that nobody keeps alive.
    assert len(server.values(f"/rdzv/{run}/")) == 4
    first.close()
    eventually(lambda: len(server.values(f"/rdzv/{run}/")) == 3)
    assert [name.rpartition("/")[2] for name in server.values(f"/rdzv/{run}/maps/")] == ["b"], (
        "what goes with its client"
    )
    time.sleep(4)
    assert len(server.values(f"/rdzv/{run}/others/")) == 2, "what is shared goes with the last one"
    second.close()
    eventually(lambda: not server.values(f"/rdzv/{run}/"))


def test_a_lease_that_was_revoked_is_replaced_with_the_next_write(client: Client, server: EtcdServer, run: str) -> None:
    client.create(MAPS, None, obj("a"))
    (found,) = server.values(f"/rdzv/{run}/").values()
    server.call("/v3/lease/revoke", {"ID": found["lease"]})
    with pytest.raises(NotFound):
        client.get(MAPS, None, "a")
    client.create(MAPS, None, obj("a"))
    (again,) = server.values(f"/rdzv/{run}/").values()
    assert again["lease"] not in ("0", None, found["lease"])


# Servers.


def test_one_of_three_members_is_lost_and_comes_back(
    tmp_path: Path, opener: Open, follow: Callable[[Watch], Follower]
) -> None:
    with EtcdCluster(tmp_path) as cluster:
        clients = [opener(cluster.endpoint) for _ in range(4)]
        followers = [follow(client.watch(MAPS, None, name="n")) for client in clients]
        current = clients[0].create(MAPS, None, obj("n", 0))
        for index, member in enumerate(cluster.members):
            member.kill()
            for _ in range(3):
                for client in clients:
                    current = {**client.get(MAPS, None, "n", retry=Retry.within(SECONDS)), "data": current["data"] + 1}
                    current = client.replace(MAPS, None, current, retry=Retry.within(SECONDS))
            everybody = [{"n": 12 * (index + 1)}] * len(followers)
            eventually(lambda: [follower.state for follower in followers] == everybody)  # noqa: B023
            member.start()
        assert [follower.error for follower in followers] == [None] * 4


def test_a_member_that_is_cut_off_from_the_others_keeps_no_watch(
    tmp_path: Path, opener: Open, follow: Callable[[Watch], Follower]
) -> None:
    """It goes on answering, without a leader: its watches would be silent."""
    with EtcdCluster(tmp_path) as cluster:
        alone = cluster.members[0]
        cut_off = opener(alone.endpoint)
        follower = follow(cut_off.watch(MAPS, None, name="n"))
        eventually(lambda: SYNCED in follower.kinds)
        for member in cluster.members[1:]:
            member.kill()
        eventually(lambda: "no leader" in str(cut_off.trouble))
        for member in cluster.members[1:]:
            member.launch()
        opener(cluster.endpoint).create(MAPS, None, obj("n", 1), retry=Retry.within(SECONDS))
        eventually(lambda: follower.state == {"n": 1})
        assert follower.error is None


def test_an_etcd_that_is_away_for_a_while(tmp_path: Path, opener: Open, follow: Callable[[Watch], Follower]) -> None:
    with EtcdServer(tmp_path) as etcd:
        client = opener(etcd.endpoint)
        made = client.create(MAPS, None, obj("a", 1))
        follower = follow(client.watch(MAPS, None, name="a"))
        etcd.kill()
        with pytest.raises(Unreachable, match=f"cannot connect to {etcd.endpoint}"):
            client.get(MAPS, None, "a")
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(client.get, MAPS, None, "a", retry=Retry.within(SECONDS))
            time.sleep(3)
            etcd.start()
            assert waiting.result() == made
        client.replace(MAPS, None, {**made, "data": 2}, retry=Retry.within(SECONDS))
        eventually(lambda: follower.state == {"a": 2})
        assert follower.error is None


def test_an_etcd_that_comes_back_empty_is_named(
    tmp_path: Path, opener: Open, follow: Callable[[Watch], Follower]
) -> None:
    with EtcdServer(tmp_path) as etcd:
        client = opener(etcd.endpoint)
        for _ in range(3):
            client.create(MAPS, None, obj("a", 1))
            client.delete(MAPS, None, "a")
        follower = follow(client.watch(MAPS, None, name="a"))
        eventually(lambda: SYNCED in follower.kinds)
        etcd.kill()
        shutil.rmtree(tmp_path / f"etcd-{etcd.port}")
        etcd.start()
        eventually(lambda: follower.error is not None)
        assert isinstance(follower.error, HistoryLost)
        with pytest.raises(HistoryLost, match="revision went back from 7 to 1"):
            client.get(MAPS, None, "a", retry=Retry.within(SECONDS))


@pytest.mark.parametrize("version", ["3.7", "3.4"])
def test_a_server_without_its_gateway_is_named(tmp_path: Path, opener: Open, version: str) -> None:
    with EtcdServer(tmp_path, version, "--enable-grpc-gateway=false") as etcd:
        says = (
            f"{etcd.endpoint} answers, is etcd {version}.*has no JSON gateway: start it without --enable-grpc-gateway"
        )
        with pytest.raises(NoGateway, match=says):
            opener(etcd.endpoint).get(MAPS, None, "a", retry=Retry.within(5))


def test_a_server_that_is_no_etcd_is_named(opener: Open) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_POST(self) -> None:
            self.send_error(404)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.02,))
        thread.start()
        with pytest.raises(NoGateway, match="answers, and is no etcd"):
            opener(f"127.0.0.1:{other.server_address[1]}").get(MAPS, None, "a")
        other.shutdown()
        thread.join()


# Certificates and users.


@pytest.fixture(scope="module", params=["3.7", "3.4"])
def tls_etcd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), request.param, tls=True) as found:
        yield found


def test_with_certificates_on_both_sides(
    tls_etcd: EtcdServer, opener: Open, follow: Callable[[Watch], Follower]
) -> None:
    client = opener(tls_etcd.endpoint, **tls_etcd.settings)
    follower = follow(client.watch(MAPS, None, name="a"))
    client.create(MAPS, None, obj("a", 1))
    eventually(lambda: follower.state == {"a": 1})
    assert follower.error is None


def test_an_etcd_of_another_authority_is_not_trusted(tls_etcd: EtcdServer, opener: Open, tmp_path: Path) -> None:
    with EtcdProxy(parse(tls_etcd.endpoint, tls_etcd.settings).servers[0], tmp_path) as other:
        settings = {**tls_etcd.settings, "cacert": str(other.ca_file)}
        with pytest.raises(Untrusted, match=f"the certificate of {tls_etcd.endpoint} does not match the CA"):
            opener(tls_etcd.endpoint, **settings).get(MAPS, None, "a")


def test_without_a_certificate_etcd_refuses(tls_etcd: EtcdServer, opener: Open) -> None:
    with pytest.raises(Unreachable, match="it may ask for a certificate: set cert and key"):
        opener(tls_etcd.endpoint, cacert=tls_etcd.settings["cacert"]).get(MAPS, None, "a")


@pytest.mark.parametrize("settings", [{}, {"protocol": "https"}], ids=["http", "https"])
def test_the_wrong_protocol_is_an_error_that_says_so(
    server: EtcdServer, tls_etcd: EtcdServer, opener: Open, settings: dict[str, str]
) -> None:
    endpoint = server.endpoint if settings else tls_etcd.endpoint
    with pytest.raises(Unreachable, match="no TLS connection" if settings else "set protocol=https"):
        opener(endpoint, **settings).get(MAPS, None, "a")


def test_a_renewed_certificate_is_used(tls_etcd: EtcdServer, opener: Open, tmp_path: Path) -> None:
    """The old one is refused meanwhile, as when it has ended: new ones are read when that happens."""
    files = {"ca.crt": "ca.crt", "tls.crt": "client.crt", "tls.key": "client.key"}
    for name, source in files.items():
        shutil.copy(tls_etcd.pki.folder / source, tmp_path / name)
    with EtcdServer(tmp_path / "other", tls=True) as other:
        for name in ("tls.crt", "tls.key"):  # Of an authority that etcd does not know.
            shutil.copy(other.pki.folder / files[name], tmp_path / name)
    client = opener(tls_etcd.endpoint, credentials=str(tmp_path))
    with pytest.raises(Unreachable):
        client.get(MAPS, None, "a")
    for name in ("tls.crt", "tls.key"):
        shutil.copy(tls_etcd.pki.folder / files[name], tmp_path / name)
    with pytest.raises(NotFound):
        client.get(MAPS, None, "a", retry=Retry.within(5))


@pytest.mark.parametrize("version", ["3.7", "3.4"])
def test_users(
    tmp_path: Path,
    opener: Open,
    version: str,
    run: str,
    follow: Callable[[Watch], Follower],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    (tmp_path / "username").write_text("agent")
    (tmp_path / "password").write_text("s3cret-word")
    (tmp_path / "wrong").write_text("wrong-word")
    with EtcdServer(tmp_path, version) as etcd:
        etcd.enable_users("agent", "s3cret-word", f"/rdzv/{run}/")
        client = opener(etcd.endpoint, credentials=str(tmp_path), protocol="http")
        follower = follow(client.watch(MAPS, None, name="a"))
        made = client.create(MAPS, None, obj("a", 1))
        with pytest.raises(Forbidden, match=r"user agent may not write here\. Grant its role"):
            client.create(MAPS, "another-run", obj("a"))
        with pytest.raises(Forbidden, match="set user and password_file"):
            opener(etcd.endpoint).get(MAPS, None, "a")
        wrong = opener(etcd.endpoint, protocol="http", user="agent", password_file=str(tmp_path / "wrong"))
        with pytest.raises(Forbidden, match="check user and password_file") as caught:
            wrong.get(MAPS, None, "a")
        etcd.kill()
        etcd.start()  # It has forgotten all tokens.
        client.replace(MAPS, None, {**made, "data": 2}, retry=Retry.within(SECONDS))
        eventually(lambda: follower.state == {"a": 2})
        assert follower.error is None
    shown = f"{caught.value!r} {caplog.text} {json.dumps(made)}"
    assert "s3cret-word" not in shown
    assert "wrong-word" not in shown
