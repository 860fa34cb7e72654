"""The operator at scale: plain objects on the light control plane (no kubelet, no controllers), and the real operator process.

- 1,000 Rendezvous of backend `kubernetes`, 10 running pods each, whose agents have not joined: how long until every status is there,
  what it asks in quiet, how long a change takes to show, memory and processor time.
- One Rendezvous of 4,000 pods: bytes read and processor time from the first agent's request until the status says Formed.

Requests are counted in the API server's audit log, bytes in its metrics; this process's own are told apart by its user agent, or taken off.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from bench.lab import Lab
from bench.records import Results, Sample
from bench.servers import processor_seconds
from support.operator_process import OperatorProcess

from rdzv.control.inject import InjectionSettings, inject
from rdzv.kube.config import from_kubeconfig
from rdzv.objects import Object
from rdzv.protocol.encoding import salted_fingerprints
from rdzv.protocol.records import RUNNING, Leader, Member, Round
from rdzv.spec import API_VERSION, LABEL

INDEX = "batch.kubernetes.io/job-completion-index"
MANY, ONE = "operator-many", "operator-one"
USER_AGENT = "bench"

WORLDS, PODS_EACH, NAMESPACES = 1000, 10, 10
LARGE = 4000
CHANGES = 60
SETTLE_SECONDS, QUIET_SECONDS = 30.0, 60.0
LIMIT_SECONDS = 240.0
_MAKERS = 8

_DELIVERY = InjectionSettings("init", "registry.example/library:1", "registry.example/operator:1")


class Api:
    """Requests of the benchmark's own: one connection, used by one thread."""

    def __init__(self, kubeconfig: str) -> None:
        self._config = from_kubeconfig(kubeconfig)
        self._connection = http.client.HTTPSConnection(
            self._config.host, self._config.port, context=self._config.ssl_context(), timeout=60
        )
        self.received = 0

    def send(self, method: str, path: str, body: Object | None = None) -> Any:
        """The reply, parsed. Patches are merge patches."""
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Content-Type": content, "Accept": "application/json", "User-Agent": USER_AGENT}
        if authorization := self._config.authorization():
            headers["Authorization"] = authorization
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = self._connection.getresponse()
        data = response.read()
        self.received += len(data)
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status}: {data[:300]!r}")
        return json.loads(data)

    def lines(self, path: str) -> Iterator[Object]:
        """The events of a watch."""
        headers = {"Accept": "application/json", "User-Agent": USER_AGENT}
        if authorization := self._config.authorization():
            headers["Authorization"] = authorization
        self._connection.request("GET", path, None, headers)
        response = self._connection.getresponse()
        while line := response.readline():
            self.received += len(line)
            yield json.loads(line)


def path(kind: str, namespace: str = "", name: str = "") -> str:
    root = "/api/v1" if kind in {"pods", "namespaces"} else f"/apis/{API_VERSION}"
    return "/".join([root, *(["namespaces", namespace] if namespace else []), kind, *([name] if name else [])])


def operator(lab: Lab, results: Results) -> None:
    """Both shapes, one after the other, each on its own."""
    with tempfile.TemporaryDirectory(prefix="rdzv-bench-operator-") as place:
        _many(lab, results, Path(place))
        _one(lab, results, Path(place))


# Objects.


def pod_of(world: str, namespace: str, index: int) -> Object:
    """A pod as admission and kubelet leave it, about the size of a real one."""
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{world}-{index}",
            "namespace": namespace,
            "labels": {
                LABEL: world,
                INDEX: str(index),
                "batch.kubernetes.io/job-name": world,
                "batch.kubernetes.io/controller-uid": "0f7c5b57-7d0e-4f55-8d6f-5d4f5a4c9f0e",
            },
        },
        "spec": {
            "nodeName": f"node-{index % 50}",
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "train",
                    "image": "registry.example/train:1",
                    "command": ["torchrun", "train.py"],
                    "resources": {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"cpu": "4", "memory": "16Gi"}},
                    "env": [{"name": f"VARIABLE_{number}", "value": "a value"} for number in range(4)],
                }
            ],
        },
    }
    return inject(pod, _DELIVERY)


def _address(index: int) -> str:
    return f"10.2.{index // 250}.{index % 250}"


