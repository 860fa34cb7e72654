"""The `Rendezvous` object as the code sees it: parsed once, defaults applied, immutable.

The API server validates (structural schema and CEL in the CRD), so this module does not: it only gives types and names to what was
admitted. What an older or hand-edited object may still lack gets the schema's default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GROUP = "rdzv.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "Rendezvous"
PLURAL = "rendezvous"

#: The label by which a pod opts in; its value is the name of a Rendezvous in the pod's namespace.
LABEL = f"{GROUP}/rendezvous"

#: The most nodes that a world may have, by any backend; the indexes of pods are below it.
MAX_NODES = 10_000

#: `spec.launcher` of pods that run their training script themselves.
NO_LAUNCHER = "none"

#: The operator's name in `managedFields`, Events and labels.
MANAGER = "rendezvous-operator"


@dataclass(frozen=True)
class Nodes:
    """How many nodes (torchrun agents, one per pod) the world may have. `min == max` is a fixed world."""

    min: int
    max: int

    def __str__(self) -> str:
        """In the form of torchrun's `--nnodes`."""
        return str(self.min) if self.min == self.max else f"{self.min}:{self.max}"


@dataclass(frozen=True)
class FailurePolicy:
    """A world may form anew for a failure `most` times within `window` seconds; None: as often as it likes."""

    most: int | None = None
    window: int = 3600


@dataclass(frozen=True)
class Network:
    """Who may connect to its pods. `isolate`: they themselves and whom `allow`, as in the spec, lets in; else everybody."""

    isolate: bool = False
    allow: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Rendezvous:
    """One `Rendezvous` object.

    `settings` is the spec's member named after the backend (`spec.c10d` for c10d), `{}` when absent. `created`: RFC 3339.
    `launcher`: what starts the workers in a pod, torchrun or `NO_LAUNCHER`.
    `topology_keys`: labels of nodes that ranks follow, the coarsest first.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    backend: str
    nodes: Nodes
    nproc_per_node: str = "auto"
    launcher: str = "torchrun"
    max_restarts: int = 100
    endpoint: str | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    failures: FailurePolicy = FailurePolicy()
    network: Network = Network()
    topology_keys: tuple[str, ...] = ()

    @property
    def child_name(self) -> str:
        """The name that every child object of this Rendezvous carries."""
        return f"rdzv-{self.name}"

    @classmethod
    def from_object(cls, obj: Mapping[str, Any], *, isolate: bool = False) -> Rendezvous:
        """Reads an object as the API server returns it.

        Args:
            obj: the object.
            isolate: what `spec.network.isolate` is where the object does not say it.

        Raises:
            KeyError: a field that the schema requires is missing.
        """
        meta, spec = obj["metadata"], obj["spec"]
        backend = spec["backend"]
        nodes, network = spec.get("nodes", {}), spec.get("network", {})
        low = int(nodes.get("min", 1))
        return cls(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=meta["uid"],
            generation=int(meta.get("generation", 1)),
            backend=backend,
            nodes=Nodes(low, int(nodes.get("max", low))),
            nproc_per_node=str(spec.get("nprocPerNode", "auto")),
            launcher=spec.get("launcher", "torchrun"),
            max_restarts=int(spec.get("maxRestarts", 100)),
            endpoint=spec.get("endpoint"),
            config=dict(spec.get("config", {})),
            settings=dict(spec.get(settings_key(backend), {})),
            created=meta.get("creationTimestamp") or "",
            failures=_failure_policy(spec.get("failurePolicy", {})),
            network=Network(bool(network.get("isolate", isolate)), tuple(network.get("allow") or ())),
            topology_keys=tuple(map(str, spec.get("ranks", {}).get("topologyKeys", ()))),
        )


def _failure_policy(spec: Mapping[str, Any]) -> FailurePolicy:
    most = spec.get("maxReforms")
    return FailurePolicy(None if most is None else int(most), int(spec.get("window", FailurePolicy.window)))


def index_of(text: str) -> int | None:
    """The index of a pod as a number in 0 .. MAX_NODES-1; None for any other text, which can be anything that users write."""
    # Bounded before it becomes a number. Not all that str.isdigit() takes for a digit can be converted.
    if not (text.isascii() and text.isdigit() and len(text) <= 63 and int(text) < MAX_NODES):
        return None
    return int(text)


def settings_key(backend: str) -> str:
    """The spec member that holds a backend's own settings: its name in the API's camelCase (`my-own` → `myOwn`).

    Backends that speak different versions of one server's API share its settings (`etcd-v2` → `etcd`).
    """
    first, *rest = re.sub(r"-v[0-9]+$", "", backend).split("-")
    return first + "".join(part.capitalize() for part in rest)
