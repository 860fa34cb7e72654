"""What the servers that the operator runs for a Rendezvous have in common: a label, no privilege, and who waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rdzv.backends import BackendError, World

if TYPE_CHECKING:
    from rdzv.spec import Rendezvous

#: Label of a server's pods; its value is the Rendezvous. Not `rdzv.dev/rendezvous`: they take no part in the training.
SERVER_LABEL = "rdzv.dev/server"

#: Why nobody can meet: the server, or most of its members, are not ready.
NOT_READY = "ServerNotReady"

#: The user that servers run as; their volumes are its group's.
USER = 65532

#: Security context of each container, in the profile "restricted" of the Pod Security Standards.
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}

#: Characters of the longest name that a StatefulSet may have: its pods have a label with a hash behind it.
_LONGEST = 52


def labels(rendezvous: Rendezvous) -> dict[str, str]:
    """What a server's pods are found by."""
    return {SERVER_LABEL: rendezvous.name}


def check_length(rendezvous: Rendezvous, name: str, what: str) -> None:
    """Whether a StatefulSet may have this name, which begins with that of the children; `what` it runs, for a sentence.

    Raises:
        BackendError: it may not.
    """
    if len(name) > _LONGEST:
        most = _LONGEST - len(name) + len(rendezvous.name)
        text = f"the name has more than {most} characters, which leaves none for {what} that the operator would run"
        raise BackendError("NameTooLong", f"{text}: choose a shorter one, or set spec.endpoint")


def pod_defaults(rendezvous: Rendezvous) -> dict[str, Any]:
    """Fields of a server's pod: no account's token, no privilege, and no two of them on one node if there are others."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "topologyKey": "kubernetes.io/hostname",
                "maxSkew": 1,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels(rendezvous)},
            }
        ],
    }


def template(rendezvous: Rendezvous, program: str, pod: dict[str, Any]) -> dict[str, Any]:
    """Of the pods; `program`: what they are known as."""
    names = {"app.kubernetes.io/name": program, "app.kubernetes.io/component": "rendezvous"}
    return {"metadata": {"labels": {**labels(rendezvous), **names}}, "spec": pod}


def look(rendezvous: Rendezvous) -> str:
    """The command that shows what a server's pods lack."""
    return f"kubectl describe pods -n {rendezvous.namespace} -l {SERVER_LABEL}={rendezvous.name}"


def not_ready(world: World, text: str) -> World:
    """`world` without its server, before all that may be wrong besides."""
    problems: Sequence[tuple[str, str]] = [(NOT_READY, text), *world.problems]
    return replace(world, problems=problems, fatal=world.fatal | {NOT_READY})