def running(index: int) -> Object:
    """What kubelet writes when the container runs."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    state = {"running": {"startedAt": since}}
    return {
        "phase": "Running",
        "conditions": [{"type": kind, "status": "True", "lastTransitionTime": since} for kind in kinds],
        "hostIP": f"10.1.0.{index % 250}",
        "podIP": _address(index),
        "podIPs": [{"ip": _address(index)}],
        "startTime": since,
        "containerStatuses": [
            {
                "name": "train",
                "image": "registry.example/train:1",
                "imageID": f"registry.example/train@sha256:{'0' * 64}",
                "containerID": f"containerd://{'1' * 64}",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": state,
            }
        ],
    }


def _maker(kubeconfig: str, work: Sequence[tuple[str, str, int]]) -> Callable[[], int]:
    """Makes pods (namespace, world, index) that run."""

    def job() -> int:
        api = Api(kubeconfig)
        for namespace, world, index in work:
            api.send("POST", path("pods", namespace), pod_of(world, namespace, index))
            status = {"status": running(index)}
            api.send("PATCH", path("pods", namespace, f"{world}-{index}") + "/status", status)
        return len(work)

    return job


def _make_worlds(lab: Lab, worlds: Sequence[tuple[str, str]], pods: int) -> None:
    """Rendezvous (namespace, name), and running pods for each."""
    api = Api(lab.kubeconfig)
    for namespace in {namespace for namespace, _ in worlds}:
        api.send("POST", path("namespaces"), {"metadata": {"name": namespace}})
    for namespace, name in worlds:
        spec = {"backend": "kubernetes", "nodes": {"min": pods, "max": pods}}
        obj = {"apiVersion": API_VERSION, "kind": "Rendezvous", "metadata": {"name": name}, "spec": spec}
        api.send("POST", path("rendezvous", namespace), obj)
    work = [(namespace, name, index) for namespace, name in worlds for index in range(pods)]
    lab.side_by_side([_maker(lab.kubeconfig, work[part::_MAKERS]) for part in range(_MAKERS)])


# Measuring.


class Measured(OperatorProcess):
    """The operator of this checkout, and what it has used."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def processor(self) -> float:
        """Seconds of processor time so far."""
        return processor_seconds(self.pid)

    def peak(self) -> float:
        """The most that was ever resident, MB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


@contextmanager
def _operator(lab: Lab, place: Path, namespace: str | None = None) -> Iterator[Measured]:
    process = Measured(Path(lab.kubeconfig), place / "operator.log", namespace)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        shown = lab.log.with_name("bench-operator.log")
        shown.write_text((place / "operator.log").read_text())


def _requests(audit_log: Path, start: int) -> list[dict[str, Any]]:
    """Others' requests that ended after byte `start` of the log; watches when they began."""
    with audit_log.open("rb") as log:
        log.seek(start)
        found = [json.loads(line) for line in log if line.endswith(b"}\n")]
    ours = [item for item in found if item.get("userAgent", "") not in {USER_AGENT, "rdzv"}]
    ours = [item for item in ours if not item.get("userAgent", "").startswith(("kube-apiserver/", "kubectl/"))]
    return [item for item in ours if (item["verb"] == "watch") == (item["stage"] == "ResponseStarted")]


def _wait(what: Callable[[], bool], began: float, pause: float = 0.5) -> Sample:
    while not what():
        if time.monotonic() - began > LIMIT_SECONDS:
            return Sample(LIMIT_SECONDS, timeout=True)
        time.sleep(pause)
    return Sample(time.monotonic() - began)


class _Statuses:
    """Follows every Rendezvous from now, and remembers when each was last said to be what."""

    def __init__(self, lab: Lab) -> None:
        self.last: dict[tuple[str, str], tuple[float, Object]] = {}
        self._api = Api(lab.kubeconfig)
        version = self._api.send("GET", path("rendezvous") + "?limit=1")["metadata"]["resourceVersion"]
        self._query = f"?watch=1&resourceVersion={version}&timeoutSeconds=600"
        Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        with contextlib.suppress(TimeoutError, OSError):  # When nothing changes any more: it has done its work.
            for event in self._api.lines(path("rendezvous") + self._query):
                meta = event["object"]["metadata"]
                self.last[meta["namespace"], meta["name"]] = time.monotonic(), event["object"].get("status", {})

    def when(self, key: tuple[str, str], test: Callable[[Object], bool], began: float) -> Sample:
        while True:
            at, status = self.last.get(key, (0.0, {}))
            if status and test(status):
                return Sample(max(0.0, at - began))
            if time.monotonic() - began > 30:
                return Sample(30.0, timeout=True)
            time.sleep(0.005)

    def number(self, test: Callable[[Object], bool]) -> int:
        """How many are so now."""
        return sum(bool(status and test(status)) for _, status in list(self.last.values()))


