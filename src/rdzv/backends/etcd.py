"""Backends `etcd` and `etcd-v2`: an etcd server that the user runs, given as `spec.endpoint`.

Both speak etcd's v2 API (pytorch#158326), which etcd 3.6 removed: the server must be 3.5 or older, started with `--enable-v2`, and
the training image needs `python-etcd`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rdzv.backends import Backend, BackendError, Provision, delegate_to_torch

if TYPE_CHECKING:
    from rdzv.spec import Rendezvous


def provision(name: str, rendezvous: Rendezvous) -> Provision:
    """The user's endpoint and configuration, as they are.

    Raises:
        BackendError: `spec.endpoint` is missing (the CRD refuses this; an object older than the rule gets here).
    """
    if rendezvous.endpoint is None:
        raise BackendError(
            "EndpointRequired",
            f"backend {name} needs spec.endpoint: HOST:PORT of an etcd server (3.5 or older, started with --enable-v2)",
        )
    return Provision(
        endpoint=rendezvous.endpoint,
        env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if name == "etcd-v2" else {},
        config=rendezvous.config,
    )


ETCD = Backend("etcd", partial(provision, "etcd"), delegate_to_torch)
ETCD_V2 = Backend("etcd-v2", partial(provision, "etcd-v2"), delegate_to_torch)
