"""The real operator asks real Jobs how they ended. There are no controllers: the test writes what they would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.cluster_fixtures import LocalCluster
from support.operated import pod, rendezvous
from support.operator_process import Kube, eventually, running_operator

from rdzv.spec import LABEL

Object = dict[str, Any]

AT = "2026-11-23T10:00:00Z"


def job(namespace: str) -> Object:
    template = {
        "metadata": {"labels": {LABEL: "mnist"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "train", "image": "registry.invalid/train"}]},
    }
    spec = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "suspend": True, "template": template}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train", "namespace": namespace},
        "spec": spec,
    }


def test_a_failed_pod_of_a_suspended_job_is_no_failed_job_until_that_says_so(
    kube: Kube, control_plane: LocalCluster, light_namespace: str, tmp_path: Path
) -> None:
    made = kube.create(job(light_namespace))
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": "train",
        "uid": made["metadata"]["uid"],
        "controller": True,
    }
    failed = pod(light_namespace, "train-0", 0, ownerReferences=[owner])
    terminated = {"exitCode": 1, "reason": "Error", "startedAt": AT, "finishedAt": AT}
    entry = {"name": "train", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "lastState": {}}
    failed["status"] = {"phase": "Failed", "containerStatuses": [{**entry, "state": {"terminated": terminated}}]}
    kube.create(failed)
    kube.create(rendezvous(light_namespace))

    def status() -> Object:
        found: Object = (kube.get("Rendezvous", light_namespace, "mnist") or {}).get("status") or {}
        return found

    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace):
        eventually(lambda: status().get("summary") == "Suspended: Job train", timeout=60)
        assert status()["nodes"]["missing"] == [{"pod": "every pod", "reason": "Suspended: by Job train"}]
        conditions = [
            {"type": kind, "status": "True", "lastTransitionTime": AT} for kind in ("FailureTarget", "Failed")
        ]
        kube.patch("Job", light_namespace, "train", {"spec": {"suspend": False}})
        ended = {"startTime": AT, "conditions": conditions}
        kube.patch("Job", light_namespace, "train", {"status": ended}, status=True)
        eventually(lambda: status()["summary"] == "Failed", timeout=90)
