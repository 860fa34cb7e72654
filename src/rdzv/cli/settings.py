"""What a pod's own variables and flags keep from taking effect, and what comes of it (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rdzv.cli.doctor import NOTE, PROBLEM, Finding
from rdzv.cli.probe import BACKEND
from rdzv.control.overrides import Override, overrides, unread, variable_of
from rdzv.env import LIBRARY_PATH
from rdzv.objects import ReadOnlyObject

_APART = "this pod meets elsewhere than the others, and never them"
_DIFFERS = "this pod's own value counts here, and the spec's in the other pods"
#: What comes of it when the pod's own one wins, worst first; what is not here is harmless as long as all pods agree.
_EFFECTS = {
    "PET_STANDALONE": "torchrun ignores every other rendezvous setting, and trains alone",
    "PET_RDZV_BACKEND": _APART,
    "PET_RDZV_ENDPOINT": _APART,
    "PET_RDZV_ID": "this pod is of another run than the others, and never meets them",
    "RDZV_NAME": "the agent takes itself for one of another Rendezvous",
    "RDZV_NAMESPACE": "the agent takes itself for one of another namespace",
    "RDZV_POD_NAME": "the agent goes by a name that is not its pod's, and is refused or not found",
    "RDZV_POD_UID": "the agent takes itself for another pod, and is refused",
    "RDZV_POD_IP": "the others are told an address that may not be this pod's",
    "PET_LOCAL_ADDR": "the others are told this address, and have to reach this pod by it",
    "PYTHONPATH": f"Python does not look in {LIBRARY_PATH}, so torch lacks the backend",
    "RDZV_SLOT": "this pod's index is this, whatever its controller says",
    "MASTER_ADDR": _APART,
    "MASTER_PORT": _APART,
    "RANK": "this is the process's rank, whatever the pod's index is",
    "WORLD_SIZE": "the process waits for so many, whatever the spec says",
}
_STATIC = {
    "PET_NODE_RANK": "this is the pod's rank, whatever its index is",
    "PET_MASTER_ADDR": _APART,
    "PET_MASTER_PORT": _APART,
}
_FIXES = {"PYTHONPATH": f"write PYTHONPATH={LIBRARY_PATH}:… in the template"}


def overridden(
    pod: ReadOnlyObject,
    backend: str,
    config_maps: Mapping[str, Mapping[str, str]] | None = None,
    launcher: str = "torchrun",
) -> list[Finding]:
    """What the pod's own settings win over.

    Args:
        pod: as admitted.
        backend: of its Rendezvous.
        config_maps: variables of the ConfigMaps that its containers name in `envFrom`, as far as they may be read.
        launcher: of its Rendezvous.
    """
    unused = unread(launcher)
    found = [_finding(each, backend) for each in overrides(pod) if variable_of(each.name) not in unused]
    for container in pod["spec"]["containers"]:
        found += _from_config_maps(container, backend, config_maps or {})
    return [finding for finding in found if finding is not None]


def sources(container: ReadOnlyObject) -> list[str]:
    """Names of the ConfigMaps in a container's `envFrom`, in order: a later one wins."""
    refs = [source.get("configMapRef") or {} for source in container.get("envFrom") or []]
    return [str(ref["name"]) for ref in refs if ref.get("name")]


def _finding(override: Override, backend: str) -> Finding | None:
    name, variable = override.name, variable_of(override.name)
    if name == "--standalone" or _is_meaningless(variable, backend):
        return None  # The command line says the former already.
    effect = _effect(variable, backend)
    where = "the command line" if name.startswith("--") else "env in the pod's template"
    fix = _FIXES.get(variable, f"remove {name} from {where}")
    return Finding("settings", PROBLEM if effect else NOTE, f"{override.text} wins", effect or _DIFFERS, fix)


def _from_config_maps(
    container: ReadOnlyObject, backend: str, config_maps: Mapping[str, Mapping[str, str]]
) -> Sequence[Finding | None]:
    """The last of `envFrom` wins, and `env` wins over all of them."""
    named = sources(container)
    ours = next((name for name in named if name.startswith("rdzv-")), None)
    later = named[named.index(ours) + 1 :] if ours else []
    own = {entry["name"] for entry in container.get("env") or []}
    found = []
    for name in later:
        for variable, value in sorted((config_maps.get(name) or {}).items()):
            if variable in own or variable not in (config_maps.get(ours or "") or {}):
                continue
            if value == config_maps[ours or ""][variable] or _is_meaningless(variable, backend):
                continue
            effect = _effect(variable, backend)
            text = f"{variable}={value[:80]} of ConfigMap {name} wins in container {container['name']}"
            fix = f"remove {variable} from ConfigMap {name}, or {name} from envFrom"
            found.append(Finding("settings", PROBLEM if effect else NOTE, text, effect or _DIFFERS, fix))
    return found


def _effect(variable: str, backend: str) -> str:
    return (_STATIC.get(variable, "") if backend == "static" else "") or _EFFECTS.get(variable, "")


def _is_meaningless(variable: str, backend: str) -> bool:
    """Whether nothing comes of it: torchrun's own launcher does not use it with this backend."""
    if variable in _STATIC:
        return backend != "static"
    # The agents go by the bounds in the spec, which the Rendezvous tells them.
    return variable == "PET_NNODES" and backend == BACKEND
