"""What the real operator knows when its watches are cut, go silent, lose events or are refused. There are no nodes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fault_proxy import FaultProxy
from support.operated import hosts, is_provisioned, pod, rendezvous, set_up
from support.operator_process import Kube, OperatorProcess, eventually, running_operator

from rdzv.protocol.records import Member
from rdzv.spec import LABEL

Object = dict[str, Any]

#: Seconds until a change shows that no watch told of.
LOST = 60.0
#: Seconds until a change shows when the watches had gone silent.
SILENT = 30.0


@pytest.fixture
def operator(proxy: FaultProxy, light_namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    with running_operator(proxy.kubeconfig, tmp_path / "log", light_namespace) as operator:
        yield operator


@pytest.fixture
def provisioned(operator: OperatorProcess, kube: Kube, light_namespace: str, proxy: FaultProxy) -> OperatorProcess:
    """Rendezvous `mnist` of backend c10d and its two pods, served through the proxy."""
    set_up(kube, light_namespace, "rendezvous first")
    eventually(lambda: is_provisioned(kube, light_namespace))
    # On a busy machine kopf still asks what kinds there are, and starts its watch after that.
    eventually(lambda: any(seen.method == "WATCH" and "/rendezvous?" in seen.target for seen in proxy.requests))
    return operator


def status(kube: Kube, namespace: str) -> Object:
    found: Object = (kube.get("Rendezvous", namespace, "mnist") or {}).get("status") or {}
    return found


def missing(kube: Kube, namespace: str) -> list[str]:
    return [item["pod"] for item in status(kube, namespace)["nodes"]["missing"]]


def is_back(kube: Kube, namespace: str, kind: str, name: str) -> Callable[[], bool]:
    """Deletes an object of the operator's; returns whether it was made again."""
    before = kube.get(kind, namespace, name)
    assert before is not None
    kube.delete(kind, namespace, name)

    def made_again() -> bool:
        found = kube.get(kind, namespace, name)
        return found is not None and found["metadata"]["uid"] != before["metadata"]["uid"]

    return made_again


@pytest.mark.usefixtures("provisioned")
def test_a_host_pod_that_is_relabelled_is_followed_by_another(kube: Kube, light_namespace: str) -> None:
    assert hosts(kube, light_namespace) == ["a"]
    kube.patch("Pod", light_namespace, "a", {"metadata": {"labels": {LABEL: "another"}}})
    eventually(lambda: hosts(kube, light_namespace) == ["b"], timeout=10)


@pytest.mark.usefixtures("provisioned")
def test_what_was_deleted_while_the_watches_were_cut_off_is_found(
    kube: Kube, light_namespace: str, proxy: FaultProxy
) -> None:
    proxy.down()
    made_again = is_back(kube, light_namespace, "Service", "rdzv-mnist")
    kube.delete("Pod", light_namespace, "b")
    proxy.up()
    # Whoever comes back is told that the history is gone: what was deleted meanwhile is told by nobody.
    proxy.inject("error-event", method="WATCH", times=16, status=410, reason="Expired")
    eventually(made_again, timeout=LOST)
    eventually(lambda: "index 1" in missing(kube, light_namespace), timeout=LOST)


@pytest.mark.usefixtures("provisioned")
def test_a_rendezvous_that_was_deleted_while_kopf_was_cut_off_is_found(
    kube: Kube, light_namespace: str, proxy: FaultProxy
) -> None:
    proxy.down()
    kube.delete("Rendezvous", light_namespace, "mnist")
    proxy.up()
    proxy.inject("error-event", method="WATCH", path="/rendezvous", times=16, status=410, reason="Expired")

    def told() -> bool:
        return "RendezvousNotFound" in {event["reason"] for event in kube.list("Event", light_namespace)}

    eventually(told, timeout=LOST)


@pytest.mark.usefixtures("provisioned")
@pytest.mark.parametrize("kind", ["pods", "services", "rendezvous"])
def test_an_event_that_never_came_is_made_up_for(
    kube: Kube, light_namespace: str, proxy: FaultProxy, kind: str
) -> None:
    # The bookmark at the watch's end is after the event, so the next watch does not bring it either.
    fault = proxy.inject("lossy", method="WATCH", path=f"/{kind}\\?")
    assert fault.hit.wait(60)
    if kind == "pods":
        kube.delete("Pod", light_namespace, "b")
        eventually(lambda: "index 1" in missing(kube, light_namespace), timeout=LOST)
    elif kind == "services":
        eventually(is_back(kube, light_namespace, "Service", "rdzv-mnist"), timeout=LOST)
    else:
        kube.patch("Rendezvous", light_namespace, "mnist", {"spec": {"nodes": {"max": 9}}})
        config_map = "rdzv-mnist"
        eventually(
            lambda: (kube.get("ConfigMap", light_namespace, config_map) or {})["data"]["PET_NNODES"] == "2:9",
            timeout=LOST,
        )


@pytest.mark.usefixtures("provisioned")
def test_watches_that_have_gone_silent_are_given_up(kube: Kube, light_namespace: str, proxy: FaultProxy) -> None:
    proxy.freeze()
    made_again = is_back(kube, light_namespace, "Service", "rdzv-mnist")
    kube.delete("Pod", light_namespace, "b")
    kube.patch("Rendezvous", light_namespace, "mnist", {"spec": {"nodes": {"max": 9}}})
    began = time.monotonic()
    eventually(made_again, timeout=SILENT)
    eventually(lambda: "index 1" in missing(kube, light_namespace), timeout=SILENT)
    eventually(lambda: status(kube, light_namespace)["observedGeneration"] == 2, timeout=SILENT)
    assert time.monotonic() - began < SILENT + 5


