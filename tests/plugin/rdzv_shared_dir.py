"""Backend `shared-dir`: nodes meet in a directory that all of them mount, such as a volume of a ReadWriteMany claim.

spec:
backend: shared-dir
nodes: {min: 2, max: 2}
config: {directory: /shared}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdzv.backends import Backend, BackendError, HandlerCreator, Provision
from rdzv.spec import Rendezvous

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters


def provision(rendezvous: Rendezvous) -> Provision:
    """The operator's half: each Rendezvous has a directory of its own below the one that the spec names."""
    config = dict(rendezvous.config)
    directory = config.pop("directory", "")
    if not directory.startswith("/"):
        raise BackendError(
            "DirectoryRequired", "backend shared-dir needs spec.config.directory: where the pods mount it"
        )
    if rendezvous.nodes.min != rendezvous.nodes.max:
        raise BackendError("FixedWorld", "backend shared-dir has fixed worlds: set min and max to the same number")
    return Provision(endpoint=f"{directory}/{rendezvous.uid}", config=config)


def handler() -> HandlerCreator:
    """Entry point of torch's group `torchrun.handlers`: the pod's half. torch is imported when it is asked for a handler."""
    from rdzv_shared_dir_handler import SharedDirHandler

    return SharedDirHandler


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """The same for `rdzv.get_rendezvous_handler()`."""
    return handler()(params)


def backend() -> Backend:
    """Entry point of group `rdzv.backends`."""
    return Backend("shared-dir", provision, create_handler)
