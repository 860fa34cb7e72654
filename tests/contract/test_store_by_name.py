"""The store that is kept in one object of a given name, which the rounds of a Rendezvous use one after the other."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import FaultProxy
from support.torchrun_fleet import install_crds
from torch import distributed as dist

from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.resources import ROUNDS, STORES
from rdzv.store.store import KubernetesStore

Object = dict[str, Any]
Open = Callable[..., KubernetesStore]


@pytest.fixture(scope="module")
def kubeconfig(control_plane: LocalCluster) -> Path:
    install_crds(control_plane)
    return control_plane.kubeconfig


@pytest.fixture
def client(kubeconfig: Path) -> Iterator[Client]:
    client = Client(from_kubeconfig(str(kubeconfig)))
    yield client
    client.close()


@pytest.fixture
def job(client: Client) -> str:
    name = f"job-{secrets.token_hex(4)}"
    make_round(client, name)
    return name


def make_round(client: Client, name: str) -> None:
    spec = {"runID": "u", "round": 0, "phase": "Forming", "want": 1, "slots": "", "size": 0, "checks": ""}
    kind = {"apiVersion": "rdzv.dev/v1alpha1", "kind": "RendezvousRound"}
    client.create(ROUNDS, "default", {**kind, "metadata": {"name": name}, "spec": spec})


@pytest.fixture
def of_round(client: Client, job: str, kubeconfig: Path) -> Iterator[Open]:
    """Opens a handle on the store of a round of the job, by its number, as the agents of the Round that there is now do."""
    made: list[KubernetesStore] = []

    def opened(number: int, through: Path = kubeconfig, seconds: float = 60) -> KubernetesStore:
        owner = client.get(ROUNDS, "default", job)
        store = KubernetesStore(
            f"{job}-{owner['metadata']['uid'][:8]}-{number}",
            "default",
            client=Client(from_kubeconfig(str(through))),
            owner=owner,
            kept_in=job,
            timeout=timedelta(seconds=seconds),
        )
        made.append(store)
        return store

    yield opened
    for store in made:
        store.close()
        store._core.client.close()


def test_it_needs_a_round_and_a_number() -> None:
    for name, owner in (("job-1", None), ("job", {"metadata": {}})):
        with pytest.raises(ValueError, match="has a Round as owner, and a number"):
            KubernetesStore(name, "default", client=object(), owner=owner, kept_in="job")  # type: ignore[arg-type]


def test_all_is_asked_for_by_the_name_of_one_object(
    client: Client, job: str, of_round: Open, kubeconfig: Path, tmp_path: Path
) -> None:
    """So a Role can say whose it is: nothing lists, watches or names anything else."""
    with FaultProxy(kubeconfig, tmp_path) as proxy:
        stores = [of_round(1, proxy.kubeconfig) for _ in range(4)]
        waits = threading.Thread(target=stores[0].wait, args=(["late"],))
        waits.start()
        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(lambda store: store.add("n", 1), stores)) == [1, 2, 3, 4]
        keys = [f"key-{i}" for i in range(40)]
        stores[1].multi_set(keys, keys)
        assert stores[2].multi_get(keys) == [key.encode() for key in keys]
        assert stores[3].num_keys() == 41
        stores[1].set("late", "")
        waits.join(30)
        assert not waits.is_alive()
        asked = {(seen.method, *named(seen.target)) for seen in proxy.requests}
    selected = {(method, "rendezvousstores", f"metadata.name={job}") for method in ("GET", "WATCH")}
    assert asked <= {("GET", job, None), ("PATCH", job, None), ("POST", "rendezvousstores", None), *selected}
    assert asked & selected, "what waits watches"
    client.delete(STORES, "default", job)


def named(target: str) -> tuple[str, str | None]:
    """The end of a request's path, and its field selector."""
    parts = urlsplit(target)
    return parts.path.rpartition("/")[2], parse_qs(parts.query).get("fieldSelector", [None])[0]


@contextmanager
def told_that_it_was_deleted(store: KubernetesStore) -> Iterator[None]:
    """Somebody waits by this store, for ever, and is told so in the end."""
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            store.wait(["never"])
        except dist.DistStoreError as error:
            failed.append(error)

    waits = threading.Thread(target=wait)
    waits.start()
    time.sleep(0.5)
    yield
    waits.join(30)
    assert "was deleted" in str(failed)


def test_a_later_round_begins_with_nothing_and_ends_what_waits_in_an_earlier_one(of_round: Open) -> None:
    earlier, later = of_round(1), of_round(2)
    earlier.set("key", "of round 1")
    with told_that_it_was_deleted(earlier):
        assert not later.check(["key"])
        later.set("key", "of round 2")
    for call in (lambda: earlier.set("key", ""), lambda: earlier.get("key"), earlier.num_keys):
        with pytest.raises(dist.DistStoreError, match="was deleted"):
            call()
    assert later.get("key") == b"of round 2"


def test_a_late_comer_of_an_earlier_round_changes_nothing_of_a_later_one(of_round: Open) -> None:
    later = of_round(10)
    later.set("key", "of round 10")
    calls: tuple[Callable[[KubernetesStore], object], ...] = (
        lambda store: store.set("key", ""),
        lambda store: store.get("key"),
        lambda store: store.add("n", 1),
        lambda store: store.multi_set(["key", "n"], ["", ""]),
        lambda store: store.check(["key"]),
        lambda store: store.delete(),
    )
    for call in calls:
        with pytest.raises(dist.DistStoreError, match="was deleted"):
            call(of_round(9, seconds=20))
    assert later.get("key") == b"of round 10"
    assert later.num_keys() == 1


def test_a_waiter_of_an_earlier_round_that_has_seen_nothing_is_told_of_the_later_one(of_round: Open) -> None:
    with told_that_it_was_deleted(of_round(1)):
        of_round(2).set("key", "")


def test_the_store_of_a_round_that_was_made_anew_follows_and_not_the_other_way_round(
    client: Client, job: str, of_round: Open
) -> None:
    former, silent = of_round(5), of_round(5)
    former.set("key", "of the former")
    client.delete(ROUNDS, "default", job)
    make_round(client, job)
    now = of_round(1)
    assert not now.check(["key"])
    now.set("key", "of now")
    for store in (former, silent):
        with pytest.raises(dist.DistStoreError, match="was deleted"):
            store.set("key", "")
    assert now.get("key") == b"of now"


def test_however_rounds_race_for_it_the_latest_has_it_and_every_add_counts_once(of_round: Open) -> None:
    stores = [(number, of_round(number)) for number in (1, 2, 3) for _ in range(3)]

    ended: list[tuple[int, str]] = []

    def adds(each: tuple[int, KubernetesStore]) -> list[int]:
        sums: list[int] = []
        try:
            sums.extend(each[1].add("n", 1) for _ in range(5))
        except dist.DistStoreError as error:
            ended.append((each[0], str(error)))
        return sums

    with ThreadPoolExecutor(len(stores)) as pool:
        results = list(pool.map(adds, stores))
    assert all(number < 3 and "was deleted" in text for number, text in ended), ended
    for number in (1, 2, 3):
        sums = [value for (of, _), found in zip(stores, results, strict=True) if of == number for value in found]
        assert len(set(sums)) == len(sums), f"two of round {number} got the same sum"
    assert sorted(value for found in results[6:] for value in found) == list(range(1, 16))
