from __future__ import annotations

import copy
from typing import Any

import pytest
from support.builders import rendezvous

from rdzv.control.children import APPLIED_ANNOTATION, child, is_marked, newer_version
from rdzv.control.compare import Verdict, compare, kept_finalizers, replacement
from rdzv.registry import backend_registry

Object = dict[str, Any]


def service(**spec: Any) -> Object:
    obj = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "rdzv-mnist"},
        "spec": {"ports": [{"port": 1}], **spec},
    }
    return child(obj, rendezvous())


def config_map(**data: str) -> Object:
    return child(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rdzv-mnist"}, "data": data}, rendezvous()
    )


def stored(obj: Object, **spec: Any) -> Object:
    """As an API server returns a Service: with defaults, and with what the cluster chose."""
    result = copy.deepcopy(obj)
    result["metadata"] |= {"uid": "u", "resourceVersion": "7", "managedFields": [{"manager": "x"}]}
    result["spec"] = {
        "type": "ClusterIP",
        "clusterIP": "10.0.0.9",
        "clusterIPs": ["10.0.0.9"],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "internalTrafficPolicy": "Cluster",
        "sessionAffinity": "None",
        **result["spec"],
        **spec,
    }
    result["spec"]["ports"] = [{"protocol": "TCP", "targetPort": p["port"], **p} for p in result["spec"]["ports"]]
    result["status"] = {"loadBalancer": {}}
    return result


@pytest.mark.parametrize(
    ("wanted", "filled_in"),
    [
        ({}, {}),
        ({"clusterIP": "None"}, {"clusterIPs": ["None"]}),
        ({"type": "NodePort"}, {"externalTrafficPolicy": "Cluster", "ports": [{"port": 1, "nodePort": 30123}]}),
        (
            {"type": "LoadBalancer"},
            {
                "externalTrafficPolicy": "Cluster",
                "allocateLoadBalancerNodePorts": True,
                "ports": [{"port": 1, "nodePort": 30123}],
            },
        ),
    ],
)
def test_what_the_api_server_fills_in_is_no_difference(wanted: Object, filled_in: Object) -> None:
    """Of our own Services, and of those that a plug-in may ask for."""
    obj = service(**wanted)
    assert compare(stored(obj, **filled_in), obj) is Verdict.SAME


def test_a_replacement_says_all_defaults_and_keeps_foreign_labels() -> None:
    wanted = service()
    actual = stored(wanted, ipFamilyPolicy="PreferDualStack", externalIPs=["192.0.2.7"])
    actual["metadata"]["labels"] |= {"team": "vision", "service.kubernetes.io/service-proxy-name": "theirs"}
    assert compare(actual, wanted) is Verdict.REPLACE
    body = replacement(actual, wanted)
    assert body["spec"]["ipFamilyPolicy"] == "SingleStack"
    assert "externalIPs" not in body["spec"]
    assert body["metadata"]["labels"].keys() == {*wanted["metadata"]["labels"], "team"}
    assert (body["metadata"]["uid"], body["metadata"]["resourceVersion"]) == ("u", "7")


def test_finalizers_that_kubernetes_takes_off_itself_stay() -> None:
    ours = ["foregroundDeletion", "orphan", "service.kubernetes.io/load-balancer-cleanup", "kubernetes.io/x"]
    theirs = ["example.com/mine", "fakekubernetes.io/x", "theirs"]
    assert kept_finalizers({"metadata": {"finalizers": [*theirs, *ours]}}) == ours


def test_an_empty_value_of_a_config_map_is_a_value() -> None:
    assert compare(config_map(A="", B="1"), config_map(A="", B="1")) is Verdict.SAME
    changed = config_map(A="", B="1")
    del changed["data"]["A"]
    assert compare(changed, config_map(A="", B="1")) is Verdict.REPLACE


def written_by(*versions: str) -> list[Object]:
    objects = [config_map() for _ in versions]
    for obj, version in zip(objects, versions, strict=True):
        obj["metadata"]["annotations"][APPLIED_ANNOTATION] = version and f"{version} 0123456789abcdef"
    return objects


@pytest.mark.parametrize(
    ("versions", "newer"),
    [
        ([], ""),
        (["0.1.0"], ""),
        (["0.0.9"], ""),
        (["0.1.1"], "0.1.1"),
        (["0.10.0"], "0.10.0"),
        (["1.0.0rc1"], "1.0.0"),
        (["2.0.0", "1.0.0"], "1.0.0"),
        (["2.0.0", "0.1.0"], ""),
        (["2.0.0", ""], ""),
        (["9" * 40], ""),
        (["², ", "2.0.0"], ""),
    ],
)
def test_a_newer_operator_is_one_that_wrote_all_children(versions: list[str], newer: str) -> None:
    assert newer_version(written_by(*versions)) == newer


@pytest.mark.parametrize(
    "text", ["", "x", "0.1.0", "0.1.0 ", "0.1.0 0123456789ABCDEF", " 0123456789abcdef", "x" * 5000]
)
def test_only_what_an_operator_writes_is_a_mark(text: str) -> None:
    obj = config_map()
    assert is_marked(obj, "mnist")
    obj["metadata"]["annotations"][APPLIED_ANNOTATION] = text
    assert not is_marked(obj, "mnist")


def test_a_stateful_set_is_the_same_with_what_the_api_server_fills_in_and_however_quantities_are_written() -> None:
    subject = rendezvous("etcd-v3", etcd={"storage": {"size": "1024Mi"}, "resources": {"requests": {"cpu": "1000m"}}})
    (made,) = (obj for obj in backend_registry().provision(subject).objects if obj["kind"] == "StatefulSet")
    wanted = child(made, subject)
    actual = copy.deepcopy(wanted)
    actual["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    actual["status"] = {"readyReplicas": 1}
    spec = actual["spec"]
    spec["revisionHistoryLimit"] = 10
    spec["updateStrategy"]["rollingUpdate"] = {"partition": 0, "maxUnavailable": 1}  # Since Kubernetes 1.35.
    spec["volumeClaimTemplates"][0]["status"] = {"phase": "Pending"}
    spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] = "1Gi"
    pod = spec["template"]["spec"]
    pod |= {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler"}
    pod["terminationGracePeriodSeconds"] = 30
    pod["containers"][0]["resources"]["requests"]["cpu"] = "1"
    pod["containers"][0]["readinessProbe"] |= {"successThreshold": 1}
    assert compare(actual, wanted) is Verdict.SAME
    pod["containers"][0]["resources"]["requests"]["cpu"] = "2"
    assert compare(actual, wanted) is Verdict.REPLACE
    actual["spec"]["serviceName"] = "theirs"
    assert compare(actual, wanted) is Verdict.RECREATE


def test_a_stateful_set_without_anything_in_it_is_compared_too() -> None:
    """As a plug-in may ask for one; the API server refuses it."""
    made = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "rdzv-mnist-x"}, "spec": {}}
    assert compare(child(made, rendezvous()), child(made, rendezvous())) is Verdict.SAME
