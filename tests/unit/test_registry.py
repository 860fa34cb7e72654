from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.builders import rendezvous

from rdzv.backends import BackendError, Provision
from rdzv.cli import backends, doctor
from rdzv.cli.probe import Probe
from rdzv.registry import OURS, BackendRegistry, _register_default_backends

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


SCRIPT = """
from support.builders import rendezvous
from rdzv.backends import BackendError
from rdzv.observed import Observed
from rdzv.registry import backend_registry
registry = backend_registry()
for name in %r:
    try:
        print(name, registry.provision(rendezvous(name)).endpoint)
    except BackendError as error:
        print(name, error.reason, str(error))
    print(name, registry.observe(rendezvous(name), Observed(), {}, 0.0).formed.reason if name not in ("kubernetes", "c10d") else "")
"""

GOOD = "from rdzv.backends import Backend, Provision\nprovision = lambda r: Provision(endpoint=r.name + ':77')\n"

#: Code of a plug-in, and what is said of it.
BROKEN = {
    "at-import": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "exits": ("import sys; sys.exit('bye')", "SystemExit: bye"),
    "no-factory": ("factory = 3", "is no function"),
    "factory-signature": (GOOD + "def factory(a): return provision", "wrong signature of"),
    "signature": ("def factory(): return lambda: None", "wrong signature of provision(rendezvous)"),
    "none": ("def factory(): return None", "is of type NoneType"),
    "other-name": (GOOD + "def factory(): return Backend('x', provision, print)", "returned backend 'x'"),
    "raises": ("def factory():\n def f(r): raise KeyError('long' * 9999)\n return f", "provision failed: KeyError"),
    "exits-later": ("import sys\ndef factory(): return lambda r: sys.exit(1)", "provision failed: SystemExit"),
    "wrong-type": ("def factory(): return lambda r: {'endpoint': 'h:1'}", "it returned dict, not a Provision"),
    "no-text": (
        GOOD + "def factory(): return lambda r: Provision('e', env={'A': 1})",
        "Provision.env has a key or a value",
    ),
    "endpoint": (GOOD + "def factory(): return lambda r: Provision(3)", "Provision.endpoint is no text"),
    "objects": (
        GOOD + "def factory(): return lambda r: Provision('e', objects=[{'kind': 'Service'}])",
        "without apiVersion",
    ),
    "server": (GOOD + "def factory(): return lambda r: Provision('e', server=1)", "Provision.server is no name"),
    "certificates": (
        GOOD + "def factory(): return lambda r: Provision('e', certificates=['mine'])",
        "Provision.certificates is no list of at most",
    ),
    "certificate": (
        "from rdzv.backends import Certificate\n"
        + GOOD
        + "def factory(): return lambda r: Provision('e', certificates=[Certificate('s', hosts=[1])])",
        "Provision.certificates is no list of at most",
    ),
    "no-json": (GOOD + "def factory(): return lambda r: Provision('e', rules=[{'a': {1}}])", "not JSON serializable"),
    "large": (GOOD + "def factory(): return lambda r: Provision('e', env={'A': 'x' * 2000000})", "bytes, more than"),
    "bad-reason": (
        "from rdzv.backends import BackendError\ndef factory():\n def f(r): raise BackendError('no word', 'x')\n return f",
        "its BackendError has no usable reason",
    ),
}


