"""Backend `kubernetes`: the rendezvous is kept in the Kubernetes API, in objects of group `rdzv.dev`.

Nothing has to be reachable but the API server: no store to host, no endpoint that dies with a pod.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rdzv.backends import Backend, BackendError, Provision
from rdzv.spec import GROUP

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from rdzv.spec import Rendezvous


def provision(rendezvous: Rendezvous) -> Provision:
    """The endpoint is the Rendezvous itself.

    Raises:
        BackendError: `spec.endpoint` is set, which has no meaning here.
    """
    if rendezvous.endpoint is not None:
        raise BackendError("EndpointNotUsed", "backend kubernetes has no server of its own: remove spec.endpoint")
    return Provision(
        endpoint=f"{rendezvous.namespace}/{rendezvous.name}",
        config=rendezvous.config,
        rules=role_rules(rendezvous.name, with_store=rendezvous.config.get("store") == "kubernetes"),
    )


def role_rules(name: str, *, with_store: bool) -> list[dict[str, Any]]:
    """The rules of a Role for agents of Rendezvous `name`, by name where Kubernetes allows it.

    Objects can't be created, or listed by label, by name: Members are each their pod's own, which the chart's
    ValidatingAdmissionPolicy sees to.
    """

    def rule(resource: str, verbs: list[str], names: Sequence[str] = ()) -> dict[str, Any]:
        return {
            "apiGroups": [GROUP],
            "resources": [resource],
            "verbs": verbs,
            **({"resourceNames": [*names]} if names else {}),
        }

    rules = [
        rule("rendezvous", ["get", "watch", "list"], [name]),
        rule("rendezvousrounds", ["get", "watch", "list", "update"], [name]),
        rule("rendezvousrounds", ["create"]),
        rule("rendezvousmembers", ["create", "get", "list", "update", "watch"]),
    ]
    if with_store:
        rules.append(rule("rendezvousstores", ["create", "delete", "get", "list", "patch", "watch"]))
    return rules


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Creates the handler; raises `ValueError` for parameters that are not usable."""
    from rdzv.k8s.handler import create_handler

    return create_handler(params)


BACKEND = Backend("kubernetes", provision, create_handler)
