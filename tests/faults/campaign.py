"""Histories of several clients of one store, while one kind of fault happens all the time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.checker import Operation
from faults.client import KEYS, READS, Job, kept, order_of
from support.fault_proxy import EtcdProxy, FaultProxy
from torch import distributed as dist

from rdzv.etcd.client import Client as EtcdClient
from rdzv.etcd.config import parse
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.store.store import KubernetesStore

ROOT = Path(__file__).resolve().parents[2]
PATH = "/rendezvousstores"
STUCK_SECONDS = (150.0, 0.3)
"""After which clients that have not ended are killed, and count as stuck: so many, and for each operation of all."""
START = ["0", "0", "", ""]
"""Values of the first keys when a history begins."""


class Nursery:
    """The process that forks the clients; see faults.client."""

    def __init__(self) -> None:
        places = os.pathsep.join(str(ROOT / name) for name in ("src", "tests", "."))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faults.client"],
            env={**os.environ, "PYTHONPATH": places},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, order: str) -> Any:
        """Its answer to one order."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)
        assert self.process.stdout
        self.process.stdout.close()


@dataclass
class Scene:
    """What a fault can get hold of."""

    proxy: FaultProxy
    pids: list[int]
    choose: random.Random
    over: threading.Event

    def pass_requests(self) -> bool:
        """Let some requests pass, or a client that is alone would see nothing but faults; whether to go on."""
        until = len(self.proxy.requests) + self.choose.randint(1, 12)
        while len(self.proxy.requests) < until and not self.over.is_set():
            self.over.wait(0.02)
        return not self.over.is_set()

    def pause(self, least: float = 0.05, most: float = 0.4) -> bool:
        """Let some time pass; whether to go on."""
        return not self.over.wait(self.choose.uniform(least, most))


Fault = Callable[[Scene], None]
"""Does harm until the scene is over."""


def _requests(*scripts: dict[str, Any]) -> Fault:
    def harm(scene: Scene) -> None:
        while scene.pass_requests():
            fault = scene.proxy.inject(**{"path": PATH, **scene.choose.choice(scripts)})
            while fault.times and not scene.over.wait(0.02):
                if not fault.hits and scene.choose.random() < 0.02:
                    break  # None like that may come, as of watches.

    return harm


def _none(_scene: Scene) -> None:
    """No harm."""


def _silence(scene: Scene) -> None:
    if scene.pause(0.3, 1.5):
        scene.proxy.freeze()  # A silent connection costs a client 10 s: once is enough.


def _resets(scene: Scene) -> None:
    while scene.pause(0.1, 0.8):
        scene.proxy.cut()


def _outage(**write: str) -> Fault:
    """The server goes when it has carried out a `write` and not said so, if one comes: only later can be asked what became of it."""

    def harm(scene: Scene) -> None:
        while scene.pause():
            lost, until = scene.proxy.lost, time.monotonic() + 0.5
            scene.proxy.inject("lose-reply", **write)
            while scene.proxy.lost == lost and time.monotonic() < until and not scene.over.wait(0.01):
                pass
            scene.proxy.down()
            scene.over.wait(scene.choose.uniform(0.2, 3.5))
            scene.proxy.up()

    return harm


def _stop(scene: Scene) -> None:
    while scene.pause(0.05, 0.5):
        pid = scene.choose.choice(scene.pids)
        _signal(pid, signal.SIGSTOP)
        scene.over.wait(scene.choose.uniform(0.2, 1.5))
        _signal(pid, signal.SIGCONT)


