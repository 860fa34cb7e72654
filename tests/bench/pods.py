"""An elastic job in real pods: seconds until it trains, and until it trains again when one of its pods is deleted.

Four pods on two nodes, of a world of 2 to 4, one process each; their controller makes a deleted pod anew, and the operator is installed
by its chart. So kubelet, operator, torchrun's agent and the import of torch in new workers are all part of the figures.

- pods-start: from `kubectl apply` until all pods have made a step.
- pods-delete: a pod is deleted that has neither rank 0 nor the store.
- pods-rank0: the pod of rank 0 is deleted; with c10d the one that hosts the store.

`-loaded`: while as many other processes as the machine has processors compute without a pause.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench.elastic_jobs import COUNT, JOBS, PYTORCHJOB, ElasticJob
from bench.records import Results, Sample
from support.cluster_fixtures import LocalCluster, local
from support.workload_controllers import Controllers
from support.workloads import Object, Place, read_steps, restarts

from deploy.demo import demo, view
from deploy.demo.demo import Images
from deploy.demo.kube import Cluster

LIMIT_SECONDS = 180.0
START, DELETE, RANK0 = "pods-start", "pods-delete", "pods-rank0"
LOADED = "-loaded"
SCRIPT = (Path(__file__).parent / "train_steps.py").read_text()
_SETTLE_SECONDS = 3.0
_LOOK_SECONDS = 0.5
_CALLED, _RANKED = "Rendezvous'ing worker group", "Rendezvous complete for workers"
"""What torch's agent logs before it calls `next_rendezvous`, and once its workers have ranks."""


class Samples:
    """Those of one backend, in the order in which they came. `suffix`: what its scenarios are called after, beside their names."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._of: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)

    def add(self, scenario: str, metric: str, value: float, unit: str = "s") -> None:
        self._of[scenario, metric, unit].append(Sample(value))

    def add_time(self, scenario: str, metric: str, since: float, at: float | None) -> None:
        late = Sample(LIMIT_SECONDS, timeout=True, note="never, within the limit")
        self._of[scenario, metric, "s"].append(late if at is None else Sample(at - since))

    def write(self, results: Results, backend: str) -> None:
        for (scenario, metric, unit), samples in self._of.items():
            results.add(scenario + self._suffix, backend, COUNT, metric, unit, samples)


@dataclass(frozen=True)
class Job:
    """The pods of one job, and the steps that they have made."""

    job: ElasticJob
    place: Place
    shared: Path
    samples: Samples

    def start(self, images: Images) -> bool:
        """Whether all pods came to train together."""
        began = time.time()
        self.place.apply(*self.job.make(images, self.shared))
        trained = self._trained(self.job.pods, began)
        self.samples.add_time(START, "seconds", began, trained)
        if trained is None:
            return False
        started = min(max(at for at in self._starts(pod) if at < trained) for pod in self.job.pods)
        self.samples.add_time(START, "workers", started, trained)
        return True

    def lose(self, scenario: str) -> bool:
        """Deletes a pod; returns whether all train again after that."""
        before = self.place.pods()
        victim = self._victim(before, scenario)
        survivors = [name for name in self.job.pods if name != victim]
        began = time.time()
        self.place.kubectl("delete", "pod", victim, "--wait=false")
        recovered = self._trained(survivors, began)
        self.samples.add_time(scenario, "seconds", began, recovered)
        if recovered is not None:
            found = (self._rendezvous(name, began, recovered) for name in survivors)
            took = [each for each in found if each is not None]
            if len(took) == len(survivors):
                self.samples.add(scenario, "rendezvous", max(took))
        whole = None if recovered is None else self._trained(self.job.pods, began)
        self.samples.add_time(scenario, "seconds-whole", began, whole)
        starts = max(sum(at > began for at in self._starts(pod)) for pod in self.job.pods)
        self.samples.add(scenario, "worker-starts", starts, "the most of one pod")
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

    def _starts(self, pod: str) -> list[float]:
        """When its workers were started."""
        return [float(line) for line in (self.shared / f"{pod}.starts").read_text().split()]

    def _victim(self, pods: dict[str, Object], scenario: str) -> str:
        steps = read_steps(self.shared)
        latest = max(step["world"] for step in steps)
        leader = next(str(step["pod"]) for step in steps if step["world"] == latest and step["rank"] == 0)
        slices = self.place.get("endpointslices")["items"]
        hosts = [endpoint["targetRef"]["name"] for found in slices for endpoint in found["endpoints"] or []]
        host = self.job.host or next((name for name in hosts if name in pods), leader)
        return host if scenario == RANK0 else next(n for n in reversed(self.job.pods) if n not in {host, leader})

    def _rendezvous(self, pod: str, since: float, until: float) -> float | None:
        """How long the pod's agent took from the call to its workers' ranks, the last time before `until`.

        None: its container has been started again since, more than once, and the log is gone.
        """
        lines = [*self._log(pod, "--previous"), *self._log(pod)]
        called, took = 0.0, None
        for line in lines:
            if _CALLED in line:
                called = _at(line)
            elif _RANKED in line and since < _at(line) < until:
                took = _at(line) - called
        return took

    def _log(self, pod: str, *options: str) -> list[str]:
        return self.place.logs(pod, "--timestamps", *options).splitlines()


def _at(line: str) -> float:
    return view.timestamp(line.partition(" ")[0])


def _incarnation(pod: Object | None) -> tuple[str, int] | None:
    """Changes when the pod's agent exits."""
    return None if pod is None else (pod["metadata"]["uid"], restarts(pod))


