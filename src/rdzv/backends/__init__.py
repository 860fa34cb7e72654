"""Backends: one file each, with the operator's half (`provision`) and the pod's half (`create_handler`).

`provision` is pure and deals in plain dicts. `create_handler` imports torch when called, never when the module is imported: the
operator has no torch, and a training pod should not pay for what it does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rdzv.spec import LABEL

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from rdzv.spec import Rendezvous


#: Set by the operator on the one pod that hosts the store.
HOST_LABEL = "rdzv.dev/host"


class BackendError(ValueError):
    """A spec that this backend can't serve. `reason` is a CamelCase word for a condition, the text says what to write instead."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Host:
    """Asks the operator to choose the pod that the backend's Service leads to: any, or only the one with index `slot`."""

    slot: int | None = None


@dataclass(frozen=True)
class Provision:
    """What a backend needs to be there, and what its pods have to know.

    `objects`: children to apply (owner and namespace are added by the plan); `endpoint`: `PET_RDZV_ENDPOINT`; `env`: further
    variables; `config`: `PET_RDZV_CONF` for every pod, the user's `spec.config` included; `host`: a pod that the endpoint leads to;
    `rules`: what the pods' service accounts may do in the Kubernetes API, as rules of a Role.
    """

    endpoint: str
    objects: Sequence[Mapping[str, Any]] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    host: Host | None = None
    rules: Sequence[Mapping[str, Any]] = ()


Provisioner = Callable[["Rendezvous"], Provision]
HandlerCreator = Callable[["RendezvousParameters"], "RendezvousHandler"]


@dataclass(frozen=True)
class Backend:
    """A registered backend: its name and its two halves."""

    name: str
    provision: Provisioner
    create_handler: HandlerCreator


def delegate_to_torch(params: RendezvousParameters) -> RendezvousHandler:
    """Creates a handler by torch's own registry, for backends that torch has."""
    from torch.distributed.elastic.rendezvous import registry

    return registry.get_rendezvous_handler(params)


def endpoint_service(rendezvous: Rendezvous, port: int) -> dict[str, Any]:
    """A Service that leads to the one pod that the operator chose as host (label `rdzv.dev/host`).

    The selector makes Kubernetes' own EndpointSlice controller follow the pod's IP, with the operator away too. Not-ready addresses
    are published: the store listens long before a training container is Ready, and everybody waits for it.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": rendezvous.child_name},
        "spec": {
            "selector": {LABEL: rendezvous.name, HOST_LABEL: "true"},
            "publishNotReadyAddresses": True,
            "ports": [{"name": "rendezvous", "port": port, "targetPort": port, "protocol": "TCP"}],
        },
    }
