"""KubernetesStore when the API fails: lost replies, conflicts, refusals, silence; and what is its own beside torch's contract."""

from __future__ import annotations

import dataclasses
import gc
import json
import multiprocessing
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster, local
from support.fault_proxy import FaultProxy
from support.operator_process import eventually
from torch import distributed as dist

from rdzv.kube.api import Resource
from rdzv.kube.client import Client
from rdzv.kube.config import Config, from_kubeconfig
from rdzv.kube.credentials import StaticCredentials
from rdzv.store import records
from rdzv.store.store import KubernetesStore

CRD = Path(__file__).resolve().parents[2] / "charts/rendezvous-operator/files/crds/rendezvousstore.yaml"
STORES = Resource("rdzv.dev/v1alpha1", "rendezvousstores")
MAPS = Resource("v1", "configmaps")
PATH = "/rendezvousstores"
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: agent}
rules: [{apiGroups: [rdzv.dev], resources: [rendezvousstores], verbs: [get, list, watch, create, patch, delete]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: agent}
subjects: [{kind: ServiceAccount, name: agent}]
"""
Open = Callable[..., KubernetesStore]


@pytest.fixture(scope="session")
def crd_kubeconfig(control_plane: LocalCluster) -> Path:
    control_plane.kubectl("apply", "--server-side", "-f", str(CRD))
    control_plane.kubectl("wait", "--for=condition=Established", "-f", str(CRD), "--timeout=30s")
    return control_plane.kubeconfig


@pytest.fixture
def proxy(crd_kubeconfig: Path, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(crd_kubeconfig, tmp_path) as proxy:
        yield proxy


@pytest.fixture
def opener(crd_kubeconfig: Path) -> Iterator[Open]:
    """Opens handles on one store, each with a client of its own; `through` a proxy, or directly."""
    name = f"store-{secrets.token_hex(4)}"
    made: list[KubernetesStore] = []

    def make(through: FaultProxy | None = None, seconds: float = 60, config: Config | None = None, **other: Any) -> Any:
        config = config or from_kubeconfig(str(through.kubeconfig if through else crd_kubeconfig))
        settings = {"name": name, "namespace": "default", "timeout": timedelta(seconds=seconds), **other}
        made.append(KubernetesStore(client=Client(config), **settings))
        return made[-1]

    threads = set(threading.enumerate())
    yield make
    for store in made:
        store.close()
        store._core.client.close()
    assert {thread for thread in threading.enumerate() if thread.name == "rdzv-store"} <= threads


@pytest.fixture
def direct(opener: Open) -> KubernetesStore:
    return opener()


def writes(proxy: FaultProxy) -> list[str]:
    return [seen.method for seen in proxy.requests if PATH in seen.target]


# What it costs.


def test_one_request_for_a_mutation_and_one_for_a_read(proxy: FaultProxy, opener: Open) -> None:
    store = opener(proxy)
    store.add("n", 1)
    assert writes(proxy) == ["GET", "POST"]
    proxy.requests.clear()
    for _ in range(20):
        store.add("n", 1)
    assert writes(proxy) == ["PATCH"] * 20
    proxy.requests.clear()
    assert store.get("n") == b"21"
    assert store.check(["n"])
    assert writes(proxy) == ["GET", "GET"]


def test_waiting_costs_nothing_while_it_lasts(proxy: FaultProxy, opener: Open, direct: KubernetesStore) -> None:
    store = opener(proxy)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(store.get, key) for key in ("a", "b", "a")]
        while "WATCH" not in writes(proxy):
            time.sleep(0.01)
        time.sleep(0.5)
        assert sorted(writes(proxy)) == ["GET", "GET", "GET", "GET", "WATCH"]  # One each, one list, one watch for all.
        direct.multi_set(["a", "b"], ["1", "2"])
        assert [future.result() for future in waiting] == [b"1", b"2", b"1"]
    assert len(writes(proxy)) == 5


def test_a_crowd_of_adds_needs_few_writes_to_the_shard(crd_kubeconfig: Path, opener: Open) -> None:
    stores = [opener() for _ in range(16)]
    for store in stores:
        store._core.client.connect()
    gate = threading.Barrier(16)

    def add(store: KubernetesStore) -> int:
        gate.wait()
        return store.add("n", 1)

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(add, stores)) == list(range(1, 17))
    client = stores[0]._core.client
    shard = client.get(STORES, "default", records.shard_name(stores[0]._core.name, records.shard_of("n")))
    assert shard["metadata"]["generation"] <= 12  # That many writes for 16 adds; each alone would make 16.
    letters = client.list(STORES, "default", label_selector=f"{records.LETTER}={stores[0]._core.name}")
    assert letters["items"] == []


# Limits and errors.


def test_what_is_too_large_is_refused_by_name(direct: KubernetesStore) -> None:
    big = b"x" * (records.MAX_VALUE + 1)
    for call in (
        lambda: direct.set("my-key", big),
        lambda: direct.append("my-key", big),
        lambda: direct.compare_set("my-key", "", big),
        lambda: direct.multi_set(["other", "my-key"], ["", big]),
        lambda: direct.queue_push("my-key", big),
    ):
        with pytest.raises(dist.DistStoreError, match=r"'my-key'.* 10000[0-9] bytes.* limit is 100000; .*store=tcp"):
            call()
    assert direct.list_keys() == []
    direct.set("my-key", big[:60_000])
    with pytest.raises(dist.DistStoreError, match=r"'my-key'.* 60000 bytes .* limit of 100000; .*store=tcp"):
        direct.append("my-key", big[:60_000])
    with pytest.raises(dist.DistStoreError, match="'my-key': its value is not a number"):
        direct.add("my-key", 1)
    assert direct.get("my-key") == big[:60_000]


def test_a_full_shard_says_so(direct: KubernetesStore) -> None:
    keys = [key for key in (f"k{i}" for i in range(1000)) if records.shard_of(key) == 0][:8]
    refused = []
    for key in keys:
        try:
            direct.set(key, os.urandom(90_000))
        except dist.DistStoreError as error:
            refused.append((key, str(error)))
    assert [key for key, _ in refused] == keys[4:]
    assert "no room for 90000 more bytes" in refused[0][1]
    assert direct.delete_key(keys[0])
    direct.set(keys[5], os.urandom(90_000))


@pytest.mark.parametrize("name", ["", "Upper", "a_b", "-a", "a-", "a/b", "x" * 61])
def test_names_that_objects_cannot_have(name: str, opener: Open) -> None:
    with pytest.raises(ValueError, match="not a name for a store"):
        opener(name=name)


def test_a_role_with_six_verbs_is_enough_and_a_missing_one_is_named(
    opener: Open, control_plane: LocalCluster, light_namespace: str, crd_kubeconfig: Path
) -> None:
    control_plane.kubectl("create", "serviceaccount", "agent", "-n", light_namespace)
    token = control_plane.kubectl("create", "token", "agent", "-n", light_namespace).strip()
    config = dataclasses.replace(from_kubeconfig(str(crd_kubeconfig)), credentials=StaticCredentials(token))
    store = opener(config=config, namespace=light_namespace)
    with pytest.raises(dist.DistStoreError, match=r'agent may not get rendezvousstores\.rdzv\.dev.*"verbs": \["get"\]'):
        store.set("a", "b")
    control_plane.kubectl("apply", "-n", light_namespace, "-f", "-", input=ROLE)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:  # The authorizer learns of a role by a watch.
            store.set("a", "b")
            break
        except dist.DistStoreError:
            time.sleep(0.05)
    threading.Timer(0.2, partial(store.set, "late", "x")).start()
    assert store.multi_get(["a", "late"]) == [b"b", b"x"]
    assert store.num_keys() == 2
    store.delete()


def test_a_missing_crd_is_named(opener: Open, proxy: FaultProxy) -> None:
    proxy.inject("reply", path=PATH, times=-1, status=404, reason="NotFound", message="page not found")
    with pytest.raises(dist.DistStoreError, match="is its CRD installed"):
        opener(proxy).set("a", "b")


def test_a_missing_namespace_is_named(opener: Open) -> None:
    with pytest.raises(dist.DistStoreError, match='namespaces "no-such-place" not found'):
        opener(namespace="no-such-place").set("a", "b")


# Lifetime.


def test_torchs_own_test_of_python_stores(direct: KubernetesStore) -> None:
    from torch._C import _distributed_c10d

    _distributed_c10d._test_python_store(direct)
    assert direct.check(["key", "key0", "key1", "key2", "key3"])


def test_a_store_that_only_torch_holds_stays_whole(opener: Open) -> None:
    def wrapped(store: Any) -> Any:
        return dist.PrefixStore("p", store).clone()

    prefixed = wrapped(opener().clone())
    gc.collect()
    prefixed.set("key", "value")
    assert prefixed.get("key") == b"value"
    assert prefixed.num_keys() == 1


def test_closing_ends_what_waits_and_every_thread(direct: KubernetesStore) -> None:
    twin = direct.clone()
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(store.get, "never") for store in (direct, twin)]
        while not any(thread.name == "rdzv-store" for thread in threading.enumerate()):
            time.sleep(0.01)
        direct.close()
        for future in waiting:
            with pytest.raises(dist.DistStoreError, match="closed"):
                future.result(10)
    assert not any(thread.name == "rdzv-store" for thread in threading.enumerate())
    for call in (lambda: direct.set("a", "b"), lambda: twin.get("a"), lambda: twin.check(["a"])):
        with pytest.raises(dist.DistStoreError, match="is closed"):
            call()
    direct.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on_with_the_same_handle(proxy: FaultProxy, opener: Open) -> None:
    store = opener(proxy)
    pool = ThreadPoolExecutor()
    waiting = pool.submit(store.get, "from-child")
    assert store.add("n", 1) == 1
    # A thread is in the middle of things, but not of making a connection: a lock of OpenSSL's would stay taken in the child.
    eventually(lambda: any(seen.method == "WATCH" for seen in proxy.requests))

    def child() -> None:
        for _ in range(10):
            store.add("n", 1)
        assert store.get("from-parent") == b"hello"
        store.set("from-child", "hi")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    for _ in range(10):
        store.add("n", 1)
    store.set("from-parent", "hello")
    assert waiting.result(60) == b"hi"
    process.join(60)
    assert process.exitcode == 0
    assert store.get("n") == b"21"
    pool.shutdown()


def test_its_objects_belong_to_the_owner(opener: Open, direct: KubernetesStore) -> None:
    client = direct._core.client
    name = f"owner-{secrets.token_hex(4)}"
    owner = client.create(MAPS, "default", {"metadata": {"name": name}})
    store = opener(name=name, owner={"apiVersion": "v1", "kind": "ConfigMap", "metadata": owner["metadata"]})
    store.set("a", "b")
    shards = client.list(STORES, "default", label_selector=f"{records.LABEL}={name}")["items"]
    expected = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": owner["metadata"]["uid"]}
    assert [shard["metadata"]["ownerReferences"] for shard in shards] == [[expected]]
    store.delete()
    client.delete(MAPS, "default", name)


def test_a_deleted_store_is_not_begun_anew(opener: Open) -> None:
    store, other = opener(), opener()
    store.set("a", "1")
    other.add("a", 1)
    with ThreadPoolExecutor() as pool:
        names = [key for key in (f"k{i}" for i in range(1000)) if records.shard_of(key) == records.shard_of("a")]
        waiting = pool.submit(other.get, names[0])
        while not any(thread.name == "rdzv-store" for thread in threading.enumerate()):
            time.sleep(0.01)
        time.sleep(0.2)
        store.delete()
        with pytest.raises(dist.DistStoreError, match="was deleted"):
            waiting.result(10)
    for call in (lambda: store.add("a", 1), lambda: other.get("a"), lambda: other.set("a", "2")):
        with pytest.raises(dist.DistStoreError, match="was deleted"):
            call()
    assert opener().num_keys() == 0


# Failures.


def test_lost_replies_neither_double_nor_lose_an_add(opener: Open, proxy: FaultProxy, direct: KubernetesStore) -> None:
    store, results = opener(proxy), []
    proxy.inject("lose-reply", method="POST", path=PATH)
    for i in range(24):
        if i % 2:
            proxy.inject("lose-reply", method="PATCH", path=PATH, times=1 + i % 3)
        results.append(store.add("n", 1))
        results.append(direct.add("n", 1))
    assert results == list(range(1, 49))


def test_a_result_survives_others_that_fold_the_log(opener: Open, proxy: FaultProxy, direct: KubernetesStore) -> None:
    store = opener(proxy)
    direct.set("key", "old")
    store.add("n", 1)
    same = next(key for key in (f"k{i}" for i in range(1000)) if records.shard_of(key) == records.shard_of("n"))
    for call, result in (
        (lambda: store.add("n", 1), 2),
        (lambda: store.compare_set(same, "", "mine"), b"mine"),
        (lambda: store.compare_set(same, "other", "mine"), b"theirs"),
        (lambda: store.delete_key(same), True),
    ):
        lost = proxy.inject("lose-reply", method="PATCH", path=PATH)
        held = proxy.inject("delay", method="GET", path=PATH, seconds=60)  # The look for what has become of it.
        with ThreadPoolExecutor() as pool:
            future = pool.submit(call)
            assert lost.hit.wait(20)
            assert held.hit.wait(20)
            for _ in range(20):
                direct.add("n", 100)
            if result != b"theirs" and result is not True:
                direct.compare_set(same, "mine", "theirs")
            held.release.set()
            assert future.result(30) == result
    assert direct.get("n") == b"8002"


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "reply", "status": 409, "reason": "Conflict", "method": "PATCH"},
        {"kind": "reply", "status": 429, "reason": "TooManyRequests", "retry_after": 1, "times": 1},
        {"kind": "reply", "status": 500, "reason": "InternalError"},
        {"kind": "reply", "status": 503, "reason": "ServiceUnavailable"},
        {"kind": "reply", "status": 401, "reason": "Unauthorized"},
        {"kind": "cut-before"},
        {"kind": "garbage"},
        {"kind": "lose-reply"},
    ],
    ids=lambda fault: f"{fault['kind']}{fault.get('status', '')}",
)
def test_every_operation_outlasts(fault: dict[str, Any], opener: Open, proxy: FaultProxy) -> None:
    store = opener(proxy)
    store.add("n", 1)
    calls: list[tuple[Callable[[], Any], Any]] = [
        (lambda: store.add("n", 1), 2),
        (lambda: store.append("log", "a"), None),
        (lambda: store.get("log"), b"a"),
        (lambda: store.compare_set("cas", "", "1"), b"1"),
        (lambda: store.check(["cas", "log"]), True),
        (store.num_keys, 3),
        (lambda: store.delete_key("cas"), True),
        (lambda: store.multi_set(["x", "y"], ["1", "2"]), None),
        (lambda: store.multi_get(["y", "x"]), [b"2", b"1"]),
        (lambda: store.queue_push("q", "1"), None),
        (lambda: store.queue_pop("q"), b"1"),
    ]
    for call, result in calls:
        proxy.inject(**{"path": PATH, "times": 2, **fault})
        assert call() == result
        proxy.clear()


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "error-event", "status": 410, "reason": "Expired"},
        {"kind": "reply", "status": 410, "reason": "Expired"},
        {"kind": "reply", "status": 429, "reason": "TooManyRequests", "retry_after": 1},
        {"kind": "close-at-once"},
        {"kind": "garbage"},
        {"kind": "tear"},
    ],
    ids=lambda fault: f"{fault['kind']}{fault.get('status', '')}",
)
def test_waiting_outlasts_a_watch_that(
    fault: dict[str, Any], opener: Open, proxy: FaultProxy, direct: KubernetesStore
) -> None:
    store = opener(proxy)
    injected = proxy.inject(method="WATCH", path=PATH, times=2, **fault)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(store.get, "key")
        assert injected.hit.wait(20)
        direct.set("other", "x")
        direct.set("key", "value")
        assert waiting.result(30) == b"value"


def test_a_silent_watch_does_not_make_a_wait_fail(opener: Open, proxy: FaultProxy, direct: KubernetesStore) -> None:
    store = opener(proxy, seconds=4)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(store.get, "key")
        while "WATCH" not in writes(proxy):
            time.sleep(0.01)
        time.sleep(0.5)
        proxy.freeze()
        direct.set("key", "value")
        assert waiting.result(30) == b"value"


def test_an_api_server_that_is_away_is_waited_for(opener: Open, proxy: FaultProxy, direct: KubernetesStore) -> None:
    store = opener(proxy)
    assert store.add("n", 1) == 1
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(store.get, "key")
        while "WATCH" not in writes(proxy):
            time.sleep(0.01)
        proxy.down()
        added = pool.submit(store.add, "n", 1)
        time.sleep(1)
        assert not added.done()
        assert not waiting.done()
        direct.set("key", "value")
        proxy.up()
        assert waiting.result(30) == b"value"
        assert added.result(30) == 2


def test_an_api_server_that_is_killed_and_started_again(tmp_path: Path) -> None:
    place = tmp_path / "c"
    local("up", "--dir", place, "--name", "test-store", "--light")
    try:
        cluster = LocalCluster.at(place)
        cluster.kubectl("apply", "--server-side", "-f", str(CRD))
        cluster.kubectl("wait", "--for=condition=Established", "-f", str(CRD), "--timeout=30s")
        clients = [Client(from_kubeconfig(str(cluster.kubeconfig))) for _ in range(4)]
        stores = [KubernetesStore("restarted", "default", client=client) for client in clients]
        added = threading.Semaphore(0)

        def add(store: KubernetesStore) -> list[int]:
            results = []
            for _ in range(30):
                results.append(store.add("n", 1))
                added.release()
            return results

        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(stores[3].get, "end")
            adding = [pool.submit(add, store) for store in stores[:3]]
            for _ in range(10):
                added.acquire()
            os.kill(
                json.loads((place / "state.json").read_text())["processes"]["kube-apiserver"]["pid"], signal.SIGKILL
            )
            time.sleep(1)
            local("up", "--dir", place, "--name", "test-store", "--light")
            assert sorted(n for future in adding for n in future.result(90)) == list(range(1, 91))
            stores[0].set("end", "x")
            assert waiting.result(90) == b"x"
        for store, client in zip(stores, clients, strict=True):
            store.close()
            client.close()
    finally:
        local("down", "--dir", place)


def test_one_that_stays_away_is_a_timeout(opener: Open, proxy: FaultProxy) -> None:
    store = opener(proxy, seconds=1)
    store.add("n", 1)
    proxy.down()
    for call in (lambda: store.add("n", 1), lambda: store.get("n"), store.num_keys):
        with pytest.raises(dist.DistStoreError, match=r"[t -i]imeout"):
            call()
    proxy.up()
    assert store.add("n", 1) in (2, 3)  # The one that failed may have been carried out, once.


# What is set together, is seen together.


def keys_of_shards(*indexes: int) -> list[str]:
    """A key of each of these shards."""
    return [next(key for key in (f"k{i}" for i in range(1000)) if records.shard_of(key) == index) for index in indexes]


def test_a_multi_set_is_seen_whole_or_not_at_all(opener: Open) -> None:
    writers, readers, keys = [opener(), opener()], [opener() for _ in range(3)], keys_of_shards(0, 5, 9)
    writers[0].multi_set(keys, ["0", "0", "0"])
    over = threading.Event()

    def write(i: int) -> None:
        for n in range(1, 25):
            writers[i].multi_set(keys, [f"{i}:{n}"] * 3)

    def read(i: int) -> list[list[bytes]]:
        seen = []
        while not over.is_set():
            if i < 2:
                seen.append(readers[i].multi_get(keys))
            else:  # One key after the other, back and forth: what was new once is never old again.
                seen.append([readers[i].get(key) for key in (keys[0], keys[2], keys[0])])
        return seen

    with ThreadPoolExecutor() as pool:
        reading = [pool.submit(read, i) for i in range(3)]
        writing = [pool.submit(write, i) for i in range(2)]
        for future in writing:
            future.result()
        over.set()
        views = [future.result() for future in reading]
    assert [view for view in views[0] + views[1] if len(set(view)) > 1] == []
    assert [view for view in views[2] if view[0] == view[2] != view[1]] == []


def test_a_multi_set_costs_a_request_for_each_shard_twice_and_two(opener: Open, proxy: FaultProxy) -> None:
    store, keys = opener(proxy), keys_of_shards(0, 5, 9)
    store.multi_set(keys, ["0", "0", "0"])
    proxy.requests.clear()
    store.multi_set(keys, ["1", "1", "1"])
    assert writes(proxy) == ["PATCH"] * 3 + ["POST"] + ["PATCH"] * 3 + ["DELETE"]
    proxy.requests.clear()
    store.multi_set([keys[0]] * 2, ["2", "3"])
    assert writes(proxy) == ["PATCH"]
    proxy.requests.clear()
    assert store.check(keys)
    assert store.multi_get(keys) == [b"3", b"1", b"1"]
    assert set(writes(proxy)) == {"GET"}
    assert len(writes(proxy)) <= 3
    listed = store._core.client.list(STORES, "default", label_selector=f"{records.LABEL}={store._core.name}")
    assert len(listed["items"]) == 3  # No decision is left behind.


def test_without_room_for_one_key_none_is_set(direct: KubernetesStore) -> None:
    near, far = keys_of_shards(3, 4)
    others = [key for key in (f"x{i}" for i in range(1000)) if records.shard_of(key) == 4][:6]
    for key in others[:4]:
        direct.set(key, os.urandom(90_000))
    big = os.urandom(90_000)
    for keys in ([near, far], [others[4], far], [far, others[0]]):
        with pytest.raises(dist.DistStoreError, match=r"set of key .*: no room for 90000 more bytes"):
            direct.multi_set(keys, ["1", big] if keys[1] == far else [big, "1"])
        assert not direct.check([keys[0]])
    assert not direct.check([far])
    with pytest.raises(dist.DistStoreError, match=r"multi_set of key .* and 2 others of one shard: .*limit is 262144"):
        direct.multi_set(others[:3], [big] * 3)
    direct.delete_key(others[0])
    direct.multi_set([near, far], ["1", big])
    assert direct.multi_get([near, far]) == [b"1", big]


MIDDLES = [
    {"kind": "lose-reply", "method": "PATCH"},
    {"kind": "lose-reply", "method": "POST"},
    {"kind": "lose-reply", "method": "DELETE"},
    {"kind": "reply", "status": 500, "reason": "InternalError", "method": "POST"},
    {"kind": "reply", "status": 409, "reason": "Conflict", "method": "PATCH", "times": 5},
    {"kind": "reply", "status": 409, "reason": "Conflict", "method": "POST"},
    {"kind": "cut-before", "method": "POST"},
]


@pytest.mark.parametrize(
    "fault", MIDDLES, ids=lambda fault: f"{fault['kind']}{fault.get('status', '')}-{fault['method']}"
)
def test_a_multi_set_outlasts(fault: dict[str, Any], opener: Open, proxy: FaultProxy, direct: KubernetesStore) -> None:
    store, keys = opener(proxy), keys_of_shards(0, 5, 9)
    for n in range(4):
        proxy.inject(**{"path": PATH, **fault})
        store.multi_set(keys, [str(n)] * 3)
        proxy.clear()
        assert direct.multi_get(keys) == [str(n).encode()] * 3
        for key in keys:
            direct.append(key, "!")
        assert [direct.get(key) for key in keys] == [f"{n}!".encode()] * 3


@pytest.mark.parametrize("committed", [False, True])
def test_a_client_that_is_lost_in_the_middle_of_a_multi_set_stops_nobody(
    committed: bool, opener: Open, proxy: FaultProxy, direct: KubernetesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PATIENCE", 1)
    store, keys = opener(proxy), keys_of_shards(0, 5, 9)
    direct.multi_set(keys, ["old"] * 3)
    store.set(keys[0], "old")
    store.multi_get(keys)
    store.set_timeout(timedelta(seconds=2))
    # The decision is created, or not; then nothing that this client sends arrives any more.
    lost = proxy.inject("lose-reply" if committed else "cut-before", method="POST", path=PATH)
    with ThreadPoolExecutor() as pool:
        setting = pool.submit(store.multi_set, keys, ["new"] * 3)
        assert lost.hit.wait(20)
        proxy.inject("cut-before", path=PATH, times=-1)
        with pytest.raises(dist.DistStoreError, match="whether it was carried out is unknown"):
            setting.result(30)
    expected = b"new" if committed else b"old"
    assert direct.multi_get(keys) == [expected] * 3
    assert [direct.get(key) for key in keys] == [expected] * 3
    others = [direct.clone() for _ in keys]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda other, key: other.append(key, "!"), others, keys))
    assert direct.multi_get(keys) == [expected + b"!"] * 3
    proxy.clear()
    store.set_timeout(timedelta(seconds=60))
    store.multi_set(keys, ["again"] * 3)
    assert direct.multi_get(keys) == [b"again"] * 3


def test_one_that_was_ended_by_others_is_tried_again(
    opener: Open, proxy: FaultProxy, direct: KubernetesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PATIENCE", 1)
    store, keys = opener(proxy), keys_of_shards(0, 5)
    store.multi_set(keys, ["1", "1"])
    held = proxy.inject("delay", method="POST", path=PATH, seconds=60)
    with ThreadPoolExecutor() as pool:
        setting = pool.submit(store.multi_set, keys, ["2", "2"])
        assert held.hit.wait(20)
        assert direct.multi_get(keys) == [b"1", b"1"]
        direct.append(keys[1], "!")  # Waits a second, then decides.
        assert direct.multi_get(keys) == [b"1", b"1!"]
        held.release.set()
        setting.result(30)
    assert direct.multi_get(keys) == [b"2", b"2"]


def test_a_shard_that_is_made_while_all_are_listed_is_not_taken_for_deleted(
    opener: Open, proxy: FaultProxy, direct: KubernetesStore
) -> None:
    store, keys = opener(proxy), keys_of_shards(0, 5)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(store.get, keys[0])
        while "WATCH" not in writes(proxy):
            time.sleep(0.01)
        listing = proxy.inject("trickle", method="GET", path=PATH + r"\?", seconds=0.03)
        checking = pool.submit(store.check, keys)
        assert listing.hit.wait(20)
        time.sleep(0.5)  # The API server has answered; the answer is under way.
        direct.set(keys[0], "x")
        assert waiting.result(30) == b"x"
        assert not checking.done()
        assert checking.result(30) is False


# Others may write anything.


def _entry(**fields: Any) -> dict[str, Any]:
    return {"writer": "w", "seq": 1, "ops": [{"op": "set", "key": "n", "value": "MQ=="}], **fields}


HOSTILE: dict[str, dict[str, Any]] = {
    "no-value": {"log": [_entry(ops=[{"op": "set", "key": "n"}])]},
    "no-amount": {"log": [_entry(ops=[{"op": "add", "key": "n"}])]},
    "not-base64": {"data": {"n": "%%%"}, "log": [_entry(ops=[{"op": "append", "key": "n", "value": "?"}])]},
    "undecided-in-the-middle": {"log": [_entry(until={"decision": "x", "patience": 1}), _entry(seq=2)]},
    "undecided-by-another-object": {"log": [_entry(until={"decision": "../../pods/x", "patience": 1})]},
    "undecided-for-centuries": {"log": [_entry(until={"decision": "STORE-decision-abc-1", "patience": 2**60})]},
    "empty-queue": {"queues": {"q": []}},
    "very-long": {"log": [_entry(ops=[{"op": "append", "key": "n", "value": ""}] * (records.MAX_OPS + 1))]},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_shard_is_named_or_used(case: str, opener: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_PATIENCE", 1)
    store = opener()
    core, index = store._core, records.shard_of("n")
    obj = records.new_shard(core.name, core.shards[index].name, _entry())
    spec = json.loads(json.dumps(HOSTILE[case]).replace("STORE", core.name))
    core.client.create(STORES, "default", {**obj, "spec": {**obj["spec"], "log": [], **spec}})
    calls: list[Callable[[], Any]] = [
        lambda: store.set("n", "1"),
        lambda: store.add("n", 1),
        lambda: store.get("n"),
        lambda: store.multi_get(["n", "other"]),
        lambda: store.check(["n", "other"]),
        lambda: store.multi_set(["n", "other"], ["1", "2"]),
        lambda: store.queue_pop("n", block=False),
        store.num_keys,
    ]
    usable = case == "undecided-for-centuries"
    store.set("other", "x")
    for call in calls[:-2] if usable else calls:
        if usable:
            call()
        else:
            with pytest.raises(dist.DistStoreError, match=core.shards[index].name):
                call()
    assert store.get("other") == (b"2" if usable else b"x")


def test_hostile_letters_do_not_disturb_a_crowd(opener: Open, proxy: FaultProxy) -> None:
    store = opener(proxy)
    store.add("n", 1)
    core, index = store._core, records.shard_of("n")
    for i, entry in enumerate(
        [
            _entry(ops=[{"op": "set", "key": "n"}]),
            _entry(ops=[{"op": "set", "key": "n", "value": "?"}]),
            _entry(ops=[{"op": "set", "key": "n", "value": "A" * 900_000}]),
            _entry(until={"decision": "x", "patience": 9}),
            _entry(ops=[{"op": "set", "key": keys_of_shards((index + 1) % 16)[0], "value": ""}]),
        ]
    ):
        letter = records.letter(core.name, index, {**entry, "seq": i + 1}, 0)
        core.client.create(STORES, "default", letter)
    proxy.inject("reply", status=409, reason="Conflict", method="PATCH", path=PATH, times=3)
    assert store.add("n", 1) == 2
    assert store.list_keys() == ["n"]
    store.delete()


def test_one_who_writes_under_the_name_of_another_is_noticed_by_that_one(opener: Open) -> None:
    store, other = opener(), opener()
    store.add("n", 1)
    other._core.writer = store._core.writer
    other._core.shards[records.shard_of("n")].number = 6
    other.add("n", 1)
    with pytest.raises(dist.DistStoreError, match="under the name of this client"):
        store.add("n", 1)


# What is not known is not claimed.


def test_an_operation_whose_reply_was_lost_before_the_api_went_away_is_said_to_be_unknown(
    opener: Open, proxy: FaultProxy, direct: KubernetesStore
) -> None:
    store = opener(proxy)
    assert store.add("n", 1) == 1
    store.set_timeout(timedelta(seconds=3))
    proxy.inject("lose-reply", method="PATCH", path=PATH)
    away = proxy.inject("reply", status=503, reason="ServiceUnavailable", method="GET", path=PATH, times=-1)
    with pytest.raises(dist.DistStoreError, match=r"timeout.*whether it was carried out is unknown"):
        store.add("n", 1)
    assert away.hits
    proxy.clear()
    assert direct.get("n") == b"2"


def test_one_that_was_refused_or_never_sent_is_said_not_to_have_happened(opener: Open, proxy: FaultProxy) -> None:
    store = opener(proxy)
    assert store.add("n", 1) == 1
    store.set_timeout(timedelta(seconds=1))
    proxy.inject("reply", status=429, reason="TooManyRequests", method="PATCH", path=PATH, times=-1)
    with pytest.raises(dist.DistStoreError, match=r"timeout.*it was not carried out"):
        store.add("n", 1)
    proxy.down()
    with pytest.raises(dist.DistStoreError, match=r"timeout.*it was not carried out"):
        store.add("n", 1)
    proxy.up()
    store.set_timeout(timedelta(seconds=60))
    assert store.add("n", 1) == 2


def test_an_attempt_that_can_no_longer_arrive_is_not_in_doubt(
    opener: Open, proxy: FaultProxy, direct: KubernetesStore
) -> None:
    store = opener(proxy)
    assert store.add("n", 1) == 1
    store.set_timeout(timedelta(seconds=3))
    proxy.inject("reply", status=500, reason="InternalError", method="PATCH", path=PATH)  # Applied? Nobody knows.
    direct.add("n", 1)  # Now it holds for a version that is gone.
    proxy.inject("reply", status=429, reason="TooManyRequests", method="PATCH", path=PATH, times=-1)
    with pytest.raises(dist.DistStoreError, match=r"timeout.*it was not carried out"):
        store.add("n", 1)
    proxy.clear()
    store.set_timeout(timedelta(seconds=60))
    assert store.add("n", 1) == 3


def test_a_letter_that_cannot_be_withdrawn_leaves_its_sender_in_doubt(
    opener: Open, proxy: FaultProxy, direct: KubernetesStore
) -> None:
    store = opener(proxy)
    assert store.add("n", 1) == 1
    store.set_timeout(timedelta(seconds=3))
    proxy.inject("reply", status=409, reason="Conflict", method="PATCH", path=PATH, times=-1)
    proxy.inject("cut-before", method="DELETE", path=PATH, times=-1)
    with pytest.raises(dist.DistStoreError, match="whether it was carried out is unknown"):
        store.add("n", 1)
    proxy.clear()
    store.set_timeout(timedelta(seconds=60))
    letters = direct._core.client.list(STORES, "default", label_selector=f"{records.LETTER}={store._core.name}")
    assert len(letters["items"]) == 1
    assert store.add("n", 1) == 2  # What the same client appends later ends the letter's validity.
    other = opener(proxy)
    proxy.inject("reply", status=409, reason="Conflict", method="PATCH", path=PATH, times=2)
    assert other.add("n", 1) == 3  # Posts a letter of its own, and appends all that there are.


# Chaos, and a check that what everybody saw can be explained by one order of events.


@dataclasses.dataclass
class Done:
    """One operation: when it was called and returned, and its result."""

    kind: str
    args: tuple[Any, ...]
    called: float
    returned: float
    result: Any


def outcome(value: bytes | None, kind: str, args: tuple[Any, ...]) -> tuple[bytes | None, Any]:
    """Value afterwards, and result, of an operation on one key."""
    if kind == "set":
        return args[0], None
    if kind == "add":
        total = int(value or b"0") + args[0]
        return str(total).encode(), total
    if kind == "get":
        return value, value
    expected, desired = args
    if value is None and expected:
        return None, expected
    return (desired, desired) if (value or b"") == expected else (value, value)


def linearizable(history: list[Done]) -> bool:
    """Wing and Gong's search: is there an order, within each operation's call and return, with these results?"""
    ops = sorted(history, key=lambda op: op.called)
    seen: set[tuple[int, bytes | None]] = set()
    stack: list[tuple[int, bytes | None]] = [(0, None)]
    while stack:
        done, value = stack.pop()
        if done == (1 << len(ops)) - 1:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        left = [i for i in range(len(ops)) if not done >> i & 1]
        first = min(ops[i].returned for i in left)
        for i in left:
            after, result = outcome(value, ops[i].kind, ops[i].args)
            if ops[i].called <= first and result == ops[i].result:
                stack.append((done | 1 << i, after))
    return False


def test_the_checker_finds_what_is_wrong() -> None:
    one, two = Done("add", (1,), 0, 1, 1), Done("add", (1,), 2, 3, 2)
    assert linearizable([one, two])
    assert linearizable([dataclasses.replace(one, returned=9, result=2), dataclasses.replace(two, result=1)])
    assert not linearizable([dataclasses.replace(one, result=2), dataclasses.replace(two, result=1)])  # Order.
    assert not linearizable([one, dataclasses.replace(two, result=3)])  # Twice.
    assert not linearizable([one, dataclasses.replace(two, result=1)])  # Lost.
    assert not linearizable([one, Done("get", (), 2, 3, None)])  # Stale.
    won = Done("compare_set", (b"", b"a"), 0, 5, b"a")
    assert not linearizable([won, Done("compare_set", (b"", b"b"), 0, 5, b"b")])  # Two winners.


FAULTS: list[dict[str, Any]] = [
    {"kind": "lose-reply"},
    {"kind": "lose-reply", "method": "PATCH"},
    {"kind": "lose-reply", "method": "POST"},
    {"kind": "cut-before"},
    {"kind": "delay", "seconds": 0.3, "method": "PATCH"},
    {"kind": "delay", "seconds": 0.2},
    {"kind": "reply", "status": 409, "reason": "Conflict", "method": "PATCH", "times": 3},
    {"kind": "reply", "status": 500, "reason": "InternalError"},
    {"kind": "reply", "status": 429, "reason": "TooManyRequests", "retry_after": 0},
    {"kind": "error-event", "status": 410, "reason": "Expired", "method": "WATCH"},
    {"kind": "tear", "method": "WATCH"},
]


@contextmanager
def chaos(proxy: FaultProxy, seed: int) -> Iterator[None]:
    """One fault after the other, each with a few requests in between that pass."""
    over, choose = threading.Event(), random.Random(seed)

    def fail() -> None:
        while not over.wait(choose.uniform(0.02, 0.2)):
            proxy.inject(**{"path": PATH, **choose.choice(FAULTS)}).hit.wait(0.5)

    failing = threading.Thread(target=fail)
    failing.start()
    try:
        yield
    finally:
        over.set()
        failing.join()
        proxy.clear()


@pytest.mark.parametrize("seed", range(4))
def test_under_chaos_every_history_has_an_order(seed: int, opener: Open, proxy: FaultProxy) -> None:
    handles, histories = [opener(proxy) for _ in range(4)], {"a": list[Done](), "b": list[Done]()}
    lock = threading.Lock()

    def run(i: int) -> None:
        choose = random.Random(seed * 100 + i)
        for n in range(14):
            key, mine = choose.choice("ab"), str(i * 1000 + n).encode()
            kind = choose.choice(["set", "add", "add", "compare_set", "compare_set", "get"])
            known = next((op.result for op in reversed(histories[key]) if isinstance(op.result, bytes)), b"")
            args = {"set": (mine,), "add": (choose.randint(1, 9),), "get": (), "compare_set": (known, mine)}[kind]
            called = time.monotonic()
            if kind == "get":
                result = handles[i].get(key) if handles[i].check([key]) else None
                if result is None:
                    args = ()
            else:
                result = getattr(handles[i], kind)(key, *args)
            with lock:
                histories[key].append(Done(kind, args, called, time.monotonic(), result))

    with chaos(proxy, seed), ThreadPoolExecutor() as pool:
        for future in [pool.submit(run, i) for i in range(4)]:
            future.result()
    for key, history in histories.items():
        assert linearizable(history), (key, history)


def test_a_crowd_of_adds_under_chaos_counts_each_once(opener: Open, proxy: FaultProxy) -> None:
    handles = [opener(proxy) for _ in range(6)]
    with chaos(proxy, 7), ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda store: [store.add("n", 1) for _ in range(8)], handles))
    assert sorted(n for mine in results for n in mine) == list(range(1, 49))
    assert all(mine == sorted(mine) for mine in results)
