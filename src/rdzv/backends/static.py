"""Backend `static`: a fixed world whose ranks are the pods' indexes; rank 0 hosts the store.

torch's `StaticTCPRendezvous` (`static_tcp_rendezvous.py`) takes the rank from `--node-rank`; injection takes it from the label that
an Indexed Job or a StatefulSet puts on each pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rdzv.backends import (
    Backend,
    BackendError,
    Host,
    Provision,
    World,
    delegate_to_torch,
    endpoint_service,
    observe_pods,
)
from rdzv.observed import shown

if TYPE_CHECKING:
    from rdzv.observed import Observed
    from rdzv.spec import Rendezvous

#: torchrun's default `--master-port`.
PORT = 29500


def provision(rendezvous: Rendezvous) -> Provision:
    """The Service that leads to the pod with index 0, or the master that the user names in `spec.endpoint`.

    Raises:
        BackendError: min and max differ (the CRD refuses this; an object older than the rule gets here).
    """
    if rendezvous.nodes.min != rendezvous.nodes.max:
        raise BackendError(
            "FixedWorldRequired",
            f"backend static has a fixed world: set spec.nodes.min and spec.nodes.max to the same number "
            f"(they are {rendezvous.nodes.min} and {rendezvous.nodes.max}), or choose an elastic backend",
        )
    port = int(rendezvous.settings.get("port", PORT))
    endpoint = rendezvous.endpoint or f"{rendezvous.child_name}.{rendezvous.namespace}.svc:{port}"
    host, _, master_port = endpoint.rpartition(":")
    return Provision(
        endpoint=endpoint,
        objects=[] if rendezvous.endpoint else [endpoint_service(rendezvous, port)],
        env={"PET_MASTER_ADDR": host.strip("[]"), "PET_MASTER_PORT": master_port},
        config=rendezvous.config,
        host=None if rendezvous.endpoint else Host(port, slot=0),
    )


def observe(rendezvous: Rendezvous, observed: Observed, previous: Mapping[str, Any], now: float) -> World:
    """What is known of any store of torch's own, and which pods have no rank."""
    world = observe_pods(rendezvous, observed, previous, now)
    without = [pod.name for pod in observed.pods if pod.live and pod.slot is None]
    if not without:
        return world
    text = f"{shown(without)} have no index, which backend static takes ranks from: use an Indexed Job or a StatefulSet"
    return replace(world, problems=[("NoIndex", text)], fatal=frozenset({"NoIndex"}))


BACKEND = Backend("static", provision, delegate_to_torch, observe)