def _kill(scene: Scene) -> None:
    for pid in scene.pids[: len(scene.pids) // 2]:
        if scene.pause(0.2, 1.2):
            _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _storm(status: int, reason: str, **more: Any) -> dict[str, Any]:
    return {"kind": "reply", "status": status, "reason": reason, "times": 4, **more}


FAULTS: dict[str, Fault] = {
    "lose-reply": _requests(
        {"kind": "lose-reply", "method": "PATCH", "times": 2}, {"kind": "lose-reply", "method": "POST"}
    ),
    "cut-before": _requests({"kind": "cut-before", "times": 2}),
    "delay": _requests({"kind": "delay", "seconds": 0.3, "method": "PATCH"}, {"kind": "delay", "seconds": 0.2}),
    "conflicts": _requests(_storm(409, "Conflict", method="PATCH")),
    "letters-stay": _requests(
        _storm(409, "Conflict", method="PATCH"), {"kind": "cut-before", "method": "DELETE", "times": 6}
    ),
    "busy": _requests(_storm(429, "TooManyRequests", retry_after=0)),
    "errors": _requests(_storm(500, "InternalError", times=3)),
    "unavailable": _requests(_storm(503, "ServiceUnavailable", times=3)),
    "torn-watch": _requests({"kind": "tear", "method": "WATCH"}, {"kind": "lose-reply", "method": "PATCH"}),
    "expired-watch": _requests(
        {"kind": "error-event", "status": 410, "reason": "Expired", "method": "WATCH"},
        _storm(409, "Conflict", method="PATCH"),
    ),
    "silence": _silence,
    "resets": _resets,
    "outage": _outage(method="PATCH", path=PATH),
    "stopped": _stop,
    "killed": _kill,
    "fork": _requests({"kind": "lose-reply", "method": "PATCH"}),
    "none": _none,
}
KINDS = [name for name in FAULTS if name != "none"]
_KV, _TXN = "/v3/kv/", "/v3/kv/txn"
ETCD_FAULTS: dict[str, Fault] = {
    "lose-reply": _requests({"kind": "lose-reply", "path": _TXN, "times": 2}),
    "cut-before": _requests({"kind": "cut-before", "path": _KV, "times": 2}),
    "delay": _requests({"kind": "delay", "seconds": 0.3, "path": _TXN}, {"kind": "delay", "seconds": 0.2, "path": _KV}),
    "unavailable": _requests(_storm(503, "Unavailable", path=_KV, times=3)),
    "torn-watch": _requests({"kind": "tear", "method": "WATCH", "path": ""}, {"kind": "lose-reply", "path": _TXN}),
    "fork": _requests({"kind": "lose-reply", "path": _TXN}),
    "outage": _outage(path=_TXN),
    **{kind: FAULTS[kind] for kind in ("silence", "resets", "stopped", "killed")},
}
"""The same of a store in etcd, whose requests are all alike."""
IMPATIENT = {"outage": 2.0, "unavailable": 3.0}
"""Timeouts of stores that are to give up now and then, in seconds; of the others 60."""


@dataclass(frozen=True)
class Outcome:
    """What one history came to."""

    history: list[Operation]
    problems: list[str]
    """Clients that crashed or got stuck, errors that do not say what became of the operation."""
    unknown: int
    refused: int
    lost: int = 0
    """Replies that never came, by faults of that kind."""


def run(
    nursery: Nursery,
    kubeconfig: Path,
    directory: Path,
    fault: str,
    seed: int,
    *,
    clients: int = 5,
    operations: int = 16,
    bug: str = "",
    work: str = "all",
    by_name: bool = False,
) -> Outcome:
    """One history on a KubernetesStore, in which a kind of fault happens all the time.

    `by_name`: it is kept in one object of a given name, as an agent's.
    """
    name = f"history-{secrets.token_hex(5)}-1"
    kept_in = name if by_name else ""
    directory.mkdir(parents=True)
    client = Client(from_kubeconfig(str(kubeconfig)))
    store = KubernetesStore(name, "default", client=client, **kept(kept_in))
    try:
        begun = _begin(store, work)
        with FaultProxy(kubeconfig, directory) as proxy:
            jobs = [
                Job(
                    name,
                    str(proxy.kubeconfig),
                    str(directory / f"client-{i}"),
                    i,
                    seed * 1000 + i,
                    operations,
                    work=work,
                    seconds=IMPATIENT.get(fault, 60.0),
                    bug=bug,
                    fork=fault == "fork",
                    extra={"PATIENCE": 1},
                    kept_in=kept_in,
                )
                for i in range(clients)
            ]
            statuses = _play(nursery, jobs, proxy, FAULTS[fault], seed)
        return _outcome(directory, begun, statuses, clients // 2 if fault == "killed" else 0, proxy.lost)
    finally:
        store.delete()
        store.close()
        client.close()


def run_etcd(
    nursery: Nursery,
    endpoint: str,
    directory: Path,
    fault: str,
    seed: int,
    *,
    clients: int = 5,
    operations: int = 16,
) -> Outcome:
    """One history on a store in etcd, in which a kind of fault happens all the time."""
    name = f"history-{secrets.token_hex(5)}-1"
    directory.mkdir(parents=True)
    config = parse(endpoint, {})
    client = EtcdClient(config, name)
    store = KubernetesStore(name, name, client=client)
    try:
        begun = _begin(store, "all")
        proxy = EtcdProxy(config.servers[0], directory)
        with proxy:
            jobs = [
                Job(
                    name,
                    "",
                    str(directory / f"client-{i}"),
                    i,
                    seed * 1000 + i,
                    operations,
                    seconds=IMPATIENT.get(fault, 60.0),
                    fork=fault == "fork",
                    extra={"PATIENCE": 1},
                    etcd={"endpoint": proxy.endpoint, **proxy.settings},
                )
                for i in range(clients)
            ]
            statuses = _play(nursery, jobs, proxy, ETCD_FAULTS[fault], seed)
        return _outcome(directory, begun, statuses, clients // 2 if fault == "killed" else 0, proxy.lost)
    finally:
        store.delete()
        store.close()
        client.close()


def run_tcp(nursery: Nursery, directory: Path, seed: int, *, clients: int = 5, operations: int = 12) -> Outcome:
    """One history on a TCPStore: the control."""
    directory.mkdir(parents=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    present = store.num_keys()
    begun = _begin(store, "all")
    jobs = [
        Job(str(store.port), "", str(directory / f"client-{i}"), i, seed * 1000 + i, operations, keys_at_start=present)
        for i in range(clients)
    ]
    pids = [nursery.ask(order_of(job)) for job in jobs]
    statuses = nursery.ask(json.dumps({"wait": pids, "seconds": _patience(jobs)}))
    return _outcome(directory, begun, statuses)


def _begin(store: Any, work: str) -> list[Operation]:
    keys, values = (range(4), START) if work == "all" else ([0, 4], ["0", "0:"])
    called = time.monotonic_ns()
    store.multi_set([KEYS[key] for key in keys], values)
    return [Operation(99, "multi_set", list(keys), values, 0, called, time.monotonic_ns())]


def _play(nursery: Nursery, jobs: list[Job], proxy: FaultProxy, fault: Fault, seed: int) -> list[Any]:
    pids = [nursery.ask(order_of(job)) for job in jobs]
    scene = Scene(proxy, pids, random.Random(seed), threading.Event())
    harming = threading.Thread(target=fault, args=(scene,), name=f"fault-{seed}")
    harming.start()
    try:
        found: list[Any] = nursery.ask(json.dumps({"wait": pids, "seconds": _patience(jobs)}))
        return found
    finally:
        scene.over.set()
        harming.join()
        proxy.clear()


def _patience(jobs: list[Job]) -> float:
    least, each = STUCK_SECONDS
    return least + each * sum(job.operations for job in jobs)


def _outcome(directory: Path, begun: list[Operation], statuses: list[Any], killed: int = 0, lost: int = 0) -> Outcome:
    problems = [path.read_text() for path in sorted(directory.glob("*.crash"))]
    stuck = sum(status is None for _, status in statuses)
    dead = sum(status == signal.SIGKILL for _, status in statuses)
    problems += [f"{stuck} clients were stuck"] * bool(stuck) + [f"{dead} clients died"] * (dead > killed)
    history, fates = list(begun), {"unknown": 0, "not done": 0}
    for lines in map(_calls, sorted(directory.glob("client-[0-9]*"))):
        for call, end in lines:
            fate = end.get("fate")
            if fate == "unclear":
                problems.append(f"{call['op']}: {end['error']}")
            if fate in fates:
                fates[fate] += 1
            if fate == "not done" or (not end.get("returned") and call["op"] in READS):
                continue
            fields = ("client", "op", "keys", "values", "amount", "call")
            history.append(
                Operation(
                    **{name: call[name] for name in fields},
                    returned=end.get("returned", 0),
                    result=end.get("result", ()),
                )
            )
    return Outcome(history, problems, fates["unknown"], fates["not done"], lost)


def _calls(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each call, with its return; empty when there was none."""
    if path.suffix:
        return
    calls: dict[tuple[int, int], dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        place = (record["client"], record["id"])
        if "op" in record:
            calls[place] = record
        else:
            yield calls.pop(place), record
    for call in calls.values():
        yield call, {}
