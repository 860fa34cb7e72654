#!/usr/bin/env python3
"""Counts what well-kept charts offer: 22 practices, those that were counted over twelve leading charts (the best had 19).

Each is looked for in what the chart renders with each of its ci/*-values.yaml, or in the files that Helm and people read. Prints a
line for each with where it was found, and the count. `--at-least N` fails below N.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deploy import render  # noqa: E402 - this file is run as a script, too

Object = dict[str, Any]
MONITORING = ("--api-versions", "monitoring.coreos.com/v1/ServiceMonitor", "--api-versions", "monitoring.coreos.com/v1")
DEFAULTS = "defaults"
ENOUGH_TESTS = 6  # of a chart's templates: the least among the charts that have any
ENOUGH_FORMS = 5  # of values: below that, modes of this chart stay unrendered


@dataclass(frozen=True)
class Chart:
    """The chart as it is rendered in each form, by the name of its values, and its own files."""

    forms: dict[str, list[Object]]
    metadata: Object

    def of(self, form: str, *kinds: str) -> list[Object]:
        """The form's objects of these kinds."""
        return [item for item in self.forms[form] if item["kind"] in kinds]

    def anywhere(self, *kinds: str) -> list[Object]:
        """Objects of these kinds in all forms."""
        return [item for form in self.forms for item in self.of(form, *kinds)]

    def workloads(self) -> Iterator[tuple[Object, Object]]:
        """Every Deployment and test pod of every form, with its pod's spec."""
        for item in self.anywhere("Deployment"):
            yield item, item["spec"]["template"]["spec"]
        for item in self.anywhere("Pod"):
            yield item, item["spec"]

    def injections(self) -> list[Object]:
        """What decides about pods: each webhook, and each policy's spec."""
        hooks = [hook for item in self.anywhere("MutatingWebhookConfiguration") for hook in item["webhooks"]]
        return hooks + [item["spec"] for item in self.anywhere("MutatingAdmissionPolicy")]

    def file(self, name: str) -> str:
        """A file of the chart; empty when it isn't there."""
        path = render.CHART / name
        return path.read_text() if path.exists() else ""


def load() -> Chart:
    """Renders the chart with its defaults and with every file of values in ci/.

    Raises:
        subprocess.CalledProcessError: Helm refused one.
    """
    arguments = {DEFAULTS: ()} | {
        path.name: ("--values", str(path)) for path in sorted((render.CHART / "ci").glob("*-values.yaml"))
    }
    forms = {
        name: [item for item in yaml.safe_load_all(render.template(*each, *MONITORING)) if item]
        for name, each in arguments.items()
    }
    return Chart(forms, yaml.safe_load((render.CHART / "Chart.yaml").read_text()))


def where(items: list[Object]) -> str:
    """The kinds and names of objects; empty when there are none."""
    return ", ".join(sorted({f"{item['kind']} {item['metadata']['name']}" for item in items})[:4])


def schema(chart: Chart) -> str:
    """A schema that refuses what it does not name."""
    text = chart.file("values.schema.json")
    strict = text and json.loads(text).get("additionalProperties") is False
    return "values.schema.json, strict" if strict else ""


def readme(_: Chart) -> str:
    """A README that is what the values give."""
    return "README.md, by deploy/values_table.py" if render.README.read_text() == render.readme() else ""


def unit_tests(_: Chart) -> str:
    """Tests of what the templates give."""
    path = ROOT / "tests" / "unit" / "test_chart.py"
    renders = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and {"rendered", "refusal", "objects", "template"}
        & {getattr(part, "id", getattr(part, "arg", getattr(part, "attr", ""))) for part in ast.walk(node)}
    ]
    return f"tests/unit/test_chart.py, {len(renders)} tests" if len(renders) >= ENOUGH_TESTS else ""


def ci_values(chart: Chart) -> str:
    """Values for CI, each of which gives something else."""
    given = {name: objects for name, objects in chart.forms.items() if name != DEFAULTS}
    different = {json.dumps(objects, sort_keys=True) for objects in given.values()}
    return f"ci/, {len(given)} files" if len(different) == len(given) >= ENOUGH_FORMS else ""


def helm_test(chart: Chart) -> str:
    """A pod that `helm test` runs."""
    return where(
        [
            i
            for i in chart.anywhere("Pod", "Job")
            if "test" in i["metadata"].get("annotations", {}).get("helm.sh/hook", "")
        ]
    )


def notes(chart: Chart) -> str:
    """What to do next, with the release's own names."""
    return "templates/NOTES.txt" if "{{" in chart.file("templates/NOTES.txt") else ""


