"""What is released, and what the operator's image is made of: packages that install, locked versions, a bill that is true."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.page_commands import commands

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "deploy" / "images"
PIPX = "pipx==1.18.4"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def pyproject() -> Any:
    return importlib.import_module("tomllib").loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, Requirement]:
    """The requirements of a lock by name; every one has to be exact, and to have hashes."""
    entries = re.sub(r"\\\n", " ", (IMAGES / name).read_text()).splitlines()
    found: dict[str, Requirement] = {}
    for entry in entries:
        if entry.startswith("#"):
            continue
        words = entry.split()
        hashes = [word for word in words if word.startswith("--hash=sha256:")]
        requirement = Requirement(" ".join(word for word in words if not word.startswith("--")))
        assert hashes, f"{requirement} has no hash"
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        found[canonicalize_name(requirement.name)] = requirement
    return found


def clean_venv(path: Path, beside: str | None = None) -> Path:
    """A virtual environment with pip and nothing else, and what is in the folder `beside`."""
    run(sys.executable, "-m", "venv", path)
    python = path / "bin" / "python"
    if beside:
        site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        (Path(site) / "beside.pth").write_text(f"{beside}\n")
    return python


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, since setuptools builds beside the source."""
    tree = tmp_path_factory.mktemp("tree")
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    return tree


@pytest.fixture(scope="module")
def dist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with wheel and sdist, built as a release does it: the sdist from the tree, the wheel from the sdist."""
    output = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, tree)
    return output


def test_wheel_and_sdist_hold_the_library_and_its_license(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "rdzv").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        assert modules <= set(archive.namelist())
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {f"src/{module}" for module in modules} | {"LICENSE", "README.md", "pyproject.toml"} <= names


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_the_released_package_installs_beside_torch_and_torchrun_finds_it(
    dist: Path, kind: str, tmp_path: Path
) -> None:
    import torch

    (package,) = dist.glob(kind)
    python = clean_venv(tmp_path / "venv", beside=str(Path(torch.__file__).parents[1]))
    if kind == "*.tar.gz":  # what builds it; an installation from an index would fetch it by itself
        run(
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--require-hashes",
            "-r",
            IMAGES / "build-requirements.txt",
        )
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", package)
    script = (
        "import rdzv; from torch.distributed.elastic.rendezvous import registry;"
        "print(rdzv.__file__, registry.handler_registry._registry['kubernetes'].__module__)"
    )
    place, module = run(python, "-I", "-c", script).split()
    assert place.startswith(str(tmp_path))
    assert module == "rdzv.backends.kubernetes"
    assert "doctor" in run(tmp_path / "venv" / "bin" / "rdzv", "--help")


INSTALL = commands([ROOT / "docs/cli.md"], {"pip", "pipx"}, {})


@pytest.mark.parametrize("line", INSTALL)
def test_a_line_of_the_page_installs_the_command(line: str, tree: Path, dist: Path, tmp_path: Path) -> None:
    """On the PATH, where kubectl looks for it, too."""
    python = clean_venv(tmp_path / "venv")
    if line.startswith("pipx"):
        run(python, "-m", "pip", "install", "-q", PIPX)
    programs = tmp_path / ("programs" if line.startswith("pipx") else "venv/bin")
    env = {"PATH": f"{programs}:{python.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    env |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    env |= {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "programs")}
    for words in (line, "rdzv --help", "kubectl-rdzv --help"):
        folder = dist if line.startswith("pip ") else tree
        command = ["bash", "-c", words]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    assert "doctor" in done.stdout


def test_the_page_has_a_line_for_a_checkout_and_one_for_a_release() -> None:
    assert [line.split()[:2] for line in INSTALL] == [["pipx", "install"], ["pip", "install"]]


def test_the_lock_is_what_pyproject_asks_for() -> None:
    project = pyproject()
    asked = [Requirement(text) for text in project["project"]["optional-dependencies"]["operator"]]
    have = locked("operator-requirements.txt")
    for requirement in asked:
        assert have[canonicalize_name(requirement.name)].specifier == requirement.specifier
    build = {canonicalize_name(r.name): r.specifier for r in map(Requirement, project["build-system"]["requires"])}
    assert {name: requirement.specifier for name, requirement in locked("build-requirements.txt").items()} == build


def test_the_lock_is_complete_and_has_nothing_else() -> None:
    """Followed from the extra through the packages' own requirements, as they are installed here from the same lock."""
    project = pyproject()
    have = locked("operator-requirements.txt")
    here = {name for name, requirement in have.items() if not requirement.marker or requirement.marker.evaluate()}
    todo = [Requirement(text) for text in project["project"]["optional-dependencies"]["operator"]]
    needed: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        assert name in have, f"{requirement} is not locked"
        (pin,) = have[name].specifier
        assert requirement.specifier.contains(pin.version, prereleases=True), requirement
        assert version(name) == pin.version, f"the tests run on {name} {version(name)}, the image has {pin.version}"
        if name in needed and not requirement.extras:
            continue
        needed.add(name)
        for text in requires(name) or ():
            further = Requirement(text)
            extras = ["", *requirement.extras]
            if not further.marker or any(further.marker.evaluate({"extra": e}) for e in extras):
                todo.append(further)
    assert needed == here


