"""Hypothesis strategies for pods that the API server admits, with much of what users do to them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from rdzv.control.inject import CLIENT, CONTAINERS_ANNOTATION, LIBRARY, LIBRARY_ANNOTATION
from rdzv.env import CLIENT_PATH, LIBRARY_PATH
from rdzv.pairs import LABELS as PLACES
from rdzv.spec import LABEL

Object = dict[str, Any]

#: Of controllers, whose variables may yield as well.
LABELS = (*PLACES, "jobset.sigs.k8s.io/jobset-name")

#: Ours, torchrun's and the user's own.
_VARIABLES = [
    "RDZV_POD_NAME",
    "RDZV_POD_IP",
    "PET_LOCAL_ADDR",
    "PET_NODE_RANK",
    "RDZV_SLOT",
    "RDZV_GROUP",
    "PET_RDZV_CONF",
    "RDZV_POD_UID",
]
_VARIABLES += ["PYTHONPATH", "PET_NNODES", "PET_RDZV_BACKEND", "NCCL_DEBUG", "A", "MASTER_ADDR"]
_VARIABLES += ["PET_NPROC_PER_NODE", "PYTHONUNBUFFERED", "PET_MASTER_ADDR", "RANK", "OMP_NUM_THREADS"]
_VALUES = ["", "1", "auto", "0-node-0-0", "/opt/rdzv", "$(PET_RDZV_CONF),a=b", "$$(A) 'x' \"y\" \\ ~1/{}", "é→"]
_VALUE_FROM: list[Object] = [
    {"fieldRef": {"fieldPath": "metadata.name"}},
    {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}},
    {"secretKeyRef": {"name": "secret", "key": "key", "optional": True}},
    {"configMapKeyRef": {"name": "rdzv-mnist", "key": "PET_NNODES"}},
    {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}},
]
_SOURCES: list[Object] = [
    {"configMapRef": {"name": "rdzv-mnist"}},
    {"configMapRef": {"name": "rdzv-mnist", "optional": True}},
    {"prefix": "MY_", "configMapRef": {"name": "other"}},
    {"secretRef": {"name": "rdzv-mnist"}},
    {"secretRef": {"name": "credentials"}},
]
_VOLUMES: dict[str, list[Object]] = {
    "data": [{"emptyDir": {}}, {"hostPath": {"path": "/data"}}],
    "config": [{"configMap": {"name": "config", "defaultMode": 0o444}}],
    LIBRARY: [{"emptyDir": {}}, {"image": {"reference": "mine:1"}}],
    CLIENT: [{"secret": {"secretName": "mine"}}, {"emptyDir": {}}],
}
_PATHS = [LIBRARY_PATH, f"{LIBRARY_PATH}/", CLIENT_PATH, f"{CLIENT_PATH}/", "/opt", "/data", "/etc/config"]
_RESOURCES: list[Object] = [
    {},
    {"limits": {"cpu": "2", "memory": "1Gi"}},
    {"limits": {"cpu": "1500m", "memory": "1Gi"}},
    {"limits": {"memory": "1Gi"}},
    {"limits": {"cpu": "8", "nvidia.com/gpu": "1"}},
    {"requests": {"cpu": "0.5", "nvidia.com/gpu": "8"}, "limits": {"nvidia.com/gpu": "8"}},
]
_SECURITY: list[Object] = [
    {"runAsUser": 0},
    {"runAsUser": 1000, "runAsNonRoot": True, "fsGroup": 0},
    {"seccompProfile": {"type": "RuntimeDefault"}, "runAsNonRoot": True},
]
NAMES = ["main", "side", "load", "train-0", LIBRARY]


def optionally(strategy: st.SearchStrategy[Any], key: str) -> st.SearchStrategy[Object]:
    """A dict with `key`, or an empty one."""
    return st.one_of(st.just({}), strategy.map(lambda value: {key: value}))


@st.composite
def _container(draw: st.DrawFn, name: str, volumes: list[str], *, init: bool) -> Object:
    entry = st.one_of(
        st.builds(
            lambda name, value: {"name": name, "value": value}, st.sampled_from(_VARIABLES), st.sampled_from(_VALUES)
        ),
        st.builds(
            lambda name, source: {"name": name, "valueFrom": source},
            st.sampled_from(_VARIABLES),
            st.sampled_from(_VALUE_FROM),
        ),
    )
    container: Object = {"name": name, "image": f"registry.example/{name}:1"}
    container |= draw(optionally(st.lists(entry, max_size=6), "env"))
    container |= draw(optionally(st.lists(st.sampled_from(_SOURCES), max_size=3), "envFrom"))
    container |= draw(optionally(st.sampled_from(_RESOURCES), "resources"))
    container |= draw(optionally(st.just(["torchrun", "--nnodes=2", "train.py"]), "command"))
    paths = draw(st.lists(st.sampled_from(_PATHS), unique=True, max_size=3)) if volumes else []
    if paths:
        container["volumeMounts"] = [{"name": draw(st.sampled_from(volumes)), "mountPath": path} for path in paths]
    if init and draw(st.booleans()):
        container["restartPolicy"] = "Always"
    return container


@st.composite
def pods(draw: st.DrawFn, *, labelled: bool = True) -> Object:
    """A pod; without the label it may have everything else."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=4))
    inits = draw(st.integers(0, len(names) - 1))
    volumes = draw(st.lists(st.sampled_from(sorted(_VOLUMES)), unique=True))
    labels: Object = {
        label: draw(st.sampled_from(["0", "3", "11", ""])) for label in draw(st.sets(st.sampled_from(LABELS)))
    }
    if labelled:
        labels[LABEL] = draw(st.sampled_from(["mnist", "mnist", "a.b-c"]))
    listed = st.lists(st.sampled_from([*NAMES, "nobody", " "]), max_size=3).map(", ".join)
    annotations = draw(optionally(listed, CONTAINERS_ANNOTATION))
    annotations |= draw(optionally(st.sampled_from(["image-volume", "init", "none", "Init", ""]), LIBRARY_ANNOTATION))
    containers = [draw(_container(name, volumes, init=i < inits)) for i, name in enumerate(names)]
    spec: Object = {"containers": containers[inits:]} | draw(optionally(st.sampled_from(_SECURITY), "securityContext"))
    if volumes:
        spec["volumes"] = [{"name": name, **draw(st.sampled_from(_VOLUMES[name]))} for name in volumes]
    if inits:
        spec["initContainers"] = containers[:inits]
    metadata: Object = {"name": "pod", "labels": labels} | draw(optionally(st.just(annotations), "annotations"))
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
