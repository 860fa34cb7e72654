"""What the chart renders: least privilege, restricted pods, refused typos, the same bytes every time."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "rendezvous-operator"
POLICY_API = ("--kube-version", "1.36.0", "--api-versions", "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy")
OLDER = ("--kube-version", "1.30.0")

# Every form in which the chart can come; what is true of all of them is asked of all of them.
FORMS = {path.name: ("--values", str(path)) for path in sorted((CHART / "ci").glob("*-values.yaml"))}

Object = dict[str, Any]

#: How those are called that the operator reads.
OWN_SECRETS = ("-root", "-webhook-tls")


def _render_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", ROOT / "deploy" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RENDER = _render_module()


@functools.cache
def _text(*arguments: str, capabilities: tuple[str, ...]) -> str:
    return str(RENDER.template(*arguments, capabilities=capabilities))


def rendered(*arguments: str, capabilities: tuple[str, ...] = POLICY_API) -> list[Object]:
    """The objects that the chart gives."""
    text = _text(*arguments, capabilities=capabilities)
    return [obj for obj in yaml.safe_load_all(text) if obj]


def refusal(*arguments: str, capabilities: tuple[str, ...] = POLICY_API) -> str:
    """What Helm says when it refuses."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        RENDER.template(*arguments, capabilities=capabilities)
    return str(caught.value.stderr)


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [obj for obj in objects if obj["kind"] in kinds]


