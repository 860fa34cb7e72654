"""The CRD `Rendezvous` on a real API server, with no operator anywhere: it alone refuses what is wrong, and says what to write."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from support import builders
from support.builders import pod_object
from support.cluster_fixtures import LocalCluster
from support.crd_invalid import DEFAULT_NAME, REFUSED, Object, Refused, rendezvous
from support.operator_process import Kube
from support.spec_strategies import CONFIG_KEYS, OPERATORS_KEYS, specs

from rdzv.observed import Observed
from rdzv.protocol.records import Member
from rdzv.protocol.roster import Roster
from rdzv.spec import Rendezvous

ROOT = Path(__file__).parents[2]
CRD = ROOT / "charts/rendezvous-operator/files/crds/rendezvous.yaml"
DEFINITION: Object = yaml.safe_load(CRD.read_text())

ACCEPTED: dict[str, Object] = {
    "c10d": {"backend": "c10d", "nodes": {"min": 2, "max": 4}},
    "c10d-one-node": {"backend": "c10d", "nodes": {"min": 1}},
    "c10d-largest": {
        "backend": "c10d",
        "nodes": {"min": 1, "max": 10_000},
        "maxRestarts": 1_000_000,
        "nprocPerNode": 10_000,
    },
    "c10d-port": {"backend": "c10d", "nodes": {"min": 2}, "c10d": {"port": 65_535}},
    "c10d-pod": {"backend": "c10d", "nodes": {"min": 2}, "c10d": {"host": "pod"}},
    "c10d-dedicated": {
        "backend": "c10d",
        "nodes": {"min": 2},
        "c10d": {
            "host": "dedicated",
            "image": "registry:5000/team/train@sha256:0123",
            "resources": {"requests": {"cpu": "0.5", "memory": "1Gi"}, "limits": {"memory": 2_000_000_000}},
        },
    },
    "c10d-own-store": {"backend": "c10d", "nodes": {"min": 2}, "endpoint": "store:29400"},
    "static": {"backend": "static", "nodes": {"min": 4}, "static": {"port": 1}},
    "static-max": {"backend": "static", "nodes": {"min": 4, "max": 4}, "config": {"timeout": "60"}},
    "static-no-launcher": {"backend": "static", "nodes": {"min": 4}, "launcher": "none", "nprocPerNode": 1},
    "static-no-launcher-text": {"backend": "static", "nodes": {"min": 4}, "launcher": "none", "nprocPerNode": "1"},
    "launcher-torchrun": {"backend": "c10d", "nodes": {"min": 2}, "launcher": "torchrun"},
    "kubernetes": {"backend": "kubernetes", "nodes": {"min": 2, "max": 4}, "config": {"store": "kubernetes"}},
    "kubernetes-largest": {"backend": "kubernetes", "nodes": {"min": 4096, "max": 4096}},
    "etcd-v3": {
        "backend": "etcd-v3",
        "nodes": {"min": 2, "max": 4},
        "endpoint": "etcd-0.etcd:2379,10.0.0.7:2379,[fd00::1]:2379",
        "config": {"credentials": "/etc/etcd-client", "store": "etcd"},
    },
    "etcd-of-the-operator": {"backend": "etcd", "nodes": {"min": 2}},
    "etcd-v2-of-the-operator": {
        "backend": "etcd-v2",
        "nodes": {"min": 2},
        "etcd": {
            "replicas": 3,
            "storage": {"size": "1Gi", "storageClassName": "fast"},
            "resources": {"requests": {"cpu": "0.5", "memory": "128Mi"}, "limits": {"cpu": 1, "memory": "1G"}},
            "image": "registry:5000/team/etcd@sha256:0123",
        },
    },
    "etcd-v3-secured": {"backend": "etcd-v3", "nodes": {"min": 2}, "endpoint": "etcd:2379", "etcd": {"tls": True}},
    "etcd-v3-of-the-operator": {"backend": "etcd-v3", "nodes": {"min": 2}, "etcd": {}},
    "no-restarts": {"backend": "c10d", "nodes": {"min": 2}, "maxRestarts": 0},
    "nproc-word": {"backend": "c10d", "nodes": {"min": 2}, "nprocPerNode": "gpu"},
    "nproc-text": {"backend": "c10d", "nodes": {"min": 2}, "nprocPerNode": "8"},
    "backoff": {"backend": "c10d", "nodes": {"min": 2}, "config": {"cas_backoff_max_seconds": "0.5"}},
    "unknown-backend": {"backend": "my.own_one-2", "nodes": {"min": 2}},
    "unknown-backend-long-name": {"backend": "b" * 63, "nodes": {"min": 2}},
    "unknown-backend-free-config": {
        "backend": "zeus",
        "nodes": {"min": 2},
        "config": {"is_host": "x", "rank": "a=b é $HOME"},
    },
    **{
        f"endpoint-{endpoint}": {"backend": "etcd", "nodes": {"min": 2}, "endpoint": endpoint}
        for endpoint in (
            *(
                "etcd:2379",
                "ETCD:1",
                "etcd.infra.svc.cluster.local.:65535",
                "my_etcd:2379",
                "1node:2379",
                "10.0.0.7:2379",
            ),
            *(
                "[::1]:2379",
                "[fd00::1]:2379",
                "[1:2:3:4:5:6:7:8]:2379",
                "[::ffff:10.0.0.7]:2379",
                "[1:2:3:4:5:6:10.0.0.7]:2379",
            ),
        )
    },
}

#: How each answer begins; what begins with <nil> is the API server's own remark about the object as a whole, and what begins with
#: a dot is its remark that subresource scale can't read the field.
ANSWER = re.compile(
    r"(?<!\.)(?:spec|metadata)[.\w\[\]]*: (?:Invalid value|Unsupported value|Duplicate value|Required value|Too long|Too many)"
)


@pytest.fixture(scope="module")
def api(control_plane: LocalCluster) -> LocalCluster:
    """The API server, serving the CRD."""
    control_plane.kubectl("apply", "--server-side", "-f", str(CRD))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/rendezvous.rdzv.dev", "--timeout=30s")
    control_plane.kubectl("wait", "--for=create", "--timeout=30s", "namespace/default")
    return control_plane


def apply(api: LocalCluster, *objects: Object, namespace: str = "default", dry_run: bool = True) -> str:
    """What `kubectl apply -f` prints; raises RuntimeError with what it complains about."""
    flags = ["--dry-run=server"] if dry_run else []
    # One after another and not a List: kubectl would validate that itself, and say other things.
    manifest = "\n".join(map(json.dumps, objects))
    return api.kubectl("apply", "-n", namespace, *flags, "-f", "-", input=manifest)


def complaint(api: LocalCluster, *objects: Object, **options: Any) -> str:
    with pytest.raises(RuntimeError) as caught:
        apply(api, *objects, **options)
    return str(caught.value)


#: Kubernetes 1.34 names the type of what a CEL rule refuses. Later ones have the value there, or nothing.
TYPE = re.compile(r'Invalid value: "(?:object|string|integer|boolean|array)": ')
VALUE = re.compile(r'Invalid value: (?:"[^"]*": )?')


def says(text: str, words: str) -> bool:
    """Whether a complaint has these words, in the form of newer API servers."""
    if TYPE.search(text):
        text, words = (VALUE.sub("Invalid value: ", each) for each in (text, words))
    return words in text


@pytest.fixture(scope="module")
def complaints(api: LocalCluster) -> dict[str, str]:
    """What one `kubectl apply` of all rows says about each, by id: a second for what takes a minute one by one.

    Without those whose complaint does not name the object.
    """
    rows = {f"r{number}": row for number, row in enumerate(REFUSED) if row.name == DEFAULT_NAME}
    text = complaint(api, *(row.manifest(name) for name, row in rows.items()))
    found = re.findall(r'Rendezvous\.rdzv\.dev "(r\d+)" is invalid: (.*)', text)
    return {rows[name].id: answer for name, answer in found}


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.id)
def test_refused(api: LocalCluster, complaints: dict[str, str], row: Refused) -> None:
    text = complaints.get(row.id) or complaint(api, row.manifest())
    assert says(text, row.says), text
    if row.id in complaints:
        assert len(ANSWER.findall(text)) == 1, f"one mistake, one answer: {text}"


def test_a_single_one_is_refused_in_the_same_words(api: LocalCluster) -> None:
    """As it looks when a user applies one object."""
    text = complaint(api, rendezvous({"backend": "c10d", "nodes": {"min": 3, "max": 2}, "c10d": {"port": 0}}))
    _, first, second, *_ = text.splitlines()
    assert first == "* spec.c10d.port: Invalid value: 0: spec.c10d.port in body should be greater than or equal to 1"
    assert says(
        second,
        "* spec.nodes: Invalid value: min must not be larger than max: lower min, raise max, or leave max out for a fixed world",
    )


@pytest.mark.parametrize("spec", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(api: LocalCluster, spec: Object) -> None:
    apply(api, rendezvous(spec))


def test_an_object_without_a_spec_is_refused(api: LocalCluster) -> None:
    obj = rendezvous({})
    del obj["spec"]
    assert "spec: Required value" in complaint(api, obj)


def test_longest_name_accepted(api: LocalCluster) -> None:
    apply(api, rendezvous(ACCEPTED["c10d"], "1" * 58))


def test_generated_specs_are_accepted(api: LocalCluster) -> None:
    """Those that unit tests take for admitted."""
    examples: list[Object] = []

    @settings(max_examples=200, database=None)
    @given(specs())
    def collect(spec: Object) -> None:
        examples.append(rendezvous(spec, f"r{len(examples)}"))

    collect()
    assert apply(api, *examples).count("created (server dry run)") == len(examples) >= 200


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "deploy/samples").glob("rendezvous-*.yaml")), ROOT / "deploy/samples/topology.yaml"],
    ids=lambda path: path.stem,
)
def test_samples_are_accepted(api: LocalCluster, path: Path) -> None:
    apply(api, yaml.safe_load(path.read_text()))


def test_there_is_a_sample_of_each_backend() -> None:
    found = {path.stem.removeprefix("rendezvous-") for path in (ROOT / "deploy/samples").glob("rendezvous-*.yaml")}
    assert found == set(CONFIG_KEYS)


def test_defaults(api: LocalCluster, light_namespace: str) -> None:
    apply(
        api, rendezvous({"backend": "c10d", "nodes": {"min": 2}, "c10d": {}}), namespace=light_namespace, dry_run=False
    )
    found = json.loads(api.kubectl("get", "rdzv", "mnist", "-n", light_namespace, "-o", "json"))
    assert found["spec"] == {
        "backend": "c10d",
        "nodes": {"min": 2},
        "c10d": {"port": 29400},
        "nprocPerNode": "auto",
        "launcher": "torchrun",
        "maxRestarts": 100,
    }


def test_backend_is_for_life_and_the_rest_is_not(api: LocalCluster, light_namespace: str) -> None:
    apply(api, rendezvous(ACCEPTED["c10d"]), namespace=light_namespace, dry_run=False)
    apply(
        api,
        rendezvous({**ACCEPTED["c10d"], "nodes": {"min": 1, "max": 8}, "maxRestarts": 3}),
        namespace=light_namespace,
        dry_run=False,
    )
    changed = rendezvous({**ACCEPTED["c10d"], "backend": "kubernetes"})
    assert says(
        complaint(api, changed, namespace=light_namespace),
        'spec.backend: Invalid value: "kubernetes": can\'t be changed from c10d, because pods that run would lose each other: '
        "delete and re-create this Rendezvous, or create a second one",
    )


ETCD: Object = {"backend": "etcd-v3", "nodes": {"min": 2}}


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ({}, {"etcd": {"replicas": 3}}, "replicas"),
        ({"etcd": {"replicas": 3}}, {"etcd": {}}, "replicas"),
        ({}, {"etcd": {"storage": {"size": "1Gi"}}}, "storage"),
        ({"etcd": {"storage": {"size": "1Gi"}}}, {}, "storage"),
        ({"etcd": {"storage": {"size": "1Gi"}}}, {"etcd": {"storage": {"size": "2Gi"}}}, "storage"),
        ({}, {"etcd": {"tls": False}}, "tls"),
    ],
)
def test_members_and_volumes_of_an_etcd_that_runs_stay(
    api: LocalCluster, light_namespace: str, before: Object, after: Object, field: str
) -> None:
    apply(api, rendezvous({**ETCD, **before}), namespace=light_namespace, dry_run=False)
    text = complaint(api, rendezvous({**ETCD, **after}), namespace=light_namespace)
    assert says(text, f"spec.etcd.{field}: Invalid value: can't be changed while the etcd runs: delete and re-create")


DEDICATED: Object = {"backend": "c10d", "nodes": {"min": 2}, "c10d": {"host": "dedicated", "image": "torch:2"}}


@pytest.mark.parametrize("names_it", [True, False])
def test_where_a_store_of_c10d_is_can_not_be_changed_under_its_clients(
    api: LocalCluster, light_namespace: str, names_it: bool
) -> None:
    in_a_pod = {**DEDICATED, "c10d": {"host": "pod"} if names_it else {}}
    for name, before, after in (("a", in_a_pod, DEDICATED), ("b", DEDICATED, in_a_pod)):
        apply(api, rendezvous(before, name), namespace=light_namespace, dry_run=False)
        text = complaint(api, rendezvous(after, name), namespace=light_namespace)
        assert says(
            text, "spec.c10d.host: Invalid value: can't be changed, because pods that run would lose each other"
        )
    other_image = {**DEDICATED, "c10d": {"host": "dedicated", "image": "torch:3"}}
    apply(api, rendezvous(other_image, "b"), namespace=light_namespace)
    apply(api, rendezvous(in_a_pod, "a"), namespace=light_namespace)


def test_a_name_leaves_room_for_that_of_the_dedicated_store(api: LocalCluster) -> None:
    apply(api, rendezvous(DEDICATED, "e" * 42))
    assert "must have at most 42 characters, because the StatefulSet of a dedicated store" in complaint(
        api, rendezvous(DEDICATED, "e" * 43)
    )


def test_the_rest_of_an_etcd_can_be_changed(api: LocalCluster, light_namespace: str) -> None:
    for spec in (ETCD, {**ETCD, "etcd": {"replicas": 1, "image": "etcd:4"}}, {**ETCD, "endpoint": "etcd:2379"}, ETCD):
        obj = rendezvous(spec)
        api.kubectl("apply", "-n", light_namespace, "-f", "-", input=json.dumps(obj))


def test_a_name_leaves_room_for_that_of_the_etcd(api: LocalCluster) -> None:
    apply(api, rendezvous(ETCD, "e" * 42))
    apply(api, rendezvous({**ETCD, "endpoint": "etcd:2379"}, "e" * 58))
    assert "must have at most 42 characters, because the etcd" in complaint(api, rendezvous(ETCD, "e" * 43))


def test_definition_is_served_without_complaints(api: LocalCluster) -> None:
    found = json.loads(api.kubectl("get", "crd", "rendezvous.rdzv.dev", "-o", "json"))
    conditions = {condition["type"]: condition["status"] for condition in found["status"]["conditions"]}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"


@pytest.mark.parametrize("word", ["rendezvous", "rdzv", "rendezvous.rdzv.dev", "ml"])
def test_names_and_category(api: LocalCluster, light_namespace: str, word: str) -> None:
    apply(api, rendezvous(ACCEPTED["c10d"]), namespace=light_namespace, dry_run=False)
    assert api.kubectl("get", word, "-n", light_namespace, "-o", "name").split() == ["rendezvous.rdzv.dev/mnist"]


def status_of(obj: Object) -> Object:
    """The operator's status for four pods, one of which runs."""
    subject = Rendezvous.from_object(obj)
    pods = [pod_object(f"mnist-{index}", index=index, phase="Pending" if index else "Running") for index in range(4)]
    observed = Observed(pods=[builders.pod(obj) for obj in pods])
    return builders.status_of(subject, observed, {}, 1795428000.0)


