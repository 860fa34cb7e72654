"""What the cluster is made of: Debian packages, and programs built from pinned Go modules into the cache.

The versions are those in deploy/local/go/*/go.mod, their checksums in go.sum; there is no other list.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .common import LOCAL, LocalError, cached, digest, locked, progress, run, say

PACKAGES = (
    *(
        "buildah",
        "ca-certificates",
        "conntrack",
        "containernetworking-plugins",
        "debootstrap",
        "etcd-server",
        "iproute2",
    ),
    *("iptables", "kmod", "nftables", "openssl", "python3-venv", "runc", "util-linux"),
)
#: What only the tests of commands on the pages need.
PACKAGES_OF_PAGES = ("docker-registry", "etcd-client")
#: What only the agents whose clocks jump need, in `make faults`.
PACKAGES_OF_CLOCKS = ("gcc", "libc6-dev")
#: By package, the daemon that it would start.
UNITS = {"etcd-server": "etcd.service", "docker-registry": "docker-registry.service"}


@dataclass(frozen=True)
class Part:
    """A module under deploy/local/go whose `tool` lines name the programs to build."""

    name: str
    module: str
    expected: str
    variables: tuple[str, ...] = ()  # linker -X settings; {version} is v1.2.3, {plain} 1.2.3, {minor} the second number
    tags: str = ""  # build tags: what is left out of the programs

    @property
    def folder(self) -> Path:
        """Where its go.mod and go.sum are."""
        return LOCAL / "go" / self.name

    @property
    def version(self) -> str:
        """The version that go.mod pins, like v1.37.2; our own source has none."""
        if not self.module:
            return "v1"
        found = re.search(
            rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", (self.folder / "go.mod").read_text(), re.MULTILINE
        )
        if not found:
            raise LocalError(f"{self.folder / 'go.mod'} does not require {self.module}")
        return found[1]

    @property
    def flags(self) -> str:
        """The linker's flags: no symbols, and the version that the programs report."""
        plain = self.version.lstrip("v")
        values = {"version": self.version, "plain": plain, "minor": plain.partition(".")[2].partition(".")[0]}
        return " ".join(["-s -w", *(f"-X {variable.format(**values)}" for variable in self.variables)])

    @property
    def key(self) -> str:
        """The name of its cache entry."""
        sources = [path.read_bytes() for path in sorted(self.folder.iterdir())]
        return f"{self.name}-{self.version.lstrip('v')}-{digest(self.flags + self.tags, *sources)}"


KUBERNETES_VARIABLES = tuple(
    f"k8s.io/component-base/version.{name}"
    for name in ("gitVersion={version}", "gitMajor=1", "gitMinor={minor}", "gitTreeState=clean")
)

PARTS = (
    Part("pause", "", "1 s"),
    Part("etcd", "go.etcd.io/etcd/server/v3", "30 s"),
    Part("kubernetes", "k8s.io/kubernetes", "7 min on 2 cores", KUBERNETES_VARIABLES),
    Part(
        "containerd",
        "github.com/containerd/containerd/v2",
        "2 min",
        ("github.com/containerd/containerd/v2/version.Version={plain}",),
    ),
    Part("coredns", "github.com/coredns/coredns", "3 min"),
    Part("helm", "helm.sh/helm/v4", "2 min", ("helm.sh/helm/v4/internal/version.version={version}",)),
)


#: Earlier Kubernetes, by minor version: built only when RDZV_KUBERNETES names one.
#: Of the oldest all programs, for the full form; of the others the API server, for the light one.
OLDER_KUBERNETES = {
    minor: Part(f"kubernetes-{minor}", "k8s.io/kubernetes", expected, KUBERNETES_VARIABLES)
    for minor, expected in (("1.34", "7 min on 2 cores"), ("1.35", "4 min on 2 cores"), ("1.36", "4 min on 2 cores"))
}

#: Controllers of workloads, as they are released: built only when tests/matrix asks for them.
CONTROLLERS = (
    Part("jobset", "sigs.k8s.io/jobset", "2 min on 2 cores"),
    Part("lws", "sigs.k8s.io/lws", "4 min on 2 cores"),
    Part("training-operator", "github.com/kubeflow/training-operator", "2 min on 2 cores"),
    Part("trainer", "github.com/kubeflow/trainer/v2", "3 min on 2 cores"),
    Part("kueue", "sigs.k8s.io/kueue", "12 min on 2 cores"),
)

#: What enforces NetworkPolicies: built only when tests/contract/test_isolation.py asks for it.
ENFORCER = Part("network-policies", "sigs.k8s.io/kube-network-policies", "2 min on 2 cores")

#: Prometheus and promtool: built only when tests/alerts asks for them. Without what finds targets in clouds.
PROMETHEUS = Part("prometheus", "github.com/prometheus/prometheus", "8 min on 2 cores", tags="netgo,remove_all_sd")

#: A CPython that Debian 12 does not have: unpacked only when tests/compat asks for it.
PYTHON = Part("python-3.14", "", "10 s")


@dataclass(frozen=True)
class Tools:
    """Where the built programs are: the folder of a part with several, the file of one with one."""

    etcd: Path
    api_server: Path
    kubernetes: Path
    containerd: Path
    coredns: Path
    helm: Path
    pause: Path

    def as_dict(self) -> dict[str, str]:
        """Return the paths for state.json, with kubectl's own."""
        return {
            "kubectl": str(self.kubernetes / "kubectl"),
            "helm": str(self.helm),
            "ctr": str(self.containerd / "ctr"),
        }


