"""Who an agent is: its name, its pod, its slot and its address, from torchrun's parameters, the environment and the token."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING

from rdzv.env import BY_TOPOLOGY, RANKS
from rdzv.kube.config import Config, ConfigError
from rdzv.kube.credentials import TokenFile, bound_pod
from rdzv.pairs import Pair, is_group, pair_of
from rdzv.protocol.encoding import MAX_SLOTS
from rdzv.protocol.events import Identity
from rdzv.protocol.records import incarnation
from rdzv.spec import MAX_NODES, index_of

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousParameters

    from rdzv.agent.place import Place

__all__ = ["identify", "pod_of_environment", "pod_of_token"]

_MAX_LABEL = 63
"""Characters of a label's value, which the name of a Rendezvous is."""


def identify(params: RendezvousParameters, place: Place, environ: Mapping[str, str]) -> Identity:
    """The identity of an agent of the Rendezvous at this place, with a fresh incarnation. `port` is to be filled in.

    Raises:
        ValueError: the slot, the group, the index or the local address is not one; the text says what it should be.
    """
    given = params.get("member")
    slot = _slot(params, environ)
    pair = _pair(params, environ) if slot is None else None
    if pair is not None and not pair.group:
        slot, pair = _bounded(pair.index), None
    local = slot
    if slot is not None and params.get("slot") is None and environ.get(RANKS) == BY_TOPOLOGY:
        pair, slot = Pair("", slot), None
    pod, uid = place.pod
    owned = bool(uid and pod and not given)
    name = str(given) if given else pod or _local_name(place.name, local)
    return Identity(
        rendezvous=place.name,
        run_id=str(params.run_id),
        name=name,
        # Another start of an agent in the same pod is somebody else.
        incarnation=incarnation(name, uid if owned else "", secrets.token_hex(4)),
        address=_address(str(params.local_addr or environ.get("RDZV_POD_IP") or _local_address(*place.server))),
        port=0,
        node=environ.get("RDZV_NODE_NAME", ""),
        slot=slot,
        owned=owned,
        key=secrets.token_hex(32),
        pair=pair,
    )


def _address(text: str) -> str:
    """As a literal: the others look nothing up, and take nothing else."""
    with contextlib.suppress(ValueError):
        return str(ip_address(text))
    try:
        return str(socket.getaddrinfo(text, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise ValueError(f"the local address {text!r} is no IP address, and no name of one: {error}") from error


def pod_of_environment(environ: Mapping[str, str]) -> tuple[str, str]:
    """Name and UID of this pod, as injection has set them; empty where it has not."""
    return environ.get("RDZV_POD_NAME", ""), environ.get("RDZV_POD_UID", "")


def pod_of_token(api: Config, environ: Mapping[str, str]) -> tuple[str, str]:
    """Name and UID of this pod: as the environment says or, where it does not, the token. Empty what neither tells.

    A hostname would be the node's own with `hostNetwork`, and the same for all pods there.
    """
    name, uid = pod_of_environment(environ)
    if (name and uid) or not isinstance(api.credentials, TokenFile):
        return name, uid
    try:
        bound = bound_pod(api.authorization())
    except ConfigError:  # Said again, and waited for, with the first request.
        bound = None
    if bound is None or (name and name != bound[0]):
        return name, uid
    return bound


def _slot(params: RendezvousParameters, environ: Mapping[str, str]) -> int | None:
    given = params.get("slot")
    text = str(given) if given is not None else environ.get("RDZV_SLOT", "")
    if not text:
        return None
    return _bounded(index_of(text), text)


def _bounded(index: int | None, text: str = "") -> int:
    if index is None or index >= MAX_SLOTS:
        raise ValueError(f"slot={text[:80] or index}: write the index of this node, 0 to {MAX_SLOTS - 1}")
    return index


def _pair(params: RendezvousParameters, environ: Mapping[str, str]) -> Pair | None:
    """A group and an index in it. A label that is not there comes as an empty text."""
    group = str(params.get("group") or environ.get("RDZV_GROUP", ""))
    index = str(params.get("index") or environ.get("RDZV_INDEX", ""))
    if not is_group(group):
        raise ValueError(
            f"group={group[:80]}: write at most 63 letters, digits, '-', '_' and '.', as in a label's value"
        )
    if not index:
        return None
    pair = pair_of(group, index)
    if pair is None:
        raise ValueError(f"index={index[:80]}: write the index of this node in its group, 0 to {MAX_NODES - 1}")
    return pair


def _local_name(rendezvous: str, slot: int | None) -> str:
    """A name for an agent outside of a pod: the Rendezvous, the machine, and what tells that machine's agents apart.

    The host has no dot, so no two Rendezvous make one name.
    """
    host = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower()).strip("-")[:64].strip("-") or "node"
    return f"{rendezvous[:_MAX_LABEL]}.{host}-{os.getpid() if slot is None else slot}"


def _local_address(host: str, port: int) -> str:
    """This machine's address on the way to that server. Nothing is sent, no name of this machine is looked up."""
    with contextlib.suppress(OSError):
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    return "127.0.0.1"