def crds(chart: Chart) -> str:
    """CRDs that upgrades change and uninstalling keeps, and that can be left out."""
    found = chart.of(DEFAULTS, "CustomResourceDefinition")
    kept = all(i["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep" for i in found)
    optional = any(not chart.of(form, "CustomResourceDefinition") for form in chart.forms)
    return f"{len(found)} templates, kept" if found and kept and optional else ""


def _selected(item: Object, selector: Object) -> bool:
    return set(selector["matchLabels"].items()) <= set(item["spec"]["template"]["metadata"]["labels"].items())


def disruption_budgets(chart: Chart) -> str:
    """A budget for every Deployment with more than one pod, and one of these at least."""
    several = 0
    for form in chart.forms:
        for item in (i for i in chart.of(form, "Deployment") if i["spec"]["replicas"] > 1):
            several += 1
            if not any(_selected(item, budget["spec"]["selector"]) for budget in chart.of(form, "PodDisruptionBudget")):
                return ""
    return where(chart.anywhere("PodDisruptionBudget")) if several else ""


def spread(chart: Chart) -> str:
    """Pods of a Deployment with more than one are spread over nodes."""
    several = [i for i in chart.anywhere("Deployment") if i["spec"]["replicas"] > 1]
    spread_out = all(i["spec"]["template"]["spec"].get("topologySpreadConstraints") for i in several)
    return where(several) if several and spread_out else ""


def monitors(chart: Chart) -> str:
    """Metrics that Prometheus finds."""
    return where(chart.anywhere("ServiceMonitor", "PodMonitor"))


def rules(chart: Chart) -> str:
    """Alerts."""
    return where(chart.anywhere("PrometheusRule"))


def dashboard(chart: Chart) -> str:
    """A dashboard that Grafana's sidecar finds."""
    return where([i for i in chart.anywhere("ConfigMap") if "grafana_dashboard" in i["metadata"].get("labels", {})])


def network_policies(chart: Chart) -> str:
    """An option that closes every Deployment's pods but for named ports."""
    for form in chart.forms:
        policies = chart.of(form, "NetworkPolicy")
        if policies and all(
            any(_selected(d, p["spec"]["podSelector"]) for p in policies) for d in chart.of(form, "Deployment")
        ):
            return f"{where(policies)} ({form})"
    return ""


def flow_schema(chart: Chart) -> str:
    """Requests of the chart's users at a level of their own."""
    levels = {i["metadata"]["name"] for i in chart.anywhere("PriorityLevelConfiguration")}
    return where([i for i in chart.anywhere("FlowSchema") if i["spec"]["priorityLevelConfiguration"]["name"] in levels])


def seccomp(chart: Chart) -> str:
    """The runtime's seccomp profile for every pod."""
    pods = [pod for _, pod in chart.workloads()]
    given = all(pod["securityContext"].get("seccompProfile") == {"type": "RuntimeDefault"} for pod in pods)
    return "every pod" if pods and given else ""


def read_only_root(chart: Chart) -> str:
    """A read-only root for every container."""
    containers = [c for _, pod in chart.workloads() for c in pod["containers"] + pod.get("initContainers", [])]
    given = all(c.get("securityContext", {}).get("readOnlyRootFilesystem") is True for c in containers)
    return "every container" if containers and given else ""


def _all_injections(chart: Chart, has: Callable[[Object], Any]) -> str:
    found = chart.injections()
    return "webhook and policy" if found and all(has(each) for each in found) else ""


def object_selector(chart: Chart) -> str:
    """Only pods that opted in are sent."""
    return _all_injections(
        chart, lambda each: each.get("objectSelector") or each.get("matchConstraints", {}).get("objectSelector")
    )


def match_conditions(chart: Chart) -> str:
    """The API server itself sorts out which pods are meant."""
    return _all_injections(chart, lambda each: each.get("matchConditions"))


def reinvocation(chart: Chart) -> str:
    """Whether pods are looked at again is the user's choice."""
    return (
        "injection.reinvocationPolicy"
        if {i.get("reinvocationPolicy") for i in chart.injections()} == {"IfNeeded", "Never"}
        else ""
    )


def artifact_hub(chart: Chart) -> str:
    """What Artifact Hub shows: license, category, and every CRD."""
    notes = chart.metadata.get("annotations", {})
    listed = {item["name"] for item in yaml.safe_load(notes.get("artifacthub.io/crds", "[]"))}
    served = {item["metadata"]["name"] for item in chart.of(DEFAULTS, "CustomResourceDefinition")}
    return (
        "Chart.yaml"
        if {"artifacthub.io/license", "artifacthub.io/category"} <= notes.keys() and listed == served
        else ""
    )


def kube_version(chart: Chart) -> str:
    """Clusters that are too old are refused."""
    text = str(chart.metadata.get("kubeVersion", ""))
    return f"Chart.yaml, {text}" if re.search(r">=\s*1\.\d+", text) else ""


def aggregated_roles(chart: Chart) -> str:
    """Kubernetes' own roles know the chart's kinds."""
    keys = {f"rbac.authorization.k8s.io/aggregate-to-{role}" for role in ("view", "edit", "admin")}
    found = [i for i in chart.of(DEFAULTS, "ClusterRole") if keys & i["metadata"]["labels"].keys()]
    return where(found) if keys == {key for i in found for key in keys & i["metadata"]["labels"].keys()} else ""


PRACTICES: dict[str, Callable[[Chart], str]] = {
    "values schema": schema,
    "README generated from values": readme,
    "unit tests of the templates": unit_tests,
    "values for CI": ci_values,
    "helm test": helm_test,
    "NOTES": notes,
    "CRDs upgradable and kept": crds,
    "PodDisruptionBudget": disruption_budgets,
    "ServiceMonitor or PodMonitor": monitors,
    "PrometheusRule": rules,
    "NetworkPolicy": network_policies,
    "topology spread": spread,
    "FlowSchema": flow_schema,
    "seccomp": seccomp,
    "read-only root": read_only_root,
    "objectSelector": object_selector,
    "matchConditions": match_conditions,
    "reinvocationPolicy option": reinvocation,
    "Artifact Hub annotations": artifact_hub,
    "kubeVersion": kube_version,
    "aggregated roles": aggregated_roles,
    "Grafana dashboard": dashboard,
}


def main() -> int:
    """Counts, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-least", type=int, default=0, metavar="N", help="fail when fewer are met")
    options = parser.parse_args()
    chart = load()
    found = {name: look(chart) for name, look in PRACTICES.items()}
    for name, place in found.items():
        print(f"{'yes' if place else 'no ':4}{name:32}{place}")
    count = sum(map(bool, found.values()))
    print(f"{count} of {len(found)}")
    return 0 if count >= options.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