@pytest.fixture(params=FORMS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return rendered(*FORMS[request.param])


def test_permissions_are_named_one_by_one(objects: list[Object]) -> None:
    for role in of_kind(objects, "Role", "ClusterRole"):
        for rule in role["rules"]:
            words = {word for values in rule.values() for word in values}
            assert not any("*" in word for word in words), role["metadata"]["name"]
            assert not words & {"escalate", "bind", "impersonate", "pods/exec", "serviceaccounts/token"}
            if "secrets" in words:
                # Written everywhere and read nowhere, but for what is the operator's own: the one key that all follows from, and
                # the webhook's certificates.
                names = rule.get("resourceNames", [])
                own = role["kind"] == "Role" and bool(names) and all(name.endswith(OWN_SECRETS) for name in names)
                assert set(rule["verbs"]) <= ({"get", "update"} if own else {"create", "update"}), role["metadata"]
            if "mutatingwebhookconfigurations" in words:
                assert rule["resourceNames"] == [role["metadata"]["name"].removesuffix("-webhook")]
                assert set(rule["verbs"]) <= {"get", "patch"}
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        names = {role["metadata"]["name"] for role in of_kind(objects, binding["roleRef"]["kind"])}
        assert binding["roleRef"]["name"] in names, "bound to a role that is not the chart's own"


@pytest.mark.parametrize(("role", "readers"), [("view", False), ("edit", True), ("admin", True)])
def test_rounds_and_stores_are_shown_to_whom_secrets_are(objects: list[Object], role: str, readers: bool) -> None:
    """A Round holds the key that lets agents in."""
    label = f"rbac.authorization.k8s.io/aggregate-to-{role}"
    aggregated = [item for item in objects if item["metadata"].get("labels", {}).get(label) == "true"]
    readable = {
        resource
        for item in aggregated
        for rule in item["rules"]
        if {"get", "list", "watch"} & set(rule["verbs"])
        for resource in rule["resources"]
    }
    assert {"rendezvous", "rendezvous/status", "rendezvousmembers"} <= readable
    assert ({"rendezvousrounds", "rendezvousstores"} <= readable) == readers
    assert readers or not {"rendezvousrounds", "rendezvousstores", "*"} & readable


def test_the_operator_writes_nothing_else() -> None:
    (role,) = (r for r in of_kind(rendered(), "ClusterRole") if r["metadata"]["name"] == "rendezvous-operator")
    writes: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                verbs = set(rule["verbs"]) - {"get", "list", "watch"}
                writes.setdefault((group, resource), set()).update(verbs)
    child = {"create", "update", "delete"}
    assert writes.keys() >= {("", "configmaps"), ("", "services")}
    most = {
        ("rdzv.dev", "rendezvous"): set(),
        ("rdzv.dev", "rendezvous/status"): {"patch"},
        ("", "pods"): set(),
        ("", "events"): {"create"},
        # Read in the namespace of a Rendezvous that no pod uses.
        ("batch", "jobs"): set(),
        ("apps", "deployments"): set(),
        ("", "configmaps"): child,
        ("", "services"): child,
        ("discovery.k8s.io", "endpointslices"): child,
        # The etcd that it runs, and its certificates.
        ("", "secrets"): {"create", "update"},
        ("apps", "statefulsets"): child,
        ("policy", "poddisruptionbudgets"): child,
        ("networking.k8s.io", "networkpolicies"): child,
        # The kubernetes backend: Roles for its pods, and the verbs in them, which nobody can grant who lacks them.
        ("rbac.authorization.k8s.io", "roles"): child,
        ("rbac.authorization.k8s.io", "rolebindings"): child,
        ("rdzv.dev", "rendezvousrounds"): {"create", "update"},
        ("rdzv.dev", "rendezvousmembers"): {"create", "update"},
        ("rdzv.dev", "rendezvousstores"): {"create", "patch", "delete"},
    }
    assert {key: verbs - most.get(key, set()) for key, verbs in writes.items() if verbs - most.get(key, set())} == {}
    assert writes.keys() <= most.keys()


def test_what_the_operator_may_write_is_confined_by_a_policy() -> None:
    """Each kind that RBAC lets it write, but for Events and the status: those it may write anywhere."""
    objects = rendered()
    (role,) = (r for r in of_kind(objects, "ClusterRole") if r["metadata"]["name"] == "rendezvous-operator")
    (policy,) = (
        p for p in of_kind(objects, "ValidatingAdmissionPolicy") if p["metadata"]["name"].endswith("-operator-operator")
    )
    writable = {
        (group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if set(rule["verbs"]) - {"get", "list", "watch"}
    }
    confined = {
        (group, resource)
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if rule["operations"] == ["CREATE", "UPDATE", "DELETE"]
    }
    assert writable - confined == {("", "events"), ("rdzv.dev", "rendezvous/status")}
    (account,) = (
        condition["expression"]
        for condition in policy["spec"]["matchConditions"]
        if condition["name"] == "by-the-operator"
    )
    assert "'system:serviceaccount:rdzv-system:rendezvous-operator'" in account


def test_the_operator_writes_one_lease_by_name_and_makes_no_other() -> None:
    objects = rendered()
    (deployment,) = (d for d in of_kind(objects, "Deployment") if d["metadata"]["name"] == "rendezvous-operator")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (lease,) = (variable["value"] for variable in container["env"] if variable["name"] == "RDZV_LEASE")
    assert lease == "rdzv-system/rendezvous-operator"
    (role,) = (r for r in of_kind(objects, "Role") if r["metadata"]["name"] == "rendezvous-operator-lease")
    assert [(rule["verbs"], rule.get("resourceNames")) for rule in role["rules"]] == [
        (["create"], None),
        (["get", "update", "delete"], ["rendezvous-operator"]),
    ]
    (policy,) = (
        p for p in of_kind(objects, "ValidatingAdmissionPolicy") if p["metadata"]["name"] == "rendezvous-operator-lease"
    )
    (rule,) = policy["spec"]["validations"]
    assert rule["expression"] == "object.metadata.name == 'rendezvous-operator' && request.namespace == 'rdzv-system'"


def test_releases_of_one_namespace_share_a_lease_unless_they_serve_others() -> None:
    def lease(*arguments: str) -> str:
        objects = rendered("--set", "fullnameOverride=second", *arguments)
        containers = [d["spec"]["template"]["spec"]["containers"][0] for d in of_kind(objects, "Deployment")]
        (found,) = (v["value"] for c in containers for v in c["env"] if v["name"] == "RDZV_LEASE")
        return str(found)

    assert lease() == "rdzv-system/rendezvous-operator"
    assert lease("--set", "watchNamespaces={a}") == "rdzv-system/second"


@pytest.mark.parametrize("namespaces", [(), ("--set", "watchNamespaces={a}")])
def test_nodes_are_read_one_at_a_time_and_only_where_that_is_wanted(namespaces: tuple[str, ...]) -> None:
    def of_nodes(*arguments: str) -> list[Object]:
        roles = of_kind(rendered(*namespaces, *arguments), "Role", "ClusterRole")
        return [rule for role in roles for rule in role["rules"] if "nodes" in rule["resources"]]

    assert of_nodes() == []
    assert of_nodes("--set", "topology.enabled=true") == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]


def test_with_namespaces_named_the_operator_has_the_same_rights_there_and_nowhere_else() -> None:
    everywhere, named = rendered(), rendered(*FORMS["namespaced-values.yaml"])
    (role,) = (r for r in of_kind(everywhere, "ClusterRole") if r["metadata"]["name"] == "rendezvous-operator")
    roles = [r for r in of_kind(named, "Role") if r["metadata"]["name"] == "rendezvous-operator"]
    assert {r["metadata"]["namespace"]: r["rules"] for r in roles} == dict.fromkeys(("team-a", "team-b"), role["rules"])
    bindings = [b for b in of_kind(named, "RoleBinding") if b["metadata"]["name"] == "rendezvous-operator"]
    assert {b["metadata"]["namespace"] for b in bindings} == {"team-a", "team-b"}
    account = [{"kind": "ServiceAccount", "name": "rendezvous-operator", "namespace": "rdzv-system"}]
    assert all(binding["subjects"] == account for binding in bindings)
    assert not [b for b in of_kind(named, "ClusterRoleBinding") if account[0] in b["subjects"]]
    (deployment,) = (d for d in of_kind(named, "Deployment") if d["metadata"]["name"] == "rendezvous-operator")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"--namespace=team-a", "--namespace=team-b"} <= {*container["command"]}
    assert "--all-namespaces" not in container["command"]
    (policy,) = of_kind(named, "MutatingAdmissionPolicy")
    wanted = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a", "team-b"]}
    assert wanted in policy["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"]


