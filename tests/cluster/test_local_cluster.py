"""The local cluster itself: it runs what tests rely on, comes back from every kill, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster, local

IMAGE = "localhost/debian:bookworm"


def pod(name: str, script: str, node: str = "node-1", **more: Any) -> dict[str, Any]:
    """Return a pod that runs a Python script."""
    container = {"name": "main", "image": IMAGE, "command": ["python3", "-uc", script], **more.pop("container", {})}
    spec = {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        **more,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


SERVE = "import http.server as h; h.test(HandlerClass=h.SimpleHTTPRequestHandler, port=8000)"


def get(url: str) -> str:
    """Return a Python script that prints a URL's status."""
    return f"import urllib.request as u; print(u.urlopen('{url}', timeout=5).status)"


def eventually(call: Callable[[], Any], wanted: object, timeout: float = 30) -> None:
    """Repeat a call until it returns what is wanted; fail with the last answer."""
    end = time.monotonic() + timeout
    while True:
        try:
            answer = call()
        except RuntimeError as error:
            answer = error
        if answer == wanted:
            return
        if time.monotonic() > end:
            pytest.fail(f"wanted {wanted!r}, got {answer!r}")
        time.sleep(0.2)


def state_of(directory: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((directory / "state.json").read_text())
    return state


def all_pids(state: dict[str, Any]) -> set[int]:
    """Return the pids of everything a cluster runs, containers and shims too: all is in its cgroups."""
    found: set[int] = set()
    for folder in Path("/sys/fs/cgroup").rglob(state["cgroup"]):
        for path in folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found.update(map(int, path.read_text().split()))
    return found


def kill(state: dict[str, Any], name: str) -> None:
    """Kill a component, and return when it has ended: a large process takes a moment, and `up` finds it alive till then."""
    pid = state["processes"][name]["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(Path(f"/proc/{pid}").exists, False)


def traces(directory: Path, state: dict[str, Any], pids: set[int]) -> list[str]:
    """Return what is left on the machine of a cluster; mounts as seen from every namespace.

    For a moment an ended process is there until process 1 has taken note of it: so ask again.
    """
    left = [f"process {pid}" for pid in pids if Path(f"/proc/{pid}").exists()]
    left += [str(path) for path in Path("/sys/fs/cgroup").rglob(state["cgroup"])]
    left += [str(path) for path in Path("/sys/class/net").glob(state.get("link", "none"))]
    left += [str(directory)] if directory.exists() else []
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            left += [f"{mounts}: {line}" for line in mounts.read_text().splitlines() if str(directory) in line]
    return left


@pytest.fixture
def two_nodes(cluster: LocalCluster) -> LocalCluster:
    """Return the session's cluster, if it is ours: these tests are about how deploy/local sets one up."""
    if not (cluster.dir / "state.json").exists():
        pytest.skip("this cluster was not made by deploy/local")
    return cluster


def run_on_both(directory: Path) -> LocalCluster:
    """Run a pod on each node."""
    found = LocalCluster.at(directory)
    for number in (1, 2):
        found.kubectl("apply", "-f", "-", input=json.dumps(pod(f"p{number}", SERVE, f"node-{number}")))
    found.kubectl("wait", "--for=condition=Ready", "pod/p1", "pod/p2", "--timeout=60s")
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the directory of a full cluster that tests may break: it runs beside the session's, with the same addresses."""
    directory = tmp_path_factory.mktemp("own") / "c"
    try:
        local("up", "--dir", directory)
        yield directory
    finally:
        local("down", "--dir", directory)


@pytest.mark.cluster
def test_a_lost_node_falls_silent_and_comes_back(own: Path) -> None:
    found, pids = run_on_both(own), all_pids(state_of(own))
    address = found.kubectl("get", "pod", "p2", "-o", "jsonpath={.status.podIP}")
    ask = ("exec", "p1", "--", "python3", "-c", get(f"http://{address}:8000/"))
    eventually(partial(found.kubectl, *ask), "200\n")
    local("stop-node", "node-2", "--dir", own)
    assert len(pids - all_pids(state_of(own))) >= 5, "kubelet, containerd, shim, pause and the pod's own process"
    with pytest.raises(RuntimeError, match="timed out"):
        found.kubectl(*ask)
    local("start-node", "node-2", "--dir", own)
    restarts = "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}"
    eventually(lambda: found.kubectl("get", "pod", "p2", "-o", restarts), "1 true", timeout=60)


@pytest.mark.cluster
def test_cluster_survives_kills_and_leaves_nothing(own: Path) -> None:
    rules = subprocess.check_output(["nft", "list", "ruleset"])
    first, pids = state_of(own), all_pids(state_of(own))
    assert len(pids) > len(first["processes"])
    assert "runs already" in local("up", "--dir", own)
    assert set(first["processes"]) == set(state_of(own)["processes"])

    # One component: `up` starts it again, and what it knew is still there.
    run_on_both(own)
    kill(first, "kube-apiserver")
    assert "starting again: kube-apiserver" in local("up", "--dir", own)
    assert "p1" in LocalCluster.at(own).kubectl("get", "pods", "-o", "name")

    # Everything, the supervisor first: what is left is no obstacle.
    pids = all_pids(state_of(own))
    for pid in (first["supervisor"]["pid"], *pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    local("up", "--dir", own)
    run_on_both(own)
    second = state_of(own)
    pids |= all_pids(second)
    local("down", "--dir", own)
    eventually(partial(traces, own, second, pids), [], timeout=5)
    assert subprocess.check_output(["nft", "list", "ruleset"]) == rules


def test_two_light_clusters_run_side_by_side(tmp_path: Path) -> None:
    directories = [tmp_path / "a", tmp_path / "b"]
    try:
        for directory in directories:
            local("up", "--light", "--dir", directory)
        clusters, states = [LocalCluster.at(each) for each in directories], [state_of(each) for each in directories]
        clusters[0].kubectl("create", "namespace", "only-here")
        assert "only-here" in clusters[0].kubectl("get", "namespaces")
        assert "only-here" not in clusters[1].kubectl("get", "namespaces")
        pids = [all_pids(state) for state in states]
        local("down", "--dir", directories[0])
        eventually(partial(traces, directories[0], states[0], pids[0]), [], timeout=5)
        assert "default" in clusters[1].kubectl("get", "namespaces")
        os.kill(states[1]["supervisor"]["pid"], signal.SIGKILL)
        local("down", "--dir", directories[1])
        eventually(partial(traces, directories[1], states[1], pids[1]), [], timeout=5)
    finally:
        for directory in directories:
            local("down", "--dir", directory)


def test_component_that_does_not_start_is_named_with_its_log(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    try:
        local("up", "--light", "--dir", directory)
        (directory / "data/authentication.json").write_text("{}")
        kill(state_of(directory), "kube-apiserver")
        with pytest.raises(RuntimeError) as caught:
            local("up", "--light", "--dir", directory)
        assert "kube-apiserver ended with status" in str(caught.value)
        assert str(directory / "logs/kube-apiserver.log") in str(caught.value)
        assert "authentication" in str(caught.value)
    finally:
        local("down", "--dir", directory)


def test_light_form_keeps_an_audit_log_and_lets_nobody_in_without_a_name(
    control_plane: LocalCluster, light_namespace: str
) -> None:
    control_plane.kubectl("create", "configmap", "seen", "-n", light_namespace)
    events = [json.loads(line) for line in control_plane.audit_log.read_text().splitlines()]
    (event,) = [
        e for e in events if e["verb"] == "create" and e.get("objectRef", {}).get("namespace") == light_namespace
    ]
    assert (event["level"], event["user"]["username"], event["objectRef"]["resource"]) == (
        "Metadata",
        "admin",
        "configmaps",
    )

    server = json.loads(control_plane.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    ask = ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}"]
    assert subprocess.check_output([*ask, f"{server}/readyz"], text=True) == "200"
    assert subprocess.check_output([*ask, f"{server}/api"], text=True) == "401"


@pytest.mark.cluster
def test_services_names_logs_and_exec(two_nodes: LocalCluster, namespace: str) -> None:
    """By address and name: from the other node, from the same node, and from the very pod (hairpin)."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "site"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    sleep = "import time; time.sleep(1000)"
    for each in (service, pod("web", SERVE, "node-2"), pod("near", sleep, "node-2"), pod("far", sleep)):
        two_nodes.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(each))
    names = ("pod/web", "pod/near", "pod/far")
    two_nodes.kubectl("wait", "-n", namespace, "--for=condition=Ready", *names, "--timeout=60s")
    address = two_nodes.kubectl("get", "-n", namespace, "service", "site", "-o", "jsonpath={.spec.clusterIP}")
    for client in ("far", "near", "web"):
        for host in (address, f"site.{namespace}.svc", "site"):
            command = ("exec", "-n", namespace, client, "--", "python3", "-c", get(f"http://{host}/"))
            eventually(partial(two_nodes.kubectl, *command), "200\n")
    assert two_nodes.kubectl("logs", "-n", namespace, "web").count('"GET / HTTP/1.1" 200') >= 9


@pytest.mark.cluster
def test_volumes_and_a_config_map_that_comes_later(two_nodes: LocalCluster, namespace: str, tmp_path: Path) -> None:
    """What injection relies on: image volumes, and kubelet holding a container until its ConfigMap is there."""
    two_nodes.needs_image_volumes()
    (tmp_path / "hello.py").write_text("WORD = 'from the image'\n")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY hello.py /\n")
    tag, archive = f"localhost/test-volume:{namespace}", tmp_path / "volume.tar"
    build = ("build-image", "--tag", tag, "--file", tmp_path / "Dockerfile", "--context", tmp_path, "-o", archive)
    local(*build)
    assert "nothing has changed" in local(*build)
    local("load-image", "--dir", two_nodes.dir, archive)
    assert "have it already" in local("load-image", "--dir", two_nodes.dir, archive)

    shared = Path("/var/tmp") / namespace
    shared.mkdir()
    try:
        (shared / "word").write_text("from the machine")
        script = "import hello, os; print(hello.WORD, open('/host/word').read(), os.environ['WORD'], sep=', ')"
        container = {
            "env": [{"name": "PYTHONPATH", "value": "/opt/rdzv"}],
            "envFrom": [{"configMapRef": {"name": "later"}}],
            "volumeMounts": [{"name": "library", "mountPath": "/opt/rdzv"}, {"name": "host", "mountPath": "/host"}],
        }
        volumes = [
            {"name": "library", "image": {"reference": tag, "pullPolicy": "IfNotPresent"}},
            {"name": "host", "hostPath": {"path": str(shared)}},
        ]
        wanted = pod("user", script, "node-2", container=container, volumes=volumes, restartPolicy="Never")
        two_nodes.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(wanted))
        reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}"
        eventually(
            lambda: two_nodes.kubectl("get", "-n", namespace, "pod", "user", "-o", reason), "CreateContainerConfigError"
        )
        two_nodes.kubectl("create", "-n", namespace, "configmap", "later", "--from-literal=WORD=from the map")
        phase = "jsonpath={.status.phase}"
        eventually(lambda: two_nodes.kubectl("get", "-n", namespace, "pod", "user", "-o", phase), "Succeeded")
        assert two_nodes.kubectl("logs", "-n", namespace, "user") == "from the image, from the machine, from the map\n"
    finally:
        (shared / "word").unlink()
        shared.rmdir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("load-image", "missing.tar"), "no cluster runs in"),
        (("stop-node", "node-1"), "no cluster runs in"),
        (("build-image", "--tag", "t", "--file", "none", "--context", ".", "-o", "x"), "there is no Dockerfile none"),
    ],
)
def test_errors_say_what_to_do(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    extra = () if words[0] == "build-image" else ("--dir", tmp_path / "c")
    with pytest.raises(RuntimeError, match=message):
        local(*words, *extra)
    assert "there is no cluster" in local("down", "--dir", tmp_path / "c")
