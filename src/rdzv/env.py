"""The environment contract between the operator, injection and the pod: rendered once here, parsed once here.

torchrun takes the default of each option `--foo-bar` from `PET_FOO_BAR` (`torch/distributed/argparse_util.py`), so a pod with these
variables needs no flag. What is the same for all pods comes by `envFrom` from ConfigMap `rdzv-NAME`; what is the pod's own comes from
the downward API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rdzv.spec import NO_LAUNCHER, index_of

if TYPE_CHECKING:
    from rdzv.backends import Provision
    from rdzv.spec import Rendezvous

#: Seconds between an agent's looks at its workers. torchrun's own default, said here because it bounds how soon a change is noticed.
MONITOR_INTERVAL = "0.1"

#: Where injection mounts the library in a pod; the library's and the operator's image hold it at the same place.
LIBRARY_PATH = "/opt/rdzv"

#: Where injection mounts Secret `rdzv-NAME-client`, if there is one: what a client of the backend's server proves itself with.
CLIENT_PATH = "/var/run/secrets/rdzv.dev/client"

#: What `init_process_group("env://")` reads (`torch/distributed/rendezvous.py`).
ENV_METHOD = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")

#: How the text begins that an agent leaves for the pod's status when its rendezvous is what it ends by: it could not meet the others;
#: or it had, and what the backend keeps was gone.
RENDEZVOUS_FAILED, RENDEZVOUS_LOST = "rendezvous failed: ", "rendezvous lost: "

#: What the ConfigMap says where ranks follow the topology, so that an agent takes any slot, not only that of its index.
RANKS, BY_TOPOLOGY = "RDZV_RANKS", "topology"

#: Seconds of silence after which an agent is taken for dead; where the ConfigMap does not say, the agents' own default holds.
SILENCE = "RDZV_SILENCE_TIMEOUT"

#: Seconds. torchrun's `LaunchConfig` passes `timeout=900` to every handler when the user said nothing (`launcher/api.py`).
LAUNCH_TIMEOUT = 900


class RendezvousEnvironmentError(ValueError):
    """The pod's environment does not describe a rendezvous. The text names the variable and what to do."""


def render_config(config: Mapping[str, str]) -> str:
    """`{"a": "1", "b": "2"}` → `a=1,b=2`, torchrun's form of `--rdzv-conf` (no commas inside a value)."""
    return ",".join(f"{key}={value}" for key, value in config.items())


def parse_config(text: str) -> dict[str, str]:
    """The reverse of `render_config`; later keys win, empty parts are skipped.

    Raises:
        RendezvousEnvironmentError: a part is not KEY=VALUE.
    """
    config: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not (key.strip() and equals and value.strip()):
            raise RendezvousEnvironmentError(
                f"PET_RDZV_CONF has {part!r}, which is not KEY=VALUE: fix it in spec.config"
            )
        config[key.strip()] = value.strip()
    return config