def test_an_elastic_rendezvous_can_be_scaled(api: LocalCluster, light_namespace: str) -> None:
    """`kubectl scale` sets nodes.max, within what the schema allows, and HorizontalPodAutoscalers find the pods."""

    def scaled(replicas: int) -> str:
        return api.kubectl("scale", "rdzv", "mnist", "-n", light_namespace, f"--replicas={replicas}")

    spec = {"backend": "kubernetes", "nodes": {"min": 2, "max": 4}}
    apply(api, rendezvous(spec), namespace=light_namespace, dry_run=False)
    status = {"status": {"selector": "rdzv.dev/rendezvous=mnist", "nodes": {"joined": 3}}}
    patch = ("--subresource=status", "--type=merge", "-p", json.dumps(status))
    api.kubectl("patch", "rdzv", "mnist", "-n", light_namespace, *patch)
    assert "scaled" in scaled(8)
    found = json.loads(api.kubectl("get", "rdzv", "mnist", "-n", light_namespace, "-o", "json"))
    assert found["spec"]["nodes"] == {"min": 2, "max": 8}
    path = f"/apis/rdzv.dev/v1alpha1/namespaces/{light_namespace}/rendezvous/mnist/scale"
    scale = json.loads(api.kubectl("get", "--raw", path))
    assert (scale["spec"]["replicas"], scale["status"]) == (8, {"replicas": 3, "selector": "rdzv.dev/rendezvous=mnist"})
    with pytest.raises(RuntimeError, match="min must not be larger than max"):
        scaled(1)


