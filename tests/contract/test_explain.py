"""`rdzv explain`, `check` and `status` against a real API server, with the chart's own admission policy and the real operator."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.admission import injecting
from support.builders import INDEX_LABEL
from support.cluster_fixtures import LocalCluster
from support.command import command, environment, rdzv
from support.operated import pod, rendezvous
from support.operator_process import ROOT, Kube, eventually, running_operator

from rdzv.cli.inquiry import explain_name
from rdzv.kube.client import Client
from rdzv.kube.config import load
from rdzv.spec import LABEL

Object = dict[str, Any]

CRDS = ROOT / "charts/rendezvous-operator/files/crds"


@pytest.fixture
def injected(kube: Kube, control_plane: LocalCluster, light_namespace: str) -> Iterator[str]:
    """A namespace in which labelled pods are injected."""
    with injecting(control_plane, light_namespace):
        labelled = json.dumps({"apiVersion": "v1", "kind": "Pod", **plain(light_namespace, "trial", 0)})
        words = ("create", "--dry-run=server", "-o", "json", "-f", "-")
        eventually(lambda: "rdzv-mnist" in control_plane.kubectl(*words, input=labelled))
        yield light_namespace


def check(api: LocalCluster, namespace: str, *words: str) -> subprocess.CompletedProcess[str]:
    return rdzv(api.kubeconfig, "check", "-n", namespace, *words)


def explain(api: LocalCluster, namespace: str, *words: str) -> subprocess.CompletedProcess[str]:
    return rdzv(api.kubeconfig, "explain", "-n", namespace, *words)


def plain(namespace: str, name: str, index: int, **meta: Any) -> Object:
    """A pod as a controller makes it: nothing is injected yet."""
    obj = pod(namespace, name, index, **meta)
    del obj["spec"]["containers"][0]["envFrom"], obj["status"]
    obj["spec"]["containers"][0]["command"] = ["torchrun", "train.py"]
    return obj


@pytest.mark.timeout(300)
def test_an_installation_that_serves_and_one_that_does_not(
    control_plane: LocalCluster, injected: str, kube: Kube, tmp_path: Path
) -> None:
    done = check(control_plane, injected)
    assert done.returncode == 1, done.stdout
    assert f"a Rendezvous in namespace {injected} is not served" in done.stdout
    assert "no operator has looked at it" in done.stdout
    with running_operator(control_plane.kubeconfig, tmp_path / "log", injected):
        done = check(control_plane, injected, "--wait", "--timeout", "90")
        assert done.returncode == 0, done.stdout + done.stderr
    assert "was served in" in done.stdout
    assert kube.list("Rendezvous", injected) == [], "what was made for trial is gone"


def test_a_namespace_without_injection(control_plane: LocalCluster, light_namespace: str, kube: Kube) -> None:
    done = check(control_plane, light_namespace)
    assert f"a labelled pod in namespace {light_namespace} gets nothing (dry run)" in done.stdout
    kube.create(rendezvous(light_namespace))
    kube.create(plain(light_namespace, "a", 0))
    done = explain(control_plane, light_namespace, "a")
    assert done.returncode == 1
    assert f"no labelled pod is injected in namespace {light_namespace}" in done.stdout


def test_why_a_pod_was_not_injected(control_plane: LocalCluster, injected: str, kube: Kube) -> None:
    kube.create(rendezvous(injected))
    typo = plain(injected, "typo", 0, labels={"rdzv.dev/rendevous": "mnist"})
    later = plain(injected, "later", 1)
    for obj in (typo, later):
        del obj["metadata"]["labels"][LABEL]
        kube.create(obj)
    control_plane.kubectl("-n", injected, "label", "pod", "later", f"{LABEL}=mnist", "--field-manager=somebody")
    done = explain(control_plane, injected, "typo")
    assert "the label's key is written rdzv.dev/rendevous" in done.stdout, done.stdout
    done = explain(control_plane, injected, "pod/later")
    assert done.returncode == 1
    # When it was labelled within the second of its creation only the dry run tells.
    assert "somebody added the label" in done.stdout or "was labelled later" in done.stdout, done.stdout
    assert "delete this pod" in done.stdout


def test_a_pod_that_is_injected_and_what_it_overrides(control_plane: LocalCluster, injected: str, kube: Kube) -> None:
    kube.create(rendezvous(injected))
    obj = plain(injected, "a", 0, annotations={"rdzv.dev/library": "nope"})
    container = obj["spec"]["containers"][0]
    container["command"] = ["torchrun", "--rdzv-backend=static", "train.py"]
    container["env"] = [{"name": "PET_RDZV_ID", "value": "mine"}]
    container["envFrom"] = [{"configMapRef": {"name": "mine"}}]
    metadata = {"name": "mine", "namespace": injected}
    kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"PET_RDZV_ENDPOINT": "h:1"}})
    ours = {"name": "rdzv-mnist", "namespace": injected}
    kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": ours, "data": {"PET_RDZV_ENDPOINT": "x:1"}})
    kube.create(obj)
    done = explain(control_plane, injected, "a")
    assert done.returncode == 1, done.stdout + done.stderr
    for said in (
        "injected, as its label asks for it: container train",
        "index 0 by label batch.kubernetes.io/job-completion-index",
        "'nope' is not a way to deliver the library",
        "PET_RDZV_ID=mine in container train wins",
        "--rdzv-backend in container train wins",
        "PET_RDZV_ENDPOINT=h:1 of ConfigMap mine wins in container train",
    ):
        assert said in done.stdout, done.stdout


def container(**changes: Any) -> Callable[[Object], None]:
    return lambda pod: pod["spec"]["containers"][0].update(changes)


def variable(name: str, value: str) -> Callable[[Object], None]:
    return container(env=[{"name": name, "value": value}])


def spec(**changes: Any) -> Callable[[Object], None]:
    return lambda pod: pod["spec"].update(changes)


def annotation(name: str, value: str) -> Callable[[Object], None]:
    return lambda pod: pod["metadata"].update(annotations={f"rdzv.dev/{name}": value})


WAITS = {"name": "wait", "image": "registry.invalid/wait", "command": ["sh", "-c", "echo $PET_RDZV_ENDPOINT"]}

#: Mistakes that only a pod shows, by name: the backend, what is done to the pod, and what is said, cause and fix.
OF_A_POD: dict[str, tuple[str, Callable[[Object], None], list[str]]] = {
    "plain python": (
        "c10d",
        container(command=["python", "train.py"]),
        ["the command line is not torchrun", "The variables PET_… are torchrun's", "run: torchrun train.py"],
    ),
    "sleep": (
        "c10d",
        container(command=["sleep", "infinity"]),
        ["nothing is run that could join", "container train runs: sleep infinity", "run: torchrun train.py"],
    ),
    "standalone": (
        "c10d",
        container(command=["torchrun", "--standalone", "train.py"]),
        ["--standalone wins: torchrun trains alone here", "remove --standalone from the command line"],
    ),
    "nnodes": (
        "c10d",
        container(command=["torchrun", "--nnodes=4", "train.py"]),
        ["--nnodes in container train wins", "remove --nnodes from the command line"],
    ),
    "backend": (
        "c10d",
        container(command=["torchrun", "--rdzv-backend=static", "train.py"]),
        ["--rdzv-backend in container train wins", "meets elsewhere than the others"],
    ),
    "endpoint": (
        "c10d",
        variable("PET_RDZV_ENDPOINT", "elsewhere:1"),
        ["PET_RDZV_ENDPOINT=elsewhere:1 in container train wins", "remove PET_RDZV_ENDPOINT from env"],
    ),
    "path": (
        "kubernetes",
        variable("PYTHONPATH", "/app"),
        [
            "Python does not look in /opt/rdzv, so torch lacks the backend",
            "write PYTHONPATH=/opt/rdzv:… in the template",
        ],
    ),
    "library none": (
        "kubernetes",
        annotation("library", "none"),
        ["container train gets no library", "put rendezvous-operator into the image"],
    ),
    "library nope": (
        "kubernetes",
        annotation("library", "nope"),
        ["'nope' is not a way to deliver the library", "write one of image-volume, init, none (did you mean none?)"],
    ),
    "no such container": (
        "c10d",
        annotation("containers", "trian"),
        ["names trian, which the pod does not have", "its containers are train", "names none of its containers"],
    ),
    "no token": (
        "kubernetes",
        spec(automountServiceAccountToken=False),
        ["container train can't ask the API server", "set automountServiceAccountToken: true"],
    ),
    "init container": (
        "c10d",
        spec(initContainers=[WAITS]),
        [
            "init container wait uses a rendezvous, and was given none",
            "rdzv.dev/containers: wait,train in the template",
        ],
    ),
    "host network": (
        "c10d",
        spec(hostNetwork=True),
        ["can't look up rdzv-host-network.", "dnsPolicy: ClusterFirstWithHostNet", "keep the pods apart"],
    ),
    "DNS": (
        "c10d",
        spec(dnsPolicy="Default"),
        ["can't look up rdzv-dns.", "leave dnsPolicy out of the pod's template"],
    ),
    "no index": ("static", lambda pod: pod["metadata"]["labels"].pop(INDEX_LABEL), ["it has no index", "Indexed Job"]),
    "gpu": (
        "c10d",
        lambda pod: None,
        ["nprocPerNode is gpu, and container train asks for none", "nvidia.com/gpu: 1", "nprocPerNode: auto"],
    ),
    "no launcher": (
        "static",
        lambda pod: None,
        ["it runs torchrun, and its Rendezvous says launcher: none", "run: python train.py"],
    ),
}
SPECS: dict[str, Object] = {
    "gpu": {"nprocPerNode": "gpu"},
    "no launcher": {"launcher": "none", "nprocPerNode": 1},
}


def test_mistakes_that_only_a_pod_shows_have_cause_and_fix(
    control_plane: LocalCluster, injected: str, kube: Kube, tmp_path: Path
) -> None:
    with running_operator(control_plane.kubeconfig, tmp_path / "log", injected):
        for mistake, (backend, change, _) in OF_A_POD.items():
            name = mistake.lower().replace(" ", "-")
            world = rendezvous(injected, backend, **SPECS.get(mistake, {}))
            world["metadata"]["name"] = name
            kube.create(world)
            obj = plain(injected, name, 0, labels={LABEL: name})
            change(obj)
            kube.create(obj)
        names = [mistake.lower().replace(" ", "-") for mistake in OF_A_POD]
        eventually(lambda: all((kube.get("Rendezvous", injected, n) or {}).get("status") for n in names), timeout=60)
    client = Client(load({"KUBECONFIG": str(control_plane.kubeconfig)}))
    try:
        said = {
            mistake: [f"{f.text}; {f.cause}; {f.fix}" for f in explain_name(client, injected, "pod", name)]
            for mistake, name in zip(OF_A_POD, names, strict=True)
        }
    finally:
        client.close()
    absent = {
        mistake: [words for words in expected if not any(words in text for text in said[mistake])]
        for mistake, (_, _, expected) in OF_A_POD.items()
    }
    assert {mistake: (words, said[mistake]) for mistake, words in absent.items() if words} == {}


def test_a_rendezvous_in_another_namespace_is_found(control_plane: LocalCluster, injected: str, kube: Kube) -> None:
    name = f"far-{injected}"
    kube.create(plain(injected, "a", 0, labels={LABEL: name}))
    done = explain(control_plane, injected, "a")
    assert f"asks for Rendezvous {injected}/{name}, which does not exist" in done.stdout, done.stdout
    other = f"{injected}-other"
    control_plane.kubectl("create", "namespace", other)
    far, near = rendezvous(other), rendezvous(injected)
    far["metadata"]["name"], near["metadata"]["name"] = name, name.replace("far", "fra")
    kube.create(far)
    done = explain(control_plane, injected, "a")
    assert f"there is one in namespace {other}" in done.stdout, done.stdout
    kube.create(near)
    assert f"has one that is called fra-{injected}" in explain(control_plane, injected, "a").stdout


def test_a_rendezvous_that_nobody_uses(control_plane: LocalCluster, light_namespace: str, kube: Kube) -> None:
    kube.create(rendezvous(light_namespace))
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}
    job: Object = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train", "namespace": light_namespace, "labels": {LABEL: "mnist"}},
        "spec": {"template": template},
    }
    control_plane.kubectl("apply", "-f", "-", input=json.dumps(job))
    for words in ([], ["mnist"], ["rdzv/mnist"]):
        done = explain(control_plane, light_namespace, *words)
        assert done.returncode == 1
        assert f"Job train has the label {LABEL}: mnist on itself" in done.stdout, done.stdout


def test_what_is_not_there(control_plane: LocalCluster, light_namespace: str, kube: Kube) -> None:
    kube.create(plain(light_namespace, "mnist-0", 0))
    for words, said in (
        (["mnist-9"], "did you mean mnist-0?"),
        (["rdzv/nobody"], "does not exist"),
        ([], "has no Rendezvous"),
    ):
        done = explain(control_plane, light_namespace, *words)
        assert (done.returncode, said in done.stdout + done.stderr) == (1, True), done.stdout + done.stderr
    assert explain(control_plane, light_namespace, "job/x").returncode == 2


def test_status_for_programs(control_plane: LocalCluster, light_namespace: str, kube: Kube) -> None:
    kube.create(rendezvous(light_namespace))
    kube.create(pod(light_namespace, "a", 0))
    found: list[Any] = []
    parsers: list[tuple[str, Callable[[str], Any]]] = [("json", json.loads), ("yaml", yaml.safe_load)]
    for output, parse in parsers:
        done = rdzv(control_plane.kubeconfig, "status", "-n", light_namespace, "mnist", "-o", output)
        assert done.returncode == 0, done.stderr
        found.append(parse(done.stdout))
        listed = rdzv(control_plane.kubeconfig, "status", "-n", light_namespace, "-o", output)
        assert [item["metadata"]["name"] for item in parse(listed.stdout)] == ["mnist"]
    assert found[0] == found[1]
    assert (found[0]["backend"], found[0]["wrong"]) == ("c10d", [])
    assert [node["pod"] for node in found[0]["nodes"]] == ["a"]
    done = rdzv(control_plane.kubeconfig, "status", "-A")
    assert [light_namespace, "mnist", "c10d"] in [line.split()[:3] for line in done.stdout.splitlines()]


def test_status_is_shown_again_when_it_changes(control_plane: LocalCluster, light_namespace: str, kube: Kube) -> None:
    kube.create(rendezvous(light_namespace))
    words = command("status", "-n", light_namespace, "mnist", "--watch")
    with subprocess.Popen(
        words, env=environment(control_plane.kubeconfig), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert "backend c10d" in process.stdout.readline()
            kube.create(pod(light_namespace, "a", 0))
            lines = [process.stdout.readline() for _ in range(6)]
            assert any(line.startswith("a ") for line in lines), lines
        finally:
            process.terminate()


def test_colours_are_for_terminals_only(control_plane: LocalCluster, light_namespace: str, kube: Kube) -> None:
    kube.create(plain(light_namespace, "a", 0))
    assert "\x1b" not in explain(control_plane, light_namespace, "a").stdout
    words, env = command("explain", "-n", light_namespace, "a"), environment(control_plane.kubeconfig)

    def on_a_terminal(**more: str) -> str:
        leader, follower = pty.openpty()
        subprocess.run(words, env={**env, **more}, stdout=follower, stderr=follower, check=False, timeout=60)
        os.close(follower)
        text = os.read(leader, 65536).decode()
        os.close(leader)
        return text

    assert "\x1b[1;31mproblem\x1b[0m" in on_a_terminal(TERM="xterm")
    assert "\x1b" not in on_a_terminal(TERM="xterm", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(TERM="dumb")


def test_objects_on_the_pages_are_what_the_api_server_takes(
    control_plane: LocalCluster, light_namespace: str, kube: Kube
) -> None:
    del kube
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        if block.startswith("apiVersion:")
    ]
    assert len(blocks) >= 3
    words = ("-n", light_namespace, "apply", "--dry-run=server", "-f", "-")
    control_plane.kubectl(*words, input="---\n".join(blocks))
