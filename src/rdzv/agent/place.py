"""Where the records of one Rendezvous are kept: all that an agent has to know of the backend it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdzv.backing import Backing

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """One Rendezvous in one backing.

    Attributes:
        backend: its name in torch's registry.
        client: closed by the agent when it ends.
        namespace, name: of the Round.
        server: host and port that the client connects to; tells which address of this machine others can reach.
        pod: name and UID of the pod that this agent runs in, each empty where that is not known.
        store: what to write for `store` to keep the workers' store there, too, instead of in a TCPStore.
        store_by_name: who may do what goes by the names of objects, so all stores are kept in one, that of the Round's name.
    """

    backend: str
    client: Backing
    namespace: str
    name: str
    server: tuple[str, int]
    pod: tuple[str, str]
    store: str
    store_by_name: bool = False
