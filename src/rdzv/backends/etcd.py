"""Backends `etcd` and `etcd-v2`, torch's own: by an etcd that the operator runs, or one of the user's, given as `spec.endpoint`.

Both speak etcd's v2 API (pytorch#158326), which etcd 3.6 removed: the server must be 3.5 or older, started with `--enable-v2`, and
the training image needs `python-etcd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rdzv.backends import Backend, Provision, World, delegate_to_torch, observe_pods
from rdzv.backends.etcd_server import EtcdServer
from rdzv.env import CLIENT_PATH

if TYPE_CHECKING:
    from rdzv.observed import Observed
    from rdzv.spec import Rendezvous


#: Where each of the two is told of its credentials: the keys of torch's configuration for the files.
_KEYS = {
    "etcd": {"cacert": "ca.crt", "cert": "tls.crt", "key": "tls.key"},
    "etcd-v2": {"ca_cert": "ca.crt", "ssl_cert": "tls.crt", "ssl_cert_key": "tls.key"},
}


def provision(name: str, rendezvous: Rendezvous) -> Provision:
    """The user's endpoint and configuration as they are, or an etcd and its address.

    Raises:
        BackendError: an etcd can't be run for this spec.
    """
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if name == "etcd-v2" else {}
    tls = {"protocol": "https", **{key: f"{CLIENT_PATH}/{file}" for key, file in _KEYS[name].items()}}
    if rendezvous.endpoint is not None:
        secured = bool(rendezvous.settings.get("tls", False))
        config = {**(tls if secured else {}), **rendezvous.config}
        return Provision(endpoint=rendezvous.endpoint, env=env, config=config)
    server = EtcdServer(rendezvous, v2=True)
    return Provision(
        endpoint=server.endpoint,
        objects=server.objects(),
        env=env,
        config={**(tls if server.secured else {}), **rendezvous.config},
        server=server.name,
        certificates=server.certificates,
    )


def observe(rendezvous: Rendezvous, observed: Observed, previous: Mapping[str, Any], now: float) -> World:
    """What can be told of it from outside: whether its server is ready."""
    if rendezvous.endpoint is not None:
        return observe_pods(rendezvous, observed, previous, now)
    return EtcdServer(rendezvous, v2=True).observe(observed)


ETCD = Backend("etcd", partial(provision, "etcd"), delegate_to_torch, observe)
ETCD_V2 = Backend("etcd-v2", partial(provision, "etcd-v2"), delegate_to_torch, observe)
