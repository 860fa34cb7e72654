"""The chart's policies in force for namespaces of a test, and clients that act as one service account or one pod."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support.cluster_fixtures import LocalCluster
from support.operator_process import ROOT

Object = dict[str, Any]

CHART = ROOT / "charts/rendezvous-operator"
RELEASE = "rendezvous-operator"
POLICIES = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")


def rendered(cluster: LocalCluster, *arguments: str) -> list[Object]:
    """What the chart gives for the cluster's version, with these further arguments for Helm."""
    helm = str(cluster.dir / "bin/helm")
    command = [helm, "template", RELEASE, str(CHART), "--kube-version", cluster.version, *arguments]
    return [obj for obj in yaml.safe_load_all(subprocess.check_output(command, text=True)) if obj]


@contextmanager
def policies(cluster: LocalCluster, namespaces: Sequence[str], *arguments: str) -> Iterator[str]:
    """Has the chart's validating policies in force in these namespaces only: other tests share the API server.

    Returns the name that the operator's account has there.
    """
    name = f"test-{secrets.token_hex(4)}"
    objects = [
        obj for obj in rendered(cluster, f"--set=fullnameOverride={name}", *arguments) if obj["kind"] in POLICIES
    ]
    selector = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [*namespaces]}
    for obj in objects:
        if obj["kind"] == POLICIES[1]:
            obj["spec"]["matchResources"] = {"namespaceSelector": {"matchExpressions": [selector]}}
    documents = yaml.safe_dump_all(objects)
    cluster.kubectl("apply", "-f", "-", input=documents)
    try:
        yield name
    finally:
        cluster.kubectl("delete", "-f", "-", input=documents)


@contextmanager
def rights(cluster: LocalCluster, name: str, *arguments: str) -> Iterator[list[Object]]:
    """Gives the accounts of the chart what it binds them to; `name`: of the operator's account (`policies` chooses one).

    Returns the roles that are bound. What is aggregated to Kubernetes' own roles is not among them.
    """
    objects = rendered(cluster, f"--set=fullnameOverride={name}", *arguments)
    bindings = [obj for obj in objects if obj["kind"].endswith("RoleBinding")]
    bound = {(binding["roleRef"]["kind"], binding["roleRef"]["name"]) for binding in bindings}
    roles = [obj for obj in objects if (obj["kind"], obj["metadata"]["name"]) in bound]
    documents = yaml.safe_dump_all([*roles, *bindings])
    cluster.kubectl("apply", "-f", "-", input=documents)
    try:
        yield roles
    finally:
        cluster.kubectl("delete", "-f", "-", input=documents)


@contextmanager
def webhook_configuration(
    cluster: LocalCluster, name: str, asks_in: str, *arguments: str, port: int = 443
) -> Iterator[Object]:
    """The chart's webhook, asked about pods of namespace `asks_in` only: other tests share the API server. It is called `name`."""
    objects = rendered(cluster, f"--set=fullnameOverride={name}", *arguments)
    (found,) = [obj for obj in objects if obj["kind"] == "MutatingWebhookConfiguration"]
    (webhook,) = found["webhooks"]
    webhook["clientConfig"]["service"]["port"] = port
    only = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [asks_in]}
    webhook["namespaceSelector"]["matchExpressions"].append(only)
    cluster.kubectl("create", "-f", "-", input=json.dumps(found))
    try:
        yield found
    finally:
        cluster.kubectl("delete", found["kind"].lower(), name)


@dataclass(frozen=True)
class Account:
    """Acts with one token. `pod_uid` is of the pod that the token is bound to, "" for none."""

    cluster: LocalCluster
    namespace: str
    pod_uid: str = ""

    def does(self, *words: str, obj: Object | None = None, namespace: str | None = None) -> str:
        """What the API server said against it; empty: nothing."""
        given = ("-f", "-") if obj is not None else ()
        try:
            self.cluster.kubectl(
                "-n", namespace or self.namespace, *words, *given, input=json.dumps(obj) if obj is not None else None
            )
        except RuntimeError as error:
            return str(error)
        return ""


def account(cluster: LocalCluster, directory: Path, namespace: str, name: str, *, pod: str = "") -> Account:
    """Acts as service account `name`, which is made if need be, from a pod of this name, which is made, or from none."""
    if name not in cluster.kubectl("-n", namespace, "get", "serviceaccounts", "-o", "name"):
        cluster.kubectl("-n", namespace, "create", "serviceaccount", name)
    uid, bound = "", list[str]()
    if pod:
        spec = {"serviceAccountName": name, "containers": [{"name": "c", "image": "registry.invalid/x"}]}
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": spec}
        uid = cluster.kubectl(
            "-n", namespace, "create", "-o", "jsonpath={.metadata.uid}", "-f", "-", input=json.dumps(made)
        )
        bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}", f"--bound-object-uid={uid}"]
    token = cluster.kubectl("-n", namespace, "create", "token", name, *bound).strip()
    kubeconfig = yaml.safe_load(cluster.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": token}
    file = directory / f"kubeconfig-{namespace}-{name}-{pod}"
    file.write_text(json.dumps(kubeconfig))
    return Account(LocalCluster(directory, file, cluster.kubectl_path), namespace, uid)


def as_the_operator(control_plane: LocalCluster, namespace: str, directory: Path, account_name: str) -> Path:
    """A kubeconfig of service account `account_name`, which may do what the chart lets the operator do, and nothing else."""
    documents = [each for each in yaml.safe_load_all((ROOT / "deploy/install.yaml").read_text()) if each]
    name = f"operator-{namespace}"
    (rights,) = [d for d in documents if d["kind"] == "ClusterRole" and d["metadata"]["name"] == "rendezvous-operator"]
    role = {**rights, "metadata": {"name": name}}
    control_plane.kubectl("apply", "-f", "-", input=json.dumps(role))
    control_plane.kubectl("create", "serviceaccount", account_name, "-n", namespace)
    control_plane.kubectl(
        "create", "clusterrolebinding", name, f"--clusterrole={name}", f"--serviceaccount={namespace}:{account_name}"
    )
    (root,) = [d for d in documents if d["kind"] == "Role" and d["metadata"]["name"] == "rendezvous-operator-root"]
    control_plane.kubectl(
        "apply", "-n", namespace, "-f", "-", input=json.dumps({**root, "metadata": {"name": "operator-root"}})
    )
    control_plane.kubectl(
        *("create", "rolebinding", "operator-root", "-n", namespace, "--role=operator-root"),
        f"--serviceaccount={namespace}:{account_name}",
    )
    kubeconfig = yaml.safe_load(control_plane.kubeconfig.read_text())
    token = control_plane.kubectl("create", "token", account_name, "-n", namespace).strip()
    kubeconfig["users"][0]["user"] = {"token": token}
    file = directory / "kubeconfig"
    file.write_text(json.dumps(kubeconfig))
    return file