def test_a_fixed_world_that_is_scaled_is_told_that_it_is_fixed(api: LocalCluster, light_namespace: str) -> None:
    apply(api, rendezvous(ACCEPTED["static-max"]), namespace=light_namespace, dry_run=False)
    with pytest.raises(
        RuntimeError, match="static has a fixed world: set min and max to the same number, or choose an elastic"
    ):
        api.kubectl("scale", "rdzv", "mnist", "-n", light_namespace, "--replicas=8")


def test_operators_status_is_kept_and_shown(api: LocalCluster, light_namespace: str) -> None:
    def get(*words: str) -> str:
        return api.kubectl("get", "rdzv", "mnist", "-n", light_namespace, *words)

    apply(api, rendezvous(ACCEPTED["c10d"]), namespace=light_namespace, dry_run=False)
    status = {**status_of(json.loads(get("-o", "json"))), "round": 7}
    patch = ["--subresource=status", "--type=merge", "-p", json.dumps({"status": status})]
    api.kubectl("patch", "rdzv", "mnist", "-n", light_namespace, *patch)
    assert json.loads(get("-o", "json"))["status"] == status

    head, line = get().splitlines()
    assert head.split() == ["NAME", "BACKEND", "STATUS", "NODES", "READY", "AGE"]
    assert re.split(r"  +", line)[:5] == ["mnist", "c10d", "Forming 1/4", "1/4", "True"]
    head, line = get("-o", "wide").splitlines()
    columns = ["NAME", "BACKEND", "STATUS", "NODES", "READY", "FORMED", "WHY", "ENDPOINT", "ROUND", "AGE"]
    assert head.split() == columns
    assert f"rdzv-mnist.{light_namespace}.svc:29400" in line


