"""The registry of rendezvous backends, in torch's terms (`torch/distributed/elastic/rendezvous/registry.py`).

A backend has three halves. The operator's (`provision`, `observe`) are looked up here; out of tree they come by entry-point group
`rdzv.backends`, where each entry loads to a function without arguments, as torch does it for handlers. It returns a `Backend` with all
halves, or the provisioner alone: then `observe` is the default one.
The pod's half (`create_handler`) is torch's own notion: out of tree it comes by group `torchrun.handlers` or `rdzv.register`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import rdzv
from rdzv import outoftree
from rdzv.backends import Backend, BackendError, Condition, Provision, World, observe_pods

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from rdzv.backends import HandlerCreator, Observer, Provisioner
    from rdzv.observed import Observed
    from rdzv.spec import Rendezvous

_log = logging.getLogger(__name__)

_Half = TypeVar("_Half")

ENTRY_POINT_GROUP = "rdzv.backends"


#: Where the backends of this distribution come from.
OURS = f"rendezvous-operator {rdzv.__version__}"


class BackendRegistry:
    """Names of backends and their halves.

    Attributes:
        failed: name of a plug-in's entry point → why it is not used, and of which distribution it is.
    """

    def __init__(self) -> None:
        self._provisioners: dict[str, Provisioner] = {}
        self._observers: dict[str, Observer] = {}
        self._creators: dict[str, HandlerCreator] = {}
        self._plugins: dict[str, str] = {}
        self._said: dict[tuple[str, str], str] = {}
        self.failed: dict[str, str] = {}

    def register_backend(self, backend: Backend, plugin: str = "") -> None:
        """Registers all halves of a backend, or none of them.

        Args:
            backend: the halves.
            plugin: the distribution that it is of; empty: this one.

        Raises:
            ValueError: the name is taken.
        """
        for table, half in self._halves(backend):
            _check_free(table, backend.name, half)
        self.register_provisioner(backend.name, backend.provision, plugin)
        _add(self._observers, backend.name, backend.observe)
        self.register(backend.name, backend.create_handler)

    def _halves(self, backend: Backend) -> list[tuple[Mapping[str, Any], Any]]:
        return [
            (self._provisioners, backend.provision),
            (self._observers, backend.observe),
            (self._creators, backend.create_handler),
        ]

    def register_provisioner(self, name: str, provision: Provisioner, plugin: str = "") -> None:
        """Registers an operator's half; `plugin` as for `register_backend`.

        Raises:
            ValueError: the name is taken by another provisioner.
        """
        _add(self._provisioners, name, provision)
        if plugin:
            self._plugins[name] = plugin

    def register(self, name: str, creator: HandlerCreator) -> None:
        """Registers a pod's half: `creator(params) -> RendezvousHandler`, as torch's `RendezvousHandlerRegistry.register`.

        Raises:
            ValueError: the name is empty, or taken by another creator.
        """
        _add(self._creators, name, creator)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted({*self._provisioners, *self._creators})

    def origins(self, name: str) -> dict[str, str]:
        """Where the halves of a backend come from: `provision`, `observe`, `handler` → a distribution; without those that are not there."""
        source = self._plugins.get(name, OURS)
        tables: dict[str, Mapping[str, Any]] = {
            "provision": self._provisioners,
            "observe": self._observers,
            "handler": self._creators,
        }
        found = {half: source for half, table in tables.items() if name in table}
        if "provision" in found:
            found.setdefault("observe", OURS)
        return found

    def provision(self, rendezvous: Rendezvous) -> Provision:
        """Runs the operator's half of the backend that the spec names.

        A name nobody registered is passed through to the pods when `spec.endpoint` is given: torch resolves it there.

        Raises:
            BackendError: the name is unknown and there is no endpoint, the backend refuses the spec, or its plug-in failed.
        """
        name = rendezvous.backend
        provision = self._provisioners.get(name)
        if name in self._plugins and provision is not None:
            return self._provision_by_plugin(provision, rendezvous)
        if provision is not None:
            return provision(rendezvous)
        if name in self.failed:
            raise BackendError(outoftree.PLUGIN_FAILED, f"backend {name!r} can't be used: {self.failed[name]}")
        if rendezvous.endpoint is not None:
            return Provision(endpoint=rendezvous.endpoint, config=rendezvous.config)
        raise BackendError(
            "UnknownBackend",
            f"{self.describe_unknown(name)}. For a backend that only the pods' image knows, set spec.endpoint",
        )

    def _provision_by_plugin(self, provision: Provisioner, rendezvous: Rendezvous) -> Provision:
        try:
            return outoftree.provision(provision, self._plugins[rendezvous.backend], rendezvous)
        except BackendError as error:
            if error.reason == outoftree.PLUGIN_FAILED:
                self._say(rendezvous, "provision", error)
            raise

    def observe(self, rendezvous: Rendezvous, observed: Observed, previous: Mapping[str, Any], now: float) -> World:
        """How the operator sees the world of a Rendezvous; of a backend that nobody registered, or whose plug-in fails, its pods only."""
        name = rendezvous.backend
        observer = self._observers.get(name, observe_pods)
        if name not in self._plugins or observer is observe_pods:
            return observer(rendezvous, observed, previous, now)
        try:
            return outoftree.observe(observer, self._plugins[name], rendezvous, observed, previous, now)
        except BackendError as error:
            self._say(rendezvous, "observe", error)
            return World(Condition("Formed", "Unknown", error.reason, str(error)))

    def _say(self, rendezvous: Rendezvous, half: str, error: BackendError) -> None:
        """Logs a plug-in's failure with its traceback, once until it fails otherwise: passes are many."""
        key, text = (rendezvous.backend, half), str(error)
        if self._said.get(key) != text:
            self._said[key] = text
            _log.warning("Rendezvous %s/%s: %s", rendezvous.namespace, rendezvous.name, text, exc_info=error.__cause__)

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
        near = difflib.get_close_matches(name.lower()[:100], self.names(), n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        text = f"backend {name!r} is not registered{meant}; registered: {', '.join(self.names())}"
        for plugin, reason in sorted(self.failed.items()):
            text += f"; {plugin!r}: {reason}"
        return text


def _add(table: dict[str, _Half], name: str, half: _Half) -> None:
    _check_free(table, name, half)
    table[name] = half


def _check_free(table: Mapping[str, Any], name: str, half: object) -> None:
    if not name:
        raise ValueError("a backend's name must not be empty")
    if table.get(name, half) is not half:
        raise ValueError(f"backend {name!r} is already registered with {table[name]}")


def _register_default_backends(registry: BackendRegistry) -> None:
    from rdzv.backends import c10d, etcd, etcd_v3, kubernetes, static

    for backend in (c10d.BACKEND, etcd.ETCD, etcd.ETCD_V2, etcd_v3.BACKEND, static.BACKEND, kubernetes.BACKEND):
        registry.register_backend(backend)


def _register_out_of_tree_backends(registry: BackendRegistry) -> None:
    """Loads the operator halves that installed distributions offer; one that fails is remembered, not fatal."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINT_GROUP):
        source = entry.value
        try:
            source = outoftree.origin(entry)
            if entry.name in registry.names():
                taken = registry.origins(entry.name)["provision"]
                raise outoftree.PluginError(f"the name {entry.name!r} is taken by {taken}")
            found = outoftree.load(entry)
            if isinstance(found, Backend):
                registry.register_backend(found, source)
            else:
                registry.register_provisioner(entry.name, found, source)
        except outoftree.ERRORS as error:
            registry.failed[entry.name] = f"plug-in {source} could not be loaded: {outoftree.describe(error)}"


@cache
def backend_registry() -> BackendRegistry:
    """The process's registry, filled on first use so that importing this module stays cheap."""
    registry = BackendRegistry()
    _register_default_backends(registry)
    _register_out_of_tree_backends(registry)
    return registry


def get_rendezvous_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Creates the handler of the backend that `params` names, as torch's function of this name.

    Raises:
        ValueError: neither this registry nor torch's knows the name.
    """
    return backend_registry().create_handler(params)