def test_a_package_with_another_hash_is_refused(tmp_path: Path) -> None:
    entry = re.search(r"^iso8601==.*\n(?:    .*\n?)+", (IMAGES / "operator-requirements.txt").read_text(), re.MULTILINE)
    assert entry
    forged = tmp_path / "requirements.txt"
    forged.write_text(re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", entry.group()))
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-d", str(tmp_path)]
    done = subprocess.run([*command, "-r", str(forged)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


@pytest.fixture(scope="module")
def image_python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment made by the very commands of the Dockerfile: the lock with its hashes, then our wheel."""
    venv = tmp_path_factory.mktemp("image") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile", "--no-deps")
    run(*pip, "--only-binary", ":all:", "--require-hashes", "-r", IMAGES / "operator-requirements.txt")
    run(*pip, "--no-index", *dist.glob("*.whl"))
    return python


@pytest.fixture(scope="module")
def bill(image_python: Path) -> str:
    return run(image_python, "-I", IMAGES / "sbom.py")


def test_the_bill_of_materials_is_valid_cyclonedx(bill: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    broken: Any = {**json.loads(bill), "components": [{"name": "no type"}]}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_the_bill_names_every_locked_package_with_its_version(bill: str) -> None:
    parsed = json.loads(bill)
    named = {item["name"]: item["version"] for item in parsed["components"]}
    pins = locked("operator-requirements.txt").items()
    assert named == {n: next(iter(r.specifier)).version for n, r in pins if not r.marker or r.marker.evaluate()}
    assert all(item["purl"] == f"pkg:pypi/{item['name']}@{item['version']}" for item in parsed["components"])
    root = parsed["metadata"]["component"]
    assert root["name"] == "rendezvous-operator"
    needs = {item["ref"]: item["dependsOn"] for item in parsed["dependencies"]}
    asked = {reference.partition("@")[0] for reference in needs[root["purl"]]}
    extra = pyproject()["project"]["optional-dependencies"]["operator"]
    assert asked == {f"pkg:pypi/{canonicalize_name(Requirement(each).name)}" for each in extra}
    reachable, todo = {root["purl"]}, [root["purl"]]
    while todo:
        new = set(needs[todo.pop()]) - reachable
        reachable |= new
        todo += new
    assert {item["purl"] for item in parsed["components"]} <= reachable, "a package that nothing needs"


def test_the_bill_is_the_same_every_time(bill: str, image_python: Path) -> None:
    assert run(image_python, "-I", IMAGES / "sbom.py") == bill


@pytest.mark.parametrize("program", ["main.py", "webhook.py"])
def test_operator_and_webhook_load_from_the_locked_packages_alone(image_python: Path, program: str) -> None:
    run(image_python, "-I", ROOT / "operator" / program)
