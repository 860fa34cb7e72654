"""Backend `etcd-v3`: the protocol of backend `kubernetes` over etcd's v3 API, for an etcd 3.4 or later.

torch has none: its own `etcd` and `etcd-v2` need the v2 API, which etcd 3.6 removed. Works off Kubernetes, too. See
docs/backends/etcd-v3.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdzv.backends import Backend, BackendError, Provision

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from rdzv.spec import Rendezvous

NAME = "etcd-v3"
#: torchrun's `--rdzv-id` when none is given.
_NO_ID = "none"


def provision(rendezvous: Rendezvous) -> Provision:
    """The user's endpoint and configuration. Keys are apart by namespace and name, so that etcd's roles can tell them apart.

    Raises:
        BackendError: `spec.endpoint` is missing (the CRD refuses this; an object older than the rule gets here).
    """
    if rendezvous.endpoint is None:
        raise BackendError(
            "EndpointRequired", f"backend {NAME} needs spec.endpoint: HOST:PORT of an etcd server, 3.4 or later"
        )
    prefix = f"/rdzv/{rendezvous.namespace}/{rendezvous.name}"
    return Provision(endpoint=rendezvous.endpoint, config={"prefix": prefix, **rendezvous.config})


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Creates the handler.

    Raises:
        ValueError: a parameter is not usable.
        ConfigError: the endpoint, or a file of credentials, is not.
    """
    import os

    from rdzv.agent.handler import AgentRendezvousHandler
    from rdzv.agent.identity import pod_of_environment
    from rdzv.agent.place import Place
    from rdzv.etcd.client import Client
    from rdzv.etcd.config import parse
    from rdzv.resources import MEMBERS

    run = str(params.run_id)
    if run in ("", _NO_ID):
        raise ValueError(f"backend {NAME}: set --rdzv-id=NAME, which no other job that uses this etcd has")
    config = parse(params.endpoint, params.config)
    place = Place(
        backend=NAME,
        client=Client(config, run, own=(MEMBERS,)),
        namespace=run,
        name=run,
        server=(config.servers[0].host, config.servers[0].port),
        pod=pod_of_environment(os.environ),
        store="etcd",
    )
    return AgentRendezvousHandler(params, place)


BACKEND = Backend(NAME, provision, create_handler)
