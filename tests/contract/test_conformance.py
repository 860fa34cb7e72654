"""`rdzv conformance` as a program: a backend that keeps the contract, and one that lies in every answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.plugin_install import install

ROOT = Path(__file__).parents[2]

LIAR = """
import itertools
from torch.distributed import HashStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

class Liar(RendezvousHandler):
    def __init__(self, params): self.params = params
    def get_backend(self): return "liar"
    def get_run_id(self): return "another"
    def next_rendezvous(self): return RendezvousInfo(HashStore(), 0, self.params.max_nodes, RendezvousStoreInfo("h", 1))
    def is_closed(self): return True
    def set_closed(self): pass
    def num_nodes_waiting(self): return 1
    def shutdown(self): return False

def handler(): return Liar
"""


def conformance(report: Path, path: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Runs it; returns exit status, what it printed, and the outcomes by profile and check."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'src'}:{path}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "rdzv", "conformance", "-o", str(report), *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=500)
    found = yaml.safe_load(report.read_text()) if report.exists() else {}
    return (
        done.returncode,
        done.stdout + done.stderr,
        {profile["name"]: profile for profile in found.get("profiles", [])},
    )


def test_a_backend_that_lies_is_found_out_in_every_check(tmp_path: Path) -> None:
    (tmp_path / "liar.py").write_text(LIAR)
    info = tmp_path / "liar-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: liar\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torchrun.handlers]\nliar = liar:handler\n")
    arguments = ("--backend", "liar", "--endpoint", "h:1", "--profile", "core,elastic")
    code, said, profiles = conformance(tmp_path / "report.yaml", tmp_path, *arguments)
    assert code == 1, said
    assert [profile["passed"] for profile in profiles.values()] == [[], []]
    (form,) = (failed for failed in profiles["core"]["failed"] if failed["check"] == "form")
    assert form["seen"] == "ranks [0, 0, 0, 0] of worlds of [4] nodes, not 4 nodes with ranks 0 to 3"
    assert f"means: {form['means']}" in said


def test_a_plug_in_keeps_the_core_of_the_contract(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    install(plugin, tmp_path)
    arguments = ("--backend", "shared-dir", "--endpoint", f"{tmp_path}/{{run}}", "--profile", "core")
    code, said, profiles = conformance(tmp_path / "report.yaml", plugin, *arguments)
    assert (code, profiles["core"]["failed"]) == (0, []), said
    assert profiles["core"]["skipped"] == [{"check": "unreachable", "reason": "its endpoint is no address HOST:PORT"}]


NOTHING = [(["tpyo", "--endpoint", "h:1"], "knows no backend 'tpyo', only"), (["etcd"], "needs --endpoint")]


@pytest.mark.parametrize(("arguments", "said"), NOTHING)
def test_nothing_to_test_is_said(tmp_path: Path, arguments: list[str], said: str) -> None:
    code, text, _ = conformance(tmp_path / "report.yaml", tmp_path, "--backend", *arguments)
    assert (code, said in text) == (2, True), text
