"""A registry of images on the loopback, and `docker` for a shell: Debian's registry, and buildah on the local base image.

    docker build …     as deploy/local builds, so nothing is built twice
    docker push …

`docker` is this file, run by this interpreter.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from deploy.local.cluster import build, images  # noqa: E402 - run as a program it has no path to it
from deploy.local.cluster.common import locked  # noqa: E402
from deploy.local.cluster.control import free_ports  # noqa: E402


@contextmanager
def running(directory: Path) -> Iterator[str]:
    """Its address, HOST:PORT."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    storage = {"filesystem": {"rootdirectory": str(directory / "storage")}}
    config = directory / "registry.yml"
    config.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": address}}))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((directory / "log").read_text())
            time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _answers(address: str) -> bool:
    try:
        get(address, "")
    except urllib.error.URLError:
        return False
    return True


def get(address: str, path: str) -> Any:
    """What the registry says, as JSON: `NAME/tags/list`, `NAME/manifests/TAG`."""
    accept = "application/vnd.docker.distribution.manifest.v2+json"
    request = urllib.request.Request(f"http://{address}/v2/{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def blob(address: str, name: str, digest: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}/v2/{name}/blobs/{digest}", timeout=30) as answer:
        content: bytes = answer.read()
    return content


def install_docker(folder: Path) -> None:
    """Into a folder of a PATH."""
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__)} "$@"\n')
    program.chmod(0o755)


def docker(verb: str, *words: str) -> int:
    """Returns the exit status."""
    with locked("buildah"):
        build.pull_base()
        how = build.options({"BASE": images.BASE}) if verb == "build" else ["--tls-verify=false"]
        status = subprocess.run(build.buildah(verb, *how, *words), check=False).returncode
        subprocess.run(
            build.buildah("rm", "--all"), capture_output=True, check=True
        )  # the steps' containers hold images
        return status


def forget(*names: str) -> None:
    """Takes the names of images away, where they came so far; what they share with others stays."""
    with locked("buildah"):
        for name in names:
            subprocess.run(build.buildah("rmi", name), capture_output=True, check=False)


if __name__ == "__main__":
    sys.exit(docker(*sys.argv[1:]))
