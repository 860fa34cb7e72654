"""The contract of torch's Store: the same tests for TCPStore (the control) and KubernetesStore, in the Kubernetes API and in etcd."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import distributed as dist
from torch.distributed.elastic.utils import store as elastic

from rdzv.etcd import client as etcd_client
from rdzv.etcd import config as etcd_config
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.store.store import KubernetesStore

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkContext, ForkServerContext

    from support.cluster_fixtures import LocalCluster
    from support.etcd_servers import EtcdServer

    from rdzv.backing import Backing

CRD = Path(__file__).resolve().parents[2] / "charts/rendezvous-operator/files/crds/rendezvousstore.yaml"
KINDS = ["tcp", "prefix-tcp", "kubernetes", "prefix-kubernetes", "named", "etcd", "prefix-etcd"]
#: Of the store that is kept in one object of a given name, as an agent's is.
ROUND = {"apiVersion": "rdzv.dev/v1alpha1", "kind": "RendezvousRound", "metadata": {"name": "job", "uid": "u-1"}}
SHORT = timedelta(milliseconds=400)
PATIENT = timedelta(seconds=60)
TIMEOUT = "[t -i]imeout"  # torch's own tests look for this.

Store = Any
#: Children that inherit nothing: what is forked beside the threads of torch and pytest may hang on a lock that nobody gives back.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(["torch.distributed"])
#: What DataLoader and multiprocessing do to whoever has a store; the children here touch no lock of the parent.
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class World:
    """One store and any number of handles on it, each with connections of its own, as if in a process of its own."""

    def __init__(self, kind: str, connect: Callable[[], Backing] | None) -> None:
        self.kind, self.connect = kind, connect
        self.name = f"store-{secrets.token_hex(4)}"
        self.made: list[Store] = []
        self.port = 0
        if kind.endswith("tcp"):
            self.made.append(dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
            self.port = self.made[0].port

    def open(self, timeout: timedelta = PATIENT) -> Store:
        if self.connect is None:
            store: Store = dist.TCPStore("127.0.0.1", self.port, is_master=False)
        else:
            named: dict[str, Any] = {"owner": ROUND, "kept_in": self.name} if self.kind == "named" else {}
            store = KubernetesStore(f"{self.name}-7", "default", client=self.connect(), **named)
        self.made.append(store)
        if self.kind.startswith("prefix"):
            store = dist.PrefixStore("of/this", store)
        store.set_timeout(timeout)
        return store

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to open handles of its own."""
        return {**self.__dict__, "made": []}

    def close(self) -> None:
        for store in self.made:
            if isinstance(store, KubernetesStore):
                store.close()
                store._core.client.close()


@pytest.fixture(scope="session")
def store_kubeconfig(control_plane: LocalCluster) -> Path:
    control_plane.kubectl("apply", "--server-side", "-f", str(CRD))
    control_plane.kubectl("wait", "--for=condition=Established", "-f", str(CRD), "--timeout=30s")
    return control_plane.kubeconfig


def etcd_backing(endpoint: str) -> Backing:
    return etcd_client.Client(etcd_config.parse(endpoint, {}), "default")


def kubernetes_backing(kubeconfig: Path) -> Backing:
    return Client(from_kubeconfig(str(kubeconfig)))


def connector(request: pytest.FixtureRequest, kind: str) -> Callable[[], Backing] | None:
    if kind.endswith("tcp"):
        return None
    if kind.endswith("etcd"):
        etcd: EtcdServer = request.getfixturevalue("etcd")
        return partial(etcd_backing, etcd.endpoint)
    return partial(kubernetes_backing, request.getfixturevalue("store_kubeconfig"))


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(request.param, connector(request, request.param))
    threads = set(threading.enumerate())
    yield world
    world.close()
    assert set(threading.enumerate()) <= threads


@pytest.fixture
def store(world: World) -> Store:
    return world.open()


