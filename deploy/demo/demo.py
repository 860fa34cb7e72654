#!/usr/bin/env python3
"""The main job, shown: a cluster, the operator by its chart, a Rendezvous, and a Job of four pods that run plain `torchrun train.py`.

Environment: BACKEND (kubernetes); KUBECONFIG, for a cluster that is there already: it then needs IMAGE, LIBRARY_IMAGE and TRAIN_IMAGE,
references that its nodes can pull (TRAIN_IMAGE has torch). Without KUBECONFIG, everything is made on this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deploy.demo import sample, view
from deploy.demo.kube import ROOT, Cluster, DemoError, Object, run
from deploy.local.cluster.images import etcd_image
from deploy.local.cluster.tools import etcds as etcds_here

LOCAL = ROOT / "deploy" / "local" / "main.py"
DIRECTORY = ROOT / ".local"
CHART = ROOT / "charts" / "rendezvous-operator"
RELEASE, SYSTEM = "rendezvous-operator", "rdzv-system"
LABEL = "rdzv.dev/rendezvous"

#: Seconds from `kubectl apply` until all pods must have ended. The slowest honest case is a cold torch on a busy machine.
DEADLINE = 300.0


@dataclass(frozen=True)
class Images:
    """References for the images, and where torch is on the nodes when the training image has none.

    `etcd`, `etcd_v2`: what the operator's etcds run from; empty: what the chart says.
    """

    operator: str
    library: str
    train: str
    torch: Path | None = None
    etcd: str = ""
    etcd_v2: str = ""


class Clock:
    """Says what goes on, and remembers how long each stage took."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float]] = []
        self._begun = time.time()

    def say(self, text: str) -> None:
        """One line, after the seconds since the stage began."""
        print(f"{time.time() - self._begun:6.1f} s  {text}", flush=True)

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """A part of the demo that is timed."""
        self._begun = time.time()
        print(f"\n── {title}", flush=True)
        yield
        self.stages.append((title, time.time() - self._begun))


def local(*arguments: str | Path) -> None:
    """Runs deploy/local with its progress shown.

    Raises:
        DemoError: it failed; it has said why.
    """
    command = [sys.executable, str(LOCAL), *map(str, arguments)]
    status = os.spawnv(os.P_WAIT, sys.executable, command)
    if status != 0:
        raise DemoError(f"`{' '.join(command)}` failed with status {status}, see above")


def local_images(directory: Path) -> Images:
    """Builds the images from their Dockerfiles on the local base, and loads them into the nodes of the cluster in `directory`.

    The tag is made of what goes into them: after a change of code, Helm sees another reference and replaces the pods.
    """
    content = hashlib.sha256()
    for part in ("src", "operator", "deploy/images", "pyproject.toml"):
        for path in sorted(ROOT.glob(f"{part}/**/*.*") if (ROOT / part).is_dir() else [ROOT / part]):
            if path.is_file() and "__pycache__" not in path.parts:
                content.update(path.read_bytes())
    tag = f"dev-{content.hexdigest()[:12]}"
    torch = Path(run(sys.executable, LOCAL, "torch", "--print").strip())
    names = {"operator": f"localhost/rendezvous-operator:{tag}", "library": f"localhost/rendezvous-library:{tag}"}
    local("torch")
    archives = []
    for name, arguments in (("operator", []), ("library", ["--build-arg", f"OPERATOR={names['operator']}"])):
        archives.append(directory / "images" / f"{name}.tar")
        dockerfile = ROOT / "deploy" / "images" / f"{name}.Dockerfile"
        local(
            "build-image", "--tag", names[name], "--file", dockerfile, "--context", ROOT, *arguments, "-o", archives[-1]
        )
    pytorch = Path(run(sys.executable, LOCAL, "torch", "--image").strip())
    etcds = {name: etcd_image(program, name) for name, program in etcds_here().items()}
    local("load-image", "--dir", directory, *archives, pytorch, *etcds.values())
    return Images(names["operator"], names["library"], "localhost/pytorch:2.15.0", torch, *etcds)


