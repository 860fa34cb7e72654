"""The chart's injection on a control plane of the tests, narrowed to a namespace of the test."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from rdzv.control.inject import InjectionSettings
from support.cluster_fixtures import LocalCluster
from support.operator_process import ROOT

Object = dict[str, Any]

CHART = ROOT / "charts" / "rendezvous-operator"
SETTINGS = InjectionSettings(
    delivery="init",
    library_image="registry.example/library:7",
    library_pull_policy="Always",
    init_image="registry.example/operator@sha256:" + "a" * 64,
    init_pull_policy="Never",
)
VALUES = {
    "library": {
        "delivery": SETTINGS.delivery,
        "image": {"repository": "registry.example/library", "tag": "7", "pullPolicy": SETTINGS.library_pull_policy},
    },
    "image": {
        "repository": "registry.example/operator",
        "tag": "sha256:" + "a" * 64,
        "pullPolicy": SETTINGS.init_pull_policy,
    },
}


def render(cluster: LocalCluster, mode: str, release: str, namespace: str) -> list[Object]:
    """What the chart gives for the cluster's version."""
    values = json.dumps({**VALUES, "injection": {"mode": mode}})
    command = [
        str(cluster.dir / "bin/helm"),
        "template",
        release,
        str(CHART),
        "--namespace",
        namespace,
        "--values",
        "-",
        "--kube-version",
        cluster.version,
    ]
    done = subprocess.run(command, input=values, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [obj for obj in yaml.safe_load_all(done.stdout) if obj]


def of_kind(objects: list[Object], kind: str) -> Object:
    found: Object = next(obj for obj in objects if obj["kind"] == kind)
    return found


def only_in(namespace: str) -> Object:
    """A further requirement for the chart's own namespace selector."""
    return {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [namespace]}


@contextmanager
def injecting(control_plane: LocalCluster, namespace: str) -> Iterator[None]:
    """The chart's admission policy, which injects the pods of one namespace."""
    rendered = render(control_plane, "policy", f"r{secrets.token_hex(4)}", "elsewhere")
    policy, binding = (
        of_kind(rendered, kind) for kind in ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding")
    )
    policy["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"].append(only_in(namespace))
    manifests = yaml.safe_dump_all([policy, binding])
    control_plane.kubectl("apply", "-f", "-", input=manifests)
    try:
        yield
    finally:
        control_plane.kubectl("delete", "--ignore-not-found", "-f", "-", input=manifests)
