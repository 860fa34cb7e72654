from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.builders import rendezvous

from rdzv.backends import BackendError, Provision
from rdzv.registry import BackendRegistry, _register_default_backends

ROOT = Path(__file__).parents[2]


def test_a_name_is_registered_once() -> None:
    registry = BackendRegistry()
    _register_default_backends(registry)
    _register_default_backends(registry)  # the same halves again are no conflict, as in torch
    with pytest.raises(ValueError, match="'c10d' is already registered"):
        registry.register_provisioner("c10d", lambda _: Provision(endpoint="elsewhere"))


def test_names_that_nobody_registered_pass_through_with_an_endpoint() -> None:
    registry = BackendRegistry()
    assert registry.provision(rendezvous("theirs", endpoint="h:1")).endpoint == "h:1"
    with pytest.raises(BackendError, match="'theirs' is not registered"):
        registry.provision(rendezvous("theirs"))


def _distribution(folder: Path, name: str, code: str, entry: str) -> None:
    """An installed distribution: a module and the metadata that names its entry point."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rdzv.backends]\n{entry}\n")


def test_plug_ins_are_found_and_a_broken_one_is_named_with_its_reason(tmp_path: Path) -> None:
    _distribution(
        tmp_path,
        "good_plugin",
        "from rdzv.backends import Provision\ndef factory():\n    return lambda r: Provision(endpoint=r.name + ':77')\n",
        "good = good_plugin:factory",
    )
    _distribution(tmp_path, "bad_plugin", "raise RuntimeError('no licence')\n", "bad = bad_plugin:factory")
    script = """
from support.builders import rendezvous
from rdzv.registry import backend_registry
registry = backend_registry()
print(registry.provision(rendezvous("good")).endpoint)
try:
    registry.provision(rendezvous("bad"))
except ValueError as error:
    print(error)
"""
    path = ":".join(map(str, (ROOT / "src", ROOT / "tests", tmp_path)))
    result = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    first, second = result.stdout.splitlines()
    assert first == "mnist:77"
    assert "plug-in 'bad' could not be loaded: RuntimeError: no licence" in second
    assert "good" in second


def test_the_library_imports_nothing_heavy() -> None:
    script = "import sys, rdzv, rdzv.registry; print([m for m in ('torch', 'kopf', 'kubernetes', 'yaml', 'asyncio') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"
