"""Backend `c10d`: torch's TCPStore, hosted by one of the agents, or in a pod of its own.

torch decides who hosts the store by comparing hostnames unless `is_host` says so (`c10d_rendezvous_backend.py`), which fails on
Kubernetes (pytorch#73380, #79388). Here nobody guesses: each agent is told to listen (`is_host=true`), and the endpoint is a Service
that leads all of them, the host included, to the one pod that the operator chose. When that pod dies, the Service leads to another, which
listens already. See docs/adr/0004-c10d-host.md for why not one pod alone is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rdzv.backends import Backend, Host, Provision, World, c10d_store, delegate_to_torch, endpoint_service, observe_pods

if TYPE_CHECKING:
    from rdzv.observed import Observed
    from rdzv.spec import Rendezvous

#: torch's default port for c10d (`c10d_rendezvous_backend.py`, DEFAULT_PORT).
PORT = 29400

#: Seconds. torch's 60 s is how long agents wait for the store to come up, and is less than a slow image pull takes on the host's
#: node (torchx#1071); 600 is torch's own join timeout.
READ_TIMEOUT = "600"


def provision(rendezvous: Rendezvous) -> Provision:
    """The Service and who hosts the store; with `spec.endpoint`, a store that the user runs, to which all agents are clients.

    Raises:
        BackendError: the pod of a dedicated store can't be made.
    """
    config = {"read_timeout": READ_TIMEOUT, **rendezvous.config}
    client = {"is_host": "false", **config}
    # torch shares the rendezvous store with the workers and caches its address across rounds: replacements hang, or the world
    # splits when rank 0 changes (pytorch#182221, #167301). Without sharing, each round has a fresh store.
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    if rendezvous.endpoint is not None:
        return Provision(endpoint=rendezvous.endpoint, env=env, config=client)
    port = int(rendezvous.settings.get("port", PORT))
    endpoint = f"{rendezvous.child_name}.{rendezvous.namespace}.svc:{port}"
    if c10d_store.is_dedicated(rendezvous):
        objects, server = c10d_store.objects(rendezvous, port), c10d_store.name(rendezvous)
        return Provision(endpoint=endpoint, objects=objects, env=env, config=client, server=server)
    return Provision(
        endpoint=endpoint,
        objects=[endpoint_service(rendezvous, port)],
        env=env,
        config={**config, "is_host": "true"},
        host=Host(port),
    )


#: First for the store to be there, then for the others.
_WAITS = {"read_timeout": float(READ_TIMEOUT), "join_timeout": 600.0}


def observe(rendezvous: Rendezvous, observed: Observed, previous: Mapping[str, Any], now: float) -> World:
    """What can be told of it from outside: whether its store is ready, if that has a pod of its own."""
    world = observe_pods(rendezvous, observed, previous, now, waits=_WAITS)
    return c10d_store.observe(rendezvous, observed, world) if c10d_store.is_dedicated(rendezvous) else world


BACKEND = Backend("c10d", provision, delegate_to_torch, observe)
