"""Build images from Dockerfiles with Debian's buildah, on the local base image; nothing is asked of a registry."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from . import images
from .common import (
    PRIVATE_MOUNTS,
    Command,
    LocalError,
    cache_root,
    digest,
    locked,
    progress,
    read_json,
    run,
    say,
    write_json,
)

IGNORED = re.compile(r"(^|/)(\.git|__pycache__|\.venv|\.local|[^/]*\.egg-info)(/|$)")
MOST_IMAGES = 60  # layers kept so that a build repeats only what has changed; beyond that, all but named images go
# What the machine needs to reach PyPI, a build needs too. Mounted while building, never part of the image.
MACHINE_FILES = ("/etc/ssl/certs", "/etc/pip.conf")


def buildah(*words: str | Path) -> Command:
    """Return a command that runs buildah in a mount namespace of its own: however it ends, nothing stays mounted."""
    storage = cache_root() / "buildah"
    options: Command = ["--storage-driver", "overlay", "--root", storage / "storage", "--runroot", storage / "run"]
    script = 'mkdir -p "$0" && mount -t tmpfs tmpfs "$0" && exec buildah "$@"'
    return [*PRIVATE_MOUNTS, "sh", "-c", script, storage / "run", *options, *words]


def _copied(dockerfile: str) -> list[str]:
    """Return what a Dockerfile copies from its context: the sources of COPY and ADD without --from."""
    sources: list[str] = []
    for line in re.sub(r"\\\n", " ", dockerfile).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction.upper() not in {"COPY", "ADD"} or "--from=" in rest:
            continue
        flagless = re.sub(r"^(\s*--\S+\s+)+", "", rest).strip()
        words = json.loads(flagless) if flagless.startswith("[") else shlex.split(flagless)
        sources += words[:-1]
    return sources


def _files(context: Path, sources: list[str]) -> Iterator[Path]:
    for source in sources:
        for path in sorted(context.glob(source.strip("/") or "*") if source not in {".", "./"} else [context]):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and not IGNORED.search(str(file.relative_to(context))):
                    yield file


def _image_ids(dockerfile: str, arguments: dict[str, str]) -> list[str]:
    """Return the ids of the images built here that a Dockerfile may start from: whatever its arguments name."""
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)", dockerfile, re.MULTILINE))
    images_here = json.loads(run(buildah("images", "--json")) or "null") or []
    ids = {name: str(image["id"]) for image in images_here for name in image["names"] or ()}
    return sorted(ids[name] for name in {**defaults, **arguments}.values() if name in ids and name != images.BASE)


def _key(tag: str, dockerfile: Path, context: Path, arguments: dict[str, str]) -> str:
    text = dockerfile.read_text()
    parts: list[str | bytes] = [tag, text, json.dumps(arguments, sort_keys=True), *_image_ids(text, arguments)]
    parts.append(images.archive_digest(images.base_image()))
    for file in _files(context, _copied(text)):
        parts += [str(file.relative_to(context)), oct(file.stat().st_mode), file.read_bytes()]
    return digest(*parts)


def pull_base() -> None:
    """Put the local base image into buildah's storage."""
    archive, marker = images.base_image(), cache_root() / "buildah/base.json"
    marker.parent.mkdir(parents=True, exist_ok=True)
    known = {"archive": str(archive)}
    if read_json(marker) != known:
        run(buildah("pull", "--quiet", f"docker-archive:{archive}"))
        write_json(marker, known)


def options(arguments: dict[str, str]) -> list[str]:
    """How an image is built here, with these build arguments: what was built in the same way before is taken from there."""
    words = ["--layers", "--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker"]
    for name, value in arguments.items():
        words += ["--build-arg", f"{name}={value}"]
    for file in MACHINE_FILES:
        if Path(file).exists():
            words += ["--volume", f"{file}:{file}:ro"]
    return words


def build(tag: str, dockerfile: Path, context: Path, arguments: dict[str, str], archive: Path) -> None:
    """Build an image and write it to `archive` (a docker-archive), unless that is there and no input has changed.

    The build argument BASE is the local base image unless given.

    Raises:
        LocalError: a file is missing, or the build failed; with the end of its output.
    """
    if not dockerfile.is_file():
        raise LocalError(f"there is no Dockerfile {dockerfile}")
    arguments = {"BASE": images.BASE, **arguments}
    key = _key(tag, dockerfile, context, arguments)
    memory = cache_root() / "builds" / f"{digest(str(archive.resolve()))}.json"
    known = read_json(memory)
    if known.get("key") == key and archive.exists() and images.archive_digest(archive) == known["sha256"]:
        say(f"image {tag}: nothing has changed, {archive} is kept")
        return
    with locked("buildah"):
        pull_base()
        command = buildah("bud", *options(arguments), "--tag", tag, "--file", dockerfile)
        archive.parent.mkdir(parents=True, exist_ok=True)
        stage = archive.with_name(f".{archive.name}.partial")
        stage.unlink(missing_ok=True)  # one of a killed build: buildah would refuse
        try:
            with progress(f"building image {tag}", "half a minute"):
                run([*command, context])
                run(buildah("push", "--quiet", tag, f"docker-archive:{stage}:{tag}"))
        finally:
            run(buildah("rm", "--all"))  # a failed step's container
            if len(run(buildah("images", "--all", "--quiet")).split()) > MOST_IMAGES:
                run(buildah("rmi", "--prune"))
        stage.rename(archive)
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_json(memory, {"key": key, "sha256": images.archive_digest(archive)})


def parse_arguments(pairs: list[str]) -> dict[str, str]:
    """Parse --build-arg NAME=VALUE options.

    Raises:
        LocalError: one has no equals sign.
    """
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise LocalError(f"--build-arg {wrong[0]}: write NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)
