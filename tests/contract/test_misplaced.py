"""An agent at an address that is not its pod's, under the real operator: refused and named, and counted once its user stands by it."""

from __future__ import annotations

from typing import Any

from support.operated import rendezvous
from support.operator_process import eventually
from support.played_kubelet import ADDRESS, Kubelet

ELSEWHERE = "127.0.0.9"
"""Also this machine, so that nothing but the rule keeps it out."""


def index(number: int) -> dict[str, str]:
    return {"apps.kubernetes.io/pod-index": str(number)}


def status(kubelet: Kubelet) -> dict[str, Any]:
    found = kubelet.kube.get("Rendezvous", kubelet.namespace, "mnist") or {}
    return dict(found.get("status") or {})


def degraded(kubelet: Kubelet) -> tuple[str, str]:
    conditions = status(kubelet).get("conditions") or []
    return next(((c["reason"], c["message"]) for c in conditions if c["type"] == "Degraded"), ("", ""))


def test_a_forged_address_is_refused_the_others_form_a_world_and_the_status_says_whose_it_is(kubelet: Kubelet) -> None:
    kubelet.kube.create(rendezvous(kubelet.namespace, "kubernetes", nodes={"min": 2, "max": 3}, nprocPerNode=1))
    # The lowest index: its agent would lead the world, and does coordinate.
    kubelet.run("job-0", index(0), env=[{"name": "PET_LOCAL_ADDR", "value": ELSEWHERE}])
    words = f"its agent says that it is at {ELSEWHERE}, which is no address of its pod ({ADDRESS})"
    missing = {"pod": "job-0", "reason": f"Misplaced: {words}"}
    eventually(lambda: missing in status(kubelet)["nodes"]["missing"], timeout=60)
    kubelet.run("job-1", index(1))
    kubelet.run("job-2", index(2))
    kubelet.await_ranks("job-1", "job-2")
    reason, message = degraded(kubelet)
    assert (reason, message.partition(", and")[0]) == ("Misplaced", f"job-0: {words}")
    assert missing in status(kubelet)["nodes"]["missing"]

    networks = {"spec": {"kubernetes": {"networks": ["127.0.0.0/8"]}}}
    kubelet.kube.patch("Rendezvous", kubelet.namespace, "mnist", networks)
    kubelet.await_ranks("job-0", "job-1", "job-2")
    assert eventually(lambda: degraded(kubelet)[0] == "AsExpected", timeout=60)
    kubelet.end()