def test_a_minute_of_refusals_of_everything_is_survived(
    kube: Kube, light_namespace: str, proxy: FaultProxy, provisioned: OperatorProcess
) -> None:
    for code in (500, 503, 403, 429):
        proxy.inject("reply", times=-1, status=code)
        time.sleep(16)  # 64 s in all: kopf's own patience is 54 s.
        proxy.clear()
        proxy.inject("reply", times=-1, status=500)
    proxy.clear()
    made_again = is_back(kube, light_namespace, "Service", "rdzv-mnist")
    kube.patch("Rendezvous", light_namespace, "mnist", {"spec": {"nodes": {"max": 9}}})
    eventually(made_again, timeout=SILENT)
    eventually(lambda: status(kube, light_namespace)["observedGeneration"] == 2, timeout=SILENT)
    assert provisioned.running


def test_what_ends_kopf_ends_the_process(proxy: FaultProxy, provisioned: OperatorProcess) -> None:
    proxy.inject("error-event", method="WATCH", path="/rendezvous\\?", times=-1, status=500, reason="InternalError")
    eventually(lambda: not provisioned.running, timeout=60)


@pytest.mark.usefixtures("operator")
def test_an_agent_whose_pod_the_operator_has_not_seen_yet_is_not_declared_dead(
    kube: Kube, light_namespace: str, proxy: FaultProxy
) -> None:
    uid = kube.create(rendezvous(light_namespace, "kubernetes"))["metadata"]["uid"]
    eventually(lambda: "roster" in status(kube, light_namespace))
    fault = proxy.inject("lossy", method="WATCH", path="/pods\\?")
    assert fault.hit.wait(60)

    def join(name: str, pod_uid: str) -> None:
        incarnation = f"{pod_uid}/1"
        member = Member(name, "mnist", uid, incarnation, "10.0.0.1", 29400, 1).to_object(light_namespace)
        kube.create(member)

    join("unseen", kube.create(pod(light_namespace, "unseen", 0))["metadata"]["uid"])
    # Its pod never was there, and says in its roster that what was decided came after both were seen.
    join("gone", "00000000-0000-0000-0000-000000000000")
    eventually(lambda: status(kube, light_namespace)["roster"]["dead"], timeout=20)
    assert status(kube, light_namespace)["roster"]["dead"] == ["00000000-0000-0000-0000-000000000000"]


@pytest.mark.usefixtures("operator")
def test_many_pods_of_a_missing_rendezvous_are_a_few_events_which_are_posted_once(
    kube: Kube, light_namespace: str, proxy: FaultProxy
) -> None:
    for index in range(15):
        kube.create(pod(light_namespace, f"pod-{index:02}", index))

    def told() -> set[str]:
        return {event["involvedObject"]["name"] for event in kube.list("Event", light_namespace)}

    eventually(lambda: "mnist" in told())
    time.sleep(2.0)
    before = posted(proxy)
    for index in range(15):
        kube.patch("Pod", light_namespace, f"pod-{index:02}", {"status": {"phase": "Unknown"}}, status=True)
        time.sleep(0.1)
    time.sleep(1.0)
    assert posted(proxy) == before <= 15, "not one for each pod and pass"
    assert not [name for name in told() if name > "pod-04"]


def posted(proxy: FaultProxy) -> int:
    return sum(seen.method == "POST" and "/events" in seen.target for seen in proxy.requests)


@pytest.mark.usefixtures("provisioned")
def test_an_operator_of_one_namespace_asks_for_nothing_outside_it(light_namespace: str, proxy: FaultProxy) -> None:
    time.sleep(45)  # A comparison of everything is among it.
    asked = {
        seen.target
        for seen in proxy.requests
        if ("/api" in seen.target and "rdzv.dev" in seen.target) or "/pods" in seen.target
    }
    objects = {target for target in asked if target.rstrip("/").count("/") > 3}
    assert any("limit=500" in target for target in objects)
    assert all(f"/namespaces/{light_namespace}/" in target for target in objects), objects


def test_a_machine_that_stands_still_as_an_unanswered_watch_runs_out_does_not_end_the_operator(
    provisioned: OperatorProcess, kube: Kube, light_namespace: str, proxy: FaultProxy
) -> None:
    """kopf has two clocks for a watch. Where both ran out at one moment, it took the one for the other, and ended with a RuntimeError."""
    unanswered = proxy.inject("delay", method="WATCH", path="/rendezvous\\?", seconds=120.0)
    assert unanswered.hit.wait(60)
    time.sleep(12)  # They run out after 14 s, and after as many rounded up to a whole second.
    provisioned.send(signal.SIGSTOP)
    time.sleep(6)
    proxy.clear()
    provisioned.send(signal.SIGCONT)
    spec = {"spec": {"nodes": {"min": 2, "max": 3}}}
    kube.patch("Rendezvous", light_namespace, "mnist", spec)
    generation = (kube.get("Rendezvous", light_namespace, "mnist") or {})["metadata"]["generation"]
    eventually(lambda: status(kube, light_namespace)["observedGeneration"] == generation, timeout=SILENT)
    assert provisioned.running
