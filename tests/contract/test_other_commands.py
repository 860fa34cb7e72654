"""Commands on the pages for other programs than kubectl and helm, each run as it stands where it can be.

What stays is in `NOT_RUN`, with the reason. kubectl and helm: test_pages.py. make and rdzv: unit/test_site.py holds the pages to what they
take, and what they do is what everything else tests.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support import registry
from support.etcd_servers import EtcdServer
from support.operator_process import ROOT
from support.page_commands import commands

from deploy.local.cluster.tools import PACKAGES_OF_PAGES, install_packages

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md")),
    ROOT / "charts/rendezvous-operator/README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "adr" not in page.parts),
]
PROGRAMS = {
    *("docker", "buildah", "cosign", "gh", "git", "etcdctl", "torchrun", "pre-commit"),
    *("pip", "pipx", "python", "python3", ".venv/bin/python"),
}
#: By how they begin, and the test that runs them.
ELSEWHERE = {
    "pip install rendezvous_operator-": "contract/test_supply_chain.py::test_a_line_of_the_page_installs_the_command",
    "pipx install": "contract/test_supply_chain.py::test_a_line_of_the_page_installs_the_command",
    "python -m build": "contract/test_supply_chain.py::dist",
    "python -m rdzv": "cluster/test_pages.py::test_commands_that_need_nodes",
}
#: By how they begin, and why nothing runs them.
NOT_RUN = {
    "cosign verify": "wants a signature that the release's workflow gets from public services, once it has run at a tag",
    "gh attestation verify": "wants a release at GitHub",
    "git tag": "is the release: it takes a maintainer's key and publishes",
    "pip install -e": "is what `make venv` did for the interpreter that runs this, but for hashes",
}
COMMANDS = [
    command
    for command in commands(PAGES, PROGRAMS, {"ROLE": "agents"})
    if len(command.split()) > 2 and command[-1] != "…"
]
HERE = [command for command in COMMANDS if not command.startswith((*ELSEWHERE, *NOT_RUN))]


def of(program: str) -> list[str]:
    return [command for command in HERE if command.startswith(f"{program} ")]


def run(
    command: str, folder: Path = ROOT, path: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`path`: a folder before all others of the PATH."""
    paths = map(str, filter(None, (path, Path(sys.executable).parent)))
    env = {**os.environ, "PATH": ":".join((*paths, os.environ["PATH"])), **(env or {})}
    words = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=600)


def works(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    install_packages(PACKAGES_OF_PAGES)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("etcd"), "3.4")
    yield server
    server.kill()


def test_images_are_built_and_pushed(tmp_path: Path) -> None:
    """What the registry has then is the library of this checkout."""
    lines = of("docker")
    assert len(lines) == 3, "the chart's README says what the README does"
    registry.install_docker(tmp_path)
    with registry.running(tmp_path) as address:
        try:
            for line in lines:
                works(run(line.replace("REGISTRY", address), path=tmp_path))
        finally:
            registry.forget(*(f"{address}/rendezvous-{part}:0.1.0" for part in ("library", "operator")))
        for name in ("rendezvous-operator", "rendezvous-library"):
            assert registry.get(address, f"{name}/tags/list")["tags"] == ["0.1.0"]
        manifest = registry.get(address, "rendezvous-library/manifests/0.1.0")
        layers = [registry.blob(address, "rendezvous-library", layer["digest"]) for layer in manifest["layers"]]
    files: set[str] = set()
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            files |= {name.removeprefix("./") for name in tar.getnames()}
    assert {f"rdzv/{path.relative_to(ROOT / 'src/rdzv')}" for path in (ROOT / "src/rdzv").rglob("*.py")} <= files


def test_what_etcdctl_is_told_to_do(etcd: EtcdServer) -> None:
    lines, prefix = of("etcdctl"), "/rdzv/job1/"
    given = {"ETCDCTL_ENDPOINTS": etcd.endpoint, "ETCDCTL_API": "3"}
    for before in ("role add agents", f"put {prefix}round x", f"put {prefix}members/a x", "put /rdzv/job10/round x"):
        works(run(f"etcdctl {before}", env=given))
    assert len([works(run(line, env=given)) for line in lines]) == 2
    assert "[/rdzv/team/, /rdzv/team0)" in works(run("etcdctl role get agents", env=given))
    assert works(run("etcdctl get --prefix --keys-only /rdzv/", env=given)).split() == ["/rdzv/job10/round"]


def test_a_plug_in_is_installed_into_a_folder(tmp_path: Path) -> None:
    (line,) = of("pip")
    folder = tmp_path / "my-plugin"
    folder.mkdir()
    for file in (ROOT / "tests/plugin").glob("*.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    works(run(line, tmp_path))
    assert (tmp_path / "plugins/rdzv_shared_dir.py").is_file()


def test_what_a_release_lacks_is_said() -> None:
    """The version on the page is not the one of this checkout."""
    (line,) = of("python")
    done = run(line)
    assert done.returncode == 1
    assert "pyproject.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_of_the_benchmark_is_printed() -> None:
    (line,) = of(".venv/bin/python")
    assert "--backends" in works(run(line))


@pytest.mark.parametrize("line", of("torchrun"))
def test_torchrun_takes_its_options_and_knows_the_backend(line: str) -> None:
    """Agents that are started so meet in test_kubernetes_handler.py and test_etcd_v3.py."""
    from torch.distributed.elastic.rendezvous.registry import handler_registry
    from torch.distributed.run import config_from_args, parse_args

    words = [word for word in line.split()[1:] if not word.endswith(".py")]
    config, _, _ = config_from_args(parse_args([*words, "train.py"]))
    assert config.rdzv_endpoint
    assert config.rdzv_backend in {"kubernetes", "etcd-v3"}
    assert config.rdzv_backend in handler_registry._registry


def test_commands_that_are_run_elsewhere_or_not_at_all_are_on_the_pages() -> None:
    for beginning in (*ELSEWHERE, *NOT_RUN):
        assert any(command.startswith(beginning) for command in COMMANDS), beginning
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text()
    tested = {"docker", "etcdctl", "pip", "python", ".venv/bin/python", "torchrun"}
    assert {command.partition(" ")[0] for command in HERE} == tested
