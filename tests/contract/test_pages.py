"""Commands on the pages for kubectl and helm, each run as it stands on a real API server; names stand for those of a job `mnist`.

What needs a node, or a cluster that is not made yet, is run elsewhere: `ELSEWHERE` says by which test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import _shared
from support.command import environment
from support.operated import pod
from support.operator_process import ROOT, Kube, OperatorProcess, eventually
from support.page_commands import commands
from support.samples import CONTROLLERS
from support.workload_controllers import apply_definitions

Object = dict[str, Any]

PAGES = [
    ROOT / "README.md",
    ROOT / "charts/rendezvous-operator/README.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "ARCHITECTURE.md"),
    *sorted((ROOT / "docs/backends").glob("*.md")),
    *sorted((ROOT / "docs/operations").glob("*.md")),
]
NAMES = {
    "NAME": "mnist",
    "POD": "mnist-1",
    "NAMESPACE": "team",
    "KIND": "job",
    "NEW": "rdzv-ml",
    "REGISTRY": "registry.example",
}
#: Names of commands, not commands.
PARTS = {
    *(f"kubectl {verb}" for verb in ("apply", "describe", "logs", "delete pod", "port-forward", "rdzv")),
    *("helm install", "helm upgrade", "helm rollback", "helm rollback --force-conflicts", "helm --wait"),
}
#: By how they begin, and the test that runs them.
ELSEWHERE = {
    **dict.fromkeys(
        ("helm test", "kubectl exec mnist-1", "kubectl logs", "kubectl rdzv check", "kubectl wait"),
        "cluster/test_pages.py::test_commands_that_need_nodes",
    ),
    "kubectl exec -n rdzv-system": "cluster/test_plugin.py",
}
#: By how they begin, the commands that are run before and after all others. Helm and `kubectl apply` do not share what they install.
FIRST = ("helm install", "kubectl apply -k", "helm upgrade")
LAST = ("helm uninstall", "kubectl get crd", "kubectl delete crd", "kubectl apply --server-side", "kubectl apply")
USE = len(FIRST)
SYSTEM, RELEASE = "rdzv-system", "rendezvous-operator"


def order(command: str) -> int:
    """When a command is run; `USE`: while the operator serves."""
    places = [*FIRST, "", *LAST]
    return next((place for place, beginning in enumerate(places) if beginning and command.startswith(beginning)), USE)


ALL = commands(PAGES, {"kubectl", "helm"}, NAMES)
COMMANDS = sorted((found for found in ALL if "…" not in found and found not in {*PARTS, "kubectl", "helm"}), key=order)
HERE = [command for command in COMMANDS if not command.startswith(tuple(ELSEWHERE))]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a reader's shell: an API server, the tools, and the kinds of others. It is in namespace `team`."""
    with _shared("pages", "--light") as api:
        apply_definitions(api, *CONTROLLERS)
        kubeconfig = json.loads(api.kubeconfig.read_text())
        kubeconfig["contexts"][0]["context"]["namespace"] = "team"
        path = tmp_path_factory.mktemp("shell") / "kubeconfig"
        path.write_text(json.dumps(kubeconfig))
        for name in ("team", "rdzv-ml"):
            api.kubectl("create", "namespace", name)
        for plural, kind in (("servicemonitors", "ServiceMonitor"), ("prometheusrules", "PrometheusRule")):
            api.kubectl("apply", "-f", "-", input=json.dumps(definition("monitoring.coreos.com", plural, kind)))
        folders = (str(Path(sys.executable).parent), str(api.dir / "bin"), os.environ["PATH"])
        yield environment(path, PATH=":".join(folders))


def definition(group: str, plural: str, kind: str) -> Object:
    """Of a kind of somebody else's, as far as Helm looks at it."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    spec = {
        "group": group,
        "names": {"plural": plural, "kind": kind},
        "scope": "Namespaced",
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
    }
    meta = {"name": f"{plural}.{group}"}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": meta, "spec": spec}


def run(command: str, shell: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """To its end; one that watches for some seconds."""
    seconds = "5" if watches(command) else "240"
    words = ["timeout", seconds, "bash", "-o", "pipefail", "-c", command]
    return subprocess.run(words, cwd=ROOT, env=shell, capture_output=True, text=True, check=False)


def watches(command: str) -> bool:
    return bool({"-w", "--watch"} & set(command.split()))


@pytest.fixture(scope="module")
def done(
    shell: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, subprocess.CompletedProcess[str]]:
    """All of them, one after the other, as some rely on others: `deploy/samples` makes the Rendezvous `mnist`."""
    outcomes = {command: run(command, shell) for command in HERE if order(command) < USE}
    kubeconfig = Path(shell["KUBECONFIG"])
    kube = Kube(kubeconfig)
    kube.create(pod("team", "mnist-1", 1))
    operator = OperatorProcess(
        kubeconfig, tmp_path_factory.mktemp("operator") / "log", None, env={"RDZV_LEASE": f"{SYSTEM}/{RELEASE}"}
    )
    operator.start()
    try:
        eventually(lambda: kube.get("Lease", SYSTEM, RELEASE), timeout=60)
        outcomes |= {command: run(command, shell) for command in HERE if order(command) == USE}
    finally:
        operator.kill()
    return outcomes | {command: run(command, shell) for command in HERE if order(command) > USE}


@pytest.mark.parametrize("command", HERE, ids=lambda command: command[:70])
@pytest.mark.timeout(900)
def test_a_command_on_a_page_works_as_it_stands(
    done: dict[str, subprocess.CompletedProcess[str]], command: str
) -> None:
    found = done[command]
    # `rdzv` says by 1 that something is wrong with what it looks at, here that there are no agents.
    expected = {124} if watches(command) else {0, 1} if command.startswith("kubectl rdzv") else {0}
    assert found.returncode in expected, f"{command}\n{found.stdout}\n{found.stderr}"
    assert "Traceback" not in found.stderr


def test_commands_that_are_run_elsewhere_are_there_and_their_tests_too() -> None:
    for beginning, test in ELSEWHERE.items():
        assert any(command.startswith(beginning) for command in COMMANDS), beginning
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / "tests" / file).read_text()
