"""Injection: what a pod that opted in gets when it is created, as a pure function of the pod.

It adds references (the ConfigMap that the operator writes, fields of the pod itself) and looks nothing up, so it comes out the same by
admission policy and by webhook, and whichever of pod and Rendezvous is applied first. The policy
(`charts/rendezvous-operator/templates/injection/policy.yaml`) says the same in CEL; `tests/contract/test_injection_differential.py`
holds the two together. Nothing is removed or overwritten, so a second pass changes nothing. See docs/adr/0003-injection.md.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdzv.env import CLIENT_PATH, ENV_METHOD, LIBRARY_PATH, ranks_name, unless_limited
from rdzv.objects import ReadOnlyObject, entry_of
from rdzv.pairs import GROUP_LABEL, labels_of
from rdzv.spec import GROUP, LABEL

#: Containers to inject, separated by commas; without it every regular container.
CONTAINERS_ANNOTATION = f"{GROUP}/containers"
#: How the library reaches this pod, instead of what the chart says.
LIBRARY_ANNOTATION = f"{GROUP}/library"
#: Static pods: what the API server has of them is a mirror, which must stay as the kubelet made it.
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"

#: Name of the library's volume and of the init container that fills it.
LIBRARY = "rdzv-library"
#: Name of the volume with what a client of the backend's server proves itself with.
CLIENT = "rdzv-client"
DELIVERIES = ("image-volume", "init", "none")

#: The user of the operator's image.
_IMAGE_UID = 65532
#: Requests equal limits: otherwise a Guaranteed pod would become Burstable. Not added to what the pod needs, as init containers
#: run before the others.
_INIT_RESOURCES = {"cpu": "100m", "memory": "64Mi"}

#: What comes by the ConfigMap or from here, and torchrun's flags for the same (a flag beats its PET_ variable).
_FLAGS = (
    *(
        "rdzv-backend",
        "rdzv-endpoint",
        "rdzv-id",
        "rdzv-conf",
        "nnodes",
        "nproc-per-node",
        "max-restarts",
        "monitor-interval",
        "standalone",
    ),
    *("node-rank", "master-addr", "master-port", "local-addr"),
)
VARIABLES = frozenset(
    {
        *("PET_" + flag.replace("-", "_").upper() for flag in _FLAGS),
        *ENV_METHOD,
        *("RDZV_NAME", "RDZV_NAMESPACE", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_ELASTIC_WORKER_IDENTICAL"),
        *(
            "RDZV_POD_NAME",
            "RDZV_POD_UID",
            "RDZV_POD_IP",
            "RDZV_NODE_NAME",
            "RDZV_SLOT",
            "RDZV_GROUP",
            "RDZV_INDEX",
            "PYTHONPATH",
        ),
    }
)
#: What a controller that has a rendezvous of its own tells its pods, and our ConfigMap tells them otherwise.
YIELDING = (
    *("PET_RDZV_BACKEND", "PET_RDZV_ENDPOINT", "PET_RDZV_ID", "PET_RDZV_CONF", "PET_NNODES", "PET_NPROC_PER_NODE"),
    *("PET_MASTER_ADDR", "PET_MASTER_PORT"),
)
#: What follows from how many processors a container may use: how many processes torchrun starts, and threads of each.
LIMITED = ("PET_NPROC_PER_NODE", "OMP_NUM_THREADS")
_NPROC, _IDENTICAL = "PET_NPROC_PER_NODE", "TORCH_ELASTIC_WORKER_IDENTICAL"
_NPROC_FLAG = re.compile(r"(?<![\w-])--nproc[-_]per[-_]node(?![\w-])", re.ASCII)
_FLAG = re.compile(rf"(?<![\w-])--({'|'.join(_FLAGS).replace('-', '[-_]')})(?![\w-])")


@dataclass(frozen=True)
class InjectionSettings:
    """What the chart decides: how the library is delivered (one of `DELIVERIES`) and from which images."""

    delivery: str
    library_image: str
    init_image: str
    library_pull_policy: str = "IfNotPresent"
    init_pull_policy: str = "IfNotPresent"

    def __post_init__(self) -> None:
        """Refuses a delivery that does not exist."""
        if self.delivery not in DELIVERIES:
            raise ValueError(f"delivery is {self.delivery!r}: write one of {', '.join(DELIVERIES)}")


def inject(pod: ReadOnlyObject, settings: InjectionSettings) -> dict[str, Any]:
    """The pod as it should be admitted: `pod` with what it lacks, or an equal copy when there is nothing to do.

    Pods without the label (or with an empty one), mirror pods and pods whose annotation names none of their containers stay as they are.
    """
    result = copy.deepcopy(dict(pod))
    name, targets = _rendezvous(result), _targets(result)
    if not name or not targets or MIRROR_ANNOTATION in _annotations(result):
        return result
    delivery = _delivery(result, settings)
    library = _delivers(result, delivery)
    env = _env(result, library)
    for container in targets:
        if not _refers(container, name):
            container["envFrom"] = [{"configMapRef": {"name": name}}, *(container.get("envFrom") or [])]
        own = container.get("env") or []
        yielding = _yielding(result, own)
        limited = [
            variable for variable in _limited(container, name) if variable not in _names(own) or variable in yielding
        ]
        container["env"] = [
            *own,
            *(entry for entry in env if entry["name"] not in _names(own)),
            *(_of_config_map(variable, name, variable) for variable in yielding if variable not in limited),
            *(entry for variable in limited for entry in _by_limit(name, variable)),
        ]
        if _has_own_nproc(container, name) and _IDENTICAL not in _names(own):
            container["env"].append(dict(_DIFFERENT))
        for volume, path in ((LIBRARY, LIBRARY_PATH), (CLIENT, CLIENT_PATH)):
            if (volume != LIBRARY or library) and not _mounts(container, path):
                mount = {"name": volume, "mountPath": path, "readOnly": True}
                container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]
    volumes = _names(result["spec"].get("volumes"))
    if library and LIBRARY not in volumes:
        _add_volume(result["spec"], delivery, settings)
    if CLIENT not in volumes:
        # Optional, as nobody looks up whether this Rendezvous has a server with certificates.
        secret = {"name": CLIENT, "secret": {"secretName": f"{name}-client", "optional": True}}
        result["spec"]["volumes"] = [*(result["spec"].get("volumes") or []), secret]
    return result


def is_injected(pod: ReadOnlyObject) -> bool:
    """Whether a container of the pod gets its environment from the ConfigMap of the Rendezvous that its label names."""
    name = _rendezvous(pod)
    return bool(name) and any(_refers(container, name) for container in containers_of(pod))


def shadowed(pod: ReadOnlyObject) -> list[tuple[str, str]]:
    """What the user's own variables and flags keep from taking effect, as (container, variable or flag).

    Values from the user's own `envFrom` beat ours too, but can't be seen in the pod. `PYTHONPATH` counts where the library is mounted
    and the user's value does not lead to it.
    """
    found: list[tuple[str, str]] = []
    ours = {entry["name"]: entry for entry in _env(pod, library=True)}
    for container in _targets(pod):
        # Of one name the last one counts.
        own = {entry["name"]: entry for entry in container.get("env") or [] if entry["name"] in VARIABLES}
        for name, entry in own.items():
            harmless = name == "PYTHONPATH" and (
                not _mounts(container, LIBRARY_PATH) or LIBRARY_PATH in str(entry.get("value")).split(":")
            )
            same = _plain(entry) in (ours.get(name), _DIFFERENT) or _is_ours(entry, _rendezvous(pod))
            if not same and not harmless:
                found.append((container["name"], name))
        flags = [match.group().replace("_", "-") for word in command_words(container) for match in _FLAG.finditer(word)]
        found += [(container["name"], flag) for flag in dict.fromkeys(flags)]
    return found


#: How many processes this pod has is its own matter, so the others have to be told: torch is not to take it for granted.
_DIFFERENT = {"name": _IDENTICAL, "value": "0"}


def _has_own_nproc(container: ReadOnlyObject, config_map: str) -> bool:
    """Whether the number of its processes is not the Rendezvous's, and may not be that of other pods."""
    told = entry_of(container, _NPROC)
    return (bool(told) and not _is_ours(told, config_map)) or any(map(_NPROC_FLAG.search, command_words(container)))


