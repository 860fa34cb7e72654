"""torch's rendezvous contract by each release of torch, from PyPI: handlers, agents that meet and meet again, stores, gloo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.compatibility import ROOT, TORCH, record, run

from deploy.local.cluster import pytorch

#: The last of each minor version.
VERSIONS = ("2.6.0", "2.7.1", "2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", pytorch.VERSION)
TESTS = (
    "tests/contract/test_handlers.py",
    *(
        f"tests/contract/test_kubernetes_handler.py::test_{name}"
        for name in (
            "a_job_forms_trains_and_ends",
            "survivors_go_on_when_an_agent_is_killed[on_kubernetes-the coordinator and rank 0]",
            "a_replacement_is_let_in[on_kubernetes]",
        )
    ),
    *(
        f"tests/contract/test_handler_contract.py::test_{name}[{backend}]"
        for name in ("a_fixed_world", "too_few", "a_late_node_is_announced_and_let_in", "closed_is_closed_for_all")
        for backend in ("kubernetes", "etcd")
    ),
    *("tests/contract/test_store.py", "tests/contract/test_last_words.py"),
    "tests/contract/test_doctor.py::test_why_torch_has_not_registered_the_plug_in",
)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Iterator[str]:
    """One that is installed. With CUDA's libraries each takes 5 GB, so it goes again, unless it is the project's own."""
    found: str = request.param
    there = pytorch.folder(found).exists()
    pytorch.install(found)
    yield found
    if not (there or os.environ.get("RDZV_COMPAT_KEEP")):
        shutil.rmtree(pytorch.folder(found))


@pytest.fixture
def python(tmp_path: Path, version: str) -> Path:
    """An interpreter with this torch, and all else as here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    made = tmp_path / "bin/python"
    purelib = subprocess.check_output([made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    # A .pth file is not followed to others: this is how the project's own torch stays out.
    folders = [pytorch.folder(version) / "site-packages", ROOT / "src", sysconfig.get_path("purelib")]
    Path(purelib.strip(), "compat.pth").write_text("".join(f"{folder}\n" for folder in folders))
    return made


@pytest.mark.timeout(3600)
def test_the_contract_is_kept_by_this_torch(python: Path, version: str) -> None:
    seen = subprocess.check_output([python, "-c", "import torch; print(torch.__version__)"], text=True)
    assert seen.startswith(version)
    record(TORCH, version, run(python, TESTS, {}))