@pytest.mark.parametrize(("version", "library"), [("1.30.0", False), ("1.31.0", True)])
def test_addresses_are_checked_by_what_the_cluster_has(version: str, library: bool) -> None:
    policies = of_kind(rendered(capabilities=("--kube-version", version)), "ValidatingAdmissionPolicy")
    expressions = [rule["expression"] for policy in policies for rule in policy["spec"]["validations"]]
    assert any("isIP(" in expression for expression in expressions) == library
    (address,) = (expression for expression in expressions if "variables.address" in expression)
    assert (".matches(" in address) != library


def test_pods_are_restricted(objects: list[Object]) -> None:
    workloads = of_kind(objects, "Deployment", "Job", "DaemonSet", "StatefulSet")
    assert workloads
    pods = [workload["spec"]["template"]["spec"] for workload in workloads]
    for pod in pods + [test["spec"] for test in of_kind(objects, "Pod")]:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context.get("privileged", False) is False
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_selectors_find_their_own_pods_only(objects: list[Object]) -> None:
    deployments = of_kind(objects, "Deployment")
    for deployment in deployments:
        wanted = deployment["spec"]["selector"]["matchLabels"].items()
        found = [d for d in deployments if wanted <= d["spec"]["template"]["metadata"]["labels"].items()]
        assert found == [deployment]