def pods(results: Results, runs: int, wanted: Callable[[str], bool], loads: Sequence[str]) -> None:
    """Every job is alone on the machine, but for what computes beside it; backends alternate. `loads`: of "" and LOADED."""
    chosen = {backend: job for backend, job in JOBS.items() if wanted(backend)}
    with _installed(kubeflow=PYTORCHJOB in chosen) as (cluster, images):
        for load in loads:
            samples = {backend: Samples(load) for backend in chosen}
            with _busy((os.cpu_count() or 1) if load else 0):
                for run in range(runs):
                    for backend, job in chosen.items():
                        if run < job.most:
                            _run(cluster, images, job, samples[backend])
                            samples[backend].write(results, backend)


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes compute without a pause, at the priority of any other."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _run(cluster: LocalCluster, images: Images, of: ElasticJob, samples: Samples) -> None:
    """One job for all that happens to it, another one for the rest when it does not come back."""
    left = [DELETE, RANK0]
    while left:
        # The pods are gone before the directory is.
        with tempfile.TemporaryDirectory(prefix="rdzv-bench-steps-") as shared, _place(cluster) as place:
            job = Job(of, place, Path(shared), samples)
            going = job.start(images)
            if not going:
                return
            while going and left:
                time.sleep(_SETTLE_SECONDS)
                going = job.lose(left.pop(0))


@contextmanager
def _installed(*, kubeflow: bool) -> Iterator[tuple[LocalCluster, Images]]:
    """A cluster of two nodes with the operator and Kubeflow's, taken down at the end."""
    with tempfile.TemporaryDirectory(prefix="rdzv-bench-pods-") as place:
        directory = Path(place) / "c"
        try:
            local("up", "--dir", directory, "--name", "bench-pods")
            cluster = LocalCluster.at(directory)
            target = Cluster(cluster.kubeconfig, directory)
            images = demo.images_for(target)
            demo.install(target, images)
            with _kubeflow(cluster, images) if kubeflow else nullcontext():
                yield cluster, images
        finally:
            local("down", "--dir", directory)


@contextmanager
def _kubeflow(cluster: LocalCluster, images: Images) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="rdzv-bench-kubeflow-") as place:
        controllers = Controllers(cluster, Path(place), images.train)
        try:
            controllers.start("training-operator")
            yield
        finally:
            controllers.stop()


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
