"""Backend `c10d`: torch's TCPStore, hosted by one of the agents.

torch decides who hosts the store by comparing hostnames unless `is_host` says so (`c10d_rendezvous_backend.py`), which fails on
Kubernetes (pytorch#73380, #79388). Here nobody guesses: each agent is told to listen (`is_host=true`), and the endpoint is a Service
that leads all of them, the host included, to the one pod that the operator chose. When that pod dies, the Service leads to another, which
listens already. See docs/adr/0004-c10d-host.md for why not one pod alone is told.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rdzv.backends import Backend, Host, Provision, delegate_to_torch, endpoint_service, observe_pods

if TYPE_CHECKING:
    from rdzv.spec import Rendezvous

#: torch's default port for c10d (`c10d_rendezvous_backend.py`, DEFAULT_PORT).
PORT = 29400

#: Seconds. torch's 60 s is how long agents wait for the store to come up, and is less than a slow image pull takes on the host's
#: node (torchx#1071); 600 is torch's own join timeout.
READ_TIMEOUT = "600"


def provision(rendezvous: Rendezvous) -> Provision:
    """The Service and who hosts the store; with `spec.endpoint`, a store that the user runs, to which all agents are clients."""
    config = {"read_timeout": READ_TIMEOUT, **rendezvous.config}
    # torch shares the rendezvous store with the workers and caches its address across rounds: replacements hang, or the world
    # splits when rank 0 changes (pytorch#182221, #167301). Without sharing, each round has a fresh store.
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    if rendezvous.endpoint is not None:
        return Provision(endpoint=rendezvous.endpoint, env=env, config={"is_host": "false", **config})
    port = int(rendezvous.settings.get("port", PORT))
    return Provision(
        endpoint=f"{rendezvous.child_name}.{rendezvous.namespace}.svc:{port}",
        objects=[endpoint_service(rendezvous, port)],
        env=env,
        config={**config, "is_host": "true"},
        host=Host(port),
    )


#: First for the store to be there, then for the others.
_observe = partial(observe_pods, waits={"read_timeout": float(READ_TIMEOUT), "join_timeout": 600.0})
BACKEND = Backend("c10d", provision, delegate_to_torch, _observe)
