"""Operations of the stores: latency of one client, and throughput of several."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import etcd
from bench.lab import Lab
from bench.records import Results, Sample
from torch.distributed import Store, TCPStore
from torch.distributed.elastic.rendezvous.etcd_store import EtcdStore

from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.store.store import KubernetesStore

CLIENTS = 8
_SECONDS = 2.0
_TIMEOUT = timedelta(seconds=30)
_VALUE = "x" * 64


def stores(lab: Lab, results: Results) -> None:
    """Values of 64 bytes; each client has a handle and connections of its own, and a thread of one process."""
    for name, connect in _kinds(lab).items():
        handles = [connect() for _ in range(CLIENTS)]
        for operation in ("set", "get", "add"):
            taken = _latencies(handles[0], operation)
            spread = [Sample(value * 1000) for value in (min(taken), statistics.median(taken), max(taken))]
            results.add("store", name, 1, f"{operation}-latency", "ms", spread)
        for operation in ("set", "add"):
            rate = _throughput(handles, operation)
            results.add("store", name, CLIENTS, f"{operation}-rate", "operations/s", [Sample(rate)])
        for handle in handles:
            if isinstance(handle, KubernetesStore):
                handle.close()


def _kinds(lab: Lab) -> dict[str, Callable[[], Any]]:
    server = TCPStore("127.0.0.1", 0, None, True, timeout=_TIMEOUT, wait_for_workers=False)
    name = lab.name()
    host, port = lab.servers.etcd.split(":")

    def tcp() -> Store:
        return TCPStore("127.0.0.1", server.port, None, False, timeout=_TIMEOUT, wait_for_workers=False)

    def kubernetes() -> Store:
        client = Client(from_kubeconfig(lab.kubeconfig))
        return KubernetesStore(name, lab.namespace, client=client, timeout=_TIMEOUT)

    def over_etcd() -> Store:
        return EtcdStore(etcd.Client(host=host, port=int(port)), f"/bench/{name}", timeout=_TIMEOUT)

    return {"TCPStore": tcp, "EtcdStore": over_etcd, "KubernetesStore": kubernetes}


def _latencies(store: Any, operation: str) -> list[float]:
    calls: dict[str, Callable[[int], object]] = {
        "set": lambda i: store.set(f"key-{i % 32}", _VALUE),
        "get": lambda i: store.get(f"key-{i % 8}"),
        "add": lambda _: store.add("counter", 1),
    }
    taken: list[float] = []
    end = time.monotonic() + _SECONDS
    while (began := time.monotonic()) < end and len(taken) < 20000:
        calls[operation](len(taken))
        taken.append(time.monotonic() - began)
    return taken


def _throughput(handles: list[Any], operation: str) -> float:
    counts = [0] * len(handles)
    end = time.monotonic() + _SECONDS

    def work(index: int) -> None:
        handle = handles[index]
        while time.monotonic() < end:
            if operation == "set":
                handle.set(f"own-{index}", _VALUE)
            else:
                handle.add("shared", 1)
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(handles))]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)
