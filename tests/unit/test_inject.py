"""Injection as a function of the pod: what is added where, and above all what is left alone."""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import jsonpatch
import kopf
import pytest
from hypothesis import given
from support.controllers import CONTROLLERS, ENVIRONMENTS
from support.pod_strategies import pods

from rdzv.control.inject import (
    CLIENT,
    DELIVERIES,
    LIBRARY,
    LIBRARY_ANNOTATION,
    LIMITED,
    YIELDING,
    InjectionSettings,
    first_of_controller,
    inject,
    is_injected,
    shadowed,
)
from rdzv.env import CLIENT_PATH, PodEnvironment, render, unless_limited
from rdzv.registry import backend_registry
from rdzv.spec import LABEL, Rendezvous

Object = dict[str, Any]

SETTINGS = {
    delivery: InjectionSettings(delivery=delivery, library_image="library:1", init_image="operator:1")
    for delivery in DELIVERIES
}


def pod(
    *containers: Object, labels: Mapping[str, Any] | None = None, annotations: Object | None = None, **spec: Any
) -> Object:
    return {
        "metadata": {"name": "p", "labels": {LABEL: "mnist", **(labels or {})}, "annotations": annotations or {}},
        "spec": {"containers": list(containers) or [{"name": "main", "image": "x"}], **spec},
    }


def injected(obj: Object, delivery: str = "none") -> Object:
    return inject(obj, SETTINGS[delivery])


def env_of(obj: Object, index: int = 0) -> list[Object]:
    env: list[Object] = obj["spec"]["containers"][index]["env"]
    return env


def field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def of_config_map(name: str, config_map: str, key: str) -> Object:
    return {"name": name, "valueFrom": {"configMapKeyRef": {"name": config_map, "key": key, "optional": True}}}


