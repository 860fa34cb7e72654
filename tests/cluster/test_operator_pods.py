"""The operator's two pods on real nodes: what becomes of the Lease when the leader's is deleted, and when both are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.operator_process import eventually
from support.workloads import Place, rendezvous

from deploy.demo.demo import RELEASE, SYSTEM, Images
from deploy.demo.kube import Cluster

pytestmark = pytest.mark.cluster

DEPLOYMENT = f"deployment/{RELEASE}"


def lease(target: Cluster) -> dict[str, Any]:
    """Empty where there is none."""
    found = target.kubectl("-n", SYSTEM, "get", "lease", RELEASE, "--ignore-not-found", "-o", "json")
    return dict(json.loads(found)) if found.strip() else {}


def leader(target: Cluster) -> str:
    """Name of the pod that leads; empty: none does."""
    return str((lease(target).get("spec") or {}).get("holderIdentity", "")).partition("_")[0]


def test_the_other_pod_leads_when_the_leaders_is_deleted_and_no_lease_is_left_without_pods(
    place: Place, installation: tuple[Cluster, Images]
) -> None:
    target, _ = installation
    target.kubectl("-n", SYSTEM, "rollout", "status", DEPLOYMENT, "--timeout=120s")
    first = eventually(lambda: leader(target))
    pods = target.kubectl("-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "name")
    (other,) = (pod.partition("/")[2] for pod in pods.split() if pod.partition("/")[2] != first)
    try:
        # Scaled down, and not deleted alone: the Deployment would make a third pod, and either may be the one to lead.
        target.kubectl("-n", SYSTEM, "annotate", "pod", first, "controller.kubernetes.io/pod-deletion-cost=-100")
        target.kubectl("-n", SYSTEM, "scale", DEPLOYMENT, "--replicas=1")
        eventually(lambda: leader(target) == other, timeout=60)
        place.apply(rendezvous("static", 2))
        eventually(lambda: place.get("rdzv/world").get("status", {}).get("endpoint"), timeout=60)
        assert [owner["name"] for owner in lease(target)["metadata"]["ownerReferences"]] == [other]

        target.kubectl("-n", SYSTEM, "scale", DEPLOYMENT, "--replicas=0")
        eventually(lambda: not lease(target), timeout=90)
    finally:
        target.kubectl("-n", SYSTEM, "scale", DEPLOYMENT, "--replicas=2")
        target.kubectl("-n", SYSTEM, "rollout", "status", DEPLOYMENT, "--timeout=120s")