def given_images() -> Images:
    """The images of a cluster that is not ours.

    Raises:
        DemoError: one is not named.
    """
    missing = [name for name in ("IMAGE", "LIBRARY_IMAGE", "TRAIN_IMAGE") if not os.environ.get(name)]
    if missing:
        raise DemoError(
            f"KUBECONFIG names a cluster, so {', '.join(missing)} must be set to images that it can pull: IMAGE and LIBRARY_IMAGE "
            "built from deploy/images, TRAIN_IMAGE with torch (pytorch/pytorch:2.15.0). Without KUBECONFIG a cluster is made here"
        )
    return Images(os.environ["IMAGE"], os.environ["LIBRARY_IMAGE"], os.environ["TRAIN_IMAGE"])


def install(cluster: Cluster, images: Images) -> None:
    """Installs or upgrades the chart, in a namespace that admits only restricted pods, and waits until it runs."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": labels}})
    with contextlib.suppress(DemoError):  # there is no release yet
        release = json.loads(cluster.helm("status", RELEASE, "-n", SYSTEM, "-o", "json"))
        if release["info"]["status"].startswith("pending"):  # a Helm that was killed leaves its lock
            cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait")
    values = []
    given = {
        "image": images.operator,
        "library.image": images.library,
        "etcd.image": images.etcd,
        "etcd.v2Image": images.etcd_v2,
    }
    for prefix, image in ((prefix, image) for prefix, image in given.items() if image):
        repository, tag = sample.split_reference(image)
        values += ["--set-string", f"{prefix}.repository={repository},{prefix}.tag={tag}"]
    cluster.helm("upgrade", "--install", RELEASE, CHART, "-n", SYSTEM, *values, "--wait", "--timeout", "3m")


def images_for(cluster: Cluster) -> Images:
    """The images to run on this cluster: made here for one of deploy/local, given by the environment for any other."""
    return given_images() if cluster.local is None else local_images(cluster.local)


def uninstall(cluster: Cluster) -> None:
    """Removes the release; the custom resources stay, with their definitions."""
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "3m")
    cluster.kubectl("delete", "namespace", SYSTEM, "--wait")


def remove_previous(cluster: Cluster) -> None:
    """Removes what a demo before this one left in its namespace."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": sample.NAMESPACE}})
    everything = ("jobs.batch,rendezvous.rdzv.dev", "--all", "-n", sample.NAMESPACE)
    cluster.kubectl("delete", *everything, "--cascade=foreground", "--wait", "--timeout=90s")


def train(cluster: Cluster, clock: Clock, backend: str, images: Images) -> tuple[float, list[Object]]:
    """Applies the sample and shows what happens until all its pods have ended; returns when that began, and the pods.

    Raises:
        DemoError: the Job failed, or the deadline passed.
    """
    with tempfile.TemporaryDirectory() as directory:
        sample.write(Path(directory), backend, images.train, images.torch)
        applied = time.time()
        for line in cluster.kubectl("apply", "-k", directory).splitlines():
            clock.say(line)

    def show(line: str) -> None:
        if "  loss " in line:
            clock.say(line)

    shown: dict[str, str] = {}
    logs = None
    try:
        while time.time() < applied + DEADLINE:
            objects = cluster.get("-n", sample.NAMESPACE, "rendezvous,job,pod")
            kinds: dict[str, list[Object]] = {"Rendezvous": [], "Job": [], "Pod": []}
            for obj in objects:
                kinds[obj["kind"]].append(obj)
            lines = {**view.rendezvous_lines(kinds["Rendezvous"]), **view.pod_lines(kinds["Pod"])}
            for line in view.changed(shown, lines):
                clock.say(line)
            shown = lines
            # Others are those of an etcd that the operator runs.
            training = [pod for pod in kinds["Pod"] if LABEL in pod["metadata"]["labels"]]
            running = [pod for pod in training if pod["status"]["phase"] != "Pending"]
            if logs is None and len(running) == sample.PODS:
                logs = cluster.follow_logs(sample.NAMESPACE, LABEL, show)
            if _finished(kinds["Job"]):
                return applied, training
            time.sleep(1)
    finally:
        if logs is not None:
            logs.kill()
            logs.wait()
    raise DemoError(f"the pods have not ended {DEADLINE:.0f} s after `kubectl apply`")