def command_words(container: ReadOnlyObject) -> list[str]:
    """The words of a container's command, as far as the pod shows them."""
    return [*(container.get("command") or []), *(container.get("args") or [])]


def _is_ours(entry: ReadOnlyObject, config_map: str) -> bool:
    reference = (entry.get("valueFrom") or {}).get("configMapKeyRef") or {}
    return bool(reference.get("name") == config_map)


def _of_config_map(variable: str, config_map: str, key: str) -> dict[str, Any]:
    """The Rendezvous's own value, after which that of its name counts no more; where it has none, that one does."""
    reference = {"name": config_map, "key": key, "optional": True}
    return {"name": variable, "valueFrom": {"configMapKeyRef": reference}}


def _limited(container: ReadOnlyObject, config_map: str) -> Sequence[str]:
    """The variables that follow from how many processors the container may use, which neither torchrun nor OpenMP knows.

    None where it has devices, which torchrun counts rightly, or variables of its user's that can't be seen from here.
    """
    limits = (container.get("resources") or {}).get("limits") or {}
    own = [source for source in container.get("envFrom") or [] if not _is_source(source, config_map)]
    return () if "cpu" not in limits or own or asks_for_devices(container) else LIMITED


def asks_for_devices(container: ReadOnlyObject) -> bool:
    """Whether it asks for GPUs or the like: for extended resources, or claims."""
    resources = container.get("resources") or {}
    return bool(resources.get("claims")) or any("/" in name for name in resources.get("limits") or {})


