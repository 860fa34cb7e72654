"""Which settings of a pod's own win over those of its Rendezvous, in words: the variable, its value, where, and who set it (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from rdzv.control.inject import containers_of, first_of_controller, shadowed
from rdzv.objects import ReadOnlyObject
from rdzv.redaction import without_password

#: With one of these a pod meets elsewhere than the others.
APART = frozenset(
    {
        *("PET_RDZV_BACKEND", "PET_RDZV_ENDPOINT", "PET_RDZV_ID", "PET_STANDALONE"),
        *("--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--standalone"),
    }
)
#: With one of these a pod may have another number of processes than the others.
OWN_NPROC = frozenset({"PET_NPROC_PER_NODE", "--nproc-per-node"})
#: Their values may be anybody's secrets, or long.
_UNSHOWN = frozenset({"PET_RDZV_CONF", "PYTHONPATH"})
_VALUE_LENGTH = 60


class Override(NamedTuple):
    """`name`: of a variable, or a flag of torchrun's. `value`: its own ("": a flag, or not to be shown). `text`: all of it, in words."""

    name: str
    value: str
    text: str


def overrides(pod: ReadOnlyObject) -> list[Override]:
    """All of one pod, in the order of its containers."""
    envs = {container["name"]: container.get("env") or [] for container in containers_of(pod)}
    return [_override(pod, container, name, envs.get(container, [])) for container, name in shadowed(pod)]


def _override(pod: ReadOnlyObject, container: str, name: str, env: Sequence[ReadOnlyObject]) -> Override:
    number = max((i for i, entry in enumerate(env) if entry["name"] == name), default=None)
    if number is None:
        return Override(name, "", f"{name} in container {container}")
    value = "" if name in _UNSHOWN else without_password(str(env[number].get("value") or ""))[:_VALUE_LENGTH]
    by = " (set by its controller)" if number >= first_of_controller(pod, env) else ""
    return Override(name, value, f"{name}{'=' if value else ''}{value} in container {container}{by}")


def texts(found: Mapping[str, Iterable[Override]], unused: Set[str]) -> dict[str, list[str]]:
    """By pod, those that have an effect: not among the backend's `unused` settings, as variables or flags."""
    return {
        pod: [each.text for each in of_pod if variable_of(each.name) not in unused] for pod, of_pod in found.items()
    }


def apart(found: Mapping[str, Iterable[Override]], endpoint: str) -> dict[str, str]:
    """By pod, the first by which it meets elsewhere than the others. One that says the Rendezvous's own endpoint does no harm."""
    harmful = {
        pod: next((each.text for each in of_pod if each.name in APART and each.value != endpoint), "")
        for pod, of_pod in found.items()
    }
    return {pod: text for pod, text in harmful.items() if text}


def variable_of(name: str) -> str:
    """The variable that says the same as a flag of torchrun's; a variable's name stays as it is."""
    return "PET_" + name[2:].replace("-", "_").upper() if name.startswith("--") else name
