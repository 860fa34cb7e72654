"""Clients of a store that write down what they did and saw, each a process of its own.

Run as a program it is their nursery: it has imported torch, and forks a client for each line of its standard input.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from faults import seeded
from torch import distributed as dist

from rdzv.etcd.client import Client as EtcdClient
from rdzv.etcd.config import parse
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.store import records
from rdzv.store.shards import NOT_DONE, UNKNOWN
from rdzv.store.store import KubernetesStore

OFTEN = {
    "multi_set": 4,
    "multi_get": 4,
    "get": 5,
    "add": 4,
    "append": 2,
    "set": 1,
    "compare_set": 4,
    "delete_key": 1,
    "check": 2,
    "num_keys": 1,
    "queue_push": 2,
    "queue_pop": 2,
    "queue_len": 1,
}
"""How often a client does what."""
SLOW_SECONDS = 30.0
"""After which a client writes down what its threads are at."""
FORKED = 100
"""Number of a client that another forked, above that one's."""
COUNTERS, TEXTS, VOLATILE = (0, 1), (2, 3), (4, 5)
"""Keys that hold numbers, that hold text, and that come and go."""
READS = {"get", "multi_get", "check", "num_keys", "queue_len"}


@dataclass(frozen=True)
class Job:
    """What one client has to do."""

    store: str
    """Its name; for a TCPStore, its port."""
    kubeconfig: str
    """Empty for a TCPStore, and for a store in etcd."""
    log: str
    """File for what it did: a line for each call, one for each return."""
    number: int
    seed: int
    operations: int
    work: str = "all"
    """all: every operation; count: only add and compare_set, each on one key."""
    seconds: float = 60.0
    """The store's timeout."""
    bug: str = ""
    fork: bool = False
    keys_at_start: int = 0
    kept_in: str = ""
    """The one object that the store is kept in, as an agent's is; empty: objects of its own."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    etcd: Mapping[str, str] = field(default_factory=dict)
    """`endpoint`, and what else has to be known of the etcd that the store is kept in; empty: it is in none."""


def key_names() -> list[str]:
    """Names of the keys, each in a shard of its own."""
    found: dict[int, str] = {}
    for i in range(10_000):
        found.setdefault(records.shard_of(f"key-{i}"), f"key-{i}")
    return [found[index] for index in sorted(found)][:8]


KEYS = key_names()
QUEUES = ["queue-0", "queue-1"]


def open_store(job: Job) -> Any:
    """A handle of its own on the job's store."""
    if job.etcd:
        settings = dict(job.etcd)
        config = parse(settings.pop("endpoint"), settings)
        store: Any = KubernetesStore(job.store, job.store, client=EtcdClient(config, job.store))
    elif job.kubeconfig:
        client = Client(from_kubeconfig(job.kubeconfig))
        store = KubernetesStore(job.store, "default", client=client, **kept(job.kept_in))
    else:
        store = dist.TCPStore("127.0.0.1", int(job.store), is_master=False)
    store.set_timeout(timedelta(seconds=job.seconds))
    return store


def kept(name: str) -> dict[str, Any]:
    """What opens a store that is kept in the object of this name, if one is given."""
    owner = {"apiVersion": "rdzv.dev/v1alpha1", "kind": "RendezvousRound", "metadata": {"name": name, "uid": "u-1"}}
    return {"owner": owner, "kept_in": name} if name else {}


class Recorder:
    """Carries out operations and writes down each call and return, so that a killed client's last call is known too."""

    def __init__(self, job: Job, store: Any) -> None:
        self.job, self.store, self.number, self.id = job, store, job.number, 0
        self.file = Path(job.log).open("a", buffering=1)  # noqa: SIM115 - as long as the process

    def write(self, **fields: Any) -> None:
        self.file.write(json.dumps({"client": self.number, "id": self.id, **fields}) + "\n")

    def do(self, op: str, keys: list[int], values: list[str] | None = None, amount: int = 0) -> list[str] | None:
        """Carry out one operation; returns its results, None when it had none or failed."""
        self.id += 1
        values = values or []
        self.write(op=op, keys=keys, values=values, amount=amount, call=time.monotonic_ns())
        try:
            result = _perform(self, op, keys, values, amount)
        except dist.DistStoreError as error:
            text = str(error)
            fate = "unknown" if UNKNOWN in text else "not done" if op in READS or NOT_DONE in text else "unclear"
            self.write(fate=fate, error=text)
            return None
        self.write(result=result, returned=time.monotonic_ns())
        return result


