"""An elastic job in real pods: seconds until it trains, and until it trains again when one of its pods is deleted.

Four pods on two nodes, of a world of 2 to 4, one process each; a StatefulSet makes a deleted pod anew, and the operator is installed
by its chart. So kubelet, operator, torchrun's agent and the import of torch in new workers are all part of the figures.

- pods-start: from `kubectl apply` until all pods have made a step.
- pods-delete: a pod is deleted that has neither rank 0 nor the store.
- pods-rank0: the pod of rank 0 is deleted; with c10d the one that hosts the store.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.records import Results, Sample
from support.cluster_fixtures import LocalCluster, local
from support.workloads import Object, Place, read_steps, rendezvous, restarts, workload

from deploy.demo import demo, view
from deploy.demo.demo import Images
from deploy.demo.kube import Cluster

COUNT, LEAST = 4, 2
LIMIT_SECONDS = 120.0
START, DELETE, RANK0 = "pods-start", "pods-delete", "pods-rank0"
MOST_RUNS = {"kubernetes": 3, "c10d": 2}
"""At most so many, for want of time."""
SCRIPT = (Path(__file__).parent / "train_steps.py").read_text()
NAMES = [f"world-{index}" for index in range(COUNT)]
_SETTLE_SECONDS = 3.0
_LOOK_SECONDS = 0.5
_CALLED, _RANKED = "Rendezvous'ing worker group", "Rendezvous complete for workers"
"""What torch's agent logs before it calls `next_rendezvous`, and once its workers have ranks."""


class Samples:
    """Those of one backend, in the order in which they came."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)

    def add(self, scenario: str, metric: str, value: float, unit: str = "s") -> None:
        self._of[scenario, metric, unit].append(Sample(value))

    def add_time(self, scenario: str, metric: str, since: float, at: float | None) -> None:
        late = Sample(LIMIT_SECONDS, timeout=True, note="never, within the limit")
        self._of[scenario, metric, "s"].append(late if at is None else Sample(at - since))

    def write(self, results: Results, backend: str) -> None:
        for (scenario, metric, unit), samples in self._of.items():
            results.add(scenario, backend, COUNT, metric, unit, samples)


@dataclass(frozen=True)
class Job:
    """The pods of one Rendezvous, and the steps that they have made."""

    place: Place
    shared: Path
    samples: Samples

    def start(self, backend: str, images: Images) -> bool:
        """Whether all pods came to train together."""
        job = workload("StatefulSet", images, COUNT, shared=self.shared, env={"LOGLEVEL": "INFO"})
        began = time.time()
        self.place.apply(rendezvous(backend, (LEAST, COUNT)), job)
        trained = self._trained(NAMES, began)
        self.samples.add_time(START, "seconds", began, trained)
        return trained is not None

    def lose(self, scenario: str) -> bool:
        """Deletes a pod; returns whether all train again after that."""
        before = self.place.pods()
        victim = self._victim(before, scenario)
        survivors = [name for name in NAMES if name != victim]
        began = time.time()
        self.place.kubectl("delete", "pod", victim, "--wait=false")
        recovered = self._trained(survivors, began)
        self.samples.add_time(scenario, "seconds", began, recovered)
        if recovered is not None:
            took = max(self._rendezvous(name, began, recovered) for name in survivors)
            self.samples.add(scenario, "rendezvous", took)
        whole = None if recovered is None else self._trained(NAMES, began)
        self.samples.add_time(scenario, "seconds-whole", began, whole)
        after = self.place.pods()
        exited = sum(_incarnation(after.get(name)) != _incarnation(before[name]) for name in survivors)
        self.samples.add(scenario, "agents-exited", exited, f"of {len(survivors)}")
        return whole is not None

    def _trained(self, pods: list[str], since: float) -> float | None:
        """When all of these had made a step in one world that formed after `since`, which may have others in it."""
        while time.time() < since + LIMIT_SECONDS:
            first: dict[float, dict[str, float]] = defaultdict(dict)
            for step in read_steps(self.shared):
                first[step["world"]].setdefault(step["pod"], step["at"])
            for world in sorted(first):
                if world > since and first[world].keys() >= set(pods):
                    return max(first[world][pod] for pod in pods)
            time.sleep(_LOOK_SECONDS)
        return None

    def _victim(self, pods: dict[str, Object], scenario: str) -> str:
        steps = read_steps(self.shared)
        latest = max(step["world"] for step in steps)
        leader = next(str(step["pod"]) for step in steps if step["world"] == latest and step["rank"] == 0)
        slices = self.place.get("endpointslices")["items"]
        hosts = [endpoint["targetRef"]["name"] for found in slices for endpoint in found["endpoints"] or []]
        host = next((name for name in hosts if name in pods), leader)
        return host if scenario == RANK0 else next(name for name in reversed(NAMES) if name not in {host, leader})

    def _rendezvous(self, pod: str, since: float, until: float) -> float:
        """How long the pod's agent took from the call to its workers' ranks, the last time before `until`."""
        lines = [*self._log(pod, "--previous"), *self._log(pod)]
        called = took = 0.0
        for line in lines:
            if _CALLED in line:
                called = _at(line)
            elif _RANKED in line and since < _at(line) < until:
                took = _at(line) - called
        if not took:
            raise RuntimeError(f"no rendezvous in the log of {pod}: {lines[-20:]}")
        return took

    def _log(self, pod: str, *options: str) -> list[str]:
        return self.place.logs(pod, "--timestamps", *options).splitlines()


def _at(line: str) -> float:
    return view.timestamp(line.partition(" ")[0])


def _incarnation(pod: Object | None) -> tuple[str, int] | None:
    """Changes when the pod's agent exits."""
    return None if pod is None else (pod["metadata"]["uid"], restarts(pod))


def pods(results: Results, runs: int, wanted: Callable[[str], bool]) -> None:
    """Every job is alone on the machine."""
    with _installed() as (cluster, images):
        for backend, most in MOST_RUNS.items():
            if wanted(backend):
                samples = Samples()
                for _ in range(min(runs, most)):
                    _run(cluster, images, backend, samples)
                samples.write(results, backend)


def _run(cluster: LocalCluster, images: Images, backend: str, samples: Samples) -> None:
    """One job for all that happens to it, another one for the rest when it does not come back."""
    left = [DELETE, RANK0]
    while left:
        # The pods are gone before the directory is.
        with tempfile.TemporaryDirectory(prefix="rdzv-bench-steps-") as shared, _place(cluster) as place:
            job = Job(place, Path(shared), samples)
            going = job.start(backend, images)
            if not going:
                return
            while going and left:
                time.sleep(_SETTLE_SECONDS)
                going = job.lose(left.pop(0))


@contextmanager
def _installed() -> Iterator[tuple[LocalCluster, Images]]:
    """A cluster of two nodes with the operator, taken down at the end."""
    with tempfile.TemporaryDirectory(prefix="rdzv-bench-pods-") as place:
        directory = Path(place) / "c"
        try:
            local("up", "--dir", directory, "--name", "bench-pods")
            cluster = LocalCluster.at(directory)
            target = Cluster(cluster.kubeconfig, directory)
            images = demo.images_for(target)
            demo.install(target, images)
            yield cluster, images
        finally:
            local("down", "--dir", directory)


@contextmanager
def _place(cluster: LocalCluster) -> Iterator[Place]:
    """A namespace of its own; with it go all objects."""
    name = f"bench-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
    try:
        yield Place(cluster, name, SCRIPT)
    finally:
        cluster.kubectl("delete", "namespace", name)