def test_every_object_is_labelled_and_placed(objects: list[Object]) -> None:
    cluster_wide = {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "FlowSchema",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
        "MutatingWebhookConfiguration",
        "PriorityLevelConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    seen = set()
    for obj in objects:
        meta = obj["metadata"]
        assert meta["labels"]["app.kubernetes.io/name"] == "rendezvous-operator", meta["name"]
        assert meta["labels"]["app.kubernetes.io/instance"] == "rendezvous-operator", meta["name"]
        served = obj["kind"] in {"Role", "RoleBinding"} and meta["namespace"] in {"team-a", "team-b"}
        wanted = meta["namespace"] if served else None if obj["kind"] in cluster_wide else "rdzv-system"
        assert meta.get("namespace") == wanted, meta["name"]
        key = (obj["kind"], meta["name"], wanted)
        assert key not in seen
        seen.add(key)


def test_crds_stay_when_the_release_goes() -> None:
    crds = of_kind(rendered(), "CustomResourceDefinition")
    assert {crd["spec"]["names"]["kind"] for crd in crds} >= {"Rendezvous"}
    for crd in crds:
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not of_kind(rendered("--set", "crds.enabled=false"), "CustomResourceDefinition")


@pytest.mark.parametrize(
    ("mode", "capabilities", "kind"),
    [
        ("auto", POLICY_API, "MutatingAdmissionPolicy"),
        ("auto", OLDER, "MutatingWebhookConfiguration"),
        ("policy", OLDER, "MutatingAdmissionPolicy"),
        ("webhook", POLICY_API, "MutatingWebhookConfiguration"),
    ],
)
def test_pods_are_injected_in_one_way(mode: str, capabilities: tuple[str, ...], kind: str) -> None:
    objects = rendered("--set", f"injection.mode={mode}", capabilities=capabilities)
    found = of_kind(objects, "MutatingAdmissionPolicy", "MutatingWebhookConfiguration")
    assert [obj["kind"] for obj in found] == [kind]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("imgae.tag=1", "imgae"),
        ("image.tga=1", "tga"),
        ("image.repository=", "repository"),
        ("image.repository=Upper/Case", "repository"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("library.delivery=copy", "delivery"),
        ("library.image.tag=a b", "tag"),
        ("injection.mode=off", "mode"),
        ("webhook.replicas=0", "replicas"),
        ("webhook.timeoutSeconds=31", "timeoutSeconds"),
        ("webhook.failurePolicy=ignore", "failurePolicy"),
        ("webhook.certificates.mode=none", "mode"),
        ("webhook.certificates.mode=secret", "secretName"),
        ("injection.reinvocationPolicy=Always", "reinvocationPolicy"),
        ("networkPolicy.enabled=yes", "enabled"),
        ("crds.enabled=maybe", "enabled"),
        ("crds.keep=true", "keep"),
        ("logLevel=chatty", "logLevel"),
        ("resources.limit.memory=1Gi", "limit"),
        ("replicas=0", "replicas"),
        ("watchNamespaces={team-*}", "watchNamespaces"),
        ("fullnameOverride=Rdzv", "fullnameOverride"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong: str, named: str) -> None:
    assert named in refusal("--set", wrong)


@pytest.mark.parametrize(
    ("form", "operators"),
    [
        ("webhook-values.yaml", True),
        ("policy-values.yaml", False),
        ("webhook-certmanager-values.yaml", False),
        ("webhook-secret-values.yaml", False),
    ],
)
def test_the_operator_may_certify_the_webhook_only_where_nobody_else_does(form: str, operators: bool) -> None:
    objects = rendered(*FORMS[form])
    may = [r for r in of_kind(objects, "ClusterRole") for rule in r["rules"] if "patch" in rule["verbs"]
           and rule["resources"] == ["mutatingwebhookconfigurations"]]  # fmt: skip
    confined = [p for p in of_kind(objects, "ValidatingAdmissionPolicy") if p["metadata"]["name"].endswith("-webhook")]
    (operator,) = [d for d in of_kind(objects, "Deployment") if not d["metadata"]["name"].endswith("-webhook")]
    env = {v["name"] for v in operator["spec"]["template"]["spec"]["containers"][0]["env"]}
    told = "RDZV_WEBHOOK_CONFIGURATION" in env
    assert [bool(may), bool(confined), told] == [operators] * 3
    for hook in of_kind(objects, "MutatingWebhookConfiguration"):
        assert (hook["metadata"].get("annotations") == {"rdzv.dev/certificates": "operator"}) == operators


def test_the_webhook_mounts_what_the_operator_writes() -> None:
    objects = rendered(*FORMS["webhook-values.yaml"])
    operator, webhook = sorted(of_kind(objects, "Deployment"), key=lambda d: len(d["metadata"]["name"]))
    env = {v["name"]: v.get("value") for v in operator["spec"]["template"]["spec"]["containers"][0]["env"]}
    (volume,) = [v for v in webhook["spec"]["template"]["spec"]["volumes"] if v["name"] == "certificates"]
    assert env["RDZV_WEBHOOK_SECRET"] == f"{webhook['metadata']['namespace']}/{volume['secret']['secretName']}"
    (hook,) = of_kind(objects, "MutatingWebhookConfiguration")
    service = hook["webhooks"][0]["clientConfig"]["service"]
    assert env["RDZV_WEBHOOK_HOST"] == f"{service['name']}.{service['namespace']}.svc"
    assert env["RDZV_WEBHOOK_CONFIGURATION"] == hook["metadata"]["name"]
    assert "caBundle" not in hook["webhooks"][0]["clientConfig"]
    assert not of_kind(objects, "Secret"), "what is rendered differs each time"


def test_older_clusters_are_refused() -> None:
    assert "kubeVersion" in refusal(capabilities=("--kube-version", "1.29.9"))


def test_values_and_schema_have_the_same_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def keys(node: Object, path: str = "") -> set[str]:
        node = schema["definitions"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        found: set[str] = set()
        for name, child in node.get("properties", {}).items():
            found |= {f"{path}{name}"} | keys(child, f"{path}{name}.")
        return found

    def value_keys(node: Any, path: str = "") -> set[str]:
        found: set[str] = set()
        for name, child in node.items() if isinstance(node, dict) else ():
            found |= {f"{path}{name}"} | value_keys(child, f"{path}{name}.")
        return found

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    passed_by_helm = {"global", "enabled"}
    open_ended = {"resources.requests.cpu", "resources.requests.memory", "resources.limits.memory"}
    assert value_keys(values) - open_ended == keys(schema) - passed_by_helm - {"resources.claims"}


def test_images_can_be_named_by_digest() -> None:
    digest = f"sha256:{'0' * 64}"
    (deployment,) = (
        d
        for d in of_kind(rendered("--set", f"image.tag={digest}"), "Deployment")
        if d["metadata"]["name"].endswith("operator")
    )
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == f"rendezvous-operator@{digest}"


@pytest.mark.parametrize("form", FORMS)
def test_rendering_twice_gives_the_same_bytes(form: str) -> None:
    assert RENDER.template(*FORMS[form]) == RENDER.template(*FORMS[form])


def test_helm_lints_it() -> None:
    done = subprocess.run([RENDER.helm(), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_install_yaml_is_what_the_chart_gives() -> None:
    command = [sys.executable, str(ROOT / "deploy" / "render.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_library_is_pure_python_without_dependency(tmp_path: Path) -> None:
    """The library image holds the wheel's files, so what the wheel has is what reaches training pods."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        code = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert {Path(name).suffix for name in code} <= {".py", ".typed"}
        assert {Path(name).parts[0] for name in code} == {"rdzv"}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needs = [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-Dist:")]
        assert all("extra ==" in need for need in needs)
        entry_points = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "[torchrun.handlers]" in entry_points