@pytest.mark.parametrize("stuck", [False, True])
def test_the_status_of_seven_thousand_pods_is_stored(api: LocalCluster, light_namespace: str, stuck: bool) -> None:
    """More than a world may have, with names and reasons as long as they get."""
    apply(api, rendezvous(ACCEPTED["kubernetes"]), namespace=light_namespace, dry_run=False)
    subject = Rendezvous.from_object(
        json.loads(api.kubectl("get", "rdzv", "mnist", "-n", light_namespace, "-o", "json"))
    )
    pods = [pod_object(f"mnist-{index}-{'x' * 230}", index=index) for index in range(7_000)]
    for pod in pods if stuck else []:
        waiting = {"reason": "ImagePullBackOff", "message": "é" * 1000}
        pod["status"]["containerStatuses"][0]["state"] = {"waiting": waiting}
    members = [Member(f"m-{index}", "mnist", subject.uid, f"{index:036}/1", "10.0.0.1", 1, 1) for index in range(7_000)]
    observed = Observed([builders.pod(obj) for obj in pods], members=members)
    status = builders.status_of(subject, observed, {}, 1795428000.0)
    Kube(api.kubeconfig).patch("Rendezvous", light_namespace, "mnist", {"status": status}, status=True)
    stored = json.loads(api.kubectl("get", "rdzv", "mnist", "-n", light_namespace, "-o", "json"))
    assert stored["status"] == status
    assert Roster.from_object(stored).expected_count == 7_000


