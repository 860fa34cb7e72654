"""The chart's policy on a real API server: a pod writes only its own RendezvousMember."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cluster_fixtures import LocalCluster
from support.operator_process import ROOT, eventually

Object = dict[str, Any]

CHART = ROOT / "charts/rendezvous-operator"


@pytest.fixture(scope="module")
def policy(control_plane: LocalCluster) -> Iterator[LocalCluster]:
    command = [
        str(control_plane.dir / "bin/helm"),
        "template",
        "rendezvous-operator",
        str(CHART),
        "-s",
        "templates/world/members.yaml",
    ]
    rendered = subprocess.check_output(command, text=True)
    control_plane.kubectl("apply", "--server-side", "-f", str(CHART / "files/crds/rendezvousmember.yaml"))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/rendezvousmembers.rdzv.dev")
    control_plane.kubectl("apply", "-f", "-", input=rendered)
    assert {obj["kind"] for obj in yaml.safe_load_all(rendered)} == {
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    yield control_plane
    control_plane.kubectl("delete", "-f", "-", input=rendered)


def member(name: str, uid: str, rendezvous: str = "mnist") -> Object:
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "RendezvousMember",
        "metadata": {
            "name": name,
            "labels": {"rdzv.dev/rendezvous": rendezvous},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}],
        },
        "spec": {
            "runID": "u",
            "incarnation": f"{uid}/1",
            "address": "10.0.0.1",
            "port": 29400,
            "wantRound": 1,
            "seenRound": 0,
            "state": "live",
            "node": "n",
        },
    }


def test_a_pod_writes_only_its_own_member(policy: LocalCluster, light_namespace: str, tmp_path: Path) -> None:
    def admin(*words: str, **options: Any) -> str:
        return policy.kubectl("-n", light_namespace, *words, **options)

    admin("create", "serviceaccount", "trainer")
    uids = {}
    for name in ("mine", "other"):
        spec = {"serviceAccountName": "trainer", "containers": [{"name": "c", "image": "x"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        uids[name] = admin("create", "-o", "jsonpath={.metadata.uid}", "-f", "-", input=json.dumps(pod))
    verbs = "--verb=create,get,list,update,watch"
    admin("create", "role", "members", verbs, "--resource=rendezvousmembers.rdzv.dev")
    admin("create", "rolebinding", "members", "--role=members", f"--serviceaccount={light_namespace}:trainer")
    bound = ("--bound-object-kind=Pod", "--bound-object-name=mine", f"--bound-object-uid={uids['mine']}")
    kubeconfig = json.loads(policy.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": admin("create", "token", "trainer", *bound).strip()}
    as_pod = LocalCluster(tmp_path, tmp_path / "kubeconfig", policy.kubectl_path)
    as_pod.kubeconfig.write_text(json.dumps(kubeconfig))

    def write(verb: str, obj: Object) -> str:
        return as_pod.kubectl("-n", light_namespace, verb, "-f", "-", input=json.dumps(obj))

    def refused() -> str:
        """A policy takes effect a moment after it was created."""
        try:
            write("create", member("other", uids["other"]))
        except RuntimeError as error:
            return str(error)
        admin("delete", "rendezvousmembers.rdzv.dev", "other")
        return ""

    assert "a pod writes only its own RendezvousMember: mine may not write other" in eventually(refused)
    with pytest.raises(RuntimeError, match="must be owned by pod mine"):
        write("create", member("mine", uids["other"]))
    write("create", member("mine", uids["mine"]))
    with pytest.raises(RuntimeError, match="stays with its Rendezvous"):
        write("replace", member("mine", uids["mine"], rendezvous="another"))
    write("replace", member("mine", uids["mine"]))
