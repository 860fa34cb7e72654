"""Rendezvous for distributed PyTorch on Kubernetes.

In a pod of a `Rendezvous`, `rdzv.get_rendezvous_handler()` returns the handler of the backend that the object names, configured by the
injected environment; `torchrun train.py` does the same by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from rdzv.backends import HandlerCreator

__all__ = ["__version__", "get_rendezvous_handler", "register"]

__version__ = "0.1.0"


def get_rendezvous_handler(params: RendezvousParameters | None = None) -> RendezvousHandler:
    """Creates the rendezvous handler of this pod.

    Args:
        params: as for torch's function of this name; None takes them from the environment that the operator injects.

    Raises:
        ValueError: the backend is not registered, or the environment describes no rendezvous (`RendezvousEnvironmentError`).
    """
    from rdzv import registry

    return registry.get_rendezvous_handler(params or _params_from_environment())


def register(name: str, creator: HandlerCreator) -> None:
    """Registers a backend of your own: `creator(params) -> RendezvousHandler`, as torch's `create_my_rdzv`.

    It is registered with torch too, so torch's `get_rendezvous_handler(params)` finds it as well.

    Raises:
        ValueError: the name is taken by another creator.
    """
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    from rdzv.registry import backend_registry

    backend_registry().register(name, creator)
    rendezvous_handler_registry.register(name, creator)


def _params_from_environment() -> RendezvousParameters:
    import os

    from torch.distributed.elastic.rendezvous import RendezvousParameters

    from rdzv.env import PodEnvironment

    env = PodEnvironment.parse(os.environ)
    return RendezvousParameters(
        backend=env.backend,
        endpoint=env.endpoint,
        run_id=env.run_id,
        min_nodes=env.min_nodes,
        max_nodes=env.max_nodes,
        local_addr=env.local_addr,
        **env.handler_config(),
    )
