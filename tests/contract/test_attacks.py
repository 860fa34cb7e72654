"""What somebody would try who has stolen the operator's, a trainer's or the webhook's token: all is refused, and audited."""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from support.accounts import Account, account, policies, rights, webhook_configuration
from support.cluster_fixtures import LocalCluster
from support.operator_process import eventually
from support.torchrun_fleet import install_crds

from rdzv.backends.kubernetes import role_rules
from rdzv.control.certificates import Authority
from rdzv.registry import backend_registry
from rdzv.spec import Rendezvous, settings_key

Object = dict[str, Any]
RBAC = "rbac.authorization.k8s.io/v1"
OWNER = {
    "apiVersion": "rdzv.dev/v1alpha1",
    "kind": "Rendezvous",
    "name": "mnist",
    "uid": "0d7e1a6c-1111-4222-8333-444455556666",
    "controller": True,
}


@dataclass(frozen=True)
class Attack:
    """What is tried with whose token. `obj`: what kubectl is given; `elsewhere`: in kube-system."""

    by: str
    words: tuple[str, ...]
    obj: Object | None = None
    elsewhere: bool = False


def made(kind: str, name: str = "rdzv-mnist", *, api_version: str = "v1", owned: bool = True, **rest: Any) -> Object:
    metadata = {"name": name, **({"ownerReferences": [OWNER]} if owned else {}), **rest.pop("metadata", {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def role(name: str = "rdzv-mnist", **rule: Any) -> Object:
    return made("Role", name, api_version=RBAC, rules=[{"apiGroups": [""], "verbs": ["get"], **rule}])


def binding(ref: tuple[str, str], *subjects: Object) -> Object:
    ref_ = {"apiGroup": "rbac.authorization.k8s.io", "kind": ref[0], "name": ref[1]}
    return made("RoleBinding", api_version=RBAC, roleRef=ref_, subjects=[*subjects])


def endpoints(of: str, target: Object | None, **rest: Any) -> Object:
    endpoint = {"addresses": ["10.1.2.3"], **({"targetRef": target} if target else {})}
    labels = {"kubernetes.io/service-name": of}
    api_version = "discovery.k8s.io/v1"
    return made(
        "EndpointSlice",
        api_version=api_version,
        metadata={"labels": labels},
        addressType="IPv4",
        endpoints=[endpoint],
        ports=[{"name": "x", "port": 1}],
        **rest,
    )


def service(**spec: Any) -> Object:
    return made("Service", spec={"ports": [{"port": 443}], **spec})


def stateful_set(backend: str, settings: Object) -> Object:
    """As the operator makes it."""
    subject = Rendezvous.from_object(
        {
            "metadata": {"name": "mnist", "namespace": "NAMESPACE", "uid": "u"},
            "spec": {"backend": backend, "nodes": {"min": 2}, settings_key(backend): settings},
        }
    )
    (made,) = (obj for obj in backend_registry().provision(subject).objects if obj["kind"] == "StatefulSet")
    found: Object = copy.deepcopy(dict(made))
    found["metadata"]["ownerReferences"] = [OWNER]
    return found


def etcd(pod: Object | None = None, container: Object | None = None, **template: Any) -> Object:
    """A StatefulSet as the operator makes it, changed."""
    found = stateful_set("etcd-v3", {"replicas": 3})
    spec = found["spec"]["template"]["spec"]
    spec |= pod or {}
    spec["containers"][0] |= container or {}
    found["spec"]["template"]["metadata"]["labels"] |= template.get("labels", {})
    return found


def secret(name: str, type_: str = "kubernetes.io/tls", **metadata: Any) -> Object:
    tls = {"tls.crt": "", "tls.key": ""} if type_ == "kubernetes.io/tls" else {}
    return {**made("Secret", name, metadata=metadata), "type": type_, "data": tls}


def runs(**changes: Any) -> Attack:
    return Attack("operator", ("create",), etcd(**changes))


def mounts(**volume: Any) -> Attack:
    return runs(pod={"volumes": [{"name": "v", **volume}, *etcd()["spec"]["template"]["spec"]["volumes"]]})


SOMEBODY = {"kind": "ServiceAccount", "name": "trainer", "namespace": "default"}
EVERYBODY = {"kind": "Group", "name": "system:authenticated", "apiGroup": "rbac.authorization.k8s.io"}
CONFIGURATION = "mutatingwebhookconfigurations"
PODS = "/api/v1/namespaces/NAMESPACE/pods"
POD = made("Pod", "evil", owned=False, spec={"containers": [{"name": "c", "image": "registry.invalid/evil"}]})
ESCAPE = {"labels": {"rdzv.dev/rendezvous": "mnist"}}
EVIL = {
    "name": "evil.example.com",
    "clientConfig": {"url": "https://evil.example.com"},
    "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "operations": ["*"]}],
    "sideEffects": "None",
    "admissionReviewVersions": ["v1"],
}
CERTIFICATE = Authority(b"k" * 32).webhook("webhook.team.svc", 1_795_600_000.0).bundle

RDZV = {"rdzv.dev/rendezvous": "mnist"}


def network_policy(selector: Object, name: str = "rdzv-mnist", **spec: Any) -> Object:
    spec = {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": [{}], **spec}
    return made("NetworkPolicy", name, api_version="networking.k8s.io/v1", spec=spec)


def isolates(selector: Object, **more: Any) -> Attack:
    return Attack("operator", ("create",), network_policy(selector, **more))


ATTACKS = {
    # A pod's image is any code with any account.
    "changes-a-pod": Attack("operator", ("replace", "--raw", f"{PODS}/victim"), POD),
    "puts-a-container-into-a-pod": Attack("operator", ("replace", "--raw", f"{PODS}/victim/ephemeralcontainers"), POD),
    "makes-a-pod": Attack("operator", ("create",), POD),
    "deletes-a-pod": Attack("operator", ("delete", "--raw", f"{PODS}/victim")),
    "enters-a-pod": Attack("operator", ("create", "--raw", f"{PODS}/victim/exec?command=sh"), {}),
    "reads-secrets": Attack("operator", ("get", "secrets")),
    "reads-secrets-of-the-cluster": Attack("operator", ("get", "secrets", "-A")),
    "makes-a-token": Attack("operator", ("create", "token", "default")),
    "acts-as-the-administrator": Attack("operator", ("get", "pods", "--as=admin", "--as-group=system:masters")),
    "changes-a-namespace": Attack("operator", ("label", "namespace", "kube-system", "a=b")),
    "removes-its-own-policy": Attack("operator", ("delete", "validatingadmissionpolicies", "ROLE-operator")),
    "makes-a-webhook": Attack(
        "operator",
        ("create",),
        made("MutatingWebhookConfiguration", api_version="admissionregistration.k8s.io/v1", owned=False, webhooks=[]),
    ),
    # Who says which objects go to a webhook, and to which one, changes every object of the cluster.
    **{
        f"has-its-webhook-{what}": Attack("operator", ("patch", CONFIGURATION, "ROLE", "--type=json", f"-p=[{patch}]"))
        for what, patch in {
            "asked-about-secrets": '{"op":"replace","path":"/webhooks/0/rules/0/resources","value":["secrets"]}',
            "asked-about-every-pod": '{"op":"remove","path":"/webhooks/0/objectSelector"}',
            "asked-in-kube-system": '{"op":"remove","path":"/webhooks/0/namespaceSelector"}',
            "asked-whatever-a-pod-says": '{"op":"remove","path":"/webhooks/0/matchConditions"}',
            "answered-by-another-service": '{"op":"replace","path":"/webhooks/0/clientConfig/service/name","value":"evil"}',
            "fail-without-a-sound": '{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Ignore"}',
            "joined-by-another": json.dumps({"op": "add", "path": "/webhooks/-", "value": EVIL}),
            "removed": '{"op":"remove","path":"/webhooks"}',
            "left-alone-by-its-operator": '{"op":"remove","path":"/metadata/annotations"}',
        }.items()
    },
    "deletes-its-webhook": Attack("operator", ("delete", CONFIGURATION, "ROLE")),
    "reads-all-webhooks": Attack("operator", ("get", CONFIGURATION)),
    "makes-a-secret-of-the-webhooks-name-elsewhere": Attack(
        "operator", ("create",), secret("ROLE-webhook-tls"), elsewhere=True
    ),
    "makes-a-token-by-the-webhooks-secret": Attack(
        "operator",
        ("create",),
        secret(
            "ROLE-webhook-tls",
            "kubernetes.io/service-account-token",
            annotations={"kubernetes.io/service-account.name": "trainer"},
        ),
    ),
    "changes-a-crd": Attack("operator", ("delete", "crd", "rendezvous.rdzv.dev")),
    "changes-a-rendezvous": Attack("operator", ("delete", "rdzv", "mnist")),
    "changes-a-config-map-of-somebody": Attack(
        "operator", ("patch", "configmap", "theirs", "--type=merge", '-p={"data":{"a":"evil"}}')
    ),
    "deletes-a-config-map-of-somebody": Attack("operator", ("delete", "configmap", "theirs")),
    "takes-a-config-map-by-its-name": Attack(
        "operator", ("patch", "configmap", "rdzv-theirs", "--type=merge", '-p={"data":{"a":"evil"}}')
    ),
    "deletes-a-config-map-by-its-name": Attack("operator", ("delete", "configmap", "rdzv-theirs")),
    "takes-a-config-map-by-an-owner": Attack(
        "operator",
        ("replace",),
        made("ConfigMap", "rdzv-theirs", metadata={"ownerReferences": [{**OWNER, "name": "theirs"}]}),
    ),
    "makes-a-config-map-of-another-name": Attack("operator", ("create",), made("ConfigMap", "evil")),
    "makes-a-config-map-without-owner": Attack("operator", ("create",), made("ConfigMap", owned=False)),
    "makes-a-config-map-of-another-rendezvous": Attack("operator", ("create",), made("ConfigMap", "rdzv-other")),
    "makes-a-config-map-in-kube-system": Attack("operator", ("create",), made("ConfigMap"), elsewhere=True),
    "grants-itself-secrets": Attack("operator", ("create",), role(resources=["secrets"])),
    "grants-what-it-has-itself": Attack("operator", ("create",), role(resources=["configmaps"])),
    "grants-pods-in-kube-system": Attack("operator", ("create",), role(resources=["pods"]), elsewhere=True),
    "binds-cluster-admin": Attack("operator", ("create",), binding(("ClusterRole", "cluster-admin"), EVERYBODY)),
    "binds-its-own-role-to-everybody": Attack("operator", ("create",), binding(("Role", "rdzv-mnist"), EVERYBODY)),
    "binds-its-own-role-elsewhere": Attack("operator", ("create",), binding(("Role", "rdzv-mnist"), SOMEBODY)),
    "binds-the-cluster-role-that-it-has": Attack("operator", ("create",), binding(("ClusterRole", "ROLE"), SOMEBODY)),
    "leads-a-service-of-somebody-elsewhere": Attack(
        "operator", ("create",), endpoints("theirs", {"kind": "Pod", "name": "victim", "namespace": "NAMESPACE"})
    ),
    "leads-its-service-out-of-the-cluster": Attack("operator", ("create",), endpoints("rdzv-mnist", None)),
    "leads-its-service-to-another-namespace": Attack(
        "operator", ("create",), endpoints("rdzv-mnist", {"kind": "Pod", "name": "x", "namespace": "kube-system"})
    ),
    "catches-an-address": Attack("operator", ("create",), service(externalIPs=["192.0.2.7"])),
    "leads-to-a-name": Attack("operator", ("create",), service(type="ExternalName", externalName="evil.example.com")),
    # A StatefulSet is pods.
    "runs-pods-as-somebody": runs(pod={"serviceAccountName": "trainer"}),
    "runs-pods-with-a-token": runs(pod={"automountServiceAccountToken": True}),
    "runs-pods-on-the-hosts-network": runs(pod={"hostNetwork": True}),
    "runs-pods-among-the-hosts-processes": runs(pod={"hostPID": True}),
    "runs-pods-on-a-chosen-node": runs(pod={"nodeName": "control-plane"}),
    "runs-pods-before-all-others": runs(pod={"priorityClassName": "system-node-critical"}),
    "runs-pods-as-root": runs(pod={"securityContext": {"runAsUser": 0}}),
    "runs-a-container-as-root": runs(container={"securityContext": {"runAsUser": 0}}),
    "runs-a-privileged-container": runs(container={"securityContext": {"privileged": True}}),
    "runs-a-container-with-a-hosts-port": runs(container={"ports": [{"containerPort": 80, "hostPort": 80}]}),
    "runs-a-container-with-a-secret-in-its-environment": runs(
        container={"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "theirs", "key": "a"}}}]}
    ),
    "runs-a-container-with-all-of-a-secret": runs(container={"envFrom": [{"secretRef": {"name": "theirs"}}]}),
    "runs-a-training-pod": runs(labels={"rdzv.dev/rendezvous": "mnist"}),
    "mounts-a-host": mounts(hostPath={"path": "/"}),
    "mounts-a-secret-of-somebody": mounts(secret={"secretName": "theirs"}),
    "mounts-a-token": mounts(projected={"sources": [{"serviceAccountToken": {"path": "token"}}]}),
    "mounts-a-volume-of-somebody": mounts(persistentVolumeClaim={"claimName": "theirs"}),
    "reads-the-secret-that-it-made": Attack("operator", ("get", "secret", "rdzv-mnist-client")),
    "reads-a-secret-of-that-name": Attack("operator", ("get", "secret", "rdzv-theirs-client")),
    "patches-a-secret-to-see-it": Attack(
        "operator", ("patch", "secret", "rdzv-mnist-client", "--type=merge", '-p={"metadata":{"labels":{"a":"b"}}}')
    ),
    "deletes-a-secret": Attack("operator", ("delete", "secret", "rdzv-mnist-client")),
    "makes-a-token-by-a-secret": Attack(
        "operator",
        ("create",),
        secret(
            "rdzv-mnist-server",
            "kubernetes.io/service-account-token",
            annotations={"kubernetes.io/service-account.name": "trainer"},
        ),
    ),
    "makes-a-secret-of-another-name": Attack("operator", ("create",), secret("evil")),
    "makes-a-secret-of-another-rendezvous": Attack("operator", ("create",), secret("rdzv-other-client")),
    "makes-a-secret-that-no-etcd-has": Attack("operator", ("create",), secret("rdzv-mnist-pull")),
    "makes-a-secret-in-kube-system": Attack("operator", ("create",), secret("rdzv-mnist-client"), elsewhere=True),
    "replaces-a-secret-of-somebody": Attack(
        "operator",
        ("replace", "--raw", "/api/v1/namespaces/NAMESPACE/secrets/rdzv-theirs-client"),
        secret("rdzv-theirs-client", ownerReferences=[{**OWNER, "name": "theirs"}]),
    ),
    "makes-an-etcd-of-another-name": Attack(
        "operator", ("create",), {**etcd(), "metadata": {"name": "evil", "ownerReferences": [OWNER]}}
    ),
    "makes-an-etcd-in-kube-system": Attack("operator", ("create",), etcd(), elsewhere=True),
    "keeps-others-from-being-drained": Attack(
        "operator",
        ("create",),
        made("PodDisruptionBudget", "evil", api_version="policy/v1", spec={"maxUnavailable": 0}),
    ),
    "lets-everybody-in-to-others": isolates({"matchLabels": {"app": "theirs"}}),
    "cuts-off-all-pods-of-a-namespace": isolates({}),
    "cuts-off-the-pods-of-another-rendezvous": isolates({"matchLabels": {"rdzv.dev/rendezvous": "other"}}),
    "cuts-off-more-than-its-pods": isolates(
        {"matchLabels": RDZV, "matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}
    ),
    "cuts-pods-off-from-everything": isolates({"matchLabels": RDZV}, policyTypes=["Ingress", "Egress"]),
    "isolates-under-another-name": isolates({"matchLabels": RDZV}, name="evil"),
    "writes-a-round": Attack(
        "operator",
        ("create",),
        made(
            "RendezvousRound",
            "mnist",
            api_version="rdzv.dev/v1alpha1",
            owned=False,
            metadata=ESCAPE,
            spec={"runID": "u", "round": 0, "phase": "Forming", "want": 1, "slots": "", "size": 0, "checks": ""},
        ),
    ),
    "a-trainer-changes-its-environment": Attack(
        "trainer", ("patch", "configmap", "theirs", "--type=merge", '-p={"data":{"a":"evil"}}')
    ),
    "a-trainer-moves-its-endpoint": Attack("trainer", ("create",), endpoints("rdzv-mnist", None)),
    "a-trainer-changes-its-rendezvous": Attack("trainer", ("delete", "rdzv", "mnist")),
    "a-trainer-reads-another-round": Attack("trainer", ("get", "rdzvround", "other")),
    "a-trainer-lists-rounds": Attack("trainer", ("get", "rdzvround")),
    "a-trainer-lists-stores": Attack("trainer", ("get", "rdzvstore")),
    "a-trainer-lists-the-stores-of-another": Attack("trainer", ("get", "rdzvstore", "-l", "rdzv.dev/store=other")),
    "a-trainer-reads-the-store-of-another": Attack("trainer", ("get", "rdzvstore", "other")),
    "a-trainer-takes-the-name-of-anothers-store": Attack(
        "trainer",
        ("create",),
        made(
            "RendezvousStore",
            "other",
            api_version="rdzv.dev/v1alpha1",
            owned=False,
            spec={"epoch": 0, "data": {}, "queues": {}, "writers": {}, "log": []},
        ),
    ),
    "a-trainer-reads-secrets": Attack("trainer", ("get", "secrets")),
    "a-trainer-makes-a-pod": Attack("trainer", ("create",), POD),
    "a-trainer-deletes-members": Attack("trainer", ("delete", "rdzvmember", "victim")),
    "the-webhook-reads-secrets": Attack("webhook", ("get", "secrets")),
    "the-webhook-reads-pods": Attack("webhook", ("get", "pods")),
    "the-webhook-changes-its-configuration": Attack("webhook", ("delete", "mutatingwebhookconfigurations", "ROLE")),
    "the-webhook-makes-a-pod": Attack("webhook", ("create",), POD),
    "the-webhook-writes-a-rendezvous": Attack("webhook", ("delete", "rdzv", "mnist")),
}


@dataclass(frozen=True)
class Scene:
    """A namespace with a victim, and the accounts whose tokens were stolen."""

    cluster: LocalCluster
    namespace: str
    role: str
    accounts: dict[str, Account]


@pytest.fixture(scope="module")
def scene(control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    install_crds(control_plane)
    namespace = f"test-{secrets.token_hex(4)}"
    scratch = tmp_path_factory.mktemp("attacks")
    control_plane.kubectl("create", "namespace", namespace)
    # The account has the chart's name for it, and so the policy finds it; its rights are the chart's.
    release = (f"--namespace={namespace}", "--set=injection.mode=webhook")
    with (
        policies(control_plane, [namespace, "kube-system"], *release) as operator,
        rights(control_plane, operator, *release),
        webhook_configuration(control_plane, operator, "nowhere", *release),
    ):
        rules = role_rules("mnist", with_store=True)
        trainer = {"apiVersion": RBAC, "kind": "Role", "metadata": {"name": "trainer"}, "rules": rules}
        admin = ("-n", namespace)
        control_plane.kubectl(*admin, "create", "-f", "-", input=json.dumps(trainer))
        subject = f"--serviceaccount={namespace}:trainer"
        control_plane.kubectl(*admin, "create", "rolebinding", "trainer", "--role=trainer", subject)
        for name in ("theirs", "rdzv-theirs"):
            control_plane.kubectl(*admin, "create", "configmap", name, "--from-literal=a=b")
        theirs = {**secret("rdzv-theirs-client"), "metadata": {"name": "rdzv-theirs-client"}}
        control_plane.kubectl(*admin, "create", "-f", "-", input=json.dumps(theirs))
        accounts = {
            "operator": account(control_plane, scratch, namespace, operator),
            "trainer": account(control_plane, scratch, namespace, "trainer", pod="victim"),
            "webhook": account(control_plane, scratch, namespace, f"{operator}-webhook"),
        }
        yield Scene(control_plane, namespace, operator, accounts)
    control_plane.kubectl("delete", "namespace", namespace, "--wait=false")


def test_all_is_refused_and_the_audit_log_says_to_whom(scene: Scene) -> None:
    operator = scene.accounts["operator"]
    # The policies are in force when the first attack that RBAC allows is refused; what is the operator's own passes.
    eventually(lambda: "orbidden" in operator.does("create", "--dry-run=server", obj=made("ConfigMap", "evil")))
    for own in (
        made("ConfigMap"),
        service(),
        endpoints("rdzv-mnist", {"kind": "Pod", "name": "victim", "namespace": scene.namespace}),
        made("Role", api_version=RBAC, rules=role_rules("mnist", with_store=True)),
        network_policy({"matchLabels": RDZV}),
        network_policy({"matchLabels": {"rdzv.dev/server": "mnist"}}, name="rdzv-mnist-etcd"),
        etcd(),
        stateful_set("c10d", {"host": "dedicated", "image": "torch:2"}),
        secret("rdzv-mnist-server"),
        secret("rdzv-mnist-client"),
        binding(("Role", "rdzv-mnist"), {"kind": "ServiceAccount", "name": "trainer", "namespace": scene.namespace}),
    ):
        # A Role that is not there can't be bound.
        dry = () if own["kind"] == "Role" or own["metadata"]["name"].endswith("-client") else ("--dry-run=server",)
        assert operator.does("create", *dry, obj=own) == "", own["kind"]
    certificates = secret(f"{scene.role}-webhook-tls", ownerReferences=[])
    assert operator.does("create", "--dry-run=server", obj=certificates) == ""
    trusted = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": CERTIFICATE}]
    patch = ("patch", CONFIGURATION, scene.role, "--type=json", f"-p={json.dumps(trusted)}")
    assert operator.does(*patch) == ""
    succeeded = {name: said for name, attack in ATTACKS.items() if "orbidden" not in (said := attempt(scene, attack))}
    assert succeeded == {}

    events = [json.loads(line) for line in scene.cluster.audit_log.read_text().splitlines()]
    refused = [e["user"].get("username") for e in events if (e.get("responseStatus") or {}).get("code") == 403]
    for by, each in scene.accounts.items():
        attacks = sum(attack.by == by for attack in ATTACKS.values())
        name = {"operator": scene.role, "webhook": f"{scene.role}-webhook"}.get(by, by)
        assert refused.count(f"system:serviceaccount:{each.namespace}:{name}") >= attacks


def attempt(scene: Scene, attack: Attack) -> str:
    """What the API server said."""
    text = json.dumps([attack.words, attack.obj]).replace("NAMESPACE", scene.namespace).replace("ROLE", scene.role)
    words, obj = json.loads(text)
    namespace = "kube-system" if attack.elsewhere else None
    return scene.accounts[attack.by].does(*words, obj=obj, namespace=namespace)


def test_there_are_attacks_enough_with_each_token() -> None:
    assert len(ATTACKS) >= 25
    assert {attack.by for attack in ATTACKS.values()} == {"operator", "trainer", "webhook"}
