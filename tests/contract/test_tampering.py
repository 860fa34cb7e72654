"""What others can do to the children of a Rendezvous, against a real API server: each is put right by the running operator, or refused."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from kubernetes.client import ApiException
from support.accounts import as_the_operator, policies
from support.builders import pod_object
from support.cluster_fixtures import LocalCluster
from support.operator_process import ROOT, Kube, OperatorProcess, eventually, running_operator

from rdzv.control.children import APPLIED_ANNOTATION, MANAGED_BY_LABEL
from rdzv.spec import LABEL

Object = dict[str, Any]
Change = Callable[[Object], None]

#: Rendezvous of the module by backend: together they have children of every kind.
NAMES = {"c10d": "mnist", "kubernetes": "world", "etcd-v3": "tank"}
#: What follows `rdzv-` in the child's name.
HOLDER = {
    "ConfigMap": "mnist",
    "Service": "mnist",
    "EndpointSlice": "mnist",
    "Role": "world",
    "RoleBinding": "world",
    "StatefulSet": "tank-etcd",
    "PodDisruptionBudget": "tank-etcd",
    "NetworkPolicy": "tank",
}
FINALIZER = "example.com/mine"


@dataclass(frozen=True)
class Place:
    """Where the tests work: one namespace with a running operator, and what its children are when all is well."""

    kube: Kube
    namespace: str
    operator: OperatorProcess
    wanted: dict[str, Object]

    def child(self, kind: str) -> Object | None:
        return self.kube.get(kind, self.namespace, f"rdzv-{HOLDER[kind]}")

    def creates(self, obj: Object) -> bool:
        """Whether there was none of that name yet."""
        try:
            self.kube.create(obj)
        except ApiException as error:
            if error.status == 409:
                return False
            raise
        return True

    def is_right(self, kind: str) -> bool:
        found = self.child(kind)
        return found is not None and essence(found) == self.wanted[kind]


def essence(obj: Object) -> Object:
    """All that somebody could have changed, without what the API server counts and chooses."""
    kept = copy.deepcopy({name: value for name, value in obj.items() if name != "status"})
    for name in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"):
        kept["metadata"].pop(name, None)
    for name in ("clusterIP", "clusterIPs"):
        if kept.get("spec", {}).get("clusterIP") != "None":
            kept.get("spec", {}).pop(name, None)
    return kept


def condition(kube: Kube, namespace: str, name: str, type_: str = "Provisioned") -> Object:
    status = (kube.get("Rendezvous", namespace, name) or {}).get("status") or {}
    return next((c for c in status.get("conditions", []) if c["type"] == type_), {})


def is_provisioned(kube: Kube, namespace: str, name: str) -> bool:
    """As far as it can be where no pod of an etcd ever runs."""
    return condition(kube, namespace, name).get("reason") in {"Provisioned", "ServerNotReady"}


ETCD_KINDS = ("StatefulSet", "PodDisruptionBudget")
ETCD: dict[str, Object] = {
    "etcd-v3": {
        "etcd": {"replicas": 3, "storage": {"size": "1024Mi"}},
        "network": {
            "isolate": True,
            "allow": [
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}, "ports": [8000]},
                {"podSelector": {"matchLabels": {"app": "notebook"}}},
                {"ports": [8888]},
            ],
        },
    }
}


def rendezvous(namespace: str, name: str, backend: str) -> Object:
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "Rendezvous",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"backend": backend, "nodes": {"min": 1}, **ETCD.get(backend, {})},
    }


def pod(namespace: str, name: str) -> Object:
    obj = pod_object(f"{name}-0", index=0, labels={LABEL: name})
    del obj["metadata"]["uid"]
    obj["metadata"]["namespace"] = namespace
    obj["spec"]["containers"][0]["image"] = "registry.invalid/train"
    obj["spec"]["containers"][0]["envFrom"] = [{"configMapRef": {"name": f"rdzv-{name}"}}]
    return {"apiVersion": "v1", "kind": "Pod", **obj, "status": {"phase": "Pending", "podIP": "10.1.2.3"}}


@pytest.fixture(scope="module")
def place(control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    control_plane.kubectl("apply", "--server-side", "-f", str(ROOT / "charts/rendezvous-operator/files/crds"))
    control_plane.kubectl("wait", "--for=condition=Established", "crd", "--all")
    kube, namespace = Kube(control_plane.kubeconfig), f"test-{secrets.token_hex(4)}"
    control_plane.kubectl("create", "namespace", namespace)
    scratch = tmp_path_factory.mktemp("operator")
    with (
        policies(control_plane, [namespace], f"--namespace={namespace}") as account,
        running_operator(
            as_the_operator(control_plane, namespace, scratch, account), scratch / "log", namespace
        ) as operator,
    ):
        for backend, name in NAMES.items():
            kube.create(pod(namespace, name))
            kube.create(rendezvous(namespace, name, backend))
            eventually(partial(is_provisioned, kube, namespace, name))
        eventually(lambda: (kube.get("RoleBinding", namespace, "rdzv-world") or {}).get("subjects"))
        wanted = {kind: kube.get(kind, namespace, f"rdzv-{name}") or {} for kind, name in HOLDER.items()}
        yield Place(kube, namespace, operator, {kind: essence(obj) for kind, obj in wanted.items()})
    control_plane.kubectl("delete", "clusterrole,clusterrolebinding", f"operator-{namespace}")
    control_plane.kubectl("delete", "namespace", namespace, "--wait=false")


def at(*path: str | int, to: Any) -> Change:
    """Sets the field at this path."""

    def change(obj: Object) -> None:
        field: Any = obj
        for step in path[:-1]:
            field = field.setdefault(step, {}) if isinstance(field, dict) else field[step]
        field[path[-1]] = to

    return change


def without(*path: str | int) -> Change:
    """Removes the field at this path."""

    def change(obj: Object) -> None:
        field: Any = obj
        for step in path[:-1]:
            field = field[step]
        del field[path[-1]]

    return change


def adding(*path: str | int, item: Any) -> Change:
    """Appends to the list at this path."""

    def change(obj: Object) -> None:
        field: Any = obj
        for step in path[:-1]:
            field = field[step]
        field.setdefault(path[-1], []).append(item)

    return change


def all_of(*changes: Change) -> Change:
    def change(obj: Object) -> None:
        for each in changes:
            each(obj)

    return change


SOMEBODY = {"apiVersion": "v1", "kind": "ConfigMap", "name": "theirs", "uid": "0d7e1a6c-1111-4222-8333-444455556666"}
META = "metadata"

#: Done to a child of each kind.
ON_METADATA: dict[str, Change] = {
    "manager-changed": at(META, "labels", MANAGED_BY_LABEL, to="helm"),
    "manager-removed": without(META, "labels", MANAGED_BY_LABEL),
    "name-changed": at(META, "labels", LABEL, to="another"),
    "name-removed": without(META, "labels", LABEL),
    "labels-removed": without(META, "labels"),
    "annotation-removed": without(META, "annotations"),
    "annotation-is-another": at(META, "annotations", APPLIED_ANNOTATION, to="0.0.1 0123456789abcdef"),
    "annotation-is-not-one": at(META, "annotations", APPLIED_ANNOTATION, to="x" * 1000),
    "annotation-of-a-newer-operator": at(META, "annotations", APPLIED_ANNOTATION, to="99.0.0 0123456789abcdef"),
    "owner-stripped": without(META, "ownerReferences"),
    "owner-replaced": at(META, "ownerReferences", to=[SOMEBODY]),
    "owner-added": adding(META, "ownerReferences", item=SOMEBODY),
    "owner-not-controller": without(META, "ownerReferences", 0, "controller"),
    "owner-blocks-deletion": at(META, "ownerReferences", 0, "blockOwnerDeletion", to=True),
    "finalizer": at(META, "finalizers", to=[FINALIZER]),
}

#: Done to one kind.
ON_CONTENT: dict[str, dict[str, Change]] = {
    "ConfigMap": {
        "value-changed": at("data", "PET_NNODES", to="99"),
        "value-emptied": at("data", "PET_NNODES", to=""),
        "key-removed": without("data", "PET_RDZV_ID"),
        "all-removed": without("data"),
        "ld-preload-added": at("data", "LD_PRELOAD", to="/tmp/evil.so"),
        "standalone-added": at("data", "PET_STANDALONE", to="1"),
        "binary-key-added": at("binaryData", "PET_RUN_PATH", to="MQ=="),
        "immutable": at("immutable", to=True),
        "immutable-and-changed": all_of(at("immutable", to=True), at("data", "PET_NNODES", to="99")),
    },
    "Service": {
        "selector-added": at("spec", "selector", to={"app": "theirs"}),
        "port-changed": at("spec", "ports", 0, "port", to=1),
        "target-port-changed": at("spec", "ports", 0, "targetPort", to=1),
        "target-port-named": at("spec", "ports", 0, "targetPort", to="theirs"),
        "port-renamed": at("spec", "ports", 0, "name", to="theirs"),
        "protocol-changed": at("spec", "ports", 0, "protocol", to="UDP"),
        "app-protocol-added": at("spec", "ports", 0, "appProtocol", to="http"),
        "port-added": adding("spec", "ports", item={"name": "ssh", "port": 22}),
        "same-port-added-for-udp": adding("spec", "ports", item={"name": "udp", "port": 29400, "protocol": "UDP"}),
        "node-port": at("spec", "type", to="NodePort"),
        "node-port-local": all_of(at("spec", "type", to="NodePort"), at("spec", "externalTrafficPolicy", to="Local")),
        "load-balancer": at("spec", "type", to="LoadBalancer"),
        "load-balancer-class": all_of(
            at("spec", "type", to="LoadBalancer"), at("spec", "loadBalancerClass", to="example.com/theirs")
        ),
        "load-balancer-local-for-some": all_of(
            at("spec", "type", to="LoadBalancer"),
            at("spec", "externalTrafficPolicy", to="Local"),
            at("spec", "loadBalancerSourceRanges", to=["10.0.0.0/8"]),
            at("spec", "allocateLoadBalancerNodePorts", to=False),
        ),
        "external-name": all_of(
            at("spec", "type", to="ExternalName"),
            at("spec", "externalName", to="evil.example.com"),
            without("spec", "clusterIP"),
            without("spec", "clusterIPs"),
        ),
        "external-ips": at("spec", "externalIPs", to=["192.0.2.7"]),
        "session-affinity": at("spec", "sessionAffinity", to="ClientIP"),
        "session-affinity-timeout": all_of(
            at("spec", "sessionAffinity", to="ClientIP"),
            at("spec", "sessionAffinityConfig", to={"clientIP": {"timeoutSeconds": 60}}),
        ),
        "internal-traffic-policy": at("spec", "internalTrafficPolicy", to="Local"),
        "traffic-distribution": at("spec", "trafficDistribution", to="PreferClose"),
        "not-ready-addresses-too": at("spec", "publishNotReadyAddresses", to=True),
        "ip-family-policy": at("spec", "ipFamilyPolicy", to="PreferDualStack"),
        "proxied-by-another": at(META, "labels", "service.kubernetes.io/service-proxy-name", to="theirs"),
        "topology-mode": at(META, "annotations", "service.kubernetes.io/topology-mode", to="Auto"),
    },
    "EndpointSlice": {
        "all-removed": at("endpoints", to=[]),
        "address-changed": at("endpoints", 0, "addresses", 0, to="192.0.2.7"),
        "endpoint-added": adding("endpoints", item={"addresses": ["192.0.2.7"]}),
        "target-removed": without("endpoints", 0, "targetRef"),
        "target-is-another": at("endpoints", 0, "targetRef", "uid", to=SOMEBODY["uid"]),
        "node-added": at("endpoints", 0, "nodeName", to="theirs"),
        "zone-hint-added": at("endpoints", 0, "hints", to={"forZones": [{"name": "theirs"}]}),
        "not-ready": at("endpoints", 0, "conditions", "ready", to=False),
        "terminating": at("endpoints", 0, "conditions", "terminating", to=True),
        "port-changed": at("ports", 0, "port", to=1),
        "port-renamed": at("ports", 0, "name", to="theirs"),
        "port-added": adding("ports", item={"name": "ssh", "port": 22, "protocol": "TCP"}),
        "ports-removed": without("ports"),
        "app-protocol-added": at("ports", 0, "appProtocol", to="http"),
        "of-another-service": at(META, "labels", "kubernetes.io/service-name", to="theirs"),
        "of-another-controller": at(
            META, "labels", "endpointslice.kubernetes.io/managed-by", to="endpointslice-controller.k8s.io"
        ),
        "headless": at(META, "labels", "service.kubernetes.io/headless", to=""),
        "proxied-by-another": at(META, "labels", "service.kubernetes.io/service-proxy-name", to="theirs"),
    },
    "Role": {
        "all-removed": without("rules"),
        "rule-removed": without("rules", 0),
        "rule-added": adding("rules", item={"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
        "verb-added": adding("rules", 0, "verbs", item="delete"),
        "verb-removed": without("rules", 0, "verbs", 0),
        "all-verbs": at("rules", 0, "verbs", to=["*"]),
        "name-added": adding("rules", 0, "resourceNames", item="another"),
        "names-removed": without("rules", 0, "resourceNames"),
        "group-added": adding("rules", 0, "apiGroups", item=""),
        "resource-added": adding("rules", 0, "resources", item="secrets"),
        "order-changed": lambda obj: obj["rules"].reverse(),
    },
    "RoleBinding": {
        "all-removed": without("subjects"),
        "account-added": adding("subjects", item={"kind": "ServiceAccount", "name": "theirs", "namespace": "default"}),
        "account-elsewhere": at("subjects", 0, "namespace", to="default"),
        "account-renamed": at("subjects", 0, "name", to="theirs"),
        "everybody-added": adding(
            "subjects",
            item={"kind": "Group", "name": "system:authenticated", "apiGroup": "rbac.authorization.k8s.io"},
        ),
        "user-instead": at(
            "subjects", to=[{"kind": "User", "name": "mallory", "apiGroup": "rbac.authorization.k8s.io"}]
        ),
    },
}

POD = ("spec", "template", "spec")
ON_CONTENT["StatefulSet"] = {
    "image-changed": at(*POD, "containers", 0, "image", to="evil:1"),
    "command-changed": at(*POD, "containers", 0, "command", to=["sh"]),
    "variable-added": at(*POD, "containers", 0, "env", to=[{"name": "LD_PRELOAD", "value": "/tmp/evil.so"}]),
    "container-added": adding(*POD, "containers", item={"name": "evil", "image": "evil:1"}),
    "init-container-changed": at(*POD, "initContainers", 0, "image", to="evil:1"),
    "argument-added": adding(*POD, "initContainers", 0, "args", item="--members=5"),
    "probe-removed": without(*POD, "containers", 0, "readinessProbe"),
    "probe-changed": at(*POD, "containers", 0, "readinessProbe", "httpGet", "path", to="/"),
    "memory-changed": at(*POD, "containers", 0, "resources", "limits", "memory", to="1Ti"),
    "privileged": at(*POD, "containers", 0, "securityContext", to={"privileged": True}),
    "root": at(*POD, "securityContext", to={}),
    "host-network": at(*POD, "hostNetwork", to=True),
    "account": at(*POD, "serviceAccountName", to="theirs"),
    "account-mounted": at(*POD, "automountServiceAccountToken", to=True),
    "volume-added": adding(*POD, "volumes", item={"name": "host", "hostPath": {"path": "/"}}),
    "grace-changed": at(*POD, "terminationGracePeriodSeconds", to=0),
    "training-pod": at("spec", "template", META, "labels", LABEL, to="tank"),
    "replicas-changed": at("spec", "replicas", to=5),
    "strategy-changed": at("spec", "updateStrategy", to={"type": "OnDelete"}),
    "volumes-stay": at("spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted", to="Retain"),
}
ON_CONTENT["PodDisruptionBudget"] = {
    "none-may-go": at("spec", "maxUnavailable", to=0),
    "all-may-go": at("spec", "maxUnavailable", to=3),
    "of-other-pods": at("spec", "selector", "matchLabels", to={"app": "theirs"}),
    "least-instead": all_of(without("spec", "maxUnavailable"), at("spec", "minAvailable", to=1)),
    "evicts-what-is-not-healthy": at("spec", "unhealthyPodEvictionPolicy", to="AlwaysAllow"),
}
ON_CONTENT["NetworkPolicy"] = {
    "everybody-let-in": adding("spec", "ingress", item={}),
    "nobody-let-in": without("spec", "ingress"),
    "a-peer-added": adding("spec", "ingress", 0, "from", item={"podSelector": {}}),
    "a-port-added": adding("spec", "ingress", 1, "ports", item={"port": 22, "protocol": "TCP"}),
    "of-other-pods": at("spec", "podSelector", "matchLabels", to={"app": "theirs"}),
    "nobody-let-out": at("spec", "policyTypes", to=["Ingress", "Egress"]),
}

#: Done by deleting a child and making another one in its place, with its marks. None: it stays away.
RECREATED: dict[str, dict[str, Change | None]] = {
    "ConfigMap": {
        "deleted": None,
        "made-again-with-our-marks": at("data", to={"LD_PRELOAD": "/tmp/evil.so"}),
        "made-again-without-owner": all_of(
            without(META, "ownerReferences"), at("data", "PET_RDZV_ID", to="of-a-backup")
        ),
        "made-again-for-a-namesake": at(META, "ownerReferences", 0, "uid", to=SOMEBODY["uid"]),
    },
    "Service": {
        "deleted": None,
        "made-again-headless": at("spec", "clusterIP", to="None"),
        "made-again-without-owner": without(META, "ownerReferences"),
        "made-again-for-a-namesake": at(META, "ownerReferences", 0, "uid", to=SOMEBODY["uid"]),
    },
    "EndpointSlice": {
        "deleted": None,
        "made-again-for-another-family": all_of(
            at("addressType", to="IPv6"), at("endpoints", 0, "addresses", to=["fd00::7"])
        ),
        "made-again-without-owner": without(META, "ownerReferences"),
        "made-again-for-a-namesake": at(META, "ownerReferences", 0, "uid", to=SOMEBODY["uid"]),
    },
    "Role": {
        "deleted": None,
        "made-again-without-owner": without(META, "ownerReferences"),
        "made-again-for-a-namesake": at(META, "ownerReferences", 0, "uid", to=SOMEBODY["uid"]),
    },
    "RoleBinding": {
        "deleted": None,
        "made-again-with-another-role": at("roleRef", "name", to="theirs"),
        "made-again-with-a-cluster-role": at("roleRef", "kind", to="ClusterRole"),
        "made-again-for-a-namesake": at(META, "ownerReferences", 0, "uid", to=SOMEBODY["uid"]),
    },
}

RECREATED["StatefulSet"] = {
    "deleted": None,
    "made-again-of-another-service": at("spec", "serviceName", to="theirs"),
    "made-again-for-other-pods": all_of(
        at("spec", "selector", "matchLabels", "app", to="theirs"),
        at("spec", "template", META, "labels", "app", to="theirs"),
    ),
    "made-again-one-after-the-other": at("spec", "podManagementPolicy", to="OrderedReady"),
    "made-again-with-larger-volumes": at(
        "spec", "volumeClaimTemplates", 0, "spec", "resources", "requests", "storage", to="9Ti"
    ),
    "made-again-without-owner": without(META, "ownerReferences"),
    "made-again-for-a-namesake": at(META, "ownerReferences", 0, "uid", to=SOMEBODY["uid"]),
}
RECREATED["PodDisruptionBudget"] = {
    "deleted": None,
    "made-again-without-owner": without(META, "ownerReferences"),
    "made-again-for-a-namesake": at(META, "ownerReferences", 0, "uid", to=SOMEBODY["uid"]),
}
RECREATED["NetworkPolicy"] = RECREATED["PodDisruptionBudget"]

CHANGES = [
    (kind, name, change)
    for kind in HOLDER
    for name, change in {
        **{f"metadata-{name}": change for name, change in ON_METADATA.items()},
        **ON_CONTENT[kind],
    }.items()
]
REMADE = [(kind, name, change) for kind, changes in RECREATED.items() for name, change in changes.items()]


def test_the_table_is_as_long_as_the_list_of_what_was_tried() -> None:
    assert len(CHANGES) + len(REMADE) >= 61


@pytest.mark.parametrize(("kind", "change"), [row[::2] for row in CHANGES], ids=["-".join(row[:2]) for row in CHANGES])
def test_what_others_changed_is_put_right(place: Place, kind: str, change: Change) -> None:
    eventually(lambda: place.is_right(kind))

    def tampered() -> Object | None:
        obj = place.child(kind)
        assert obj is not None
        change(obj)
        try:
            return place.kube.replace(obj)
        except ApiException as error:
            if error.status == 409:  # The operator was still busy with it.
                return None
            raise

    assert essence(eventually(tampered)) != place.wanted[kind], "the API server did not take this change"
    eventually(lambda: place.is_right(kind))


@pytest.mark.parametrize(("kind", "change"), [row[::2] for row in REMADE], ids=["-".join(row[:2]) for row in REMADE])
def test_what_others_made_with_our_marks_is_put_right(place: Place, kind: str, change: Change | None) -> None:
    eventually(lambda: place.is_right(kind))
    before = place.child(kind)
    assert before is not None
    made = essence(before)
    if change is not None:
        change(made)

    def remade() -> bool:
        """Somebody who is faster than the operator."""
        place.kube.delete(kind, place.namespace, before["metadata"]["name"])
        return change is None or place.creates(made)

    eventually(remade)
    eventually(lambda: place.is_right(kind))
    after = place.child(kind)
    assert after is not None
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


@pytest.mark.parametrize("kind", HOLDER)
def test_a_finalizer_of_somebody_else_does_not_keep_a_child_that_was_deleted(place: Place, kind: str) -> None:
    eventually(lambda: place.is_right(kind))
    before = place.child(kind)
    assert before is not None
    name = before["metadata"]["name"]
    # In one go, or the operator takes the finalizer off first.
    place.kube.delete(kind, place.namespace, name)

    def stuck() -> bool:
        made = essence(before)
        made["metadata"]["finalizers"] = [FINALIZER]
        created = place.creates(made)
        place.kube.delete(kind, place.namespace, name)
        return created

    eventually(stuck)
    eventually(lambda: place.is_right(kind))


@pytest.mark.parametrize("kind", HOLDER)
def test_foreign_labels_and_annotations_stay(place: Place, kind: str) -> None:
    eventually(lambda: place.is_right(kind))
    name = f"rdzv-{HOLDER[kind]}"
    theirs = {"labels": {"team": "vision"}, "annotations": {"example.com/note": "ours too"}}
    place.kube.patch(kind, place.namespace, name, {"metadata": theirs})
    place.kube.patch(kind, place.namespace, name, {"metadata": {"finalizers": [FINALIZER]}})
    found = eventually(lambda: obj if "finalizers" not in (obj := place.child(kind) or {})["metadata"] else None)
    assert found["metadata"]["labels"]["team"] == "vision"
    assert found["metadata"]["annotations"]["example.com/note"] == "ours too"
    nothing = {"labels": {"team": None}, "annotations": {"example.com/note": None}}
    place.kube.patch(kind, place.namespace, name, {"metadata": nothing})
    eventually(lambda: place.is_right(kind))


FOREIGN: dict[str, Object] = {
    "ConfigMap": {"apiVersion": "v1", "data": {"a": "b"}},
    "Service": {"apiVersion": "v1", "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]}},
    "EndpointSlice": {
        "apiVersion": "discovery.k8s.io/v1",
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.7"]}],
    },
    "Role": {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
    },
    "RoleBinding": {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "theirs"},
        "subjects": [{"kind": "ServiceAccount", "name": "theirs", "namespace": "default"}],
    },
}
FOREIGN["StatefulSet"] = {
    "apiVersion": "apps/v1",
    "spec": {
        "serviceName": "theirs",
        "selector": {"matchLabels": {"app": "theirs"}},
        "template": {
            "metadata": {"labels": {"app": "theirs"}},
            "spec": {"containers": [{"name": "c", "image": "theirs"}]},
        },
    },
}
FOREIGN["PodDisruptionBudget"] = {
    "apiVersion": "policy/v1",
    "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "theirs"}}},
}
FOREIGN["NetworkPolicy"] = {
    "apiVersion": "networking.k8s.io/v1",
    "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
}
#: Of which backend a child of this kind is, and what follows `rdzv-NAME` in its name.
OF = {
    **dict.fromkeys(("Service", "EndpointSlice"), ("c10d", "")),
    **dict.fromkeys(("StatefulSet", "PodDisruptionBudget"), ("etcd-v3", "-etcd")),
    "NetworkPolicy": ("etcd-v3", ""),
}
#: Marks that somebody's own object may have by chance, or as copied from ours in part.
NOT_ENOUGH: dict[str, Object] = {
    "plain": {},
    "labelled": {"labels": {MANAGED_BY_LABEL: "rendezvous-operator", LABEL: "NAME"}},
    "annotated": {"annotations": {APPLIED_ANNOTATION: "0.1.0 0123456789abcdef"}},
    "of-another": {
        "labels": {MANAGED_BY_LABEL: "rendezvous-operator", LABEL: "mnist"},
        "annotations": {APPLIED_ANNOTATION: "0.1.0 0123456789abcdef"},
    },
}


@pytest.mark.parametrize("marks", NOT_ENOUGH)
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_somebody_else_made_is_refused_by_name_and_left_alone_until_it_goes(
    place: Place, kind: str, marks: str
) -> None:
    kube, namespace, name = place.kube, place.namespace, f"{kind.lower()}-{marks}"
    metadata = copy.deepcopy(NOT_ENOUGH[marks])
    if metadata.get("labels", {}).get(LABEL) == "NAME":
        metadata["labels"][LABEL] = name
    backend, suffix = OF.get(kind, ("kubernetes", ""))
    child = f"rdzv-{name}{suffix}"
    metadata |= {"name": child, "namespace": namespace}
    made = kube.create({"kind": kind, "metadata": metadata, **FOREIGN[kind]})
    kube.create(rendezvous(namespace, name, backend))
    kube.create(pod(namespace, name))

    def refused() -> Object | None:
        """At once; for an EndpointSlice when there is a pod to lead to."""
        return found if (found := condition(kube, namespace, name)).get("reason") == "NameTaken" else None

    found = eventually(refused)
    assert found["status"] == "False"
    assert (
        f"{kind} {child} exists and does not belong to this Rendezvous: delete it (kubectl delete" in found["message"]
    )
    assert essence(kube.get(kind, namespace, child) or {}) == essence(made)
    if kind not in {"ConfigMap", "EndpointSlice"}:
        assert kube.get("ConfigMap", namespace, f"rdzv-{name}") is None, "it would release the pods"

    kube.delete(kind, namespace, child)
    eventually(partial(is_provisioned, kube, namespace, name), timeout=10)
    assert kube.get("ConfigMap" if backend != "etcd-v3" else kind, namespace, child) is not None
    kube.delete("Rendezvous", namespace, name)


def test_an_older_operator_takes_over_once_and_then_gives_way_to_a_newer_one_that_is_alive(
    place: Place,
) -> None:
    kube, namespace, name = place.kube, place.namespace, "versions"
    obj = rendezvous(namespace, name, "c10d")
    obj["spec"]["endpoint"] = "store:29400"
    kube.create(obj)
    eventually(partial(is_provisioned, kube, namespace, name))
    ours = kube.get("ConfigMap", namespace, f"rdzv-{name}")
    assert ours is not None
    of_the_newer = {
        "metadata": {"annotations": {APPLIED_ANNOTATION: "99.0.0 0123456789abcdef"}},
        "data": {"PET_OF_THE_NEWER": "1"},
    }

    def is_newers() -> bool:
        found = kube.get("ConfigMap", namespace, f"rdzv-{name}")
        return found is not None and "PET_OF_THE_NEWER" in found["data"]

    # As after a rollback: the newer operator wrote it, and is gone.
    kube.patch("ConfigMap", namespace, f"rdzv-{name}", of_the_newer)
    eventually(lambda: not is_newers())
    # As with two that run side by side: the newer one writes it again.
    kube.patch("ConfigMap", namespace, f"rdzv-{name}", of_the_newer)

    def told() -> list[Object]:
        events = kube.list("Event", namespace)
        return [e for e in events if e["involvedObject"]["name"] == name and e["reason"] == "NewerOperator"]

    (event,) = eventually(told)
    assert "operator 99.0.0 serves this Rendezvous too" in event["message"]
    kube.patch("Rendezvous", namespace, name, {"spec": {"maxRestarts": 3}})
    generation = (kube.get("Rendezvous", namespace, name) or {})["metadata"]["generation"]
    probe = f"{name}-probe"
    kube.create(rendezvous(namespace, probe, "c10d"))
    eventually(partial(is_provisioned, kube, namespace, probe))
    assert is_newers()
    assert condition(kube, namespace, name)["observedGeneration"] < generation, "its status is the newer one's to write"