@pytest.fixture
def plugged(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python where the plug-ins of `tmp_path` are installed."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        path = ":".join(map(str, (ROOT / "src", ROOT / "tests", tmp_path)))
        return subprocess.run(
            [sys.executable, *arguments], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
        )

    return run


Plugged = Callable[..., "subprocess.CompletedProcess[str]"]


def test_what_is_wrong_with_a_plug_in_is_named_and_hurts_no_other(tmp_path: Path, plugged: Plugged) -> None:
    _distribution(tmp_path, "good_plugin", GOOD + "def factory(): return provision", "good = good_plugin:factory")
    for name, (code, _) in BROKEN.items():
        module = name.replace("-", "_") + "_plugin"
        _distribution(tmp_path, module, code, f"{name} = {module}:factory")
    done = plugged("-c", SCRIPT % (["good", "kubernetes", *BROKEN],))
    assert done.returncode == 0, done.stderr
    said = dict(reversed([line.split(" ", 1) for line in done.stdout.splitlines()]))
    assert said["good"] == "mnist:77"
    assert said["kubernetes"] == "team/mnist"
    for name, (_, text) in BROKEN.items():
        assert said[name].startswith(f"PluginFailed backend {name!r}"), said[name]
        assert text in said[name]
        assert f"{name.replace('-', '_')}_plugin 1.0" in said[name]
        assert len(said[name]) < 700
    assert "Traceback" in done.stderr  # the author's, for a provisioner that raised
    assert "KeyError" in done.stderr


def test_a_plug_in_may_bring_all_halves(tmp_path: Path, plugged: Plugged) -> None:
    code = GOOD + "def observe(r, o, p, n): raise OSError('blind')\n"
    code += "def factory(): return Backend('whole', provision, lambda params: 'a handler', observe)"
    _distribution(tmp_path, "whole_plugin", code, "whole = whole_plugin:factory")
    done = plugged("-c", SCRIPT % (["whole"],))
    assert done.stdout.split("\n")[:2] == ["whole mnist:77", "whole PluginFailed"], done.stderr
    assert "backend 'whole' of plug-in whole_plugin 1.0: observe failed: OSError: blind" in done.stderr


def test_names_that_are_taken_stay_who_had_them(tmp_path: Path, plugged: Plugged) -> None:
    for module in ("first_plugin", "second_plugin"):
        _distribution(tmp_path, module, GOOD + "def factory(): return provision", f"mine = {module}:factory")
    _distribution(tmp_path, "thief", GOOD + "def factory(): return provision", "c10d = thief:factory")
    done = plugged("-c", SCRIPT % (["c10d", "mine"],))
    assert done.stdout.splitlines()[0] == "c10d rdzv-mnist.team.svc:29400", done.stderr
    assert "mine mnist:77" in done.stdout
    done = plugged("-m", "rdzv", "backends", "-o", "json")
    lines = {line["name"]: line for line in json.loads(done.stdout)}
    assert done.returncode == 1
    assert lines["c10d"]["halves"]["provision"].startswith("rendezvous-operator ")
    (text,) = lines["c10d"]["broken"]
    assert "plug-in thief 1.0 could not be loaded: the name 'c10d' is taken by rendezvous-operator" in text
    assert "the name 'mine' is taken by" in lines["mine"]["broken"][0]
    assert lines["static"]["broken"] == []


def test_broken_plug_ins_are_listed_and_found_by_the_doctor() -> None:
    registry = BackendRegistry()
    _register_default_backends(registry)
    registry.failed["mine"] = "plug-in mine 1.0 could not be loaded: ImportError: no redis"
    probe = Probe("python", torch="2.15", handlers={"c10d": "torch 2.15", "own": "own 1"}, broken={"bad": "OSError: x"})
    lines = backends.collect(registry, probe)
    header, *rows = backends.rows(lines)
    assert header == ["NAME", "PROVISION", "OBSERVE", "HANDLER", "BROKEN"]
    assert ["bad", "-", "-", "-", "torch could not load its handler: OSError: x"] in rows
    assert ["c10d", OURS, OURS, "torch 2.15", ""] in rows
    assert ["kubernetes", OURS, OURS, "-", ""] in rows  # torch did not find our entry point
    assert ["mine", "-", "-", "-", registry.failed["mine"]] in rows
    assert ["own", "-", "-", "own 1", ""] in rows
    (found,) = doctor.check_plugins(registry.failed)
    assert (found.verdict, found.cause) == (doctor.PROBLEM, registry.failed["mine"])
    process = {finding.text: finding.verdict for finding in doctor.check_process(probe, {"PET_RDZV_BACKEND": "bad"})}
    assert process["torch could not load backend 'bad'"] == doctor.PROBLEM
    process = {finding.text: finding.verdict for finding in doctor.check_process(probe, {})}
    assert process["torch could not load backend 'bad'"] == doctor.NOTE


def test_the_guide_shows_the_plug_in_that_is_tested() -> None:
    guide, plugin = (ROOT / "docs/backends-howto.md").read_text(), ROOT / "tests/plugin"
    python, toml = (re.findall(rf"```{kind}\n(.*?)```", guide, re.DOTALL) for kind in ("python", "toml"))
    assert len(python) == len(toml) == 1
    assert python[0] in (plugin / "rdzv_shared_dir.py").read_text()
    words = [line.partition("#")[0].strip() for line in toml[0].splitlines()]
    assert {*words} <= {line.partition("#")[0].strip() for line in (plugin / "pyproject.toml").read_text().splitlines()}


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
