"""Pods with the labels of each controller, their environment as injection and the operator make it, and real torchrun agents that meet."""

from __future__ import annotations

from typing import Any

from support.controllers import jobset, lws, pytorchjob
from support.operator_process import eventually
from support.played_kubelet import Kubelet

Object = dict[str, Any]


def degraded(kubelet: Kubelet) -> Object:
    found = kubelet.kube.get("Rendezvous", kubelet.namespace, "mnist") or {}
    return next((c for c in found.get("status", {}).get("conditions", []) if c["type"] == "Degraded"), {})


def test_a_jobset_of_two_replicated_jobs_is_one_world_whose_ranks_survive_a_lost_pod(kubelet: Kubelet) -> None:
    kubelet.wants(3)
    pods = {"driver-0": jobset(0, 0), "workers-0": jobset(1, 0), "workers-1": jobset(1, 1)}
    for name in reversed(pods):
        kubelet.run(name, pods[name])
    kubelet.await_ranks(*pods)
    assert eventually(lambda: degraded(kubelet).get("status")) == "False"
    kubelet.delete("workers-0")
    kubelet.run("again", pods["workers-0"])
    kubelet.await_ranks("driver-0", "again", "workers-1")
    kubelet.end()


def test_a_leaderworkerset_of_two_groups_is_one_world_though_its_labels_come_after_injection(kubelet: Kubelet) -> None:
    kubelet.wants(4)
    pods = {f"group-{group}-{worker}": lws(group, worker) for group in (0, 1) for worker in (0, 1)}
    for name in reversed(pods):
        labels = pods[name]
        late = "worker-index" if labels["leaderworkerset.sigs.k8s.io/worker-index"] != "0" else "group-index"
        early = {label: value for label, value in labels.items() if not label.endswith(late)}
        kubelet.run(name, early, labels)
    kubelet.await_ranks(*pods)
    kubelet.end()


def test_a_pytorchjob_with_master_and_worker_is_one_world_and_its_master_leads(kubelet: Kubelet) -> None:
    kubelet.wants(2)
    kubelet.run("a-worker", pytorchjob("worker", 0))
    kubelet.run("z-master", pytorchjob("master", 0))
    kubelet.await_ranks("z-master", "a-worker")
    kubelet.end()


def test_two_workloads_are_one_world_when_their_user_says_so(kubelet: Kubelet) -> None:
    """A set of numbered pods, and pods without numbers, of which the user names the groups."""
    kubelet.wants(3)
    kubelet.run("b-1", {"rdzv.dev/group": "b", "apps.kubernetes.io/pod-index": "1"})
    kubelet.run("b-0", {"rdzv.dev/group": "b", "apps.kubernetes.io/pod-index": "0"})
    kubelet.run("c-xyz", {"rdzv.dev/group": "c", "pod-template-hash": "5d4f"})
    kubelet.await_ranks("b-0", "b-1", "c-xyz")
    assert eventually(lambda: degraded(kubelet).get("status")) == "False"
    kubelet.end()