def render(rendezvous: Rendezvous, provision: Provision, *, alike: bool = True) -> dict[str, str]:
    """The data of ConfigMap `rdzv-NAME`: what every pod of this Rendezvous gets.

    `PET_RDZV_ID` is the object's UID, so that a deleted and re-created Rendezvous never joins its predecessor's world.
    `alike`: no pod says itself how many processes it has. Without a launcher it is what the backend's `Provision.env` says, in the
    place of torchrun's options: who runs torchrun by mistake is not to find both.
    """
    own = {"RDZV_NAME": rendezvous.name, "RDZV_NAMESPACE": rendezvous.namespace}
    if rendezvous.launcher == NO_LAUNCHER:
        return {**own, **provision.env}
    env = {
        "PET_RDZV_BACKEND": rendezvous.backend,
        "PET_RDZV_ENDPOINT": provision.endpoint,
        "PET_RDZV_ID": rendezvous.uid,
        "PET_RDZV_CONF": render_config(provision.config),
        "PET_NNODES": str(rendezvous.nodes),
        "PET_NPROC_PER_NODE": rendezvous.nproc_per_node,
        "PET_MAX_RESTARTS": str(rendezvous.max_restarts),
        "PET_MONITOR_INTERVAL": MONITOR_INTERVAL,
        **own,
    }
    if rendezvous.nproc_per_node not in ("auto", "cpu"):
        env[unless_limited("PET_NPROC_PER_NODE")] = rendezvous.nproc_per_node
    if rendezvous.nproc_per_node != "1":
        # What torchrun says itself where there are several processes: one alone may use all processors.
        env[unless_limited("OMP_NUM_THREADS")] = "1"
    if alike and rendezvous.nproc_per_node.isdigit():
        # Without it agents exchange O(N) keys to learn what is the same everywhere (`elastic/agent/server/api.py`, pytorch#124982).
        env["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
    return {**env, **provision.env}


def ranks_name(config_map: str) -> str:
    """The ConfigMap that says, by its index, which rank a pod of `rdzv-NAME` has. Only with `launcher: none`."""
    return f"{config_map}-ranks"


def unless_limited(variable: str) -> str:
    """The key of ConfigMap `rdzv-NAME` whose value, if it is there, comes before what a container's limits say for this variable."""
    return "RDZV_" + variable.removeprefix("PET_")


def has_no_launcher(environ: Mapping[str, str]) -> bool:
    """Whether these variables are a pod's whose Rendezvous has `launcher: none`."""
    return "PET_RDZV_BACKEND" not in environ and "RDZV_NAME" in environ and "WORLD_SIZE" in environ


@dataclass(frozen=True)
class PodEnvironment:
    """What a training pod knows of its rendezvous. `slot`: the node's rank in a world of fixed ranks (None: it has none)."""

    backend: str
    endpoint: str
    run_id: str
    min_nodes: int
    max_nodes: int
    config: Mapping[str, str] = field(default_factory=dict)
    local_addr: str | None = None
    slot: int | None = None

    @classmethod
    def parse(cls, environ: Mapping[str, str]) -> PodEnvironment:
        """Reads the injected variables.

        Raises:
            RendezvousEnvironmentError: one is missing or malformed.
        """
        backend = environ.get("PET_RDZV_BACKEND", "")
        if not backend and has_no_launcher(environ):
            raise RendezvousEnvironmentError(
                f"PET_RDZV_BACKEND is not set, because Rendezvous {environ['RDZV_NAME']} has launcher: none: call "
                'torch.distributed.init_process_group("env://"), or remove launcher from its spec and run torchrun'
            )
        if not backend:
            raise RendezvousEnvironmentError(
                "PET_RDZV_BACKEND is not set, so this process was given no rendezvous. In a pod: label it "
                "rdzv.dev/rendezvous: NAME when it is created; elsewhere: pass RendezvousParameters"
            )
        low, _, high = environ.get("PET_NNODES", "1").partition(":")
        if not (low.isdigit() and (high or low).isdigit()):
            raise RendezvousEnvironmentError(f"PET_NNODES is {environ['PET_NNODES']!r}: write N or MIN:MAX")
        slot = environ.get("PET_NODE_RANK") or environ.get("RDZV_SLOT") or ""
        return cls(
            backend=backend,
            endpoint=environ.get("PET_RDZV_ENDPOINT", ""),
            run_id=environ.get("PET_RDZV_ID", "none"),
            min_nodes=int(low),
            max_nodes=int(high or low),
            config=parse_config(environ.get("PET_RDZV_CONF", "")),
            local_addr=environ.get("PET_LOCAL_ADDR") or None,
            slot=index_of(slot),
        )

    def handler_config(self) -> dict[str, str | int]:
        """`RendezvousParameters`' keyword configuration, with what torchrun's launcher adds itself."""
        config: dict[str, str | int] = {"timeout": str(LAUNCH_TIMEOUT), **self.config}
        if self.backend == "static":
            if self.slot is None:
                raise RendezvousEnvironmentError(
                    "backend static takes a node's rank from the pod's index, and this pod has none: run it in an Indexed Job "
                    "or a StatefulSet, or set PET_NODE_RANK"
                )
            config["rank"] = self.slot  # an int: torch compares it as it is (`static_tcp_rendezvous.py`)
        return config