def _perform(recorder: Recorder, op: str, keys: list[int], values: list[str], amount: int) -> list[str]:
    store, names = recorder.store, [(QUEUES if op.startswith("queue") else KEYS)[key] for key in keys]
    calls: dict[str, Callable[[], Any]] = {
        "get": lambda: [store.get(names[0])],
        "multi_get": lambda: store.multi_get(names),
        "check": lambda: [str(store.check(names)).lower()],
        "num_keys": lambda: [str(store.num_keys() - recorder.job.keys_at_start)],
        "set": lambda: store.set(names[0], values[0]),
        "multi_set": lambda: store.multi_set(names, values),
        "add": lambda: [str(store.add(names[0], amount))],
        "append": lambda: store.append(names[0], values[0]),
        "delete_key": lambda: [str(store.delete_key(names[0])).lower()],
        "compare_set": lambda: [store.compare_set(names[0], *values)],
        "queue_push": lambda: store.queue_push(names[0], values[0]),
        "queue_pop": lambda: ["value", store.queue_pop(names[0], False)],
        "queue_len": lambda: [str(store.queue_len(names[0]))],
    }
    try:
        found = calls[op]()
    except dist.QueueEmptyError:
        return ["empty"]
    return [each if isinstance(each, str) else bytes(each).decode() for each in found or []]


def everything(recorder: Recorder, choose: random.Random, operations: int) -> None:
    """Operations of all kinds, most of them on the same few keys."""
    known = dict.fromkeys(VOLATILE, "")
    for n in range(operations):
        mine = f"{recorder.number}.{n}"
        op = choose.choices(list(OFTEN), list(OFTEN.values()))[0]
        if op in ("multi_set", "multi_get"):
            keys = choose.choice([[0, 2], [1, 3], [0, 1, 2, 3], [3, 0]])
            values = [str(recorder.number * 1000 + n) if key in COUNTERS else f"({mine})" for key in keys]
            recorder.do(op, keys, values if op == "multi_set" else [])
        elif op == "get":
            for key in choose.sample([0, 1, 2, 3], 2):
                recorder.do(op, [key])
        elif op == "add":
            recorder.do(op, [choose.choice(COUNTERS)], amount=choose.randint(1, 9))
        elif op in ("append", "set"):
            recorder.do(op, [choose.choice(TEXTS)], [f"({mine})"])
        elif op == "compare_set":
            key = choose.choice(VOLATILE)
            known[key] = (recorder.do(op, [key], [known[key], mine]) or [""])[0]
        elif op == "delete_key":
            recorder.do(op, [choose.choice(VOLATILE)])
        elif op == "check":
            recorder.do(op, choose.choice([[4, 5], [0, 4], [5]]))
        elif op == "num_keys":
            recorder.do(op, [])
        else:
            recorder.do(op, [choose.choice([0, 1])], [mine] if op == "queue_push" else [])


def count(recorder: Recorder, operations: int) -> None:
    """Adds to one key, and a quarter as many attempts to count up another by compare_set."""
    for _ in range(operations):
        recorder.do("add", [0], amount=1)
    current = "0:"
    for n in range(operations // 4):
        mine = f"{int(current.partition(':')[0]) + 1}:{recorder.number}.{n}"
        current = (recorder.do("compare_set", [4], [current, mine]) or ["0:"])[0]


def work(job: Job) -> None:
    """All of a client's life."""
    if job.bug:
        seeded.BUGS[job.bug].sow()
    for name, value in job.extra.items():
        setattr(records, name, value)
    store = open_store(job)
    recorder, choose, child = Recorder(job, store), random.Random(job.seed), 0
    if job.work == "count":
        count(recorder, job.operations)
    else:
        everything(recorder, choose, job.operations // 2)
        if job.fork:
            child = os.fork()
            if child == 0:
                recorder.number, choose = job.number + FORKED, random.Random(job.seed + 1)
        everything(recorder, choose, job.operations - job.operations // 2)
    if child:
        assert os.waitpid(child, 0)[1] == 0
    if job.kubeconfig or job.etcd:
        store.close()


def _born(job: Job) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with Path(job.log + ".threads").open("w") as where:
                faulthandler.dump_traceback_later(SLOW_SECONDS, file=where)
                work(job)
            status = 0
        except BaseException:  # noqa: BLE001 - the nursery's end would be that of all
            Path(job.log + ".crash").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return pid


def _buried(pids: list[int], seconds: float) -> dict[int, int | None]:
    """Exit statuses; None for one that had to be killed."""
    found: dict[int, int | None] = {}
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if pid not in found]:
        for pid in left:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                found[pid] = status
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                found[pid] = None
            break
        time.sleep(0.02)
    return found


def main() -> None:
    """Forks a client for each job, and waits for those that it is told to wait for."""
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer: Any = list(_buried(order["wait"], order["seconds"]).items())
        else:
            answer = _born(Job(**order))
        print(json.dumps(answer), flush=True)


def order_of(job: Job) -> str:
    """A job as the nursery takes it."""
    return json.dumps(asdict(job))


if __name__ == "__main__":
    main()
