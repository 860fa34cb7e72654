"""What a plain torchrun says when its rendezvous is what it ends by: torch's own backends, real servers, and nothing of ours asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.command import environment
from support.etcd_servers import EtcdServer

from deploy.local.cluster.control import free_ports
from rdzv.env import RENDEZVOUS_FAILED


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), "3.7") as server:
        yield server


@dataclass(frozen=True)
class Case:
    """A torchrun; `environ` as injection and ConfigMap give it, `said`: the end of its last line (None: it says nothing)."""

    environ: dict[str, str]
    said: str | None
    words: list[str] = field(default_factory=list)


def cases(current: EtcdServer, script: Path) -> dict[str, Case]:
    store, nowhere, other = (f"127.0.0.1:{port}" for port in free_ports(3))
    wrong = (
        f"{current.endpoint} answers, is etcd {{version}} and has no v2 API: use 3.5 or older, started with --enable-v2"
    )
    alone = {"PET_RDZV_CONF": "is_host=true,join_timeout=2,last_call_timeout=1"}
    etcd = {"PET_RDZV_ENDPOINT": current.endpoint}
    return {
        "etcd": Case({"PET_RDZV_BACKEND": "etcd", **etcd}, f"backend etcd: {wrong}, or backend etcd-v3"),
        "etcd-v2": Case({"PET_RDZV_BACKEND": "etcd-v2", **etcd}, f"backend etcd-v2: {wrong}, or backend etcd-v3"),
        "etcd-v3": Case(
            {"PET_RDZV_BACKEND": "etcd-v3", "PET_RDZV_ENDPOINT": nowhere, "PET_RDZV_CONF": "join_timeout=2"},
            "Connection refused",
        ),
        "a name that nobody registered": Case(
            {"PET_RDZV_BACKEND": "zookeeper", "PET_RDZV_ENDPOINT": nowhere}, "backend 'zookeeper' is not registered"
        ),
        "nobody came": Case(
            {"PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": store, **alone},
            "RendezvousTimeoutError",
        ),
        "own option": Case(
            {"PET_RDZV_BACKEND": "etcd", **etcd, **alone},
            "RendezvousTimeoutError",
            ["--rdzv-backend=c10d", f"--rdzv-endpoint={other}"],
        ),
        "its worker fails": Case(
            {"PET_RDZV_BACKEND": "etcd", **etcd, "PET_NNODES": "1"}, None, ["--rdzv-backend=c10d", "--rdzv-endpoint="]
        ),
    }


def torchrun(case: Case, script: Path) -> list[str]:
    """The lines of stderr."""
    told = {"RDZV_POD_UID": "uid", "PET_RDZV_ID": "run", "PET_NNODES": "2", "OMP_NUM_THREADS": "1", **case.environ}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *case.words, str(script)],
        env=environment(Path("/none"), **told),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr.strip().splitlines()


def test_an_agent_whose_rendezvous_failed_says_why_and_what_to_do(current: EtcdServer, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit('rendezvous failed: not by this')\n")
    tried = cases(current, script)
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(tried, pool.map(lambda case: torchrun(case, script), tried.values()), strict=True))
    for name, case in tried.items():
        last = found[name][-1]
        if case.said is None:
            assert not last.startswith(RENDEZVOUS_FAILED), f"{name}: {last}"
            continue
        assert last.startswith(RENDEZVOUS_FAILED), f"{name}: {found[name]}"
        version = last.partition("is etcd ")[2].partition(" ")[0]
        assert case.said.format(version=version) in last, f"{name}: {last}"
        assert any(line.startswith("Traceback") for line in found[name]), "torch's own error is still there"
