"""What `helm test` runs, against a real API server: the account's rights suffice, and a missing right makes it fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cluster_fixtures import LocalCluster
from support.operator_process import ROOT, eventually

Object = dict[str, Any]

CHART = ROOT / "charts/rendezvous-operator"


def hooks(control_plane: LocalCluster, namespace: str) -> list[Object]:
    """The objects of the chart's test, for a release in this namespace."""
    command = [
        str(control_plane.dir / "bin/helm"),
        "template",
        "rendezvous-operator",
        str(CHART),
        "--namespace",
        namespace,
    ]
    rendered = subprocess.check_output([*command, "--show-only", "templates/tests/served.yaml"], text=True)
    return [item for item in yaml.safe_load_all(rendered) if item]


def run_test_pod(
    control_plane: LocalCluster, namespace: str, pod: Object, folder: Path
) -> subprocess.CompletedProcess[str]:
    """The pod's own command, with a token of the pod's account."""
    token = control_plane.kubectl("-n", namespace, "create", "token", pod["spec"]["serviceAccountName"]).strip()
    config = yaml.safe_load(control_plane.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"token": token}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    command = pod["spec"]["containers"][0]["command"]
    assert command[0] == "rdzv"
    return subprocess.run(
        [sys.executable, "-m", "rdzv", *command[1:]],
        env={**os.environ, "KUBECONFIG": str(path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def pod(control_plane: LocalCluster, light_namespace: str) -> Object:
    """The test's pod; its account and rights are in the namespace, and the CRDs are served."""
    control_plane.kubectl("apply", "--server-side", "-f", str(CHART / "files/crds"))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/rendezvous.rdzv.dev")
    objects = hooks(control_plane, light_namespace)
    (pod,) = (item for item in objects if item["kind"] == "Pod")
    control_plane.kubectl("apply", "-f", "-", input=yaml.safe_dump_all([item for item in objects if item is not pod]))
    return pod


def test_it_passes_where_the_crds_are_served(
    control_plane: LocalCluster, light_namespace: str, pod: Object, tmp_path: Path
) -> None:
    assert pod["spec"]["restartPolicy"] == "OnFailure"  # as it is tried again here

    def passes() -> bool:
        done = run_test_pod(control_plane, light_namespace, pod, tmp_path)
        return (done.returncode, done.stdout) == (0, f"no Rendezvous in namespace {light_namespace}\n")

    eventually(passes, timeout=pod["spec"]["activeDeadlineSeconds"])


def test_it_fails_when_the_objects_can_not_be_read(
    control_plane: LocalCluster, light_namespace: str, pod: Object, tmp_path: Path
) -> None:
    control_plane.kubectl("-n", light_namespace, "delete", "rolebinding", pod["metadata"]["name"])
    done = run_test_pod(control_plane, light_namespace, pod, tmp_path)
    assert done.returncode != 0
    assert "forbidden" in done.stderr.lower() or "403" in done.stderr