def _build(part: Part, folder: Path, update: Callable[[str], None]) -> None:
    if not shutil.which("go"):
        raise LocalError("Go is needed to build the cluster's programs and is not on the PATH: https://go.dev/dl")
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -mod=readonly".strip()}
    update("downloading modules")
    total = len(run(["go", "list", "-deps", "tool" if part.module else "."], cwd=part.folder, env=env).split())
    command = [
        "go",
        "build",
        "-v",
        "-trimpath",
        "-tags",
        part.tags,
        "-ldflags",
        part.flags,
        "-o",
        f"{folder}/",
        "tool" if part.module else ".",
    ]
    printed: list[str] = []
    with subprocess.Popen(command, cwd=part.folder, env=env, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            printed.append(line.rstrip())
            update(f"{len(printed)} of at most {total} packages compiled")
    if process.returncode != 0:
        end = "\n".join(printed[-20:])
        raise LocalError(f"building {part.name} {part.version} (in {part.folder}: {' '.join(command)}) failed:\n{end}")


def build(part: Part, number: int = 0) -> Path:
    """Build a part unless the cache has it; `number` of all parts, for the progress line. Returns its folder."""

    def make(stage: Path) -> None:
        title = f"{f'[{number} of {len(PARTS)}] ' if number else ''}building {part.name} {part.version}"
        with progress(title, part.expected) as update:
            _build(part, stage, update)

    return cached(f"tools/{part.key}", make)


def build_all() -> Tools:
    """Build what is missing; afterwards this only looks, and takes milliseconds.

    RDZV_KUBERNETES (a key of OLDER_KUBERNETES) takes that version's API server, and its other programs where they are built.
    All else stays the newest.

    Raises:
        LocalError: there is no such version here, or a build failed.
    """
    found = {part.name: build(part, number) for number, part in enumerate(PARTS, 1)}
    chosen = _older_kubernetes(os.environ.get("RDZV_KUBERNETES", "")) or found["kubernetes"]
    return Tools(
        etcd=found["etcd"] / "server",
        api_server=chosen / "kube-apiserver",
        kubernetes=chosen if (chosen / "kubelet").exists() else found["kubernetes"],
        containerd=found["containerd"],
        coredns=found["coredns"] / "coredns",
        helm=found["helm"] / "helm",
        pause=found["pause"] / "pause",
    )


def _older_kubernetes(minor: str) -> Path | None:
    newest = next(part for part in PARTS if part.name == "kubernetes").version
    if not minor or newest.startswith(f"v{minor}."):
        return None
    if minor not in OLDER_KUBERNETES:
        raise LocalError(f"RDZV_KUBERNETES={minor}: here are {', '.join(OLDER_KUBERNETES)} and {newest}")
    return build(OLDER_KUBERNETES[minor])


def etcds() -> dict[str, Path]:
    """Return the servers by the names of their images: the current one, and Debian's, the last here that has the v2 API."""
    (part,) = (part for part in PARTS if part.name == "etcd")
    return {
        f"localhost/etcd:{part.version}": build(part) / "server",
        "localhost/etcd:v3.4-debian": Path("/usr/bin/etcd"),
    }


def build_controller(name: str) -> Path:
    """The program of one of CONTROLLERS; it is built if it is missing."""
    return next(build(_controller(name)).iterdir())


def build_enforcer() -> Path:
    """The program that enforces NetworkPolicies; it is built if it is missing."""
    return build(ENFORCER) / "cmd"


def build_prometheus() -> Path:
    """The folder of prometheus and promtool; they are built if they are missing."""
    return build(PROMETHEUS)


def build_python() -> Path:
    """The interpreter that PYTHON carries; it is unpacked if it is missing."""
    program = next(build(PYTHON).iterdir())

    def unpack(stage: Path) -> None:
        run([program, stage])

    return cached(f"pythons/{PYTHON.key}", unpack) / "bin/python3"


def module_folder(name: str) -> Path:
    """Where the source of one of CONTROLLERS is, with its manifests."""
    part = _controller(name)
    run(["go", "mod", "download", part.module], cwd=part.folder)
    return Path(run(["go", "list", "-m", "-f", "{{.Dir}}", part.module], cwd=part.folder).strip())


def _controller(name: str) -> Part:
    return next(part for part in CONTROLLERS if part.name == name)


def missing_packages(packages: Sequence[str] = PACKAGES) -> list[str]:
    """Return those of these Debian packages that are not installed."""
    if not shutil.which("dpkg-query"):
        raise LocalError(
            "this is not Debian: install these yourself, under the names they have here: " + " ".join(packages)
        )
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in asked.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def install_packages(packages: Sequence[str] = PACKAGES) -> None:
    """Install the missing Debian packages, without letting them start daemons or enable them at boot.

    Raises:
        LocalError: apt-get failed, or root is needed.
    """
    if not missing_packages(packages):
        return
    with locked("packages"):
        missing = missing_packages(packages)
        if os.geteuid() != 0:
            raise LocalError(f"as root: apt-get install {' '.join(missing)}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # Debian's servers would start at once, on their usual ports, and again at every boot.
        policy, system = Path("/usr/sbin/policy-rc.d"), Path("/etc/systemd/system")
        ours = not policy.exists()
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        for unit in (system / UNITS[package] for package in missing if package in UNITS):
            if system.is_dir() and not unit.exists():
                unit.symlink_to("/dev/null")
        try:
            with progress(f"installing {' '.join(missing)}", "1 min") as update:
                update("apt-get update")
                run(["apt-get", "update"], env=environment)
                update("apt-get install")
                run(["apt-get", "install", "--yes", "--no-install-recommends", *missing], env=environment)
        finally:
            if ours:
                policy.unlink()
    say("packages are installed")