def _by_limit(config_map: str, variable: str) -> list[dict[str, Any]]:
    """One for each processor, and after that what the Rendezvous says, if it says a number."""
    reference = {"resource": "limits.cpu", "divisor": "1"}
    return [
        {"name": variable, "valueFrom": {"resourceFieldRef": reference}},
        _of_config_map(variable, config_map, unless_limited(variable)),
    ]


def _yielding(pod: ReadOnlyObject, env: Sequence[ReadOnlyObject]) -> list[str]:
    """The variables by which a controller has set up a rendezvous of its own, and not the user: as far as that can be known.

    `auto` is what controllers write where the user has not said how many processes.
    """
    first = first_of_controller(pod, env)
    names = [entry["name"] for entry in env]
    return [
        entry["name"]
        for number, entry in enumerate(env)
        if number >= first
        and entry["name"] in YIELDING
        and "valueFrom" not in entry
        and (entry["name"] != _NPROC or entry.get("value") == "auto")
        and entry["name"] not in names[number + 1 :]
        and entry["name"] not in names[:first]
    ]


def first_of_controller(pod: ReadOnlyObject, env: Sequence[ReadOnlyObject]) -> int:
    """From where on the variables of a container are its controller's; behind all of them where that can't be known.

    Kubeflow's training operator appends to the user's variables, PYTHONUNBUFFERED first. Its trainer replaces them, so that of a
    TrainJob all may be its own.
    """
    names, labels = [entry["name"] for entry in env], _labels(pod)
    if "training.kubeflow.org/replica-type" in labels and "PYTHONUNBUFFERED" in names:
        return len(names) - names[::-1].index("PYTHONUNBUFFERED")
    jobset = labels.get("jobset.sigs.k8s.io/jobset-name")
    of_trainer = jobset and any(
        entry["name"] == "PET_MASTER_ADDR" and entry.get("value", "").startswith(f"{jobset}-node-") for entry in env
    )
    return 0 if of_trainer and "training.kubeflow.org/replica-type" not in labels else len(names)


def _env(pod: ReadOnlyObject, library: bool) -> list[dict[str, Any]]:
    """The variables that are a pod's own."""
    fields = [
        ("RDZV_POD_NAME", "metadata.name"),
        ("RDZV_POD_UID", "metadata.uid"),
        ("RDZV_POD_IP", "status.podIP"),
        ("RDZV_NODE_NAME", "spec.nodeName"),
        ("PET_LOCAL_ADDR", "status.podIP"),
    ]
    fields += [(name, f"metadata.labels['{label}']") for name, label in _place(pod)]
    env: list[dict[str, Any]] = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields
    ]
    index = dict(_place(pod)).get("PET_NODE_RANK", "")
    if rank := _labels(pod).get(index):
        env.append(_of_config_map("RANK", ranks_name(_rendezvous(pod)), rank))
    if library:
        env.append({"name": "PYTHONPATH", "value": LIBRARY_PATH})
    return env


def _place(pod: ReadOnlyObject) -> list[tuple[str, str]]:
    """Variables for the pod's place in the world, and the labels that say it.

    The label of a group, or of an index in it, may not be there yet: the kubelet takes its value when it starts the container.
    An index is a rank as well, where there is but one group. Of a group that the user names there are others.
    """
    group, index = labels_of(_labels(pod))
    found = [("RDZV_GROUP", group)] if group else []
    if index:
        found.append(("RDZV_INDEX" if group else "RDZV_SLOT", index))
    if index and group != GROUP_LABEL:
        found.append(("PET_NODE_RANK", index))
    return found


