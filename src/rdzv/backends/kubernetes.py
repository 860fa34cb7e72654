"""Backend `kubernetes`: the rendezvous is kept in the Kubernetes API, in objects of group `rdzv.dev`.

Nothing has to be reachable but the API server: no store to host, no endpoint that dies with a pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdzv.backends import Backend, BackendError, Provision

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
    return Provision(endpoint=f"{rendezvous.namespace}/{rendezvous.name}", config=rendezvous.config)


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Creates the handler; raises `ValueError` for parameters that are not usable."""
    from rdzv.k8s.handler import create_handler

    return create_handler(params)


BACKEND = Backend("kubernetes", provision, create_handler)
