"""The library of training pods, by each Python that is at hand: what it does without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.compatibility import PYTHON, ROOT, record, run

from deploy.local.cluster.tools import PYTHON as CARRIED
from deploy.local.cluster.tools import build_python

PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
#: What pods do without torch, and what runs nothing of the operator.
TESTS = (
    *("tests/unit/etcd", "tests/unit/agent", "tests/unit/test_env.py", "tests/unit/test_pairs.py"),
    *("tests/unit/test_kubeconfig.py", "tests/unit/test_client_errors.py", "tests/unit/test_store_records.py"),
    *(f"tests/unit/protocol/test_{name}.py" for name in ("coordinator", "member", "records", "worked_example")),
)

PIP = "pip==26.0.1"
QUIET = ("--quiet", "--disable-pip-version-check")
NEEDED = ("pytest", "pytest-timeout", "hypothesis", "pyyaml")


def interpreters() -> dict[str, Path | None]:
    """By minor version, the first that is that version: of the distribution, pyenv's, or (None) the one that a Go module carries."""
    found: dict[str, Path | None] = {CARRIED.name.removeprefix("python-"): None}
    for minor in PYTHON.minors:
        own = shutil.which(f"python{minor}", path="/usr/bin:/usr/local/bin")
        candidates = [Path(own)] if own else sorted(PYENV.glob(f"versions/{minor}.*/bin/python"))
        found |= {minor: candidates[0]} if candidates else {}
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("minor", interpreters())
def test_the_library_works_by_this_python(tmp_path: Path, minor: str) -> None:
    subprocess.run([interpreters()[minor] or build_python(), "-m", "venv", "--without-pip", tmp_path], check=True)
    python = tmp_path / "bin/python"
    version = subprocess.run([python, "-V"], check=True, capture_output=True, text=True).stdout.split()[1]
    assert version.rpartition(".")[0] == minor
    # Not every interpreter brings pip along, and a wheel of it can be run as it is.
    subprocess.run([sys.executable, "-m", "pip", "download", *QUIET, "--no-deps", "-d", tmp_path, PIP], check=True)
    (pip,) = tmp_path.glob("pip-*.whl")
    subprocess.run([python, pip / "pip", "install", *QUIET, *NEEDED], check=True)
    env = {"PYTHONPATH": str(ROOT / "src")}
    record(PYTHON, version, run(python, TESTS, env))
    listed = subprocess.run(
        [python, "-m", "rdzv", "backends"], env={**os.environ, **env}, check=True, capture_output=True, text=True
    )
    assert "kubernetes" in listed.stdout