def _delivery(pod: ReadOnlyObject, settings: InjectionSettings) -> str:
    wish = _annotations(pod).get(LIBRARY_ANNOTATION)
    return wish if wish in DELIVERIES else settings.delivery


def _delivers(pod: ReadOnlyObject, delivery: str) -> bool:
    """A volume of our name is used as it is, whoever made it; a container of our name that is not ours leaves no way to fill one."""
    if delivery == "none":
        return False
    return (
        delivery == "image-volume"
        or LIBRARY in _names(pod["spec"].get("volumes"))
        or LIBRARY not in _names(containers_of(pod))
    )


def _add_volume(spec: dict[str, Any], delivery: str, settings: InjectionSettings) -> None:
    volume: dict[str, Any] = {"name": LIBRARY}
    if delivery == "image-volume":
        volume["image"] = {"reference": settings.library_image, "pullPolicy": settings.library_pull_policy}
    else:
        volume["emptyDir"] = {"sizeLimit": "16Mi"}
        spec["initContainers"] = [_init_container(spec, settings), *(spec.get("initContainers") or [])]
    spec["volumes"] = [*(spec.get("volumes") or []), volume]


def _init_container(spec: ReadOnlyObject, settings: InjectionSettings) -> dict[str, Any]:
    """Copies the library, before all else. Every Pod Security Standard admits it."""
    security: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if (spec.get("securityContext") or {}).get("runAsUser") == 0:
        # It would inherit root and be refused by runAsNonRoot. Elsewhere the user stays open: OpenShift assigns one per namespace.
        security["runAsUser"] = _IMAGE_UID
    return {
        "name": LIBRARY,
        "image": settings.init_image,
        "imagePullPolicy": settings.init_pull_policy,
        "command": ["cp", "-R", f"{LIBRARY_PATH}/.", "/library"],
        "resources": {"requests": dict(_INIT_RESOURCES), "limits": dict(_INIT_RESOURCES)},
        "securityContext": security,
        "volumeMounts": [{"name": LIBRARY, "mountPath": "/library"}],
    }


def _rendezvous(pod: ReadOnlyObject) -> str:
    """Name of the ConfigMap of the Rendezvous that the pod's label names; empty when it names none."""
    name = _labels(pod).get(LABEL)
    return f"rdzv-{name}" if name else ""


def _targets(pod: ReadOnlyObject) -> list[Any]:
    named = set(named_containers(pod))
    spec = pod.get("spec") or {}
    # Our own init container is never a target, or a second pass would find one more.
    inits = [container for container in spec.get("initContainers") or [] if container["name"] in named - {LIBRARY}]
    return [*inits, *(container for container in spec["containers"] if not named or container["name"] in named)]


def named_containers(pod: ReadOnlyObject) -> list[str]:
    """Whom the annotation names, whether there are such containers or not."""
    # Only the space is dropped, as CEL and Python agree on it; a container's name has no other white space either.
    return [name for name in _annotations(pod).get(CONTAINERS_ANNOTATION, "").replace(" ", "").split(",") if name]


def containers_of(pod: ReadOnlyObject) -> list[Any]:
    """All of a pod, those that run first first."""
    spec = pod.get("spec") or {}
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]


def _refers(container: ReadOnlyObject, config_map: str) -> bool:
    return any(_is_source(source, config_map) for source in container.get("envFrom") or [])


def _is_source(source: ReadOnlyObject, config_map: str) -> bool:
    return bool((source.get("configMapRef") or {}).get("name") == config_map)


def _mounts(container: ReadOnlyObject, path: str) -> bool:
    return any(mount["mountPath"] in {path, f"{path}/"} for mount in container.get("volumeMounts") or [])


def _plain(entry: ReadOnlyObject) -> dict[str, Any]:
    """An entry of `env` as we write it, without the `apiVersion` that the API server adds."""
    source = (entry.get("valueFrom") or {}).get("fieldRef")
    path = {"valueFrom": {"fieldRef": {"fieldPath": source["fieldPath"]}}} if source else {}
    return {**entry, **path}


def _names(items: Sequence[ReadOnlyObject] | None) -> set[str]:
    return {item["name"] for item in items or []}


def _labels(pod: ReadOnlyObject) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}


def _annotations(pod: ReadOnlyObject) -> Mapping[str, str]:
    return pod["metadata"].get("annotations") or {}
