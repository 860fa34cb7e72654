"""The same pods through the admission policy, through the webhook, and through `inject` itself, on a real API server.

Policy and webhook are what the chart renders, with certificates as the operator makes them; only which namespace each serves is
narrowed, and the webhook's Service leads to the process of this test. Pods are created with dry-run, so that nothing but admission happens.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from kubernetes import client, config
from support.admission import SETTINGS, of_kind, only_in, render
from support.controllers import CONTROLLERS, ENVIRONMENTS
from support.operator_process import ROOT, eventually
from support.pod_strategies import pods

from deploy.local.cluster.control import free_ports
from rdzv.control.certificates import Authority
from rdzv.control.inject import CLIENT, CONTAINERS_ANNOTATION, LIBRARY_ANNOTATION, inject
from rdzv.env import CLIENT_PATH
from rdzv.spec import LABEL

if TYPE_CHECKING:
    from support.cluster_fixtures import LocalCluster

Object = dict[str, Any]


@dataclass
class Namespaces:
    """Where pods are created: without injection, and by each of `ways`, of which the API server may have no policy."""

    api: client.CoreV1Api
    ways: list[str]
    names: dict[str, str] = field(default_factory=dict)

    def create(self, way: str, pod: Object) -> Object:
        """The pod as the API server would store it, without what differs from one request to the next."""
        response = self.api.create_namespaced_pod(self.names[way], pod, dry_run="All", _preload_content=False)
        created: Object = json.loads(re.sub(r"kube-api-access-\w{5}", "kube-api-access-00000", response.data.decode()))
        for key in ("namespace", "uid", "creationTimestamp", "managedFields", "resourceVersion", "generation"):
            created["metadata"].pop(key, None)
        del created["status"]  # its QoS class is compared by the resources that it follows from
        return created

    def same(self, pod: Object) -> Object:
        """Asserts that all ways lead to the same pod, which is returned, and that going there again changes nothing."""
        plain = self.create("plain", pod)
        expected = self.create("plain", inject(plain, SETTINGS))
        for way in self.ways:
            assert self.create(way, pod) == expected, way
            assert self.create(way, expected) == expected, f"{way}, second pass"
        return expected


def start_webhook(
    control_plane: LocalCluster, objects: list[Object], folder: Path
) -> tuple[subprocess.Popen[bytes], int]:
    """The process with the command, environment and certificate that the chart gives it."""
    deployment = next(
        obj for obj in objects if obj["kind"] == "Deployment" and obj["metadata"]["name"].endswith("-webhook")
    )
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    client_config = of_kind(objects, "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]
    service = client_config["service"]
    # As the operator makes them.
    made = Authority(secrets.token_bytes(32)).webhook(f"{service['name']}.{service['namespace']}.svc", time.time())
    client_config["caBundle"] = made.bundle
    for name in ("tls.crt", "tls.key"):
        (folder / name).write_bytes(base64.b64decode(made.data[name]))
    (port,) = free_ports(1)
    env = {
        **os.environ,
        **{variable["name"]: variable["value"] for variable in container["env"]},
        "KUBECONFIG": str(control_plane.kubeconfig),
        "PYTHONPATH": str(ROOT / "src"),
        "RDZV_WEBHOOK_CERTIFICATES": str(folder),
        "RDZV_WEBHOOK_LISTEN": f"127.0.0.1:{port}",
    }
    command = [sys.executable, "-m", *(word.replace("/app/", "") for word in container["command"])]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log), port


@pytest.fixture(scope="module")
def namespaces(control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespaces]:
    """Namespaces with the policy and with the webhook, both answering."""
    configuration = client.Configuration()
    config.load_kube_config(str(control_plane.kubeconfig), client_configuration=configuration)
    mark = secrets.token_hex(4)
    ways = Namespaces(client.CoreV1Api(client.ApiClient(configuration)), control_plane.injection_modes)
    release, home = f"r{mark}", f"home-{mark}"
    for way in ("plain", *ways.ways):
        ways.names[way] = f"{way}-{mark}"
    for name in (home, *ways.names.values()):
        control_plane.kubectl("create", "namespace", name)

    webhook = render(control_plane, "webhook", release, home)
    process, port = start_webhook(control_plane, webhook, tmp_path_factory.mktemp("webhook"))
    objects: list[Object] = []
    if "policy" in ways.ways:
        policy = render(control_plane, "policy", release, home)
        objects += [of_kind(policy, "MutatingAdmissionPolicy"), of_kind(policy, "MutatingAdmissionPolicyBinding")]
        objects[0]["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"].append(
            only_in(ways.names["policy"])
        )
    hook = of_kind(webhook, "MutatingWebhookConfiguration")
    service = hook["webhooks"][0]["clientConfig"]["service"]
    # The API server dials this instead, and still asks for a certificate of the Service's own name.
    service["port"] = port
    alias = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    objects.append(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": service["name"], "namespace": home}, "spec": alias}
    )
    hook["webhooks"][0]["namespaceSelector"]["matchExpressions"].append(only_in(ways.names["webhook"]))
    objects.append(hook)
    manifests = yaml.safe_dump_all(objects)
    try:
        control_plane.kubectl("apply", "-f", "-", input=manifests)
        for way in ways.ways:
            eventually(functools.partial(_answers, ways, way))
        assert not _answers(ways, "plain"), "something else injects on this cluster, so nothing could be compared"
        yield ways
    finally:
        control_plane.kubectl("delete", "--ignore-not-found", "-f", "-", input=manifests)
        process.terminate()
        process.wait(30)


def _answers(ways: Namespaces, way: str) -> bool:
    try:
        return (
            "envFrom"
            in ways.create(way, labelled({"containers": [{"name": "c", "image": "x:1"}]}))["spec"]["containers"][0]
        )
    except client.ApiException as error:
        if error.status != 500:  # else nobody listens yet
            raise
        return False


def labelled(spec: Object, labels: Mapping[str, Any] | None = None, annotations: Object | None = None) -> Object:
    metadata = {"name": "pod", "labels": {LABEL: "mnist", **(labels or {})}, "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _has_image_volume(pod: Object) -> bool:
    return any("image" in volume for volume in pod["spec"].get("volumes", []))


def test_generated_pods(namespaces: Namespaces) -> None:
    image = labelled({"containers": [MAIN], "volumes": [{"name": "v", "image": {"reference": "mine:1"}}]})
    # Kubernetes 1.34 removes what it does not have from a pod when admission is over, so that `inject` sees what no admission does.
    knows_images = _has_image_volume(namespaces.create("plain", image))
    compared = 0

    @settings(max_examples=220, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(pods())
    def all_ways(pod: Object) -> None:
        nonlocal compared
        assume(knows_images or not _has_image_volume(pod))
        namespaces.same(pod)
        compared += 1

    all_ways()
    assert compared >= 200


def test_pods_without_the_label(namespaces: Namespaces) -> None:
    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(pods(labelled=False))
    def untouched(pod: Object) -> None:
        assert namespaces.same(pod) == namespaces.create("plain", pod)

    untouched()


MAIN: Object = {"name": "main", "image": "train:1", "command": ["torchrun", "train.py"]}

#: Pods as controllers make them from the templates that people write.
TEMPLATES: dict[str, Callable[[], Object]] = {
    "indexed job": lambda: labelled(
        {"restartPolicy": "Never", "containers": [MAIN], "hostname": "mnist-0", "subdomain": "mnist"},
        {"batch.kubernetes.io/job-completion-index": "0", "job-name": "mnist"},
        {"batch.kubernetes.io/job-completion-index": "0"},
    ),
    "stateful set": lambda: labelled(
        {
            "containers": [
                {**MAIN, "volumeMounts": [{"name": "www", "mountPath": "/data"}], "ports": [{"containerPort": 80}]}
            ],
            "volumes": [{"name": "www", "persistentVolumeClaim": {"claimName": "www-web-0"}}],
        },
        {"apps.kubernetes.io/pod-index": "0", "statefulset.kubernetes.io/pod-name": "web-0"},
    ),
    **{
        f"of {kind}": functools.partial(labelled, {"containers": [MAIN]}, labels)
        for kind, (labels, _) in CONTROLLERS.items()
    },
    **{
        f"environment of {kind}": functools.partial(
            labelled, {"containers": [{**MAIN, "env": [*users, *added]}]}, labels
        )
        for kind, (labels, users, added, _) in ENVIRONMENTS.items()
    },
    "limited to two processors": lambda: labelled({"containers": [{**MAIN, "resources": {"limits": {"cpu": "2"}}}]}),
    "limited processors of a TrainJob": lambda: labelled(
        {"containers": [{**MAIN, "resources": {"limits": {"cpu": "1500m"}}, "env": ENVIRONMENTS["TrainJob"][2]}]},
        ENVIRONMENTS["TrainJob"][0],
    ),
    "its own number of processes": lambda: labelled({"containers": [{**MAIN, "args": ["--nproc_per_node=2"]}]}),
    "deployment": lambda: labelled({"containers": [MAIN]}, {"pod-template-hash": "5d4f"}),
    "several containers, one named": lambda: labelled(
        {"containers": [MAIN, {"name": "exporter", "image": "exporter:1"}]},
        annotations={CONTAINERS_ANNOTATION: " main "},
    ),
    "init container and native sidecar, named": lambda: labelled(
        {
            "initContainers": [
                {"name": "fetch", "image": "fetch:1"},
                {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"},
            ],
            "containers": [MAIN],
        },
        annotations={CONTAINERS_ANNOTATION: "fetch,proxy"},
    ),
    "guaranteed, restricted": lambda: labelled(
        {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{**MAIN, "resources": {"limits": {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "8"}}}],
        }
    ),
    "root, with host network and shared memory": lambda: labelled(
        {
            "securityContext": {"runAsUser": 0},
            "hostNetwork": True,
            "automountServiceAccountToken": False,
            "containers": [{**MAIN, "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}}],
        }
    ),
    "a Secret of another name, for an etcd of one's own": lambda: labelled(
        {"containers": [MAIN], "volumes": [{"name": CLIENT, "secret": {"secretName": "etcd-client"}}]}
    ),
    "image volume": lambda: labelled({"containers": [MAIN]}, annotations={LIBRARY_ANNOTATION: "image-volume"}),
    "everything set already": lambda: inject(labelled({"containers": [MAIN]}, {"rdzv.dev/slot": "1"}), SETTINGS),
    "empty name": lambda: labelled({"containers": [MAIN]}, {LABEL: ""}),
    "mirror of a static pod": lambda: labelled(
        {"containers": [MAIN], "nodeName": "n", "automountServiceAccountToken": False},
        annotations={"kubernetes.io/config.mirror": "hash", "kubernetes.io/config.source": "file"},
    ),
    "larger than 1 MiB": lambda: labelled(
        {"containers": [{**MAIN, "env": [{"name": f"V{i}", "value": "v" * 12_000} for i in range(100)]}]}
    ),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_real_templates(namespaces: Namespaces, template: str) -> None:
    namespaces.same(TEMPLATES[template]())


@pytest.mark.parametrize(("template", "secret"), [("deployment", "rdzv-mnist-client"), ("a Secret", "etcd-client")])
def test_both_mount_the_secret_for_an_etcd_of_ones_own(namespaces: Namespaces, template: str, secret: str) -> None:
    (pod,) = (made() for name, made in TEMPLATES.items() if name.startswith(template))
    for way in namespaces.ways:
        spec = namespaces.create(way, pod)["spec"]
        (volume,) = (volume for volume in spec["volumes"] if volume["name"] == CLIENT)
        assert volume["secret"]["secretName"] == secret
        (container,) = spec["containers"]
        assert {"name": CLIENT, "mountPath": CLIENT_PATH, "readOnly": True} in container["volumeMounts"]


def test_quality_of_service_stays(namespaces: Namespaces) -> None:
    pod = TEMPLATES["guaranteed, restricted"]()
    for way in namespaces.ways:
        created = namespaces.api.create_namespaced_pod(namespaces.names[way], pod, dry_run="All")
        assert created.spec.init_containers[0].name == "rdzv-library"
        assert created.status.qos_class == "Guaranteed"


def test_the_restricted_standard_admits_what_is_added(namespaces: Namespaces, control_plane: LocalCluster) -> None:
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    restricted["seccompProfile"] = {"type": "RuntimeDefault"}
    pod = labelled({"containers": [{**MAIN, "securityContext": restricted}]})
    for way in namespaces.ways:
        name = namespaces.names[way]
        control_plane.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        try:
            assert namespaces.create(way, pod)["spec"]["initContainers"][0]["name"] == "rdzv-library"
        finally:
            control_plane.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce-")