def _finished(jobs: list[Object]) -> bool:
    for condition in (condition for job in jobs for condition in job["status"].get("conditions", [])):
        if condition["type"] == "Failed" and condition["status"] == "True":
            raise DemoError(f"the Job failed: {condition.get('message', '')}")
        if condition["type"] == "Complete" and condition["status"] == "True":
            return True
    return False


def read_results(cluster: Cluster, pods: list[Object]) -> list[dict[str, Any]]:
    """What each training process printed as its last line."""
    results = []
    for pod in pods:
        if pod["status"]["phase"] == "Succeeded":
            lines = cluster.kubectl("logs", "-n", sample.NAMESPACE, pod["metadata"]["name"]).splitlines()
            results += [json.loads(line)["result"] for line in lines if line.startswith('{"result":')]
    return results


def diagnose(cluster: Cluster) -> None:
    """Prints what one would look at first."""
    here = ("-n", sample.NAMESPACE)
    looks = (
        ("get", "rendezvous,job,pod", *here, "-o", "wide"),
        ("describe", "rendezvous", *here),
        ("get", "events", *here, "--sort-by=.lastTimestamp"),
        ("logs", *here, "-l", LABEL, "--prefix", "--tail=30", "--max-log-requests=64"),
        ("describe", "pods", "-n", SYSTEM),
        ("logs", "-n", SYSTEM, f"deployment/{RELEASE}", "--tail=40"),
    )
    for arguments in looks:
        print(f"\n$ kubectl {' '.join(arguments)}\n{cluster.look(*arguments)}", file=sys.stderr)


def demo(clock: Clock, kubeconfig: str, backend: str) -> int:
    """All stages; returns the exit status."""
    sample.source(backend)  # a wrong name is refused before anything is built
    cluster = Cluster(Path(kubeconfig)) if kubeconfig else Cluster(DIRECTORY / "kubeconfig", DIRECTORY)
    if cluster.local:
        with clock.stage("cluster"):
            local("up", "--dir", DIRECTORY)
    with clock.stage("images"):
        images = images_for(cluster)
    try:
        with clock.stage("chart"):
            install(cluster, images)
            clock.say(f"{RELEASE} runs in namespace {SYSTEM}")
            remove_previous(cluster)
        with clock.stage(f"training with backend {backend}"):
            applied, pods = train(cluster, clock, backend, images)
        results = read_results(cluster, pods)
        if problem := view.wrong(results, sample.PODS):
            raise DemoError(f"the pods ended, but {problem}")
    except DemoError:
        diagnose(cluster)
        raise
    print(f"\n{cluster.kubectl('get', 'rendezvous', '-n', sample.NAMESPACE).rstrip()}\n")
    print(f"{view.results_table(results)}\n")
    parts = [(f"  {name}", seconds) for name, seconds in view.phases(applied, pods, results)]
    print(view.table(("PHASE", "SECONDS"), [(name, f"{seconds:.1f}") for name, seconds in [*clock.stages, *parts]]))
    first = max(result["first_step"] for result in results) - applied
    print(f"\nFrom `kubectl apply` to the first training step: {first:.1f} s (pods' timestamps are whole seconds).")
    print(f"\nLook around:\n  export KUBECONFIG={cluster.kubeconfig}")
    print(f"  kubectl get rdzv,pods -n {sample.NAMESPACE}\n  kubectl describe rdzv -n {sample.NAMESPACE}")
    print(f"Other backend:  BACKEND={'c10d' if backend == 'kubernetes' else 'kubernetes'} make demo")
    if cluster.local:
        print("Take it down:   make cluster-down")
    return 0


def main() -> int:
    """Runs the demo; what a user can act on is printed without a traceback."""
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if kubeconfig and Path(kubeconfig).resolve() == (DIRECTORY / "kubeconfig").resolve():
        kubeconfig = ""  # the user looked around, as the demo suggests
    begun = time.time()
    try:
        return demo(Clock(), kubeconfig, os.environ.get("BACKEND") or "kubernetes")
    except DemoError as error:
        print(f"\ndemo failed after {time.time() - begun:.0f} s: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