def _expects_all(status: Object) -> bool:
    return bool(status["nodes"]["expected"] == status["roster"]["expectedCount"] == PODS_EACH)


def _many(lab: Lab, results: Results, place: Path) -> None:
    """Worlds whose pods run and whose agents have not joined."""
    run = os.urandom(2).hex()
    worlds = [(f"many-{run}-{number % NAMESPACES}", f"w-{number}") for number in range(WORLDS)]
    _make_worlds(lab, worlds, PODS_EACH)
    add = _adder(results, MANY, WORLDS)
    log, statuses = lab.servers.audit_log, _Statuses(lab)
    start, server = log.stat().st_size, lab.servers.processor()
    with _operator(lab, place) as operator:
        began = time.monotonic()
        # By a watch: to list them again and again takes a tenth of a processor from those that are measured.
        add("all-statuses", "s after its start", [_wait(lambda: statuses.number(_expects_all) == WORLDS, began, 0.05)])
        add("processor-start", "s", [Sample(operator.processor())])
        add("processor-start-servers", "s", [Sample(lab.servers.processor() - server)])
        time.sleep(SETTLE_SECONDS)
        print(f"  requests until then: {_by_kind(_requests(log, start))}", flush=True)
        start, used = log.stat().st_size, operator.processor()
        time.sleep(QUIET_SECONDS)
        found = _requests(log, start)
        add("quiet-requests", "a second", [Sample(len(found) / QUIET_SECONDS, note=_by_kind(found))])
        add("quiet-processor", "% of one", [Sample(100 * (operator.processor() - used) / QUIET_SECONDS)])
        add(*_changes(lab, _Statuses(lab), worlds))
        add("memory", "MB", [Sample(operator.rss() / 1e6, note=f"{operator.peak():.0f} at its most")])


