"""The registry of rendezvous backends, in torch's terms (`torch/distributed/elastic/rendezvous/registry.py`).

A backend has three halves. The operator's (`provision`, `observe`) are looked up here; out of tree `provision` comes by entry-point group
`rdzv.backends`, where each entry loads to a function without arguments that returns the provisioner, as torch does it for handlers, and
`observe` is the default one.
The pod's half (`create_handler`) is torch's own notion: out of tree it comes by group `torchrun.handlers` or `rdzv.register`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeVar

from rdzv.backends import BackendError, Provision, observe_pods

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from rdzv.backends import Backend, HandlerCreator, Observer, Provisioner
    from rdzv.spec import Rendezvous

_Half = TypeVar("_Half")

ENTRY_POINT_GROUP = "rdzv.backends"


class BackendRegistry:
    """Names of backends and their halves. `failed` maps a plug-in's name to why it could not be loaded."""

    def __init__(self) -> None:
        self._provisioners: dict[str, Provisioner] = {}
        self._observers: dict[str, Observer] = {}
        self._creators: dict[str, HandlerCreator] = {}
        self.failed: dict[str, str] = {}

    def register_backend(self, backend: Backend) -> None:
        """Registers all halves of an in-tree backend."""
        self.register_provisioner(backend.name, backend.provision)
        _add(self._observers, backend.name, backend.observe)
        self.register(backend.name, backend.create_handler)

    def register_provisioner(self, name: str, provision: Provisioner) -> None:
        """Registers an operator's half.

        Raises:
            ValueError: the name is taken by another provisioner.
        """
        _add(self._provisioners, name, provision)

    def register(self, name: str, creator: HandlerCreator) -> None:
        """Registers a pod's half: `creator(params) -> RendezvousHandler`, as torch's `RendezvousHandlerRegistry.register`.

        Raises:
            ValueError: the name is empty, or taken by another creator.
        """
        _add(self._creators, name, creator)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted({*self._provisioners, *self._creators})

    def provision(self, rendezvous: Rendezvous) -> Provision:
        """Runs the operator's half of the backend that the spec names.

        A name nobody registered is passed through to the pods when `spec.endpoint` is given: torch resolves it there.

        Raises:
            BackendError: the name is unknown and there is no endpoint, or the backend refuses the spec.
        """
        provision = self._provisioners.get(rendezvous.backend)
        if provision is not None:
            return provision(rendezvous)
        if rendezvous.endpoint is not None:
            return Provision(endpoint=rendezvous.endpoint, config=rendezvous.config)
        raise BackendError(
            "UnknownBackend",
            f"{self.describe_unknown(rendezvous.backend)}. For a backend that only the pods' image knows, set spec.endpoint",
        )

    def observer(self, name: str) -> Observer:
        """How the operator looks at worlds of this backend; of one that nobody registered, at its pods only."""
        return self._observers.get(name, observe_pods)

    def create_handler(self, params: RendezvousParameters) -> RendezvousHandler:
        """Creates the handler of the backend that `params` names; names that only torch knows are torch's to create.

        Raises:
            ValueError: neither this registry nor torch's knows the name.
        """
        from torch.distributed.elastic.rendezvous import registry

        creator = self._creators.get(params.backend)
        if creator is not None:
            return creator(params)
        try:
            return registry.get_rendezvous_handler(params)
        except ValueError as error:
            if "not registered" not in str(error):
                raise
            raise ValueError(f"{self.describe_unknown(params.backend)}. torch: {error}") from error

    def describe_unknown(self, name: str) -> str:
        """Why `name` can't be used: what is registered instead, and what failed to load."""
        text = f"backend {name!r} is not registered; registered: {', '.join(self.names())}"
        for plugin, reason in sorted(self.failed.items()):
            text += f"; plug-in {plugin!r} could not be loaded: {reason}"
        return text


def _add(table: dict[str, _Half], name: str, half: _Half) -> None:
    if not name:
        raise ValueError("a backend's name must not be empty")
    if table.setdefault(name, half) is not half:
        raise ValueError(f"backend {name!r} is already registered with {table[name]}")


def _register_default_backends(registry: BackendRegistry) -> None:
    from rdzv.backends import c10d, etcd, etcd_v3, kubernetes, static

    for backend in (c10d.BACKEND, etcd.ETCD, etcd.ETCD_V2, etcd_v3.BACKEND, static.BACKEND, kubernetes.BACKEND):
        registry.register_backend(backend)


def _register_out_of_tree_backends(registry: BackendRegistry) -> None:
    """Loads the operator halves that installed distributions offer; one that fails is remembered, not fatal."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            registry.register_provisioner(entry.name, entry.load()())
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and must not take the other backends down
            registry.failed[entry.name] = f"{type(error).__name__}: {error}"


@cache
def backend_registry() -> BackendRegistry:
    """The process's registry, filled on first use so that importing this module stays cheap."""
    registry = BackendRegistry()
    _register_default_backends(registry)
    _register_out_of_tree_backends(registry)
    return registry
