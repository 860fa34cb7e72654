"""The real operator process against a real API server. There are no nodes: the tests play kubelet and the controllers where needed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import FaultProxy
from support.operated import hosts, is_provisioned, pod, rendezvous, set_up
from support.operator_process import Kube, OperatorProcess, eventually, running_operator

Object = dict[str, Any]


def outcome(kube: Kube, namespace: str) -> Object:
    """What must be the same however one got there: no times, versions, uids or addresses."""
    settled: Object = {}
    for kind in ("ConfigMap", "Service", "EndpointSlice", "Pod", "Rendezvous"):
        for obj in kube.list(kind, namespace):
            meta = obj["metadata"]
            settled[f"{kind} {meta['name']}"] = {
                "labels": meta.get("labels"),
                "annotations": meta.get("annotations"),
                "data": {key: value for key, value in (obj.get("data") or {}).items() if key != "PET_RDZV_ID"},
                "selector": obj.get("spec", {}).get("selector"),
                "leads to": [
                    ((e.get("targetRef") or {}).get("name"), e["addresses"]) for e in obj.get("endpoints") or []
                ],
                "conditions": [
                    (c["type"], c["status"], c["reason"]) for c in obj.get("status", {}).get("conditions") or []
                ],
                "nodes": obj.get("status", {}).get("nodes"),
            }
    settled.pop("ConfigMap kube-root-ca.crt", None)
    return settled


@pytest.fixture
def operator(control_plane: LocalCluster, light_namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace) as operator:
        yield operator


@pytest.fixture
def provisioned(operator: OperatorProcess, kube: Kube, light_namespace: str) -> Object:
    """Rendezvous `mnist` and its two pods, served by an operator; returns the outcome."""
    set_up(kube, light_namespace, "rendezvous first")
    eventually(lambda: is_provisioned(kube, light_namespace))
    return outcome(kube, light_namespace)


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("order", ["rendezvous first", "pods first"])
def test_either_order_ends_in_the_same_state(kube: Kube, light_namespace: str, order: str) -> None:
    set_up(kube, light_namespace, order)
    eventually(lambda: is_provisioned(kube, light_namespace))
    eventually(lambda: hosts(kube, light_namespace) == ["a"])
    state = outcome(kube, light_namespace)
    assert state["EndpointSlice rdzv-mnist"]["leads to"] == [("a", ["10.1.2.1"])]
    assert state["Service rdzv-mnist"]["selector"] is None
    assert state["Rendezvous mnist"]["nodes"]["summary"] == "0/2"


@pytest.mark.parametrize("kind", ["ConfigMap", "Service", "EndpointSlice"])
def test_a_child_deleted_by_hand_comes_back(kube: Kube, light_namespace: str, provisioned: Object, kind: str) -> None:
    child = kube.get(kind, light_namespace, "rdzv-mnist")
    assert child is not None
    kube.delete(kind, light_namespace, "rdzv-mnist")

    def is_back() -> bool:
        found = kube.get(kind, light_namespace, "rdzv-mnist")
        return found is not None and found["metadata"]["uid"] != child["metadata"]["uid"]

    eventually(is_back)
    assert outcome(kube, light_namespace) == provisioned


def test_children_changed_by_hand_are_put_right(kube: Kube, light_namespace: str, provisioned: Object) -> None:
    for kind, change in (
        ("EndpointSlice", {"endpoints": [{"addresses": ["192.0.2.7"]}]}),
        ("EndpointSlice", {"endpoints": None}),
        ("ConfigMap", {"data": {"PET_NNODES": "99"}}),
    ):
        kube.patch(kind, light_namespace, "rdzv-mnist", change)
        eventually(lambda: outcome(kube, light_namespace) == provisioned)


@pytest.mark.usefixtures("provisioned")
def test_the_service_follows_the_address_of_the_host_and_leads_nowhere_without_one(
    kube: Kube, light_namespace: str
) -> None:
    def leads_to() -> list[str]:
        found = kube.get("EndpointSlice", light_namespace, "rdzv-mnist") or {}
        return [address for endpoint in found.get("endpoints") or [] for address in endpoint["addresses"]]

    eventually(lambda: leads_to() == ["10.1.2.1"])
    for ip in ("fd00::7", "10.1.2.9"):
        kube.patch("Pod", light_namespace, "a", {"status": {"podIP": ip, "podIPs": [{"ip": ip}]}}, status=True)
        eventually(partial(lambda ip: leads_to() == [ip], ip))
    for name in ("a", "b"):
        kube.delete("Pod", light_namespace, name)
    eventually(lambda: kube.get("EndpointSlice", light_namespace, "rdzv-mnist") is None)


def test_a_service_of_an_older_operator_goes_with_what_kubernetes_made_for_its_selector(
    kube: Kube, control_plane: LocalCluster, light_namespace: str, tmp_path: Path
) -> None:
    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace):
        set_up(kube, light_namespace, "rendezvous first")
        eventually(lambda: is_provisioned(kube, light_namespace))
    selector = {"rdzv.dev/rendezvous": "mnist", "rdzv.dev/host": "true"}
    kube.patch("Service", light_namespace, "rdzv-mnist", {"spec": {"selector": selector}})
    before = (kube.get("Service", light_namespace, "rdzv-mnist") or {})["metadata"]["uid"]
    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace):

        def after() -> Object | None:
            found = kube.get("Service", light_namespace, "rdzv-mnist")
            return found if found is not None and found["metadata"]["uid"] != before else None

        assert "selector" not in eventually(after)["spec"]
        assert hosts(kube, light_namespace) == ["a"]


def test_a_pass_over_what_has_not_changed_costs_no_request(
    kube: Kube, light_namespace: str, tmp_path: Path, proxy: FaultProxy
) -> None:
    with running_operator(proxy.kubeconfig, tmp_path / "log", light_namespace):
        set_up(kube, light_namespace, "rendezvous first")
        eventually(lambda: is_provisioned(kube, light_namespace))
        # What is told last: the pass after the mark finds it.
        eventually(lambda: "HostChosen" in [event["reason"] for event in kube.list("Event", light_namespace)])
        time.sleep(2.0)

        def requests() -> list[str]:
            """Other than watches that go on, and comparisons of versions."""
            found = [f"{seen.method} {seen.target}" for seen in proxy.requests if seen.method != "WATCH"]
            return [request for request in found if "limit=500" not in request]

        before = requests()
        for index in range(5):
            kube.patch("Pod", light_namespace, "b", {"metadata": {"annotations": {"touched": str(index)}}})
            # This one leads to a pass.
            kube.patch("Rendezvous", light_namespace, "mnist", {"metadata": {"annotations": {"touched": str(index)}}})
            time.sleep(0.3)
        time.sleep(1.0)
        assert requests() == before
        assert all(f"/namespaces/{light_namespace}/" in request for request in before if "/v1/pods" in request)


def test_the_api_server_failing_is_said_and_survived(
    kube: Kube, light_namespace: str, tmp_path: Path, proxy: FaultProxy
) -> None:
    fault = proxy.inject("reply", method="POST", path="/services", times=3, status=500, message="etcd is away")
    with running_operator(proxy.kubeconfig, tmp_path / "log", light_namespace) as operator:
        set_up(kube, light_namespace, "rendezvous first")

        def said() -> bool:
            status = (kube.get("Rendezvous", light_namespace, "mnist") or {}).get("status") or {}
            return any(
                c["reason"] == "APIError" and "etcd is away" in c["message"] for c in status.get("conditions", [])
            )

        eventually(said)
        eventually(lambda: is_provisioned(kube, light_namespace))
        assert fault.hits == 3
        proxy.down()
        kube.delete("ConfigMap", light_namespace, "rdzv-mnist")
        proxy.up()
        eventually(lambda: is_provisioned(kube, light_namespace), timeout=60)
        assert operator.running


@pytest.mark.usefixtures("operator")
def test_a_pod_that_names_nobody_waits_and_says_for_whom(kube: Kube, light_namespace: str) -> None:
    kube.create(pod(light_namespace, "a", 0))

    def messages() -> list[str]:
        return [e["message"] for e in kube.list("Event", light_namespace) if e["involvedObject"]["name"] == "a"]

    (message,) = eventually(messages)
    assert "Rendezvous mnist, which does not exist" in message
    # Deleted while pods run: those go on, and a later pod is told the same.
    kube.create(rendezvous(light_namespace))
    eventually(lambda: is_provisioned(kube, light_namespace))
    kube.delete("Rendezvous", light_namespace, "mnist")
    kube.create(pod(light_namespace, "late", 1))
    eventually(lambda: [e for e in kube.list("Event", light_namespace) if e["involvedObject"]["name"] == "late"])
    assert kube.get("Pod", light_namespace, "a") is not None


@pytest.mark.usefixtures("provisioned")
def test_re_created_under_the_same_name_it_is_a_new_rendezvous(kube: Kube, light_namespace: str) -> None:
    # Nobody collects garbage here, so the children of the first one stay, as they may for a while on a busy cluster.
    kube.delete("Rendezvous", light_namespace, "mnist")
    created = kube.create(rendezvous(light_namespace))

    def is_of_the_new_one() -> bool:
        found = kube.get("ConfigMap", light_namespace, "rdzv-mnist")
        return found is not None and found["data"]["PET_RDZV_ID"] == created["metadata"]["uid"]

    eventually(is_of_the_new_one)
    for kind in ("ConfigMap", "Service", "EndpointSlice"):
        child = kube.get(kind, light_namespace, "rdzv-mnist")
        assert child is not None
        assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [created["metadata"]["uid"]]


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("backend", "reason", "text"),
    [("their-own", "UnknownBackend", "registered: c10d, etcd, etcd-v2")],
)
def test_what_only_the_operator_can_refuse_is_in_the_status(
    kube: Kube, light_namespace: str, backend: str, reason: str, text: str
) -> None:
    kube.create(rendezvous(light_namespace, backend))

    def ready() -> Object | None:
        status = (kube.get("Rendezvous", light_namespace, "mnist") or {}).get("status") or {}
        return next((c for c in status.get("conditions", []) if c["type"] == "Ready"), None)

    condition = eventually(ready)
    assert (condition["status"], condition["reason"]) == ("False", reason)
    assert text in condition["message"]
    assert [e["reason"] for e in eventually(lambda: kube.list("Event", light_namespace))] == [reason]


def test_the_spec_can_be_changed_and_an_object_of_somebody_else_is_left_alone(
    kube: Kube, control_plane: LocalCluster, light_namespace: str, tmp_path: Path
) -> None:
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "rdzv-mnist", "namespace": light_namespace},
            "data": {"a": "b"},
        }
    )
    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace):
        set_up(kube, light_namespace, "rendezvous first")

        def reason() -> str:
            status = (kube.get("Rendezvous", light_namespace, "mnist") or {}).get("status") or {}
            return str(next((c["reason"] for c in status.get("conditions", []) if c["type"] == "Ready"), ""))

        eventually(lambda: reason() == "NameTaken")
        assert (kube.get("ConfigMap", light_namespace, "rdzv-mnist") or {})["data"] == {"a": "b"}
        kube.delete("ConfigMap", light_namespace, "rdzv-mnist")
        eventually(lambda: is_provisioned(kube, light_namespace))
        kube.patch("Rendezvous", light_namespace, "mnist", {"spec": {"nodes": {"max": 4}, "nprocPerNode": 2}})

        def environment() -> tuple[str | None, ...]:
            data = (kube.get("ConfigMap", light_namespace, "rdzv-mnist") or {}).get("data", {})
            return tuple(map(data.get, ("PET_NNODES", "PET_NPROC_PER_NODE", "TORCH_ELASTIC_WORKER_IDENTICAL")))

        eventually(lambda: environment() == ("2:4", "2", "1"))


def the(kube: Kube, namespace: str, type_: str) -> Object:
    """One condition of Rendezvous `mnist`."""
    status = (kube.get("Rendezvous", namespace, "mnist") or {}).get("status") or {}
    return next((c for c in status.get("conditions", []) if c["type"] == type_), {})


def test_a_child_that_fails_does_not_keep_the_host_from_moving(
    kube: Kube, light_namespace: str, tmp_path: Path, proxy: FaultProxy
) -> None:
    proxy.inject("reply", method="POST", path="/services", times=-1, status=500, message="etcd is away")
    with running_operator(proxy.kubeconfig, tmp_path / "log", light_namespace):
        set_up(kube, light_namespace, "pods first")
        eventually(lambda: hosts(kube, light_namespace) == ["a"])
        assert eventually(lambda: the(kube, light_namespace, "Provisioned"))["reason"] == "APIError"
        kube.delete("Pod", light_namespace, "a")
        eventually(lambda: hosts(kube, light_namespace) == ["b"])
        assert kube.get("ConfigMap", light_namespace, "rdzv-mnist") is None
        message = the(kube, light_namespace, "Provisioned")["message"]
        assert "etcd is away" in message
        assert "ConfigMap rdzv-mnist, which new pods wait for, comes after that" in message


@pytest.mark.usefixtures("operator")
def test_a_name_that_is_taken_does_not_keep_the_host_from_moving(kube: Kube, light_namespace: str) -> None:
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rdzv-mnist", "namespace": light_namespace}}
    kube.create(theirs)
    set_up(kube, light_namespace, "pods first")
    eventually(lambda: the(kube, light_namespace, "Provisioned").get("reason") == "NameTaken")
    eventually(lambda: hosts(kube, light_namespace) == ["a"])
    kube.delete("Pod", light_namespace, "a")
    eventually(lambda: hosts(kube, light_namespace) == ["b"])


@pytest.mark.parametrize("kind", ["roles", "rolebindings"])
def test_a_role_that_fails_holds_back_the_config_map_that_releases_the_pods(
    kube: Kube, light_namespace: str, tmp_path: Path, proxy: FaultProxy, kind: str
) -> None:
    fault = proxy.inject("reply", method="POST", path=f"/{kind}[?]", times=2, status=500, message="etcd is away")
    with running_operator(proxy.kubeconfig, tmp_path / "log", light_namespace):
        kube.create(rendezvous(light_namespace, "kubernetes"))
        eventually(lambda: the(kube, light_namespace, "Provisioned").get("reason") == "APIError")
        if fault.hits < fault.times:
            assert kube.get("ConfigMap", light_namespace, "rdzv-mnist") is None
        eventually(lambda: the(kube, light_namespace, "Provisioned").get("reason") == "Provisioned")
    order = [
        request.target.partition("?")[0].rpartition("/")[2] for request in proxy.requests if request.method == "POST"
    ]
    assert order.index("configmaps") > max(i for i, name in enumerate(order) if name in {"roles", "rolebindings"})


def test_an_object_that_somebody_made_since_the_pass_has_looked_is_not_overwritten(
    kube: Kube, light_namespace: str, tmp_path: Path, proxy: FaultProxy
) -> None:
    slow = proxy.inject("delay", method="POST", path="/configmaps", seconds=3)
    with running_operator(proxy.kubeconfig, tmp_path / "log", light_namespace):
        set_up(kube, light_namespace, "pods first")
        assert slow.hit.wait(20)
        meta = {"name": "rdzv-mnist", "namespace": light_namespace}
        kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": "b"}})
        eventually(lambda: the(kube, light_namespace, "Provisioned").get("reason") == "NameTaken")
        assert (kube.get("ConfigMap", light_namespace, "rdzv-mnist") or {})["data"] == {"a": "b"}


@pytest.mark.usefixtures("operator")
def test_a_pod_with_an_index_of_four_milliards_is_named_and_stops_nobody(kube: Kube, light_namespace: str) -> None:
    set_up(kube, light_namespace, "rendezvous first")
    bad = pod(light_namespace, "bad", 0, labels={"rdzv.dev/slot": "4000000000"})
    kube.create(bad)
    eventually(lambda: the(kube, light_namespace, "Degraded").get("reason") == "UnusableIndex")
    assert "pod bad has index '4000000000': write 0 to 9999" in the(kube, light_namespace, "Degraded")["message"]
    kube.delete("Pod", light_namespace, "bad")
    eventually(lambda: the(kube, light_namespace, "Degraded").get("reason") == "AsExpected")


def test_a_pod_with_an_empty_label_is_nobodys(
    kube: Kube, control_plane: LocalCluster, light_namespace: str, tmp_path: Path
) -> None:
    kube.create(pod(light_namespace, "empty", 0, labels={"rdzv.dev/rendezvous": ""}))
    log = tmp_path / "log"
    with running_operator(control_plane.kubeconfig, log, light_namespace):
        set_up(kube, light_namespace, "pods first")
        eventually(lambda: is_provisioned(kube, light_namespace))
        assert "Traceback" not in log.read_text()


def test_what_an_admission_policy_makes_of_a_child_is_not_fought(
    kube: Kube, control_plane: LocalCluster, light_namespace: str, tmp_path: Path, proxy: FaultProxy
) -> None:
    if "policy" not in control_plane.injection_modes:
        pytest.skip("this API server has no MutatingAdmissionPolicy")
    name = f"sticky-{light_namespace}"
    control_plane.kubectl("apply", "-f", "-", input=STICKY.format(name=name, namespace=light_namespace))
    meta = {"name": "probe", "namespace": light_namespace}
    probe = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 1}]}}

    def is_in_force() -> bool:
        created = kube.create(probe)
        kube.delete("Service", light_namespace, "probe")
        return bool(created["spec"]["sessionAffinity"] == "ClientIP")

    try:
        eventually(is_in_force)
        with running_operator(proxy.kubeconfig, tmp_path / "log", light_namespace):
            set_up(kube, light_namespace, "rendezvous first")
            eventually(lambda: is_provisioned(kube, light_namespace))
            for touched in range(5):
                enough = len(proxy.requests) + 9
                kube.patch("Pod", light_namespace, "b", {"metadata": {"annotations": {"touched": str(touched)}}})
                eventually(partial(lambda enough: len(proxy.requests) >= enough, enough))
            writes = [r for r in proxy.requests if r.method in {"POST", "PUT", "DELETE"} and "/services" in r.target]
            assert len(writes) == 1
            service = kube.get("Service", light_namespace, "rdzv-mnist") or {}
            assert service["spec"]["sessionAffinity"] == "ClientIP"
            kube.patch("Service", light_namespace, "rdzv-mnist", {"spec": {"externalIPs": ["192.0.2.7"]}})
            eventually(lambda: "externalIPs" not in (kube.get("Service", light_namespace, "rdzv-mnist") or {})["spec"])
    finally:
        control_plane.kubectl("delete", "mutatingadmissionpolicy,mutatingadmissionpolicybinding", name)


#: Sets a field of every Service of one namespace, whatever its author wants.
STICKY = """
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {{name: {name}}}
spec:
  matchConstraints:
    resourceRules:
      - {{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [services]}}
  reinvocationPolicy: Never
  mutations:
    - patchType: ApplyConfiguration
      applyConfiguration:
        expression: 'Object{{spec: Object.spec{{sessionAffinity: "ClientIP"}}}}'
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {{name: {name}}}
spec:
  policyName: {name}
  matchResources:
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}
"""
