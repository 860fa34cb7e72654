"""The command `rdzv` against a real API server and the real torch: what is broken is named, with its cause and what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.cluster_fixtures import LocalCluster, _shared
from support.command import rdzv

from rdzv.protocol.encoding import (
    salted_fingerprints,
)
from rdzv.protocol.records import (
    Coordinator,
    Leader,
    Member,
    Round,
)

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "charts/rendezvous-operator/files/crds"
KINDS = ("rendezvous", "rendezvousround", "rendezvousmember", "rendezvousstore")

Object = dict[str, Any]


def install(cluster: LocalCluster, *kinds: str) -> None:
    for kind in kinds:
        cluster.kubectl("apply", "--server-side", "-f", str(CRDS / f"{kind}.yaml"))
        plural = yaml.safe_load((CRDS / f"{kind}.yaml").read_text())["metadata"]["name"]
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{plural}", "--timeout=30s")


@pytest.fixture(scope="module")
def api(control_plane: LocalCluster) -> LocalCluster:
    install(control_plane, *KINDS)
    return control_plane


@pytest.fixture(scope="module")
def bare() -> Iterator[LocalCluster]:
    """An API server on which nobody has installed anything."""
    with _shared("bare", "--light") as found:
        yield found


def agent(api: LocalCluster, namespace: str, folder: Path) -> Path:
    """A kubeconfig for service account `trainer`, which no role is bound to yet."""
    api.kubectl("-n", namespace, "create", "serviceaccount", "trainer")
    kubeconfig = json.loads(api.kubeconfig.read_text())
    token = api.kubectl("-n", namespace, "create", "token", "trainer").strip()
    kubeconfig["users"][0]["user"] = {"token": token}
    kubeconfig["contexts"][0]["context"]["namespace"] = namespace
    path = folder / "kubeconfig"
    path.write_text(json.dumps(kubeconfig))
    return path


def rendezvous(namespace: str, **spec: Any) -> Object:
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "Rendezvous",
        "metadata": {"name": "mnist", "namespace": namespace},
        "spec": {"backend": "kubernetes", "nodes": {"min": 2, "max": 4}, **spec},
    }


def apply(api: LocalCluster, *objects: Object) -> None:
    for obj in objects:
        api.kubectl("apply", "-f", "-", input=json.dumps(obj))


def test_crds_that_are_missing_are_named(bare: LocalCluster) -> None:
    done = rdzv(bare.kubeconfig, "doctor", "mnist")
    assert done.returncode == 1, done.stderr
    assert "does not serve rendezvous.rdzv.dev, rendezvousrounds.rdzv.dev, rendezvousmembers.rdzv.dev" in done.stdout
    assert "kubectl apply --server-side -f charts/rendezvous-operator/files/crds/" in done.stdout
    assert done.stdout.endswith("1 problem found.\n"), done.stdout
    status = rdzv(bare.kubeconfig, "status", "mnist")
    assert (status.returncode, status.stdout) == (1, "")
    assert "is its CRD installed?" in status.stderr
    assert len(status.stderr.splitlines()) == 1


def test_a_permission_that_is_missing_is_named_with_the_rule_to_add(
    api: LocalCluster, light_namespace: str, tmp_path: Path
) -> None:
    apply(api, rendezvous(light_namespace))
    trainer = agent(api, light_namespace, tmp_path)
    done = rdzv(trainer, "doctor", "mnist")
    assert done.returncode == 1, done.stderr
    assert f"service account {light_namespace}/trainer may not get/watch/list rendezvous, " in done.stdout
    rules = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("- {")]

    # What it printed is what helps: bound as printed, nothing is missing any more.
    metadata = {"name": "rdzv-mnist", "namespace": light_namespace}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata}
    apply(api, {**role, "rules": [yaml.safe_load(rule)[0] for rule in rules]})
    api.kubectl(
        *("-n", light_namespace, "create", "rolebinding", "rdzv-mnist", "--role=rdzv-mnist"),
        f"--serviceaccount={light_namespace}:trainer",
    )
    done = rdzv(trainer, "doctor", "mnist")
    assert "has all that an agent needs" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no operator has looked at it" in done.stdout

    written = yaml.safe_load((ROOT / "deploy/standalone/role.yaml").read_text().partition("\n---\n")[0])
    fewer = [rule for rule in written["rules"] if rule["resources"] != ["rendezvousmembers"]]
    apply(api, {**role, "rules": fewer})
    done = rdzv(trainer, "doctor", "mnist")
    only = "may not create/get/list/update/watch rendezvousmembers in namespace"
    assert only in done.stdout
    assert (
        "- {apiGroups: [rdzv.dev], resources: [rendezvousmembers], verbs: [create, get, list, update, watch]}"
        in done.stdout
    )


def test_a_pod_of_another_backend_needs_no_permission(api: LocalCluster, light_namespace: str, tmp_path: Path) -> None:
    apply(api, rendezvous(light_namespace, backend="c10d"))
    given = {
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": "127.0.0.1:9",
        "PET_RDZV_ID": "uid",
        "PET_NNODES": "2",
        "RDZV_NAME": "mnist",
        "RDZV_NAMESPACE": light_namespace,
    }
    done = rdzv(agent(api, light_namespace, tmp_path), "doctor", **given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pods of this backend need no access" in done.stdout
    assert "127.0.0.1:9 refuses connections" in done.stdout


def test_a_rendezvous_that_is_missing_is_said(api: LocalCluster, light_namespace: str) -> None:
    done = rdzv(api.kubeconfig, "doctor", "-n", light_namespace, "nobody")
    assert done.returncode == 1, done.stderr
    assert f"Rendezvous   {light_namespace}/nobody does not exist" in done.stdout
    for command in ("status", "env"):
        done = rdzv(api.kubeconfig, command, "-n", light_namespace, "nobody")
        assert done.returncode == 1
        assert done.stderr.startswith("rdzv: "), done.stderr
        assert "does not exist" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_an_api_server_that_is_away_is_said(control_plane: LocalCluster, tmp_path: Path) -> None:
    kubeconfig = json.loads(control_plane.kubeconfig.read_text())
    kubeconfig["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    done = rdzv(tmp_path / "kubeconfig", "doctor", "mnist")
    assert done.returncode == 1
    assert "cannot connect to 127.0.0.1:9" in done.stdout
    done = rdzv(tmp_path / "kubeconfig", "status", "mnist")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "cannot connect" in done.stderr


def test_the_world_is_shown(api: LocalCluster, light_namespace: str) -> None:
    apply(api, rendezvous(light_namespace))
    found = json.loads(api.kubectl("-n", light_namespace, "get", "rendezvous", "mnist", "-o", "json"))
    uid = found["metadata"]["uid"]
    members = [
        Member(f"mnist-{slot}", "mnist", uid, f"pod-{slot}/1", f"10.0.0.{slot}", 30000, 1, slot=slot, node="node-1")
        for slot in (0, 2, 3)
    ]
    salt, fingerprints = salted_fingerprints([member.incarnation for member in members[:2]])
    record = Round(
        *("mnist", uid, 1, "Running", (0, 2), fingerprints, salt, Leader(0, "10.0.0.0", 30000)),
        coordinator=Coordinator(0, "pod-0/1", "10.0.0.0", 30001, 1),
    )
    apply(api, record.to_object(light_namespace), *(member.to_object(light_namespace) for member in members))
    missing = [{"pod": "mnist-1", "reason": "Unschedulable: 0/2 nodes are available"}]
    now = "2026-01-01T00:00:00Z"
    degraded = {"type": "Degraded", "status": "True", "reason": "PodsStuck", "message": "mnist-1: Unschedulable"}
    status = {
        "runID": uid,
        "endpoint": f"{light_namespace}/mnist",
        "nodes": {"expected": 4, "joined": 3, "summary": "3/4", "missing": missing},
        "conditions": [{**degraded, "lastTransitionTime": now}],
    }
    patch = json.dumps({"status": status})
    api.kubectl(
        "-n", light_namespace, "patch", "rendezvous", "mnist", "--subresource=status", "--type=merge", "-p", patch
    )

    done = rdzv(api.kubeconfig, "status", "-n", light_namespace, "mnist")
    assert (done.returncode, done.stderr) == (1, ""), "something is wrong: scripts are told"
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["mnist-0", "0", "0", "joined", "node-1"] in lines
    assert ["mnist-2", "2", "1", "joined", "node-1"] in lines
    assert ["mnist-3", "3", "-", "waiting", "node-1"] in lines
    assert ["mnist-1", "-", "-", "missing", "-", "Unschedulable:", "0/2", "nodes", "are", "available"] in lines
    assert "round 1, Running, 2 nodes, led by slot 0 at 10.0.0.0:30000" in done.stdout
    assert "Degraded is True: PodsStuck: mnist-1: Unschedulable" in done.stdout

    done = rdzv(api.kubeconfig, "doctor", "-n", light_namespace, "mnist")
    assert done.returncode == 1
    assert "Degraded is True: PodsStuck" in done.stdout
    assert "mnist-1 missing (Unschedulable: 0/2 nodes are available)" in done.stdout


def test_env_is_what_a_shell_takes_as_pods_do(api: LocalCluster, light_namespace: str) -> None:
    data = {"PET_RDZV_BACKEND": "kubernetes", "PET_RDZV_CONF": "a=1,b=it's $HOME"}
    metadata = {"name": "rdzv-mnist", "namespace": light_namespace}
    apply(api, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    done = rdzv(api.kubeconfig, "env", "-n", light_namespace, "mnist")
    assert done.returncode == 0, done.stderr
    shell = subprocess.run(
        ["sh", "-c", f"{done.stdout}\nenv"], env={"HOME": "/"}, capture_output=True, text=True, check=True
    )
    assert all(f"{name}={value}" in shell.stdout.splitlines() for name, value in data.items())


@pytest.mark.parametrize("kind", ["whole", "no dist-info", "broken", "isolated"])
def test_why_torch_has_not_registered_the_plug_in(kind: str, tmp_path: Path) -> None:
    """As torchrun would find it: a Python without the library but for what is on PYTHONPATH."""
    library, path = tmp_path / "library", tmp_path / "bin"
    shutil.copytree(ROOT / "src/rdzv", library / "rdzv")
    if kind != "no dist-info":
        info = library / "rendezvous_operator-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rendezvous-operator\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[torchrun.handlers]\nkubernetes = rdzv.plugin:kubernetes\n")
    if kind == "broken":
        (library / "rdzv/plugin.py").write_text("raise OSError('disk on fire')\n")
    path.mkdir()
    python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    (path / "torchrun").write_text(f"#!{python}{' -E' if kind == 'isolated' else ''}\n")
    (path / "torchrun").chmod(0o755)
    sites = f"{library}:{Path(torch.__file__).parents[1]}"
    done = rdzv(tmp_path / "none", "doctor", PATH=f"{path}:{os.environ['PATH']}", PYTHONPATH=f"{sites}:{ROOT / 'src'}")
    expected = {
        "whole": "backend kubernetes is registered with torch",
        "no dist-info": "the dist-info of rendezvous-operator is not on the path, though rdzv is",
        "broken": "OSError: disk on fire",
        "isolated": "it runs with -I or -E, so PYTHONPATH=",
    }
    assert expected[kind] in done.stdout, done.stdout + done.stderr
    if kind in ("no dist-info", "broken"):
        assert "problem  plug-in" in done.stdout
