"""The real operator makes an etcd and its certificates, and a store of c10d, on a real API server. The test plays the controller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from support import builders
from support.cluster_fixtures import LocalCluster
from support.operated import rendezvous
from support.operator_process import Kube, OperatorProcess, eventually, running_operator

from rdzv.control.children import child
from rdzv.control.compare import Verdict, compare
from rdzv.registry import backend_registry
from rdzv.spec import Rendezvous, settings_key

Object = dict[str, Any]
SECRETS = ("rdzv-mnist-server", "rdzv-mnist-client")


@pytest.fixture
def operator(control_plane: LocalCluster, light_namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace) as operator:
        yield operator


def ready(kube: Kube, namespace: str, members: int, of: int = 3) -> None:
    status = {"replicas": of, "readyReplicas": members}
    kube.patch("StatefulSet", namespace, "rdzv-mnist-etcd", {"status": status}, status=True)


def conditions(kube: Kube, namespace: str) -> dict[str, tuple[str, str]]:
    status = (kube.get("Rendezvous", namespace, "mnist") or {}).get("status") or {}
    return {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", [])}


def versions(kube: Kube, namespace: str) -> dict[str, str]:
    found = {name: kube.get("Secret", namespace, name) for name in SECRETS}
    return {name: obj["metadata"]["resourceVersion"] for name, obj in found.items() if obj is not None}


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Where the stored object is another than the one that was asked for, the API server's own fields included."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = {*found, *wanted}
        return [line for key in keys for line in differences(found.get(key), wanted.get(key), f"{path}.{key}")]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return [
            line
            for n, pair in enumerate(zip(found, wanted, strict=True))
            for line in differences(*pair, f"{path}[{n}]")
        ]
    return [] if found == wanted else [f"{path}: {found!r}, not {wanted!r}"]


@pytest.mark.usefixtures("operator")
def test_pods_are_let_in_when_most_members_are_ready_and_the_status_says_so(kube: Kube, light_namespace: str) -> None:
    kube.create(rendezvous(light_namespace, "etcd-v3", etcd={"replicas": 3}))
    unready = ("False", "ServerNotReady")
    eventually(lambda: conditions(kube, light_namespace).get("Provisioned") == unready)
    assert conditions(kube, light_namespace)["Ready"] == unready
    eventually(lambda: kube.get("StatefulSet", light_namespace, "rdzv-mnist-etcd"))
    ready(kube, light_namespace, 1)
    ready(kube, light_namespace, 2)
    config = eventually(lambda: kube.get("ConfigMap", light_namespace, "rdzv-mnist"))["data"]["PET_RDZV_CONF"]
    assert "credentials=/var/run/secrets/rdzv.dev/client" in config.split(",")
    eventually(lambda: conditions(kube, light_namespace)["Degraded"] == ("True", "ServerMemberNotReady"))
    assert conditions(kube, light_namespace)["Ready"][0] == "True"
    ready(kube, light_namespace, 3)
    eventually(lambda: conditions(kube, light_namespace)["Degraded"][0] == "False")
    ready(kube, light_namespace, 1)
    eventually(lambda: conditions(kube, light_namespace)["Ready"] == unready)
    assert conditions(kube, light_namespace)["Provisioned"][0] == "True", "who runs is not stopped"


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        *product(
            ["etcd-v2", "etcd-v3"],
            [
                {},
                {"replicas": 3, "tls": False},
                {
                    "storage": {"size": "1024Mi"},
                    "resources": {"requests": {"cpu": "1000m", "memory": "0.5Gi"}, "limits": {"cpu": 2}},
                },
            ],
        ),
        ("c10d", {"host": "dedicated", "image": "torch:2", "resources": {"limits": {"memory": "1024Mi"}}}),
    ],
)
def test_what_the_api_server_made_of_it_is_as_it_should_be(
    kube: Kube, light_namespace: str, backend: str, settings: Object
) -> None:
    """Else each pass would write it again."""
    kube.create(rendezvous(light_namespace, backend, **{settings_key(backend): settings}))
    eventually(lambda: conditions(kube, light_namespace).get("Ready"))
    subject = Rendezvous.from_object(kube.get("Rendezvous", light_namespace, "mnist") or {})
    for made in backend_registry().provision(subject).objects:
        found = kube.get(made["kind"], light_namespace, made["metadata"]["name"])
        assert compare(found, child(made, subject)) is Verdict.SAME, "\n".join(differences(found, made))


@pytest.mark.parametrize(
    "subject", [builders.rendezvous("etcd-v3"), builders.rendezvous(c10d={"host": "dedicated", "image": "torch:2"})]
)
def test_a_namespace_that_admits_only_restricted_pods_admits_those_of_a_server(
    kube: Kube, control_plane: LocalCluster, light_namespace: str, subject: Rendezvous
) -> None:
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", light_namespace, restricted)
    (made,) = (obj for obj in backend_registry().provision(subject).objects if obj["kind"] == "StatefulSet")

    def create(name: str, **changes: Any) -> None:
        spec = {**made["spec"]["template"]["spec"], **changes}
        meta = {"name": name, "namespace": light_namespace}
        kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})

    with pytest.raises(client.ApiException, match="violates PodSecurity"):
        create("as-root", securityContext={})
    create("server")


def test_another_operator_comes_to_the_same_certificates(
    kube: Kube, light_namespace: str, operator: OperatorProcess
) -> None:
    kube.create(rendezvous(light_namespace, "etcd-v2"))
    before = eventually(lambda: found if len(found := versions(kube, light_namespace)) == 2 else None)
    root = kube.get("Secret", light_namespace, "rendezvous-operator-root")
    operator.kill()
    kube.delete("Secret", light_namespace, "rdzv-mnist-client")
    operator.start()
    eventually(lambda: len(versions(kube, light_namespace)) == 2)
    after = versions(kube, light_namespace)
    assert after["rdzv-mnist-server"] == before["rdzv-mnist-server"], "the same bytes, so nothing was written"
    assert after["rdzv-mnist-client"] != before["rdzv-mnist-client"]
    assert kube.get("Secret", light_namespace, "rendezvous-operator-root") == root


def test_no_key_is_in_the_log_the_status_or_an_event(
    kube: Kube, light_namespace: str, operator: OperatorProcess
) -> None:
    kube.create(rendezvous(light_namespace, "etcd"))
    eventually(lambda: len(versions(kube, light_namespace)) == 2)
    eventually(lambda: conditions(kube, light_namespace).get("Ready"))
    secret = kube.get("Secret", light_namespace, "rdzv-mnist-client")
    root = kube.get("Secret", light_namespace, "rendezvous-operator-root")
    assert secret is not None
    assert root is not None
    said = operator.log.read_text() + json.dumps(kube.get("Rendezvous", light_namespace, "mnist"))
    said += json.dumps(kube.list("Event", light_namespace), default=str)
    for content in (*secret["data"].values(), *root["data"].values()):
        assert content[:40] not in said


def test_an_operator_that_has_no_key_says_so_and_lets_nobody_in(
    kube: Kube, control_plane: LocalCluster, light_namespace: str, tmp_path: Path
) -> None:
    operator = OperatorProcess(
        control_plane.kubeconfig, tmp_path / "log", light_namespace, env={"RDZV_ROOT_SECRET": "nowhere"}
    )
    operator.start()
    try:
        kube.create(rendezvous(light_namespace, "etcd-v3"))
        eventually(lambda: conditions(kube, light_namespace).get("Provisioned") == ("False", "APIError"))
        (message,) = (
            c["message"]
            for c in (kube.get("Rendezvous", light_namespace, "mnist") or {})["status"]["conditions"]
            if c["type"] == "Provisioned"
        )
        assert "lacks RDZV_ROOT_SECRET: use its chart, or set spec.etcd.tls: false" in message
        assert kube.get("ConfigMap", light_namespace, "rdzv-mnist") is None
    finally:
        operator.kill()
