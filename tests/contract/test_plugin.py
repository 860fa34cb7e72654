"""A plug-in in a distribution of its own, installed with pip: its operator half in the real operator, its pod half under real torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cluster_fixtures import LocalCluster
from support.operated import rendezvous
from support.operator_process import ROOT, Kube, eventually, running_operator
from support.plugin_install import install

TRAIN = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print(f"rank {dist.get_rank()} of {dist.get_world_size()} sum {int(total)}", flush=True)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("plugins")
    install(target, tmp_path_factory.mktemp("build"))
    return target


def data_of(kube: Kube, namespace: str) -> dict[str, str]:
    data: dict[str, str] = (kube.get("ConfigMap", namespace, "rdzv-mnist") or {}).get("data") or {}
    return data


def condition(kube: Kube, namespace: str, name: str) -> dict[str, str]:
    status = (kube.get("Rendezvous", namespace, name) or {}).get("status") or {}
    return next((c for c in status.get("conditions", []) if c["type"] == "Provisioned"), {})


def test_the_operator_provisions_it_and_torchrun_meets_by_it(
    kube: Kube, control_plane: LocalCluster, light_namespace: str, tmp_path: Path, plugins: Path
) -> None:
    shared = tmp_path / "shared"
    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace, path=plugins):
        kube.create(rendezvous(light_namespace, "shared-dir", config={"directory": str(shared)}, nprocPerNode=1))
        data = eventually(lambda: data_of(kube, light_namespace))
    assert data["PET_RDZV_ENDPOINT"] == f"{shared}/{data['PET_RDZV_ID']}"
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'src'}:{plugins}", "OMP_NUM_THREADS": "1", **data}
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--local-addr=127.0.0.1", str(script)]
    agents = [
        subprocess.Popen(command, env=base, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        outputs = [agent.communicate(timeout=240) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    lines = sorted(line for out, _ in outputs for line in out.splitlines() if line.startswith("rank"))
    assert lines == ["rank 0 of 2 sum 2", "rank 1 of 2 sum 2"], outputs


def test_a_plug_in_that_raises_is_told_to_its_user_and_to_nobody_else(
    kube: Kube, control_plane: LocalCluster, light_namespace: str, tmp_path: Path
) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "faulty.py").write_text(
        "def provision(rendezvous): raise RuntimeError('no licence')\n"
        "def raising(): return provision\n"
        "def broken(): raise ImportError('no such driver')\n"
    )
    info = plugins / "faulty-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[rdzv.backends]\nraising = faulty:raising\nbroken = faulty:broken\n")
    log = tmp_path / "log"
    with running_operator(control_plane.kubeconfig, log, light_namespace, path=plugins):
        for backend in ("raising", "broken", "c10d"):
            obj = rendezvous(light_namespace, backend)
            obj["metadata"]["name"] = backend
            kube.create(obj)
        texts = {
            "raising": "backend 'raising' of plug-in faulty 2.0: provision failed: RuntimeError: no licence",
            "broken": "backend 'broken' can't be used: plug-in faulty 2.0 could not be loaded: ImportError: no such driver",
        }
        for name, text in texts.items():
            found = eventually(lambda name=name: condition(kube, light_namespace, name))  # type: ignore[misc]
            assert (found["status"], found["reason"], found["message"]) == ("False", "PluginFailed", text)
        eventually(lambda: condition(kube, light_namespace, "c10d").get("status") == "True")
        said = log.read_text()
    assert "backend 'broken': plug-in faulty 2.0 could not be loaded: ImportError: no such driver" in said
    assert texts["raising"] in said


def test_the_launcher_of_the_documentation_trains() -> None:
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-W", "ignore", str(ROOT / "docs/examples/launcher.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.split("\n")[-2:] == ["{0: 2, 1: 2}", ""], done.stderr
