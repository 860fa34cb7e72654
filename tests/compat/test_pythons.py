"""The library of training pods, by each Python that is at hand: what it does without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.compatibility import MUSL, PYTHON, ROOT, Table, record, run

from deploy.local.cluster import musl
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
    python = made_by(interpreters()[minor] or build_python(), tmp_path, minor)
    works_by(python, PYTHON)


@pytest.mark.timeout(7200)
def test_the_library_works_with_musl(tmp_path: Path) -> None:
    """As in Alpine's images. There is no torch for musl, so nothing of torch's."""
    python = made_by(musl.build_python(), tmp_path, MUSL.minors[0])
    loaded = asked(python, "-c", "import ssl; print(open('/proc/self/maps').read())")
    assert "-linux-musl/libc.so" in loaded
    assert "libc.so.6" not in loaded
    works_by(python, MUSL)


def made_by(interpreter: Path, folder: Path, minor: str) -> Path:
    """An interpreter with what the tests need."""
    subprocess.run([interpreter, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    assert version(python).rpartition(".")[0] == minor
    # Not every interpreter brings pip along, and a wheel of it can be run as it is.
    subprocess.run([sys.executable, "-m", "pip", "download", *QUIET, "--no-deps", "-d", folder, PIP], check=True)
    (pip,) = folder.glob("pip-*.whl")
    subprocess.run([python, pip / "pip", "install", *QUIET, *NEEDED], check=True)
    return python


def works_by(python: Path, table: Table) -> None:
    env = {"PYTHONPATH": str(ROOT / "src")}
    record(table, version(python), run(python, TESTS, env))
    assert "kubernetes" in asked(python, "-m", "rdzv", "backends", **env)


def version(python: Path) -> str:
    return asked(python, "-V").split()[1]


def asked(python: Path, *words: str, **env: str) -> str:
    return subprocess.run(
        [python, *words], env={**os.environ, **env}, check=True, capture_output=True, text=True
    ).stdout
