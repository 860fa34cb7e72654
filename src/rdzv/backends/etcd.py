"""Backends `etcd` and `etcd-v2`: an etcd server that the user runs, given as `spec.endpoint`.

Both speak etcd's v2 API (pytorch#158326), which etcd 3.6 removed: the server must be 3.5 or older, started with `--enable-v2`, and
the training image needs `python-etcd`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rdzv.backends import Backend, BackendError, Provision, delegate_to_torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

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


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """torch's handler.

    Raises:
        RendezvousConnectionError: there is none; the text says what is wrong with the server or the image, where that can be
            found out.
    """
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError

    try:
        return delegate_to_torch(params)
    except Exception as error:
        found = diagnose(params.endpoint, params.config)
        if found:
            raise RendezvousConnectionError(f"backend {params.backend}: {found}") from error
        raise


def diagnose(endpoint: str, settings: Mapping[str, str]) -> str:
    """What keeps torch's backends from using this etcd here, and what to do; empty when nothing is found."""
    from importlib.util import find_spec

    from rdzv.etcd.config import ConfigError, parse
    from rdzv.etcd.diagnosis import diagnose as diagnose_server

    if find_spec("etcd") is None:
        return "this image has no python-etcd, which torch's etcd backends need: pip install python-etcd, or use backend etcd-v3"
    known = {key: value for key, value in settings.items() if key in ("protocol", "cacert", "cert", "key")}
    try:
        config = parse(endpoint, known)
    except ConfigError as error:
        return str(error).replace("etcd-v3", "etcd and etcd-v2")
    if len(config.servers) > 1:
        return f"endpoint {endpoint[:80]}: torch's etcd backends take one HOST:PORT: name one, or use backend etcd-v3"
    found = diagnose_server(config.servers[0], v2=True)
    return "" if found.ok else str(found)


ETCD = Backend("etcd", partial(provision, "etcd"), create_handler)
ETCD_V2 = Backend("etcd-v2", partial(provision, "etcd-v2"), create_handler)
