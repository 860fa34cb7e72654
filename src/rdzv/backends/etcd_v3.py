"""Backend `etcd-v3`: the protocol of backend `kubernetes` over etcd's v3 API: by an etcd that the operator runs, or one of the user's.

torch has none: its own `etcd` and `etcd-v2` need the v2 API, which etcd 3.6 removed. Works off Kubernetes, too. See
docs/backends/etcd-v3.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rdzv.backends import Backend, Provision, World, etcd_server
from rdzv.env import CLIENT_PATH
from rdzv.protocol.events import Timing

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from rdzv.observed import Observed
    from rdzv.spec import Rendezvous

NAME = "etcd-v3"
#: torchrun's `--rdzv-id` when none is given.
_NO_ID = "none"


def provision(rendezvous: Rendezvous) -> Provision:
    """The user's endpoint and configuration, or an etcd and its address.

    Keys are apart by namespace and name, so that etcd's roles can tell them apart.

    Raises:
        BackendError: an etcd can't be run for this spec.
    """
    return etcd_server.provide(
        rendezvous,
        v2=False,
        tls={"protocol": "https", "credentials": CLIENT_PATH},
        config={"prefix": f"/rdzv/{rendezvous.namespace}/{rendezvous.name}", **rendezvous.config},
    )


def observe(rendezvous: Rendezvous, observed: Observed, previous: Mapping[str, Any], now: float) -> World:
    """What is known of any store that the operator does not see, and whether the server is ready, if the operator runs it."""
    # As the handler takes them.
    key = "timeout" if "timeout" in rendezvous.config and "join_timeout" not in rendezvous.config else "join_timeout"
    return etcd_server.observe(rendezvous, observed, previous, now, v2=False, waits={key: Timing.join_timeout})


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
    from rdzv.resources import MEMBERS

    run = str(params.run_id)
    if run in ("", _NO_ID):
        raise ValueError(f"backend {NAME}: set --rdzv-id=NAME, which no other job that uses this etcd has")
    config = etcd_server.configured(params.endpoint, params.config)
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


BACKEND = Backend(NAME, provision, create_handler, observe)
