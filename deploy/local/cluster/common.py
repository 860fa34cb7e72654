"""What every part of the local cluster shares: its error, running commands, the cache, locks and progress."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LOCAL = Path(__file__).resolve().parents[1]  # deploy/local


Command = list[str | Path]
PRIVATE_MOUNTS = ("unshare", "--mount", "--propagation", "private")  # runs a command whose mounts end with it


class LocalError(Exception):
    """Something a user can act on; the message is all they see."""


def say(text: str) -> None:
    """Print one line of progress to standard error: standard output stays free for answers."""
    print(text, file=sys.stderr, flush=True)


def seconds(value: float) -> str:
    """Render a duration in seconds the way people say it: 4.2 s, 6 min 12 s."""
    return f"{value:.1f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60:02d} s"


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> str:
    """Run a command and return its standard output.

    Raises:
        LocalError: it is missing or failed; the message has the command and the end of what it printed.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(words, env=env, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LocalError(f"{words[0]} is not installed; run: python3 deploy/local/main.py tools") from error
    if done.returncode != 0:
        printed = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise LocalError(f"`{' '.join(words)}` failed with status {done.returncode}:\n{printed}")
    return done.stdout


def cache_root() -> Path:
    """Return the cache outside the checkout, shared by all checkouts: $XDG_CACHE_HOME/rendezvous-operator."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rendezvous-operator"


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the machine-wide lock `name`; says so when another process holds it. The kernel frees it if we are killed."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name.replace('/', '-')}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that works on {name} …")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """Return the cache entry `key`, made by `build(empty directory)` if it is not there.

    The entry appears by one rename, so that it is either complete or absent, and never built twice at a time.
    """
    target = cache_root() / key
    if target.exists():
        return target
    with locked(key):
        if target.exists():
            return target
        stage = cache_root() / f"{key}.partial"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        build(stage)
        stage.rename(target)
    return target


def digest(*parts: str | bytes) -> str:
    """Return 12 hex digits that change when any part does."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:12]


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Write JSON so that a reader sees the old or the new file, never half of one."""
    stage = path.with_name(f".{path.name}.{os.getpid()}")
    stage.touch(mode)
    stage.write_text(json.dumps(value, indent=2) + "\n")
    stage.rename(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} when the file is missing or was never finished."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def progress(title: str, expected: str) -> Iterator[Callable[[str], None]]:
    """Say when a long step starts, every 15 s that it still runs, and how long it took; yields a setter of its detail."""
    begun, detail, ended = time.monotonic(), [""], threading.Event()

    def beat() -> None:
        while not ended.wait(15):
            say(f"    … {seconds(time.monotonic() - begun)}{detail[0] and ': ' + detail[0]}")

    def update(text: str) -> None:
        detail[0] = text

    say(f"{title} (usually {expected})")
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield update
    finally:
        ended.set()
        thread.join()
    say(f"    done in {seconds(time.monotonic() - begun)}")


def wait_for(what: str, ready: Callable[[], bool], timeout: float, check: Callable[[], None] | None = None) -> None:
    """Poll `ready` until it holds; `check` may raise a better error as soon as waiting has become pointless.

    Raises:
        LocalError: after `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while not ready():
        if check:
            check()
        if time.monotonic() > end:
            raise LocalError(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.05)
