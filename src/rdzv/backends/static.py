"""Backend `static`: a fixed world whose ranks are the pods' indexes; the pod of rank 0 hosts the store.

torch's `StaticTCPRendezvous` (`static_tcp_rendezvous.py`) takes the rank from `--node-rank`; injection takes it from the label that
an Indexed Job or a StatefulSet puts on each pod.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rdzv.backends import (
    Backend,
    BackendError,
    Host,
    Provision,
    World,
    delegate_to_torch,
    endpoint_service,
    observe_pods,
)
from rdzv.env import LAUNCH_TIMEOUT, ranks_name
from rdzv.observed import shown
from rdzv.pairs import SLOT_LABEL
from rdzv.spec import NO_LAUNCHER

if TYPE_CHECKING:
    from rdzv.observed import Observed, Pod
    from rdzv.spec import Rendezvous

#: torchrun's default `--master-port`.
PORT = 29500


def provision(rendezvous: Rendezvous) -> Provision:
    """The Service that leads to the pod with index 0, or the master that the user names in `spec.endpoint`.

    Raises:
        BackendError: min and max differ (the CRD refuses this; an object older than the rule gets here).
    """
    if rendezvous.nodes.min != rendezvous.nodes.max:
        raise BackendError(
            "FixedWorldRequired",
            f"backend static has a fixed world: set spec.nodes.min and spec.nodes.max to the same number "
            f"(they are {rendezvous.nodes.min} and {rendezvous.nodes.max}), or choose an elastic backend",
        )
    port = int(rendezvous.settings.get("port", PORT))
    endpoint = rendezvous.endpoint or f"{rendezvous.child_name}.{rendezvous.namespace}.svc:{port}"
    host, _, master_port = endpoint.rpartition(":")
    master = {"MASTER_ADDR": host.strip("[]"), "MASTER_PORT": master_port}
    direct = rendezvous.launcher == NO_LAUNCHER
    return Provision(
        endpoint=endpoint,
        objects=[
            *([] if rendezvous.endpoint else [endpoint_service(rendezvous, port)]),
            *([_ranks(rendezvous)] if direct else []),
        ],
        env=_for_env_method(rendezvous, master) if direct else {f"PET_{name}": value for name, value in master.items()},
        config=rendezvous.config,
        unused=frozenset(),
        host=None if rendezvous.endpoint else Host(port, rank=0),
    )


def _for_env_method(rendezvous: Rendezvous, master: Mapping[str, str]) -> dict[str, str]:
    """What `init_process_group("env://")` and torchrun's other users expect of one process in each pod, but for `RANK`."""
    return {**master, "WORLD_SIZE": str(rendezvous.nodes.min), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def _ranks(rendezvous: Rendezvous) -> dict[str, Any]:
    """From a pod's index to its rank, for the optional reference by which injection gives each pod its `RANK`.

    A pod has no `RANK` where this is not there, so that none gets one beside torchrun's. It is not in the ConfigMap that all pods get,
    as each key of that becomes a variable.
    """
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": ranks_name(rendezvous.child_name)},
        "data": {str(rank): str(rank) for rank in range(rendezvous.nodes.min)},
    }


def observe(rendezvous: Rendezvous, observed: Observed, previous: Mapping[str, Any], now: float) -> World:
    """What is known of any store of torch's own, and which pods have no rank."""
    world = observe_pods(rendezvous, observed, previous, now, waits={"timeout": LAUNCH_TIMEOUT})
    problem = _no_rank(observed.pods) or _one_rank_twice(observed.pods)
    if problem is None:
        return world
    return replace(world, problems=[problem], fatal=frozenset({problem[0]}))


def _no_rank(pods: Sequence[Pod]) -> tuple[str, str] | None:
    without = [pod for pod in pods if pod.live and pod.rank is None]
    if not without:
        return None
    names = shown([pod.name for pod in without])
    if all(pod.pair is None for pod in without):
        text = f"{names} have no index, which backend static takes ranks from: use an Indexed Job or a StatefulSet"
        return "NoIndex", text
    text = (
        f"{names} have an index in a group, and backend static takes one number for a rank: number the pods of all groups with "
        f"{SLOT_LABEL} or PET_NODE_RANK, or choose backend kubernetes"
    )
    return "NoRank", text


def _one_rank_twice(pods: Sequence[Pod]) -> tuple[str, str] | None:
    """Groups that are each numbered from 0. Of one pair it is a DuplicateIndex."""
    ranks: dict[int, list[Pod]] = {}
    for pod in pods:
        if pod.live and pod.rank is not None:
            ranks.setdefault(pod.rank, []).append(pod)
    for rank, rivals in sorted(ranks.items()):
        groups = sorted({pod.pair.group for pod in rivals if pod.pair is not None})
        if groups[1:]:
            text = (
                f"{shown([pod.name for pod in rivals])} all have rank {rank}, as groups {', '.join(groups[:3])} each count from 0: "
                "backend static has one group of pods, backend kubernetes has several"
            )
            return "SeveralGroups", text
    return None


BACKEND = Backend("static", provision, delegate_to_torch, observe)
