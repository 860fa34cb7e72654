"""What the chart grants the operator and the webhook is what they use, verb by verb, as the API server's audit log has it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.accounts import RELEASE, account, policies, rendered, rights, webhook_configuration
from support.cluster_fixtures import LocalCluster
from support.operated import hosts, pod, rendezvous
from support.operator_process import Kube, eventually, running_operator
from support.torchrun_fleet import install_crds
from support.webhook_process import serving

from rdzv.backends.kubernetes import role_rules
from rdzv.registry import backend_registry

Object = dict[str, Any]
#: A verb on a resource of a group.
Right = tuple[str, str, str]

TOPOLOGY = "--set=topology.enabled=true"
WEBHOOK = "--set=injection.mode=webhook"

#: Nobody can grant what they lack: the operator has these for the Roles that it writes, and uses only some of them itself.
PASSED_ON = role_rules("mnist", with_store=True)


def rights_of(rules: Sequence[Object]) -> set[Right]:
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@dataclass(frozen=True)
class Life:
    """What the operator was granted for a life of several Rendezvous, what it used, and what it was refused."""

    granted: set[Right]
    used: set[Right]
    refused: list[str]


@pytest.fixture(scope="module")
def life(control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    install_crds(control_plane)
    scratch, namespace = tmp_path_factory.mktemp("rights"), f"test-{secrets.token_hex(4)}"
    release = (f"--namespace={namespace}", WEBHOOK, TOPOLOGY)
    control_plane.kubectl("create", "namespace", namespace)
    with (
        policies(control_plane, [namespace], *release) as name,
        rights(control_plane, name, *release) as roles,
        webhook_configuration(control_plane, name, "nowhere", *release),
    ):
        operator = account(control_plane, scratch, namespace, name)
        env = {
            "RDZV_LEASE": f"{namespace}/{RELEASE}",
            "RDZV_WEBHOOK_CONFIGURATION": name,
            "RDZV_WEBHOOK_SECRET": f"{namespace}/{name}-webhook-tls",
            "RDZV_WEBHOOK_HOST": f"{name}-webhook.{namespace}.svc",
        }
        with running_operator(operator.cluster.kubeconfig, scratch / "log", namespace, env=env) as process:
            user = f"system:serviceaccount:{namespace}:{name}"
            live(Kube(control_plane.kubeconfig), namespace)
            # It looks around, once, for who nearly uses a Rendezvous that has had no pod for 15 s.
            eventually(lambda: requests(control_plane, user)[0] >= LOOKS_AROUND, timeout=90)
            process.stop()
        used, refused = requests(control_plane, user)
        yield Life({right for role in roles for right in rights_of(role["rules"])}, used, refused)
    control_plane.kubectl("delete", "namespace", namespace, "--wait=false")


LOOKS_AROUND = {("list", "", "events"), ("list", "batch", "jobs"), ("list", "apps", "deployments")}


def requests(cluster: LocalCluster, user: str) -> tuple[set[Right], list[str]]:
    """What a user asked for of resources, and what of that was refused for want of a right."""
    used, refused = set[Right](), list[str]()
    for line in cluster.audit_log.read_text().splitlines():
        if user not in line:
            continue
        event = json.loads(line)
        target = event.get("objectRef")
        if event["user"].get("username") != user or target is None:
            continue
        resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        used.add((event["verb"], target.get("apiGroup", ""), resource))
        if (event.get("responseStatus") or {}).get("code") == 403:
            refused.append(f"{event['verb']} {event['requestURI']}: {event['responseStatus'].get('message')}")
    return used, refused


def live(kube: Kube, namespace: str) -> None:
    """All that an operator meets: each backend, a host that goes, children of a predecessor, names that are taken, tampering."""

    def reason(name: str) -> str:
        status = (kube.get("Rendezvous", namespace, name) or {}).get("status") or {}
        return next((str(c["reason"]) for c in status.get("conditions", []) if c["type"] == "Provisioned"), "")

    def is_there(kind: str, name: str = "mnist") -> bool:
        return kube.get(kind, namespace, f"rdzv-{name}") is not None

    kube.create(pod(namespace, "orphan", 0, labels={"rdzv.dev/rendezvous": "nobody"}))
    for backend in backend_registry().names():
        kube.create(named(rendezvous(namespace, backend), f"with-{backend}"))
        # No pod of an etcd ever runs here.
        expected = "ServerNotReady" if backend.startswith("etcd") else "Provisioned"
        eventually(lambda backend=backend, expected=expected: reason(f"with-{backend}") == expected)  # type: ignore[misc]

    ranked = rendezvous(namespace, "kubernetes", ranks={"topologyKeys": ["rack"]})
    kube.create(named(ranked, "ranked"))
    on_a_node = pod_of("ranked", namespace)
    on_a_node["spec"]["nodeName"] = "nowhere"
    kube.create(on_a_node)

    for obj in (rendezvous(namespace), pod(namespace, "a", 0), pod(namespace, "b", 1)):
        kube.create(obj)
    eventually(lambda: reason("mnist") == "Provisioned" and hosts(kube, namespace) == ["a"])
    kube.delete("Pod", namespace, "a")
    eventually(lambda: hosts(kube, namespace) == ["b"])
    for kind in ("ConfigMap", "Service", "EndpointSlice"):
        tamper(kube, kind, namespace)
    made_anew(kube, rendezvous(namespace, "kubernetes"))
    eventually(lambda: is_there("RoleBinding") and not is_there("Service") and not is_there("EndpointSlice"))
    for kind in ("Role", "RoleBinding"):
        tamper(kube, kind, namespace)
    made_anew(kube, rendezvous(namespace, "c10d"))
    eventually(lambda: is_there("EndpointSlice") and not is_there("RoleBinding") and not is_there("Role"))

    made_anew(kube, rendezvous(namespace, "etcd-v3", etcd={"replicas": 3}, network={"isolate": True}))
    eventually(lambda: is_there("StatefulSet", "mnist-etcd") and is_there("Secret", "mnist-client"))
    for kind in ("StatefulSet", "PodDisruptionBudget", "NetworkPolicy"):
        tamper(kube, kind, namespace, "rdzv-mnist-etcd")
    made_anew(kube, rendezvous(namespace, "etcd-v2"))
    eventually(lambda: reason("mnist") == "ServerNotReady" and not is_there("PodDisruptionBudget", "mnist-etcd"))
    eventually(lambda: not is_there("NetworkPolicy", "mnist-etcd") and not is_there("NetworkPolicy"))
    made_anew(kube, rendezvous(namespace, "c10d", c10d={"host": "dedicated", "image": "torch:2"}))
    eventually(lambda: is_there("StatefulSet", "mnist-c10d") and not is_there("StatefulSet", "mnist-etcd"))
    tamper(kube, "StatefulSet", namespace, "rdzv-mnist-c10d")
    made_anew(kube, rendezvous(namespace, "c10d"))
    eventually(lambda: is_there("EndpointSlice") and not is_there("StatefulSet", "mnist-c10d"))

    for backend, kinds in (
        ("c10d", ["Service", "EndpointSlice"]),
        ("static", ["ConfigMap"]),
        ("kubernetes", ["Role", "RoleBinding"]),
        ("etcd-v3", ["StatefulSet", "PodDisruptionBudget", "NetworkPolicy"]),
    ):
        name, of_etcd = f"taken-{backend}", backend == "etcd-v3"
        child = f"rdzv-{name}{'-etcd' * of_etcd}"
        more: Object = {"etcd": {"replicas": 3}, "network": {"isolate": True}} if of_etcd else {}
        for kind in kinds:
            kube.create(somebodys(kind, namespace, child))
        kube.create(pod_of(name, namespace))
        kube.create(named(rendezvous(namespace, backend, **more), name))
        eventually(lambda name=name: reason(name) == "NameTaken")  # type: ignore[misc]
        for kind in kinds:
            kube.delete(kind, namespace, child)
        eventually(lambda name=name: reason(name) in {"Provisioned", "ServerNotReady"})  # type: ignore[misc]
    kube.delete("Rendezvous", namespace, "mnist")


def pod_of(name: str, namespace: str) -> Object:
    """Injected for this Rendezvous."""
    made = pod(namespace, name, 0, labels={"rdzv.dev/rendezvous": name})
    made["spec"]["containers"][0]["envFrom"] = [{"configMapRef": {"name": f"rdzv-{name}"}}]
    return made


def named(obj: Object, name: str) -> Object:
    return {**obj, "metadata": {**obj["metadata"], "name": name}}


def made_anew(kube: Kube, obj: Object) -> None:
    """With another backend: what the one before had is still there, as no garbage collector runs."""
    kube.delete("Rendezvous", obj["metadata"]["namespace"], obj["metadata"]["name"])
    kube.create(obj)


def tamper(kube: Kube, kind: str, namespace: str, name: str = "rdzv-mnist") -> None:
    """Takes its annotations off a child; they come back."""
    kube.patch(kind, namespace, name, {"metadata": {"annotations": None}})
    eventually(lambda: (kube.get(kind, namespace, name) or {}).get("metadata", {}).get("annotations"))


def somebodys(kind: str, namespace: str, name: str) -> Object:
    api_version = {"EndpointSlice": "discovery.k8s.io/v1", "ConfigMap": "v1", "Service": "v1"}
    api_version |= {"StatefulSet": "apps/v1", "PodDisruptionBudget": "policy/v1"}
    api_version["NetworkPolicy"] = "networking.k8s.io/v1"
    theirs = {"matchLabels": {"app": "theirs"}}
    rest: dict[str, Object] = {
        "Service": {"spec": {"ports": [{"port": 80}]}},
        "EndpointSlice": {"addressType": "IPv4", "endpoints": []},
        "NetworkPolicy": {"spec": {"podSelector": theirs, "policyTypes": ["Ingress"]}},
        "PodDisruptionBudget": {"spec": {"maxUnavailable": 1, "selector": theirs}},
        "StatefulSet": {
            "spec": {
                "serviceName": "theirs",
                "selector": theirs,
                "template": {
                    "metadata": {"labels": {"app": "theirs"}},
                    "spec": {"containers": [{"name": "c", "image": "registry.invalid/x"}]},
                },
            }
        },
        "Role": {"rules": []},
        "RoleBinding": {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}},
    }
    return {
        "apiVersion": api_version.get(kind, "rbac.authorization.k8s.io/v1"),
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        **rest.get(kind, {}),
    }


def test_the_operator_is_refused_nothing_that_it_asks_for(life: Life) -> None:
    assert life.refused == []


def test_the_operator_uses_each_right_but_those_that_it_passes_on(life: Life) -> None:
    """A rule that is missing is a refusal, in the test above; one that nobody uses is found here."""
    assert life.used - life.granted == set()
    assert life.granted - life.used == rights_of(PASSED_ON) - life.used


def test_each_right_that_is_passed_on_is_needed_for_that(control_plane: LocalCluster, light_namespace: str) -> None:
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "rdzv-mnist"}}
    wanted = json.dumps({**role, "rules": PASSED_ON})
    prefix = f"test-{secrets.token_hex(4)}"
    writer = {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]}
    everything = sorted(rights_of(PASSED_ON))
    lacking = {f"{prefix}-{number}": right for number, right in enumerate(everything)}
    made: list[Object] = []
    for name, lacks in {prefix: None, **lacking}.items():
        rules = [{"verbs": [v], "apiGroups": [g], "resources": [r]} for v, g, r in everything if (v, g, r) != lacks]
        made += [
            {**role, "metadata": {"name": name, "namespace": light_namespace}, "rules": [writer, *rules]},
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": name, "namespace": light_namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": [{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}],
            },
        ]
    control_plane.kubectl("create", "-f", "-", input="\n---\n".join(map(json.dumps, made)))

    def grants(user: str) -> str:
        try:
            control_plane.kubectl(
                *("-n", light_namespace, "--as", user, "create", "--dry-run=server", "-f", "-"), input=wanted
            )
        except RuntimeError as error:
            return str(error)
        return ""

    eventually(lambda: grants(prefix) == "")
    for user, (verb, _, resource) in lacking.items():
        said = grants(user)
        assert "attempting to grant RBAC permissions not currently held" in said, (verb, resource, said)
        assert f'"{resource}"' in said
        assert f'"{verb}"' in said


def test_the_webhook_has_no_rights_and_asks_for_nothing(
    control_plane: LocalCluster, light_namespace: str, tmp_path: Path
) -> None:
    bound = [
        subject["name"]
        for obj in rendered(control_plane, WEBHOOK)
        if obj["kind"].endswith("RoleBinding")
        for subject in obj["subjects"]
    ]
    assert RELEASE in bound
    assert f"{RELEASE}-webhook" not in bound

    webhook = account(control_plane, tmp_path, light_namespace, "webhook")
    with serving(webhook.cluster.kubeconfig, tmp_path) as process:
        eventually(process.answers)
    user = f"system:serviceaccount:{light_namespace}:webhook"
    assert user in control_plane.audit_log.read_text(), "kopf asks which resources there are"
    assert requests(control_plane, user) == (set(), [])
