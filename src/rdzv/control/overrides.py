"""Which settings of a pod's own win over those of its Rendezvous, in words: the variable, its value, where, and who set it (pure)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from rdzv.control.inject import VARIABLES, command_words, containers_of, first_of_controller, shadowed
from rdzv.env import ENV_METHOD, unless_limited
from rdzv.objects import ReadOnlyObject, entry_of
from rdzv.redaction import without_password
from rdzv.spec import NO_LAUNCHER

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
_NPROC_FLAG = re.compile(r"(?<![\w-])--nproc[-_]per[-_]node(?:=|\s+)(\d{1,5})(?!\w)", re.ASCII)
_NPROC_UNLESS = unless_limited("PET_NPROC_PER_NODE")
#: A number of processors as the API server writes it.
_PROCESSORS = re.compile(r"(\d{1,9})(m?)", re.ASCII)


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


def unread(launcher: str) -> frozenset[str]:
    """The variables that nobody reads in a pod with this launcher (`spec.launcher`)."""
    if launcher == NO_LAUNCHER:
        return frozenset(name for name in VARIABLES if name.startswith("PET_"))
    return frozenset(ENV_METHOD)


def apart(found: Mapping[str, Iterable[Override]], endpoint: str, unused: Set[str] = frozenset()) -> dict[str, str]:
    """By pod, the first by which it meets elsewhere than the others. One that says the Rendezvous's own endpoint does no harm."""
    harmful = {
        pod: next(
            (
                each.text
                for each in of_pod
                if each.name in APART and each.value != endpoint and variable_of(each.name) not in unused
            ),
            "",
        )
        for pod, of_pod in found.items()
    }
    return {pod: text for pod, text in harmful.items() if text}


def own_nproc(pod: ReadOnlyObject, found: Iterable[Override]) -> str:
    """How many processes the pod says itself that it has: a number, "?" for one that can't be seen, "" if it says nothing.

    `found`: its overrides.
    """
    own = [each for each in found if each.name in OWN_NPROC]
    if not own:
        return ""
    flags = [number for c in containers_of(pod) for number in _NPROC_FLAG.findall(" ".join(command_words(c)))]
    variables = [each.value for each in own if each.value.isdecimal() and len(each.value) <= 5]
    return next(iter((*flags, *variables)), "?")


def processors(pod: ReadOnlyObject) -> int:
    """How many processors the pod may use, as nprocPerNode `auto` means them; 0 where it means something else."""
    for container in containers_of(pod):
        told = entry_of(container, "PET_NPROC_PER_NODE")
        reference = (told.get("valueFrom") or {}).get("configMapKeyRef") or {}
        if reference.get("key") == _NPROC_UNLESS:
            limit = _PROCESSORS.fullmatch(str(((container.get("resources") or {}).get("limits") or {}).get("cpu", "")))
            return 0 if limit is None else math.ceil(int(limit[1]) / (1000 if limit[2] else 1))
    return 0


def variable_of(name: str) -> str:
    """The variable that says the same as a flag of torchrun's; a variable's name stays as it is."""
    return "PET_" + name[2:].replace("-", "_").upper() if name.startswith("--") else name
