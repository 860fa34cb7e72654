"""How many processes a pod starts and what they are told: real ones, in the environment that injection and the operator make."""

from __future__ import annotations

import socket
from typing import Any

from support.controllers import job
from support.operator_process import eventually
from support.played_kubelet import ADDRESS, Kubelet

from rdzv.env import ENV_METHOD

Object = dict[str, Any]


def test_plain_python_without_torchrun_meets_by_env_and_its_ranks_are_the_indexes(kubelet: Kubelet) -> None:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        endpoint = f"{ADDRESS}:{probe.getsockname()[1]}"
    kubelet.wants(3, "static", launcher="none", endpoint=endpoint)
    kubelet.launcher = ()
    pods = {f"mnist-{index}": job(index) for index in range(3)}
    for name in reversed(pods):
        kubelet.run(name, pods[name])
    kubelet.await_ranks(*pods)
    kubelet.end()
    kubelet.kube.patch("Rendezvous", kubelet.namespace, "mnist", {"spec": {"launcher": "torchrun"}})

    def told() -> Object:
        return kubelet.told("mnist-1")

    env = eventually(lambda: told() if "PET_RDZV_BACKEND" in told() else {})
    assert not {*ENV_METHOD, "LOCAL_RANK", "LOCAL_WORLD_SIZE"} & env.keys(), "torchrun sets these itself"


def test_a_pod_limited_to_three_processors_has_three_processes_whatever_the_node_has(kubelet: Kubelet) -> None:
    kubelet.wants(1, nprocPerNode="auto")
    kubelet.run("mnist-0", job(0), resources={"limits": {"cpu": "3"}})
    eventually(lambda: kubelet.world().get("mnist-0", (0, 0))[1] == 3, timeout=120)
    assert kubelet.told("mnist-0")["OMP_NUM_THREADS"] == "1"
    kubelet.end()
    kubelet.kube.patch("Rendezvous", kubelet.namespace, "mnist", {"spec": {"nprocPerNode": 1}})
    counts = ("PET_NPROC_PER_NODE", "OMP_NUM_THREADS")

    def told() -> bool:
        """One process has all three processors."""
        env = kubelet.told("mnist-0")
        return [env[name] for name in counts] == ["1", "3"]

    eventually(told)
