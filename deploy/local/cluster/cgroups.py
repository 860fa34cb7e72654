"""A cluster's cgroups: /rdzv-ID in every hierarchy, with one child per node for its pods and one for its daemons."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from .common import LocalError

V2_CONTROLLERS = {"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}  # kubelet insists on each that the machine has


@functools.cache
def hierarchies() -> tuple[tuple[Path, bool], ...]:
    """Return the mount points of all cgroup hierarchies, each with whether it is version 2."""
    found = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind in {"cgroup", "cgroup2"}:
            found[Path(point).resolve()] = kind == "cgroup2"
    if not found:
        raise LocalError("no cgroup hierarchy is mounted below /sys/fs/cgroup; containers cannot run here")
    return tuple(sorted(found.items()))


def tracker() -> Path:
    """Return the hierarchy by which a cluster's processes are found again; in version 1 one that limits nothing of its own accord."""
    points = [point for point, _ in hierarchies()]
    return next((point for point in points if point.name == "pids"), points[0])


def create(path: str, *, everywhere: bool = True) -> None:
    """Create cgroup `path` (like rdzv-1234/node-1) in every hierarchy, or in the tracking one only."""
    for point, is_v2 in hierarchies():
        if not everywhere and point != tracker():
            continue
        folder = point
        for part in Path(path).parts:
            if is_v2 and len(hierarchies()) == 1:
                # Children get only those controllers that their parent hands down.
                there = V2_CONTROLLERS.intersection((folder / "cgroup.controllers").read_text().split())
                (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(there)))
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                # Version 1: an empty cpuset takes no process at all.
                if not is_v2 and (folder / name).exists() and not (folder / name).read_text().strip():
                    (folder / name).write_text((parent / name).read_text())


def folders(path: str) -> Iterator[Path]:
    """Yield cgroup `path` and all below it in every hierarchy, deepest first."""
    for point, _ in hierarchies():
        for folder, _, _ in os.walk(point / path, topdown=False):
            yield Path(folder)


def members(path: str) -> set[int]:
    """Return the pids (as the machine sees them) in cgroup `path` or below."""
    found: set[int] = set()
    for folder in folders(path):
        with contextlib.suppress(FileNotFoundError, OSError):
            found.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
    return found - {0}


def kill(path: str, timeout: float = 20) -> None:
    """Kill everything in cgroup `path` and below; again until nothing new was forked meanwhile.

    Raises:
        LocalError: processes that do not die, by pid.
    """
    end = time.monotonic() + timeout
    while pids := members(path):
        if time.monotonic() > end:
            raise LocalError(f"processes {sorted(pids)} of cgroup {path} do not end, even when killed")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def remove(path: str, timeout: float = 10) -> None:
    """Remove cgroup `path` and all below it; the kernel may need a moment after the last process has gone.

    Raises:
        LocalError: one stays busy.
    """
    end = time.monotonic() + timeout
    while left := list(folders(path)):
        for folder in left:
            with contextlib.suppress(FileNotFoundError, OSError):
                folder.rmdir()
        if time.monotonic() > end:
            raise LocalError(f"cgroup {left[0]} cannot be removed")
        time.sleep(0.02)
