"""The rendezvous backends side by side: torch's own, at its defaults and tuned, and this project's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.world import CREATE, FOLLOW, JOIN, MONITOR_INTERVAL, Commands, Plan
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

# Imported before agents are forked, as torch's own backends are: agents are not to import it at the same time each.
import rdzv.agent.handler  # noqa: F401

ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class Backend:
    """A row of the table: `name`, which of torch's registered backends it is, and how it is set.

    Attributes:
        config: as in `--rdzv-conf`, beyond the defaults; per scenario, since what helps one hurts the other.
        environ: environment of the agents.
    """

    name: str
    registered: str
    config: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_kubernetes(self) -> bool:
        return self.registered == "kubernetes"

    @property
    def ours(self) -> bool:
        return self.registered in {"kubernetes", "etcd-v3"}


# Fewer heartbeats, fewer collisions while the world forms; more of them, and a dead node is noticed sooner. One second is
# the least that torch takes for all of these.
_DYNAMIC = {
    "form-fixed": {"keep_alive_interval": "60"},
    "form-elastic": {"last_call_timeout": "1", "keep_alive_interval": "60"},
    "recover": {"last_call_timeout": "1", "keep_alive_interval": "1"},
}
_OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # Without it a replacement never gets MASTER_ADDR.
KUBERNETES = Backend("kubernetes", "kubernetes")
BACKENDS = [
    Backend("c10d", "c10d"),
    Backend("c10d-tuned", "c10d", _DYNAMIC, _OWN_STORE),
    Backend("etcd", "etcd"),
    Backend("etcd-tuned", "etcd", {"form-elastic": {"last_call_timeout": "1"}, "recover": {"last_call_timeout": "1"}}),
    Backend("etcd-v2", "etcd-v2"),
    Backend("etcd-v2-tuned", "etcd-v2", _DYNAMIC, _OWN_STORE),
    KUBERNETES,
    Backend("etcd-v3", "etcd-v3"),
]


@dataclass(frozen=True)
class Meeting:
    """Where the agents of one world meet. `run_id` is unique; `name` too: of the objects on Kubernetes."""

    endpoint: str
    run_id: str
    name: str
    least: int
    most: int
    kubeconfig: str


def plan(backend: Backend, scenario: str, meeting: Meeting, slot: int, member: str, pod_uid: str = "") -> Plan:
    """An agent with a handler of this backend; with `pod_uid` in a pod that is called `member`."""
    config: dict[str, Any] = dict(backend.config.get(scenario, {}))
    if backend.registered == "c10d":
        config["is_host"] = "true" if slot == 0 else "false"
    if backend.ours:
        config |= {"slot": str(slot)} | ({} if pod_uid else {"member": member})
    pod = {"RDZV_POD_NAME": member, "RDZV_POD_UID": pod_uid} if pod_uid else {}
    params = RendezvousParameters(
        backend.registered, meeting.endpoint, meeting.run_id, meeting.least, meeting.most, ADDRESS, **config
    )
    return Plan(
        lambda commands: _attend(params, commands), {"KUBECONFIG": meeting.kubeconfig, **pod, **backend.environ}
    )


def _attend(params: RendezvousParameters, commands: Commands) -> None:
    handler: RendezvousHandler | None = None
    while True:
        match commands.wait():
            case b"c":
                handler = get_rendezvous_handler(params)
                commands.say("created")
            case b"j" if handler is not None:
                _join(handler, commands)
            case b"f" if handler is not None:
                _follow(handler, commands)
            case _:
                return


def _join(handler: RendezvousHandler, commands: Commands) -> RendezvousInfo:
    began = time.monotonic()
    info = handler.next_rendezvous()
    commands.say("world", began=began, rank=info.rank, size=info.world_size)
    return info


def _follow(handler: RendezvousHandler, commands: Commands) -> None:
    """torch's agent while its workers are healthy: it looks, and when nodes wait it joins again; errors end it."""
    # Kept until the next one is there, as the agent's workers do: rank 0's store must not end.
    kept = _join(handler, commands)
    while True:
        match commands.wait(MONITOR_INTERVAL):
            case b"":
                if handler.num_nodes_waiting() > 0:
                    kept = _join(handler, commands)
            case b"j":
                kept = _join(handler, commands)
            case _:
                del kept
                return


__all__ = ["BACKENDS", "CREATE", "FOLLOW", "JOIN", "KUBERNETES", "Backend", "Meeting", "plan"]
