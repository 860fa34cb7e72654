"""The chart by Helm on a real API server: each form of it installs, an uninstalled release leaves nothing, and two do not mix."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cluster_fixtures import LocalCluster, _shared
from support.operated import rendezvous
from support.operator_process import ROOT, eventually

Object = dict[str, Any]

CHART = ROOT / "charts/rendezvous-operator"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
CRDS = "app.kubernetes.io/name=rendezvous-operator"
#: Kinds of others that the chart makes objects of where they are wanted: their CRDs, as far as Helm asks.
OF_OTHERS = {
    "monitoring.coreos.com/v1": ("ServiceMonitor", "PrometheusRule"),
    "cert-manager.io/v1": ("Certificate", "Issuer"),
}
#: What uninstalling leaves: the CRDs, and what the API server makes of them.
STAYS = (" CustomResourceDefinition ", " APIService v1alpha1.rdzv.dev")
#: They come and go by themselves.
VOLATILE = {"events", "events.events.k8s.io", "leases.coordination.k8s.io"}


class Helm:
    """Helm and kubectl, for one cluster."""

    def __init__(self, plane: LocalCluster) -> None:
        self.plane = plane

    def __call__(self, *words: str) -> str:
        """Raises RuntimeError: it failed; with its standard error."""
        command = [str(self.plane.dir / "bin/helm"), "--kubeconfig", str(self.plane.kubeconfig), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode != 0:
            raise RuntimeError(f"helm {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def install(self, release: str, namespace: str, *words: str) -> None:
        """Pods never run here, so nothing is waited for."""
        self("install", release, str(CHART), "--namespace", namespace, "--create-namespace", *words)

    def refusal(self, release: str, namespace: str, *words: str) -> str:
        with pytest.raises(RuntimeError) as caught:
            self.install(release, namespace, *words)
        return str(caught.value)

    def uninstall(self, release: str, namespace: str) -> None:
        self("uninstall", release, "--namespace", namespace)

    def everything(self) -> set[str]:
        """All objects of the cluster, as `namespace kind name`."""
        kinds = self.plane.kubectl("api-resources", "--verbs=list", "-o", "name").split()
        wanted = ",".join(kind for kind in kinds if kind not in VOLATILE and not kind.startswith("componentstatus"))
        form = '{range .items[*]}{.metadata.namespace} {.kind} {.metadata.name}{"\\n"}{end}'
        return set(self.plane.kubectl("get", wanted, "-A", "-o", f"jsonpath={form}").splitlines())


def crd(group: str, version: str, kind: str) -> Object:
    plural = f"{kind.lower()}s"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural},
            "scope": "Namespaced",
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    """On a control plane of its own: the CRDs are the release's here, and go."""
    with _shared("helm", "--light") as plane:
        for api_version, kinds in OF_OTHERS.items():
            group, _, version = api_version.partition("/")
            for kind in kinds:
                plane.kubectl("apply", "-f", "-", input=json.dumps(crd(group, version, kind)))
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all")
        yield Helm(plane)


@pytest.fixture
def clean(helm: Helm) -> Iterator[Helm]:
    """Without our CRDs, before and after."""
    yield helm
    # The API server empties a CRD first, and tries again after pauses that double: once that took longer than three minutes.
    helm.plane.kubectl("delete", "crd", "-l", CRDS, "--ignore-not-found", timeout=450)


def wanted_secrets(values: Object) -> list[str]:
    """Those that have to be there before."""
    return [name for name in (values.get("webhook", {}).get("certificates", {}).get("secretName"),) if name]


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.name.removesuffix("-values.yaml"))
def test_each_form_of_the_chart_installs_and_uninstalling_leaves_the_crds_alone(clean: Helm, values: Path) -> None:
    namespace, wanted = values.stem, yaml.safe_load(values.read_text())
    for name in (namespace, *wanted.get("watchNamespaces", ())):
        clean.plane.kubectl("create", "namespace", name)
    for name in wanted_secrets(wanted):
        clean.plane.kubectl("-n", namespace, "create", "secret", "generic", name, "--from-literal=ca.crt=x")
    before = clean.everything()
    clean.install("rdzv", namespace, "--values", str(values))
    made = clean.everything() - before
    assert any(" Deployment " in each for each in made)
    assert any("CustomResourceDefinition rendezvous.rdzv.dev" in each for each in made) != ("crds" in wanted)
    clean.uninstall("rdzv", namespace)

    def nothing_is_left() -> bool:
        left = {each for each in clean.everything() - before if not any(kept in each for kept in STAYS)}
        assert left == set()
        return True

    eventually(nothing_is_left, timeout=60)


def test_it_is_installed_again_under_another_name_and_the_objects_of_users_are_there(clean: Helm) -> None:
    clean.install("one", "first")
    mnist = rendezvous("default")
    eventually(lambda: clean.plane.kubectl("apply", "-f", "-", input=json.dumps(mnist)))
    uid = clean.plane.kubectl("-n", "default", "get", "rdzv", "mnist", "-o", "jsonpath={.metadata.uid}")
    clean.uninstall("one", "first")
    assert "CustomResourceDefinition" in clean.refusal("two", "second"), "they are the first one's still"
    # As docs/operations/upgrade.md says.
    owner = ("meta.helm.sh/release-name=two", "meta.helm.sh/release-namespace=second")
    clean.plane.kubectl("annotate", "crd", "-l", CRDS, "--overwrite", *owner)
    clean.install("two", "second")
    assert clean.plane.kubectl("-n", "default", "get", "rdzv", "mnist", "-o", "jsonpath={.metadata.uid}") == uid
    clean.uninstall("two", "second")


def test_a_second_release_that_serves_all_is_refused_by_name_of_what_the_first_one_has(clean: Helm) -> None:
    clean.install("one", "first")
    text = clean.refusal("two", "second")
    assert "rdzv.dev" in text
    assert 'current value is "one"' in text
    clean.uninstall("one", "first")