def in_threads(works: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


def _send_result(work: Callable[[], Any], pipe: Connection) -> None:
    pipe.send(work())


def in_processes(works: Sequence[Callable[[], Any]], context: ForkContext | ForkServerContext = CLEAN) -> list[Any]:
    started = []
    for work in works:
        ours, theirs = context.Pipe()
        # Else one that hangs would be waited for when pytest ends, for ever.
        process = context.Process(target=_send_result, args=(work, theirs), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    results = []
    for process, pipe in started:
        results.append(pipe.recv() if pipe.poll(90) else None)
        process.join(10)
        assert process.exitcode == 0
        process.close()
        pipe.close()
    return results


def refused(call: Callable[[], Any]) -> None:
    started = time.monotonic()
    with pytest.raises(dist.DistStoreError, match=TIMEOUT):
        call()
    assert time.monotonic() - started >= 0.9 * SHORT.total_seconds()


def test_what_is_set_is_there_as_bytes(store: Store) -> None:
    store.set("key", "text")
    assert store.get("key") == b"text"
    store.set("key", b"\x00\xff\x80")
    assert store.get("key") == b"\x00\xff\x80"
    store.set("empty", "")
    assert store.get("empty") == b""
    assert store.check(["key", "empty"])


def test_another_handle_sees_it_at_once(world: World) -> None:
    one, other = world.open(), world.open()
    for i in range(10):
        one.set("key", str(i))
        assert other.get("key") == str(i).encode()
        other.add("sum", 1)
        assert one.get("sum") == str(i + 1).encode()


def test_values_are_text_or_bytes(store: Store) -> None:
    with pytest.raises(TypeError):
        store.set("key", 1)
    assert not store.check(["key"])


def test_add_counts_in_decimal(store: Store) -> None:
    assert store.add("n", 5) == 5
    assert store.get("n") == b"5"
    assert store.add("n", -7) == -2
    assert store.get("n") == b"-2"
    assert store.add("n", 0) == -2
    assert store.add("zero", 0) == 0
    assert store.get("zero") == b"0"
    store.set("n", "40")
    assert store.add("n", 2) == 42
    store.append("n", "0")
    assert store.add("n", 1) == 421


def test_add_has_64_bits(store: Store) -> None:
    assert store.add("n", 2**63 - 1) == 2**63 - 1
    assert store.add("n", 1) == -(2**63)


@pytest.mark.parametrize(
    ("before", "expected", "desired", "result", "after"),
    [
        (None, "", "new", b"new", b"new"),
        (None, "other", "new", b"other", None),
        ("old", "old", "new", b"new", b"new"),
        ("old", "other", "new", b"old", b"old"),
        ("old", "", "new", b"old", b"old"),
        ("", "", "new", b"new", b"new"),
        ("", "other", "new", b"", b""),
        ("old", "old", "", b"", b""),
        ("old", "other", "", b"old", b"old"),
    ],
)
def test_compare_set(
    store: Store, before: str | None, expected: str, desired: str, result: bytes, after: bytes
) -> None:
    if before is not None:
        store.set("key", before)
    assert store.compare_set("key", expected, desired) == result
    assert store.check(["key"]) == (after is not None)
    if after is not None:
        assert store.get("key") == after


def test_compare_set_sees_counters_as_text(store: Store) -> None:
    store.add("n", 3)
    assert store.compare_set("n", "3", "9") == b"9"
    assert store.add("n", 1) == 10


def test_what_is_not_set_times_out(world: World) -> None:
    store = world.open(SHORT)
    store.set("there", "x")
    refused(lambda: store.get("missing"))
    refused(lambda: store.wait(["there", "missing"]))
    refused(lambda: store.multi_get(["there", "missing"]))
    store.set_timeout(PATIENT)
    refused(lambda: store.wait(["missing"], SHORT))
    assert not store.check(["missing"])


def test_timeout_is_kept(store: Store) -> None:
    assert store.timeout == PATIENT
    store.set_timeout(timedelta(seconds=7))
    assert store.timeout == timedelta(seconds=7)


def test_waiting_ends_when_all_keys_are_there(world: World) -> None:
    waiting, setting = world.open(), world.open()

    def set_later() -> None:
        for i in range(5):
            time.sleep(0.05)
            setting.set(f"k{i}", str(i))

    keys = [f"k{i}" for i in range(5)]
    works = [lambda: waiting.wait(keys), lambda: waiting.wait(keys, PATIENT), lambda: waiting.get("k3"), set_later]
    if "tcp" in world.kind:  # A TCPStore blocks all threads of a handle.
        works = works[:1] + works[3:]
    assert in_threads(works)[2:3] in ([b"3"], [])
    assert waiting.check(keys)
    waiting.wait([])
    assert waiting.check([])


def test_multi_get_waits(world: World) -> None:
    waiting, setting = world.open(), world.open()

    def set_later() -> None:
        time.sleep(0.1)
        setting.multi_set(["a", "b", "c"], ["1", b"2", "3"])

    assert in_threads([lambda: waiting.multi_get(["c", "a", "b", "a"]), set_later])[0] == [b"3", b"1", b"2", b"1"]


def test_every_waiter_is_woken(world: World) -> None:
    waiting, setting = [world.open() for _ in range(4)], world.open()

    def set_later() -> None:
        time.sleep(0.3)
        setting.set("go", "now")

    results = in_threads([*(partial(handle.get, "go") for handle in waiting), set_later])
    assert results == [b"now"] * 4 + [None]


def test_a_get_in_another_process(world: World) -> None:
    store = world.open()

    def elsewhere() -> bytes:
        mine = world.open()
        mine.set("ready", "1")
        value: bytes = mine.get("answer")
        mine.append("answer", "!")
        return value

    def here() -> None:
        # A fork while this thread is inside OpenSSL's random numbers would leave the child their lock, taken for ever.
        while not multiprocessing.active_children():
            time.sleep(0.01)
        store.get("ready")
        time.sleep(0.2)
        store.set("answer", str(os.getpid()))

    thread = threading.Thread(target=here)
    thread.start()
    assert in_processes([elsewhere], FORK) == [str(os.getpid()).encode()]
    thread.join()
    assert store.get("answer") == f"{os.getpid()}!".encode()


def test_deleting(store: Store) -> None:
    before = store.num_keys()
    store.set("a", "1")
    store.add("b", 1)
    assert store.num_keys() == before + 2
    assert store.delete_key("a")
    assert not store.delete_key("a")
    assert not store.check(["a"])
    assert store.num_keys() == before + 1
    assert store.add("a", 1) == 1
    assert store.delete_key("b")
    assert store.compare_set("b", "1", "2") == b"1"
    assert not store.check(["b"])
    assert store.num_keys() == before + 1


def test_a_deleted_key_is_waited_for_again(world: World) -> None:
    waiting, setting = world.open(SHORT), world.open()
    setting.set("key", "old")
    assert waiting.get("key") == b"old"
    setting.delete_key("key")
    refused(lambda: waiting.get("key"))


def test_appending(store: Store) -> None:
    for part in ("a", b"", b"\xff", "b"):
        store.append("key", part)
    assert store.get("key") == b"a\xffb"
    store.set("key", "-")
    store.append("key", "-")
    assert store.get("key") == b"--"


def test_multi_set_and_get(world: World, store: Store) -> None:
    assert store.has_extended_api()
    keys = [f"k{i}" for i in range(40)]
    store.multi_set(keys, [str(i) for i in range(40)])
    assert store.multi_get(keys) == [str(i).encode() for i in range(40)]
    assert store.multi_get([]) == []
    store.multi_set(["same", "same"], ["1", "2"])
    assert store.get("same") == b"2"
    # torch 2.6's own stores raise what a DistStoreError derives from.
    refusal = RuntimeError if world.kind.endswith("tcp") else dist.DistStoreError
    with pytest.raises((refusal, ValueError), match="size"):
        store.multi_set(["a", "b"], ["1"])


ODD = [
    "",
    " ",
    "/",
    "//a//",
    "a/b",
    "%",
    "%41",
    "a%2Fb",
    "~0",
    "~1",
    "\0",
    "a\0b",
    "ключ",
    "🔑",
    "a.b",
    "A",
    "a",
    "-",
    "x" * 5000,
    "\n",
    '"',
    "$",
    "..",
]


def test_any_text_is_a_key(store: Store) -> None:
    before = store.num_keys()
    for i, key in enumerate(ODD):
        store.set(key, str(i))
    assert store.multi_get(ODD) == [str(i).encode() for i in range(len(ODD))]
    assert store.num_keys() == before + len(ODD)
    assert store.check(ODD)
    assert all(store.delete_key(key) for key in ODD)
    assert not any(store.check([key]) for key in ODD)
    with pytest.raises((TypeError, UnicodeEncodeError)):
        store.set("\ud800", "x")


def test_large_values(store: Store) -> None:
    values = [os.urandom(90_000) for _ in range(4)]
    for i, value in enumerate(values):
        store.set(f"k{i}", value)
    assert [store.get(f"k{i}") for i in range(4)] == values
    store.append("k0", b"x" * 5000)
    assert store.get("k0") == values[0] + b"x" * 5000


def add_many(handle: Store, times: int) -> list[int]:
    return [handle.add("n", 1) for _ in range(times)]


def test_concurrent_adds_of_many_handles_count_once_each(world: World) -> None:
    handles = [world.open() for _ in range(8)]
    results = in_threads([partial(add_many, handle, 25) for handle in handles])
    # Linearizable: no value twice, none left out, and each handle's own grow.
    assert sorted(chain(*results)) == list(range(1, 201))
    assert all(mine == sorted(mine) for mine in results)
    assert handles[0].get("n") == b"200"


def test_concurrent_adds_of_threads_on_one_handle(store: Store) -> None:
    results = in_threads([lambda: [store.add("n", 3) for _ in range(25)]] * 8)
    assert sorted(chain(*results)) == list(range(3, 601, 3))


def _adds(world: World) -> list[int]:
    store = world.open()
    return [store.add("n", 1) for _ in range(20)]


def test_concurrent_adds_of_processes(world: World) -> None:
    results = in_processes([partial(_adds, world)] * 8)
    assert sorted(chain(*results)) == list(range(1, 161))


def test_compare_set_has_one_winner(world: World) -> None:
    handles = [world.open() for _ in range(8)]
    for key in ("a", "b", "c", "d"):
        results = in_threads([partial(handle.compare_set, key, "", str(i)) for i, handle in enumerate(handles)])
        assert len(set(results)) == 1
        assert handles[0].get(key) == results[0]


def test_counting_with_compare_set(world: World) -> None:
    handles = [world.open() for _ in range(4)]
    handles[0].set("n", "0:nobody")

    def count(i: int) -> None:
        current, done = handles[i].get("n"), 0
        while done < 8:
            mine = f"{int(current.split(b':')[0]) + 1}:{i}".encode()
            current = handles[i].compare_set("n", current, mine)
            done += current == mine

    in_threads([partial(count, i) for i in range(4)])
    assert handles[0].get("n").startswith(b"32:")


def test_concurrent_appends_lose_nothing(world: World) -> None:
    handles = [world.open() for _ in range(8)]

    def write(i: int) -> None:
        for n in range(10):
            handles[i].append("log", f"{i}:{n};")

    in_threads([partial(write, i) for i in range(8)])
    entries = handles[0].get("log").decode().split(";")[:-1]
    assert sorted(entries) == sorted(f"{i}:{n}" for i in range(8) for n in range(10))
    for i in range(8):
        assert [e for e in entries if e.startswith(f"{i}:")] == [f"{i}:{n}" for n in range(10)]


def test_concurrent_sets_and_deletes_leave_an_exact_count(world: World) -> None:
    handles = [world.open() for _ in range(4)]
    before = handles[0].num_keys()

    def work(i: int) -> None:
        for n in range(10):
            handles[i].set(f"{i}/{n}", "x")
        for n in range(0, 10, 2):
            assert handles[i].delete_key(f"{i}/{n}")

    in_threads([partial(work, i) for i in range(4)])
    assert handles[0].num_keys() == before + 20


def needs_of_torch(world: World, *operations: str) -> None:
    """Skips where this torch has not yet these operations: its own stores lack them, and ours what they would inherit."""
    owner = KubernetesStore if world.kind in {"kubernetes", "named", "etcd"} else dist.Store
    if absent := [name for name in operations if not hasattr(owner, name)]:
        pytest.skip(f"torch {torch.__version__} has no {', '.join(absent)}")


def test_torchs_own_barrier(world: World) -> None:
    needs_of_torch(world, "barrier")
    handles = [world.open() for _ in range(4)]
    arrived: list[int] = []

    def work(i: int) -> int:
        time.sleep(0.05 * i)
        arrived.append(i)
        handles[i].barrier("all", 4, PATIENT)
        return len(arrived)

    assert in_threads([partial(work, i) for i in range(4)]) == [4] * 4


def test_the_barrier_and_synchronize_of_elastic(world: World) -> None:
    handles = [world.open() for _ in range(4)]

    def work(i: int) -> list[bytes]:
        elastic.barrier(handles[i], 4, "before", barrier_timeout=60)
        gathered: list[bytes] = elastic.synchronize(handles[i], f"rank {i}".encode(), i, 4, "data", timeout=60)
        return gathered

    assert in_threads([partial(work, i) for i in range(4)]) == [[f"rank {i}".encode() for i in range(4)]] * 4
    assert elastic.get_all(handles[0], 0, "data", 4) == [f"rank {i}".encode() for i in range(4)]


def test_an_elastic_barrier_gives_up(store: Store) -> None:
    with pytest.raises(dist.DistStoreError, match=TIMEOUT):
        elastic.barrier(store, 2, "b", barrier_timeout=0.5)


def test_a_clone_is_the_same_store_and_waits_by_itself(world: World) -> None:
    needs_of_torch(world, "clone")
    store = world.open()
    store.set("key", "value")
    twin = store.clone()
    assert twin.get("key") == b"value"
    assert twin.timeout == store.timeout
    twin.set_timeout(SHORT)
    assert store.timeout == PATIENT
    refused(lambda: twin.get("missing"))
    waiter = threading.Thread(target=lambda: store.wait(["later"]))
    waiter.start()
    twin.set("later", "")
    waiter.join(30)
    assert not waiter.is_alive()


def test_queues(world: World) -> None:
    if world.kind.startswith("prefix") and world.connect is not None:
        pytest.skip("torch's C++ does not call queue_push, queue_pop and queue_len of Python stores")
    needs_of_torch(world, "queue_push", "queue_pop", "queue_len")
    store, other = world.open(), world.open()
    assert store.queue_len("q") == 0
    store.queue_push("q", "a")
    store.queue_push("q", b"\xff")
    assert store.queue_len("q") == 2
    assert [other.queue_pop("q"), store.queue_pop("q", False)] == [b"a", b"\xff"]
    empty = getattr(dist, "QueueEmptyError", dist.DistStoreError)  # The second is what the first derives from.
    with pytest.raises(empty, match="empty"):
        store.queue_pop("q", False)

    def push_later() -> None:
        time.sleep(0.1)
        other.queue_push("q", "late")

    assert in_threads([lambda: store.queue_pop("q"), push_later])[0] == b"late"
    store.set_timeout(SHORT)
    refused(lambda: store.queue_pop("q"))
    assert not store.check(["q"])


def test_keys_are_listed(world: World) -> None:
    if world.kind.startswith("prefix"):
        pytest.skip("torch's C++ does not call list_keys of Python stores")
    needs_of_torch(world, "list_keys")
    store = world.open()
    before = set(store.list_keys())
    store.set("a/b", "1")
    store.set("", "2")
    assert set(store.list_keys()) - before == {"a/b", ""}


def _all_reduce(world: World, rank: int, size: int) -> float:
    store = world.open()
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    tensor = torch.tensor([float(rank + 1)])
    dist.all_reduce(tensor)
    dist.barrier()
    dist.destroy_process_group()
    return float(tensor[0])


@pytest.mark.parametrize("size", [2, 4])
def test_a_gloo_group_forms(world: World, size: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    works = [partial(_all_reduce, world, rank, size) for rank in range(size)]
    assert in_processes(works) == [size * (size + 1) / 2] * size
