"""The practices that the chart keeps, counted by deploy/practices.py, and that the count can see one that is missing."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import practices, render, values_table


@pytest.fixture(scope="module")
def chart() -> practices.Chart:
    return practices.load()


def changed(chart: practices.Chart, change: Any) -> practices.Chart:
    """The chart with every object that `change` returns None for taken out, and the others as it leaves them."""
    forms = {
        name: [item for item in map(change, copy.deepcopy(objects)) if item] for name, objects in chart.forms.items()
    }
    return practices.Chart(forms, chart.metadata)


@pytest.mark.parametrize("name", practices.PRACTICES)
def test_a_practice_is_kept(chart: practices.Chart, name: str) -> None:
    assert practices.PRACTICES[name](chart)


def test_there_are_22() -> None:
    assert len(practices.PRACTICES) == 22


def without(*kinds: str) -> Any:
    return lambda item: None if item["kind"] in kinds else item


def _pod(item: Any) -> Any:
    return item["spec"] if item["kind"] == "Pod" else item["spec"]["template"]["spec"]


def _one_pod_without_seccomp(item: Any) -> Any:
    if item["kind"] == "Pod":
        del _pod(item)["securityContext"]["seccompProfile"]
    return item


def _a_root_that_can_be_written(item: Any) -> Any:
    if item["kind"] == "Deployment":
        _pod(item)["containers"][0]["securityContext"]["readOnlyRootFilesystem"] = False
    return item


def _no_spread(item: Any) -> Any:
    if item["kind"] == "Deployment":
        _pod(item).pop("topologySpreadConstraints", None)
    return item


def _webhook_without(field: str) -> Any:
    def change(item: Any) -> Any:
        for hook in item.get("webhooks", []):
            hook.pop(field, None)
        return item

    return change


def _crds_that_go_with_the_release(item: Any) -> Any:
    if item["kind"] == "CustomResourceDefinition":
        del item["metadata"]["annotations"]
    return item


def _a_budget_for_other_pods(item: Any) -> Any:
    if item["kind"] == "PodDisruptionBudget":
        item["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] = "other"
    return item


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("helm test", without("Pod")),
        ("CRDs upgradable and kept", _crds_that_go_with_the_release),
        ("PodDisruptionBudget", _a_budget_for_other_pods),
        ("NetworkPolicy", without("NetworkPolicy")),
        ("topology spread", _no_spread),
        ("FlowSchema", without("PriorityLevelConfiguration")),
        ("ServiceMonitor or PodMonitor", without("ServiceMonitor")),
        ("PrometheusRule", without("PrometheusRule")),
        ("Grafana dashboard", without("ConfigMap")),
        ("seccomp", _one_pod_without_seccomp),
        ("read-only root", _a_root_that_can_be_written),
        ("objectSelector", _webhook_without("objectSelector")),
        ("matchConditions", _webhook_without("matchConditions")),
        ("Artifact Hub annotations", without("CustomResourceDefinition")),
        ("aggregated roles", without("ClusterRole")),
        ("reinvocationPolicy option", without("MutatingWebhookConfiguration")),
        ("values for CI", lambda item: item if item["kind"] == "Deployment" else None),
    ],
)
def test_a_missing_practice_is_seen(chart: practices.Chart, name: str, change: Any) -> None:
    assert practices.PRACTICES[name](chart)
    assert not practices.PRACTICES[name](changed(chart, change))


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [item for item in objects if item["kind"] == kind]


def test_a_network_policy_opens_only_ports_that_its_pods_have(chart: practices.Chart) -> None:
    objects = chart.forms["everything-set-values.yaml"]
    policies = of_kind(objects, "NetworkPolicy")
    assert len(policies) == 2
    for policy in policies:
        wanted = policy["spec"]["podSelector"]["matchLabels"].items()
        (deployment,) = (
            item
            for item in of_kind(objects, "Deployment")
            if wanted <= item["spec"]["template"]["metadata"]["labels"].items()
        )
        (container,) = _pod(deployment)["containers"]
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        opened = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
        assert opened == [port["name"] for port in container["ports"]]


def test_no_network_policy_unless_asked_for_and_none_for_a_webhook_that_is_not_there(chart: practices.Chart) -> None:
    assert not of_kind(chart.forms[practices.DEFAULTS], "NetworkPolicy")
    policy = yaml.safe_load_all(render.template("--set", "networkPolicy.enabled=true,injection.mode=policy"))
    names = [item["metadata"]["name"] for item in of_kind([item for item in policy if item], "NetworkPolicy")]
    assert names == ["rendezvous-operator-operator"]


def test_the_helm_test_asks_what_its_account_may_ask(chart: practices.Chart) -> None:
    objects = chart.forms[practices.DEFAULTS]
    (pod,) = of_kind(objects, "Pod")
    (binding,) = (
        b for b in of_kind(objects, "RoleBinding") if b["subjects"][0]["name"] == pod["spec"]["serviceAccountName"]
    )
    (role,) = (r for r in of_kind(objects, "Role") if r["metadata"]["name"] == binding["roleRef"]["name"])
    assert role["rules"] == [{"apiGroups": ["rdzv.dev"], "resources": ["rendezvous"], "verbs": ["list"]}]
    assert pod["spec"]["containers"][0]["command"][:2] == ["rdzv", "status"]
    for item in (pod, binding, role):
        assert item["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_install_yaml_has_no_tests() -> None:
    assert "helm.sh/hook" not in render.INSTALL.read_text()


def test_the_readme_lists_every_value() -> None:
    values, schema = "a: 1\n", '{"properties": {"a": {}}}'
    with pytest.raises(ValueError, match="nothing about a"):
        values_table.table(values, schema)
    text = "# What a is:\n#   x   one thing\n#   y   another\na: x\n# How b is.\nb:\n  c: {}\n"
    schema = '{"properties": {"a": {}, "b": {"properties": {"c": {"type": "object"}}}}}'
    assert values_table.table(text, schema).splitlines()[2:] == [
        '| `a` | `"x"` | What a is: `x`: one thing; `y`: another |',
        "| `b.c` | `{}` | How b is. |",
    ]


def test_the_chart_is_packaged_without_what_only_ci_needs(tmp_path: Path) -> None:
    done = subprocess.run(
        [render.helm(), "package", str(render.CHART), "--destination", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("rendezvous-operator-*.tgz")
    names = subprocess.run(["tar", "-tzf", package], capture_output=True, text=True, check=True).stdout.split()
    files = {name.partition("/")[2] for name in names}
    assert {"Chart.yaml", "values.yaml", "values.schema.json", "README.md", "templates/crds.yaml"} <= files
    assert {f"files/crds/{path.name}" for path in (render.CHART / "files" / "crds").iterdir()} <= files
    assert not any(name.startswith("ci/") for name in files)
    direct = subprocess.run(
        [render.helm(), "template", "r", str(package), "--kube-version", "1.36.0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert direct.returncode == 0, direct.stderr