def test_everything_that_a_plain_pod_gets() -> None:
    label = "metadata.labels['apps.kubernetes.io/pod-index']"
    result = injected(pod(labels={"apps.kubernetes.io/pod-index": "1"}), "image-volume")
    assert result["spec"] == {
        "containers": [
            {
                "name": "main",
                "image": "x",
                "envFrom": [{"configMapRef": {"name": "rdzv-mnist"}}],
                "env": [
                    field("RDZV_POD_NAME", "metadata.name"),
                    field("RDZV_POD_UID", "metadata.uid"),
                    field("RDZV_POD_IP", "status.podIP"),
                    field("RDZV_NODE_NAME", "spec.nodeName"),
                    field("PET_LOCAL_ADDR", "status.podIP"),
                    field("RDZV_SLOT", label),
                    field("PET_NODE_RANK", label),
                    of_config_map("RANK", "rdzv-mnist-ranks", "1"),
                    {"name": "PYTHONPATH", "value": "/opt/rdzv"},
                ],
                "volumeMounts": [
                    {"name": LIBRARY, "mountPath": "/opt/rdzv", "readOnly": True},
                    {"name": CLIENT, "mountPath": CLIENT_PATH, "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": LIBRARY, "image": {"reference": "library:1", "pullPolicy": "IfNotPresent"}},
            {"name": CLIENT, "secret": {"secretName": "rdzv-mnist-client", "optional": True}},
        ],
    }


def test_users_sources_come_after_ours_so_that_they_win() -> None:
    result = injected(pod({"name": "main", "envFrom": [{"secretRef": {"name": "mine"}}]}))
    assert result["spec"]["containers"][0]["envFrom"] == [
        {"configMapRef": {"name": "rdzv-mnist"}},
        {"secretRef": {"name": "mine"}},
    ]


def test_users_variables_stay_and_ours_of_that_name_is_not_added() -> None:
    own = [{"name": "PET_LOCAL_ADDR", "value": "10.0.0.1"}, {"name": "RDZV_POD_IP", "value": ""}]
    env = env_of(injected(pod({"name": "main", "env": own}), "init"))
    assert env[:2] == own
    assert [entry["name"] for entry in env].count("PET_LOCAL_ADDR") == 1
    assert [entry["name"] for entry in env].count("RDZV_POD_IP") == 1


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_the_place_that_each_controller_gives_its_pods(kind: str) -> None:
    labels, expected = CONTROLLERS[kind]
    env = {entry["name"]: entry for entry in env_of(injected(pod(labels=labels)))}
    found = {name: env[name] for name in ("RDZV_SLOT", "RDZV_GROUP", "RDZV_INDEX", "PET_NODE_RANK") if name in env}
    assert found == {name: field(name, f"metadata.labels['{label}']") for name, label in expected.items()}


@pytest.mark.parametrize("labels", [{}, {"rdzv.dev/group": "a"}])
def test_without_an_index_no_rank_is_made_up(labels: Object) -> None:
    names = {entry["name"] for entry in env_of(injected(pod(labels=labels)))}
    assert not {"RDZV_SLOT", "RDZV_INDEX", "PET_NODE_RANK", "RANK"} & names


def test_an_index_without_a_number_is_no_key_of_ranks() -> None:
    assert "RANK" not in {entry["name"] for entry in env_of(injected(pod(labels={"rdzv.dev/slot": ""})))}


def limited(**container: Any) -> list[Object]:
    """What a container of these limits gets for the number of its processes and their threads."""
    resources = {"limits": {"cpu": "2", "memory": "1Gi"}}
    result = injected(pod({"name": "main", "resources": resources, **container}))
    return [entry for entry in env_of(result) if entry["name"] in LIMITED]


def test_a_container_with_a_limit_of_processors_has_a_process_for_each_unless_its_rendezvous_says_a_number() -> None:
    limit = {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}}
    assert limited() == [
        {"name": "PET_NPROC_PER_NODE", "valueFrom": limit},
        of_config_map("PET_NPROC_PER_NODE", "rdzv-mnist", "RDZV_NPROC_PER_NODE"),
        {"name": "OMP_NUM_THREADS", "valueFrom": limit},
        of_config_map("OMP_NUM_THREADS", "rdzv-mnist", "RDZV_OMP_NUM_THREADS"),
    ]


@pytest.mark.parametrize(
    "container",
    [
        {"resources": {}},
        {"resources": {"limits": {"memory": "1Gi"}}},
        {"resources": {"limits": {"cpu": "8", "nvidia.com/gpu": "1"}}},
        {"resources": {"limits": {"cpu": "8"}, "claims": [{"name": "gpus"}]}},
        {"envFrom": [{"configMapRef": {"name": "mine"}}]},
        {"env": [{"name": "PET_NPROC_PER_NODE", "value": "3"}, {"name": "OMP_NUM_THREADS", "value": "2"}]},
    ],
    ids=[
        "no limit",
        "no limit of processors",
        "devices",
        "claimed devices",
        "variables that can't be seen",
        "its user's",
    ],
)
def test_processes_stay_torchruns_matter_where_a_limit_says_nothing_or_the_user_something(container: Object) -> None:
    assert limited(**container) == container.get("env", [])


def test_what_a_controller_says_where_its_user_says_nothing_yields_to_the_limit() -> None:
    labels, users, added, _ = ENVIRONMENTS["PyTorchJob"]
    resources = {"limits": {"cpu": "2"}}
    result = injected(pod({"name": "main", "resources": resources, "env": [*users, *added]}, labels=labels))
    found = [entry.get("valueFrom", entry) for entry in env_of(result) if entry["name"] == "PET_NPROC_PER_NODE"]
    assert ["value" in found[0], *("resourceFieldRef" in entry for entry in found[1:])] == [True, True, False]
    assert found[-1]["configMapKeyRef"]["key"] == "RDZV_NPROC_PER_NODE"
    assert ("main", "PET_NPROC_PER_NODE") not in shadowed(result)
    assert inject(result, SETTINGS["none"]) == result


def effective(container: Object) -> dict[str, Object]:
    """Of one name the last one counts."""
    return {entry["name"]: entry for entry in container["env"]}


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_a_controllers_own_rendezvous_yields_and_what_the_user_wrote_does_not(kind: str) -> None:
    labels, users, added, yielding = ENVIRONMENTS[kind]
    before = [*users, *added]
    result = injected(pod({"name": "main", "env": before}, labels=labels))
    container = result["spec"]["containers"][0]
    assert container["env"][: len(before)] == before, "nothing is removed or overwritten"
    references = {
        name: entry.get("valueFrom", {}).get("configMapKeyRef", {}) for name, entry in effective(container).items()
    }
    found = [name for name, reference in references.items() if reference.get("name") == "rdzv-mnist"]
    assert sorted(found) == sorted(yielding)
    for name in found:
        reference = {"name": "rdzv-mnist", "key": name, "optional": True}
        assert effective(container)[name]["valueFrom"] == {"configMapKeyRef": reference}
    assert not {name for _, name in shadowed(result)} & set(yielding), "what has yielded is no news"
    assert injected(result) == result


@pytest.mark.parametrize(
    ("container", "different"),
    [
        ({}, False),
        ({"env": [{"name": "PET_NPROC_PER_NODE", "value": "2"}]}, True),
        ({"command": ["torchrun", "--nproc-per-node=2", "train.py"]}, True),
        ({"args": ["sh", "-c", "torchrun --nproc_per_node 2 train.py"]}, True),
        ({"command": ["torchrun", "--my-nproc-per-node=2", "train.py"]}, False),
        ({"command": ["torchrun", "--nproc-per-node-file=2", "train.py"]}, False),
    ],
)
def test_torch_is_not_told_that_all_nodes_are_alike_where_this_one_says_how_many_processes(
    container: Object, different: bool
) -> None:
    result = injected(pod({"name": "main", **container}))
    assert ({"name": "TORCH_ELASTIC_WORKER_IDENTICAL", "value": "0"} in env_of(result)) == different
    assert "TORCH_ELASTIC_WORKER_IDENTICAL" not in {name for _, name in shadowed(result)}
    assert injected(result) == result


@pytest.mark.parametrize(
    ("annotation", "targets"),
    [
        (None, {"a", "b"}),
        ("", {"a", "b"}),
        (" , ", {"a", "b"}),
        ("a", {"a"}),
        (" b , side", {"b", "side"}),
        ("nobody", set()),
        ("setup,rdzv-library", {"setup"}),
    ],
)
def test_which_containers_are_injected(annotation: str | None, targets: set[str]) -> None:
    annotations = {} if annotation is None else {"rdzv.dev/containers": annotation}
    inits = [{"name": "setup"}, {"name": "side", "restartPolicy": "Always"}]
    original = pod({"name": "a"}, {"name": "b"}, annotations=annotations, initContainers=inits)
    result = injected(original, "init")
    containers = [*result["spec"]["initContainers"], *result["spec"]["containers"]]
    assert {container["name"] for container in containers if "envFrom" in container} == targets
    assert is_injected(result) == bool(targets)
    assert (result == original) == (not targets)
    assert injected(result, "init") == result


@pytest.mark.parametrize(
    "change", [{"labels": {}}, {"labels": None}, {"labels": {LABEL: ""}}, {"labels": {"rdzv.dev/slot": "1"}}]
)
def test_pods_that_did_not_opt_in_stay_as_they_are(change: Object) -> None:
    original = pod()
    original["metadata"].update(change)
    assert injected(original, "init") == original
    assert not is_injected(original)


def test_mirrors_of_static_pods_stay_as_they_are() -> None:
    original = pod(annotations={"kubernetes.io/config.mirror": "hash"})
    assert injected(original, "init") == original


@pytest.mark.parametrize("default", DELIVERIES)
@pytest.mark.parametrize(
    ("annotation", "expected"), [*zip(DELIVERIES, DELIVERIES, strict=True), ("typo", None), (None, None)]
)
def test_the_annotation_overrules_the_delivery(default: str, annotation: str | None, expected: str | None) -> None:
    spec = injected(pod(annotations={LIBRARY_ANNOTATION: annotation} if annotation else {}), default)["spec"]
    found = {"image": "image-volume", "emptyDir": "init"}
    volumes = spec.get("volumes", [])
    assert next((found[key] for volume in volumes for key in volume if key in found), "none") == (expected or default)
    assert ("initContainers" in spec) == ((expected or default) == "init")


def test_the_init_container_is_first_and_fits_the_restricted_standard() -> None:
    spec = injected(pod(initContainers=[{"name": "mine"}]), "init")["spec"]
    ours, mine = spec["initContainers"]
    assert mine == {"name": "mine"}
    assert ours["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    # A Guaranteed pod stays Guaranteed.
    assert ours["resources"]["requests"] == ours["resources"]["limits"]


@pytest.mark.parametrize(("user", "expected"), [(0, 65532), (1000, None), (None, None)])
def test_the_init_container_of_a_pod_of_root_is_not_root(user: int | None, expected: int | None) -> None:
    context = {} if user is None else {"securityContext": {"runAsUser": user}}
    ours = injected(pod(**context), "init")["spec"]["initContainers"][0]
    assert ours["securityContext"].get("runAsUser") == expected


def test_a_volume_of_our_name_is_used_and_not_filled() -> None:
    volumes = [{"name": LIBRARY, "persistentVolumeClaim": {"claimName": "mine"}}]
    spec = injected(pod(volumes=volumes), "init")["spec"]
    assert [volume for volume in spec["volumes"] if volume["name"] != CLIENT] == volumes
    assert "initContainers" not in spec
    assert spec["containers"][0]["volumeMounts"][0]["name"] == LIBRARY


def test_with_a_container_of_our_name_nothing_can_be_copied() -> None:
    spec = injected(pod({"name": LIBRARY}), "init")["spec"]
    assert [volume["name"] for volume in spec["volumes"]] == [CLIENT]
    assert "initContainers" not in spec
    assert "PYTHONPATH" not in {entry["name"] for entry in spec["containers"][0]["env"]}


@pytest.mark.parametrize("path", ["/opt/rdzv", "/opt/rdzv/"])
def test_what_the_user_mounts_at_our_path_stays(path: str) -> None:
    mounts = [{"name": "mine", "mountPath": path}]
    container = injected(pod({"name": "main", "volumeMounts": mounts}), "image-volume")["spec"]["containers"][0]
    assert [mount for mount in container["volumeMounts"] if mount["name"] != CLIENT] == mounts


@pytest.mark.parametrize("path", [CLIENT_PATH, f"{CLIENT_PATH}/"])
def test_credentials_that_the_user_mounts_stay(path: str) -> None:
    volumes = [{"name": CLIENT, "secret": {"secretName": "mine"}}]
    mounts = [{"name": "other", "mountPath": path}]
    spec = injected(pod({"name": "main", "volumeMounts": mounts}, {"name": "side"}, volumes=volumes))["spec"]
    assert spec["volumes"] == volumes
    assert spec["containers"][0]["volumeMounts"] == mounts
    assert spec["containers"][1]["volumeMounts"] == [{"name": CLIENT, "mountPath": CLIENT_PATH, "readOnly": True}]


def test_a_delivery_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'csi': write one of image-volume, init, none"):
        InjectionSettings(delivery="csi", library_image="", init_image="")


@given(pods())
def test_twice_is_once(original: Object) -> None:
    for settings in SETTINGS.values():
        once = inject(original, settings)
        assert inject(once, settings) == once
        for other in SETTINGS.values():  # a policy and a webhook of different releases
            again = inject(once, other)
            assert again["spec"]["containers"][0].get("envFrom") == once["spec"]["containers"][0].get("envFrom")


@given(pods())
def test_nothing_is_removed_or_overwritten_and_the_argument_is_not_changed(original: Object) -> None:
    before = copy.deepcopy(original)
    for settings in SETTINGS.values():
        assert kept(before, inject(original, settings))
    assert original == before


def kept(old: Any, new: Any) -> bool:
    """Whether all of `old` is in `new`: mappings key by key, lists as a subsequence in order."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and kept(value, new[key]) for key, value in old.items())
    if isinstance(old, list):
        rest = iter(new)
        return all(any(kept(item, candidate) for candidate in rest) for item in old)
    return bool(old == new)


@given(pods())
def test_of_each_name_users_variables_come_as_they_were(original: Object) -> None:
    """Ours come behind; and of a name that a container has already, only where its controller wrote it for a rendezvous of its own."""
    result = inject(original, SETTINGS["init"])
    old = {container["name"]: container.get("env", []) for container in original["spec"]["containers"]}
    for container in result["spec"]["containers"]:
        own, now = old[container["name"]], container.get("env", [])
        assert now[: len(own)] == own
        added = [entry["name"] for entry in now[len(own) :] if "resourceFieldRef" not in entry.get("valueFrom", {})]
        assert len(set(added)) == len(added), "a limit is the only thing that something else of ours follows"
        users = own[: first_of_controller(original, own)]
        added += [entry["name"] for entry in now[len(own) :]]
        assert {entry["name"] for entry in users}.isdisjoint(added)
        assert {entry["name"] for entry in own}.intersection(added).issubset(YIELDING)


@given(pods(labelled=False))
def test_pods_without_the_label_are_never_touched(original: Object) -> None:
    for settings in SETTINGS.values():
        assert inject(original, settings) == original
    assert not is_injected(original)


@functools.cache
def webhook() -> ModuleType:
    """operator/webhook.py, which is a program and no part of the package."""
    spec = importlib.util.spec_from_file_location("webhook", Path(__file__).parents[2] / "operator" / "webhook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(pods())
def test_kopfs_json_patch_leads_to_the_same_pod(original: Object) -> None:
    handler = webhook().add
    for settings in SETTINGS.values():
        body = kopf.Body(cast("kopf.RawBody", original))
        patch = kopf.Patch(body=body)
        asyncio.run(handler(body=body, patch=patch, memo=kopf.Memo(inject=settings)))
        assert jsonpatch.apply_patch(original, patch.as_json_patch()) == inject(original, settings)


def test_shadowed_is_empty_after_injection_as_the_api_server_returns_it() -> None:
    result = injected(pod(labels={"rdzv.dev/slot": "1"}), "init")
    for entry in env_of(result):
        entry.get("valueFrom", {}).get("fieldRef", {})["apiVersion"] = "v1"
    assert shadowed(result) == []


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({"env": [{"name": "PET_NNODES", "value": "3"}]}, ["PET_NNODES"]),
        (
            {"env": [{"name": "RDZV_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]},
            ["RDZV_POD_IP"],
        ),
        ({"env": [{"name": "PET_LOG_DIR", "value": "/log"}, {"name": "NCCL_DEBUG", "value": "INFO"}]}, []),
        ({"env": [{"name": "PYTHONPATH", "value": "/app"}]}, ["PYTHONPATH"]),
        ({"env": [{"name": "PYTHONPATH", "value": "/app:/opt/rdzv"}]}, []),
        ({"env": [{"name": "PYTHONPATH", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]}, ["PYTHONPATH"]),
        ({"command": ["torchrun", "--nnodes=2", "--rdzv_backend", "c10d", "train.py"]}, ["--nnodes", "--rdzv-backend"]),
        (
            {"args": ["sh", "-c", "exec torchrun --rdzv-id=1 --standalone train.py --rdzv-id=1"]},
            ["--rdzv-id", "--standalone"],
        ),
        ({"args": ["train.py", "--nnodes-file", "x", "--my-rdzv-id=3", "nnodes"]}, []),
    ],
)
def test_what_the_user_shadows_is_named(container: Object, expected: list[str]) -> None:
    result = injected(pod({"name": "main", **container}), "image-volume")
    assert shadowed(result) == [("main", name) for name in expected]


def test_pythonpath_is_the_users_business_where_no_library_is() -> None:
    result = injected(pod({"name": "main", "env": [{"name": "PYTHONPATH", "value": "/app"}]}), "none")
    assert shadowed(result) == []


@pytest.mark.parametrize("backend", backend_registry().names())
def test_whatever_the_operator_renders_into_the_environment_can_be_reported(backend: str) -> None:
    spec = {"backend": backend, "nodes": {"min": 2, "max": 2}, "nprocPerNode": "2"}
    if backend != "kubernetes":
        spec["endpoint"] = "server:2379"
    rendezvous = Rendezvous.from_object({"metadata": {"name": "mnist", "namespace": "team", "uid": "u"}, "spec": spec})
    keys = set(map(unless_limited, LIMITED))  # Read by their references, and by nobody as variables.
    names = [name for name in render(rendezvous, backend_registry().provision(rendezvous)) if name not in keys]
    own = [{"name": name, "value": "mine"} for name in names]
    assert shadowed(injected(pod({"name": "main", "env": own}))) == [("main", name) for name in names]


def test_the_injected_environment_is_what_the_pod_side_reads() -> None:
    """The two ends of the contract meet: names written here are the names parsed in the pod."""
    names = {entry["name"] for entry in env_of(injected(pod(labels={"rdzv.dev/slot": "3"})))}
    environ = {"PET_RDZV_BACKEND": "c10d", **{name: "3" for name in names if name in {"RDZV_SLOT", "PET_LOCAL_ADDR"}}}
    parsed = PodEnvironment.parse(environ)
    assert (parsed.slot, parsed.local_addr) == (3, "3")
