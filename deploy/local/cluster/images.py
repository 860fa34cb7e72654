"""Container images without a registry: write them, and load them into the nodes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import node
from .common import (
    PRIVATE_MOUNTS,
    Command,
    LocalError,
    cache_root,
    cached,
    digest,
    progress,
    read_json,
    run,
    write_json,
)

if TYPE_CHECKING:
    from .model import Cluster
    from .processes import Supervisor
    from .tools import Tools

BASE = "localhost/debian:bookworm"
BASE_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
BASE_REVISION = "3"  # count up with every change of what base_image() puts into the image


def _sha256(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(2**20):
            whole.update(block)
    return whole.hexdigest()


def write_archive(
    path: Path, name: str, layer: Callable[[tarfile.TarFile], None], settings: dict[str, Any], base: Path | None = None
) -> None:
    """Write a docker-archive with the one image `name`: one layer, filled by the callback, on those of `base` (also ours)."""
    files = path.with_suffix(".layer")
    with tarfile.open(files, "w", format=tarfile.PAX_FORMAT) as tar:
        layer(tar)
    layers, under = [files], path.with_suffix(".base")
    if base:
        with tarfile.open(base) as tar:
            tar.extract("layer-0.tar", under)
            (config_name,) = (
                member for member in tar.getnames() if member.endswith(".json") and member != "manifest.json"
            )
            content = tar.extractfile(config_name)
            settings = {**(json.load(content)["config"] if content else {}), **settings}
        layers = [under / "layer-0.tar", files]
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(each)}" for each in layers]},
        "history": [{"created_by": "rendezvous-operator deploy/local"}] * len(layers),  # buildah counts them
    }
    data = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(data).hexdigest()}.json"
    names = [f"layer-{number}.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": names}]).encode()
    with tarfile.open(path, "w") as tar:
        for entry, text in ((config_name, data), ("manifest.json", manifest)):
            info = tarfile.TarInfo(entry)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
        for each, entry in zip(layers, names, strict=True):
            tar.add(each, entry)
    files.unlink()
    shutil.rmtree(under, ignore_errors=True)


def pause_image(tools: Tools) -> Path:
    """Return the archive of the image that every pod's namespaces hang on: one static file."""

    def build(stage: Path) -> None:
        settings = {"Entrypoint": ["/pause"], "User": "65535:65535"}
        write_archive(stage / "image.tar", node.PAUSE, lambda tar: tar.add(tools.pause, "pause"), settings)

    return cached(f"images/{tools.pause.parent.name}", build) / "image.tar"


def debian_mirror() -> str:
    """Return the mirror that this machine's apt uses: there may be no way to another."""
    for line in run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(CODENAME)"]).splitlines():
        address, *suites = line.split()
        if "debian" in address and "security" not in address and "bookworm" in suites:
            return address
    return "http://deb.debian.org/debian"


def base_image() -> Path:
    """Return the archive of Debian 12 with Python 3.11: what python:3-slim is where a registry can be reached."""

    def build(stage: Path) -> None:
        root = stage / "root"
        with progress(f"making the base image {BASE} with debootstrap", "1 min"):
            run(
                [
                    *PRIVATE_MOUNTS,
                    "debootstrap",
                    "--variant=minbase",
                    f"--include={BASE_PACKAGES}",
                    "bookworm",
                    root,
                    debian_mirror(),
                ]
            )
        for useless in (
            "var/cache/apt",
            "var/lib/apt/lists",
            "var/log",
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
        ):
            shutil.rmtree(root / useless)
            (root / useless).mkdir()
        # As in python's own images: `python` exists, and pip may install for everyone.
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
        settings = {"Cmd": ["python3"], "Env": ["PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"]}
        write_archive(stage / "image.tar", BASE, lambda tar: tar.add(root, "."), settings)
        shutil.rmtree(root)

    return cached(f"images/debian-bookworm-{digest(BASE_PACKAGES, BASE_REVISION)}", build) / "image.tar"


def etcd_image(program: Path, name: str) -> Path:
    """Return the archive of an image with this etcd on its PATH: the base, since Debian's is linked dynamically."""

    def build(stage: Path) -> None:
        settings = {"Cmd": ["etcd"]}
        write_archive(
            stage / "image.tar", name, lambda tar: tar.add(program, "usr/local/bin/etcd"), settings, base=base
        )

    base = base_image()
    return cached(f"images/etcd-{digest(name, str(base), archive_digest(program))}", build) / "image.tar"


def archive_digest(archive: Path) -> str:
    """Return a file's SHA-256, remembered by path, size and time in the cache."""
    try:
        status = archive.stat()
    except FileNotFoundError as error:
        raise LocalError(f"there is no image archive {archive}") from error
    memory = cache_root() / "digests" / digest(str(archive.resolve()))
    known, stamp = read_json(memory), [status.st_size, status.st_mtime_ns, status.st_ino]
    if known.get("stamp") == stamp:
        return str(known["sha256"])
    found = _sha256(archive)
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_json(memory, {"stamp": stamp, "sha256": found})
    return found


def _load(cluster: Cluster, supervisor: Supervisor, name: str, archive: Path, checksum: str) -> bool:
    memory = cluster.data / name / "images.json"
    ctr: Command = [
        cluster.tools.containerd / "ctr",
        "--address",
        f"{supervisor.root}{node.socket_path(name)}",
        "--namespace",
        "k8s.io",
    ]
    there = {line.split()[0]: line.split()[2] for line in run([*ctr, "images", "ls"]).splitlines()[1:]}
    known = read_json(memory)
    if known.get(checksum) and all(there.get(image) == target for image, target in known[checksum].items()):
        return False
    names = _names(archive)
    run([*ctr, "images", "import", "--local", archive.resolve()])
    after = {line.split()[0]: line.split()[2] for line in run([*ctr, "images", "ls"]).splitlines()[1:]}
    known[checksum] = {image: after[image] for image in names if image in after}
    write_json(memory, known)
    return True


def _names(archive: Path) -> list[str]:
    """Return the names of the images in a docker-archive or OCI archive."""
    with tarfile.open(archive) as tar:
        members = set(tar.getnames())
        if "manifest.json" in members and (manifest := tar.extractfile("manifest.json")):
            return [name for image in json.load(manifest) for name in image["RepoTags"] or ()]
        if "index.json" in members and (index := tar.extractfile("index.json")):
            notes = [entry.get("annotations", {}) for entry in json.load(index)["manifests"]]
            keys = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
            return [
                next(note[key] for key in keys if key in note) for note in notes if any(key in note for key in keys)
            ]
    raise LocalError(f"{archive} is neither a docker-archive nor an OCI archive")


def load(cluster: Cluster, supervisor: Supervisor, archives: list[Path]) -> int:
    """Load archives into all running nodes at the same time; returns how many loads were needed.

    An archive that a node has already, by its digest, is not loaded again.
    """
    running = supervisor.processes()
    nodes = [name for name in cluster.node_names() if running.get(f"{name}-containerd")]
    if not nodes:
        raise LocalError("no node runs, so there is nowhere to load images")
    sums = [archive_digest(archive) for archive in archives]

    def into(name: str) -> int:
        return sum(
            _load(cluster, supervisor, name, archive, total) for archive, total in zip(archives, sums, strict=True)
        )

    with ThreadPoolExecutor() as pool:
        return sum(pool.map(into, nodes))
