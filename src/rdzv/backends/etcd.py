"""Backends `etcd` and `etcd-v2`, torch's own: by an etcd that the operator runs, or one of the user's, given as `spec.endpoint`.

Both speak etcd's v2 API (pytorch#158326), which etcd 3.6 removed: the server must be 3.5 or older, started with `--enable-v2`, and
the training image needs `python-etcd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from rdzv.backends import Backend, Provision, delegate_to_torch, etcd_server
from rdzv.env import CLIENT_PATH, LAUNCH_TIMEOUT

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from rdzv.etcd.diagnosis import Diagnosis
    from rdzv.spec import Rendezvous


#: Where each of the two is told of its credentials: the keys of torch's configuration for the files.
_KEYS = {
    "etcd": {"cacert": "ca.crt", "cert": "tls.crt", "key": "tls.key"},
    "etcd-v2": {"ca_cert": "ca.crt", "ssl_cert": "tls.crt", "ssl_cert_key": "tls.key"},
}
NAMES = frozenset(_KEYS)
#: How backend etcd-v3, whose client looks at the server, calls what torch's two call so.
_OURS = {
    "protocol": "protocol",
    "cacert": "cacert",
    "cert": "cert",
    "key": "key",
    "ca_cert": "cacert",
    "ssl_cert": "cert",
    "ssl_cert_key": "key",
}


def provision(name: str, rendezvous: Rendezvous) -> Provision:
    """The user's endpoint and configuration as they are, or an etcd and its address.

    Raises:
        BackendError: an etcd can't be run for this spec.
    """
    return etcd_server.provide(
        rendezvous,
        v2=True,
        tls={"protocol": "https", **{key: f"{CLIENT_PATH}/{file}" for key, file in _KEYS[name].items()}},
        config=rendezvous.config,
        env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if name == "etcd-v2" else {},
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
        if not found.ok:
            raise RendezvousConnectionError(f"backend {params.backend}: {found}") from error
        raise


def diagnose(endpoint: str, settings: Mapping[str, str]) -> Diagnosis:
    """What keeps torch's backends from using this etcd here, and what to do."""
    from importlib.util import find_spec

    from rdzv.etcd.config import ConfigError
    from rdzv.etcd.diagnosis import Diagnosis, of_settings
    from rdzv.etcd.diagnosis import diagnose as diagnose_server

    if find_spec("etcd") is None:
        text = "this image has no python-etcd, which torch's etcd backends need"
        return Diagnosis(text, "pip install python-etcd, or use backend etcd-v3")
    known = {_OURS[key]: value for key, value in settings.items() if key in _OURS}
    try:
        config = etcd_server.configured(endpoint, known)
    except ConfigError as error:
        return of_settings(ConfigError(str(error).replace("etcd-v3", "etcd and etcd-v2")))
    if len(config.servers) > 1:
        text = f"endpoint {endpoint[:80]}: torch's etcd backends take one HOST:PORT"
        return Diagnosis(text, "name one, or use backend etcd-v3")
    return diagnose_server(config.servers[0], v2=True)


ETCD = Backend(
    "etcd",
    partial(provision, "etcd"),
    create_handler,
    partial(etcd_server.observe, v2=True, waits={"timeout": LAUNCH_TIMEOUT}),
)
ETCD_V2 = Backend(
    "etcd-v2",
    partial(provision, "etcd-v2"),
    create_handler,
    partial(etcd_server.observe, v2=True, waits={"join_timeout": 600.0, "read_timeout": 60.0}),
)