def _changes(lab: Lab, statuses: _Statuses, worlds: Sequence[tuple[str, str]]) -> tuple[str, str, list[Sample]]:
    """A pod that is no longer ready to run, or is deleted, until the status says so."""
    api = Api(lab.kubeconfig)
    samples = []
    for number, key in enumerate(worlds[:: len(worlds) // CHANGES][:CHANGES]):
        namespace, name = key
        began = time.monotonic()
        if number % 2:
            api.send("DELETE", path("pods", namespace, f"{name}-3"), {"gracePeriodSeconds": 0})
            seen = statuses.when(key, lambda status: status["roster"]["expectedCount"] == PODS_EACH - 1, began)
        else:
            waiting = {"name": "train", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
            waiting["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
            status = {"status": {"phase": "Pending", "containerStatuses": [waiting]}}
            api.send("PATCH", path("pods", namespace, f"{name}-3") + "/status", status)
            seen = statuses.when(key, lambda status: bool(status["roster"]["hopeless"]), began)
        samples.append(seen)
        time.sleep(0.1)
    values = sorted(sample.value for sample in samples)
    note = f"99th percentile {statistics.quantiles(values, n=100)[98]:.2f} s, {len(values)} changes"
    return "change", "s until its status", [Sample(values[len(values) // 2], note=note), *samples]


def _one(lab: Lab, results: Results, place: Path) -> None:
    """One Rendezvous of many pods: its agents ask to join, and a coordinator writes the world."""
    namespace, name = f"one-{os.urandom(2).hex()}", "large"
    _make_worlds(lab, [(namespace, name)], LARGE)
    add = _adder(results, ONE, LARGE)
    api = Api(lab.kubeconfig)
    uid = api.send("GET", path("rendezvous", namespace, name))["metadata"]["uid"]
    uids = _uids(lab, namespace)
    with _operator(lab, place, namespace) as operator:
        before, began = _bytes(lab), time.monotonic()
        add("all-statuses", "s after its start", [_wait(lambda: _expects(api, namespace, name, LARGE), began)])
        time.sleep(10.0)
        add("bytes-start", "MB", [Sample((_bytes(lab) - before - api.received) / 1e6)])
        add("processor-start", "s", [Sample(operator.processor())])
        before, used = _bytes(lab) - api.received, operator.processor()
        began = time.monotonic()
        members = [_member(name, uid, index, uids[index]) for index in range(LARGE)]
        lab.side_by_side([_joiner(lab.kubeconfig, namespace, members[part::_MAKERS]) for part in range(_MAKERS)])
        api.send("POST", path("rendezvousrounds", namespace), _round(name, uid, members).to_object(namespace))
        wait = _wait(lambda: _formed(api, namespace, name), began)
        add("form", "s", [wait])
        time.sleep(2.0)
        add("form-bytes", "MB", [Sample((_bytes(lab) - before - api.received) / 1e6)])
        add("form-processor", "s", [Sample(operator.processor() - used)])
        add("memory", "MB", [Sample(operator.rss() / 1e6, note=f"{operator.peak():.0f} at its most")])


def _adder(results: Results, scenario: str, n: int) -> Callable[[str, str, list[Sample]], None]:
    return lambda metric, unit, samples: results.add(scenario, "kubernetes", n, metric, unit, samples)


def _by_kind(found: Sequence[Object]) -> str:
    kinds = Counter(
        f"{item['verb']} {item['objectRef']['resource']}"
        + (f"/{item['objectRef']['subresource']}" if "subresource" in item["objectRef"] else "")
        for item in found
        if "objectRef" in item
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def _uids(lab: Lab, namespace: str) -> list[str]:
    query, uids, token = path("pods", namespace), {}, ""
    api = Api(lab.kubeconfig)
    while True:
        page = api.send("GET", f"{query}?limit=500&continue={token}")
        for item in page["items"]:
            uids[int(item["metadata"]["labels"][INDEX])] = item["metadata"]["uid"]
        token = page["metadata"].get("continue", "")
        if not token:
            return [uids[index] for index in range(len(uids))]


def _expects(api: Api, namespace: str, name: str, count: int) -> bool:
    status = api.send("GET", path("rendezvous", namespace, name)).get("status") or {}
    return bool((status.get("roster") or {}).get("expectedCount") == count)


def _formed(api: Api, namespace: str, name: str) -> bool:
    status = api.send("GET", path("rendezvous", namespace, name)).get("status") or {}
    conditions = {item["type"]: item["status"] for item in status.get("conditions", [])}
    return conditions.get("Formed") == "True" and status["nodes"]["joined"] == LARGE


def _member(name: str, run_id: str, index: int, uid: str) -> Member:
    return Member(f"{name}-{index}", name, run_id, f"{uid}/{index:08x}", _address(index), 40000, 1, slot=index)


def _round(name: str, run_id: str, members: Sequence[Member]) -> Round:
    salt, checks = salted_fingerprints([member.incarnation for member in members])
    slots = tuple(range(len(members)))
    return Round(name, run_id, 1, RUNNING, slots, checks, salt, Leader(0, members[0].address, 40000), want=1)


def _joiner(kubeconfig: str, namespace: str, members: Sequence[Member]) -> Callable[[], int]:
    def job() -> int:
        api = Api(kubeconfig)
        for member in members:
            api.send("POST", path("rendezvousmembers", namespace), member.to_object(namespace))
        return len(members)

    return job


_SIZES = ("apiserver_response_sizes_sum", "apiserver_watch_events_sizes_sum")
_READ = (
    "pods",
    "rendezvous",
    "rendezvousmembers",
    "rendezvousrounds",
    "configmaps",
    "services",
    "roles",
    "rolebindings",
)


def _bytes(lab: Lab) -> int:
    """Objects read and events of watches so far, of the kinds that the operator reads."""
    lines = lab.servers.kubectl("get", "--raw", "/metrics").splitlines()
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in lines
        if line.startswith(_SIZES) and any(f'resource="{kind}"' in line for kind in _READ)
    )