def test_status_is_not_the_users_to_apply(api: LocalCluster, light_namespace: str) -> None:
    obj = copy.deepcopy(rendezvous(ACCEPTED["c10d"]))
    apply(api, {**obj, "status": {"endpoint": "elsewhere:1"}}, namespace=light_namespace, dry_run=False)
    found = json.loads(api.kubectl("get", "rdzv", "mnist", "-n", light_namespace, "-o", "json"))
    assert "endpoint" not in found.get("status", {})


def fields(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")


def test_every_field_is_explained_and_bounded() -> None:
    (version,) = DEFINITION["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    assert schema["description"]
    for path, field in fields(schema):
        if not path.startswith((".apiVersion", ".kind", ".metadata")):
            assert field.get("description"), f"{path}: kubectl explain would have nothing to say"
            bounded = {"string": {"maxLength", "enum", "format"}, "array": {"maxItems"}}.get(field.get("type", ""))
            assert bounded is None or bounded & field.keys(), f"{path} has no bound"


#: Where torch reads each backend's configuration.
TORCH_SOURCES = {
    "c10d": ["c10d_rendezvous_backend.py", "dynamic_rendezvous.py"],
    "etcd-v2": ["etcd_rendezvous_backend.py", "dynamic_rendezvous.py"],
    "etcd": ["etcd_rendezvous.py"],
    "static": ["static_tcp_rendezvous.py"],
}


@pytest.mark.parametrize("backend", TORCH_SOURCES)
def test_known_config_keys_are_what_torch_reads(backend: str) -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "distributed/elastic/rendezvous"
    text = "".join((folder / name).read_text() for name in TORCH_SOURCES[backend])
    read = set(re.findall(r'params\.(?:config\.)?get\w*\(\s*"(\w+)"', text))
    read |= {f"{key}_timeout" for key in re.findall(r'_get_timeout\(params, "(\w+)"\)', text)}
    read |= set(re.findall(r'params\.config\["(\w+)"\]', text))
    assert read == CONFIG_KEYS[backend] | OPERATORS_KEYS.get(backend, set())


@pytest.mark.parametrize("backend", CONFIG_KEYS)
def test_the_answer_to_an_unknown_key_names_all_known_ones(api: LocalCluster, backend: str) -> None:
    more = {"endpoint": "etcd:2379"} if backend.startswith("etcd") else {}
    text = complaint(api, rendezvous({"backend": backend, "nodes": {"min": 2}, "config": {"tiemout": "1"}, **more}))
    named = text.partition("does not know: write ")[2].strip()
    assert set(re.split(r", | or ", named)) == CONFIG_KEYS[backend]
