"""Process 1 of a cluster's own PID, mount and (full form) network namespace. Started by processes.py, as a script.

All of a cluster's processes are its descendants: when it is killed the kernel kills every one of them, and with the last one the
namespaces go, taking mounts, bridges, nftables tables and pod network namespaces along. So nothing is torn down piece by piece.

    unshare --pid --mount [--net] --fork … supervisor.py DIRECTORY
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

SOCKET = "/run/supervisor.sock"
LOG_LIMIT = 20 * 2**20  # bytes


def enter(directory: Path) -> dict[str, int]:
    """Make the namespaces ours; return our pid and start time (clock ticks since boot) as the machine sees them."""
    pid = int(os.readlink("/proc/self"))  # /proc is still the machine's: inside we are always 1
    start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    os.chdir(directory)
    for command in (
        [
            "mount",
            "--make-rshared",
            "/",
        ],  # shared among the cluster's own namespaces only; containers want to be told of mounts
        [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            "mode=755",
            "tmpfs",
            "/run",
        ],  # fixed names below /run, several clusters side by side
        ["mkdir", "/run/cluster", "/run/lock"],
        ["mount", "--bind", ".", "/run/cluster"],  # a short name: socket paths end at 107 characters
        ["mount", "-t", "proc", "proc", "/proc"],
        ["ip", "link", "set", "lo", "up"],
    ):
        subprocess.run(command, check=True)
    os.chdir("/")
    return {"pid": pid, "start": start}


class Supervisor:
    """Starts named processes on request, reaps every orphan, and keeps the log files small."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.exits: dict[int, int] = {}
        self.logs: set[Path] = set()

    def start(self, name: str, argv: list[str], log: str, env: dict[str, str], cgroup: str | None) -> dict[str, Any]:
        """Start a process unless one of that name runs."""
        if name in self.processes and self.processes[name].pid not in self.exits:
            return {"pid": self.processes[name].pid}

        def join_cgroup() -> None:
            if cgroup:
                Path(cgroup, "cgroup.procs").write_text("0")

        path = Path(log)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **env},
                start_new_session=True,
                preexec_fn=join_cgroup,  # noqa: PLW1509  there are no threads here
            )
        self.processes[name] = process
        self.exits.pop(process.pid, None)  # pids come again
        self.logs.add(path)
        return {"pid": process.pid}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks; errors go back to whoever asked, as they have the user's ear."""
        operation = request.pop("op")
        if operation == "start":
            try:
                return self.start(**request)
            except OSError as error:
                return {"error": f"{request['argv'][0]}: {error}"}
        return {name: {"pid": p.pid, "exit": self.exits.get(p.pid)} for name, p in self.processes.items()}

    def reap(self) -> None:
        """Collect every child that has ended: ours, and shims and containers whose parents are gone."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if any(p.pid == pid for p in self.processes.values()):
                    self.exits[pid] = os.waitstatus_to_exitcode(status)

    def trim(self) -> None:
        """Move logs that have grown too large aside; writers append, so truncating under them is safe."""
        for path in self.logs:
            if path.exists() and path.stat().st_size > LOG_LIMIT:
                path.with_suffix(".log.1").write_bytes(path.read_bytes())
                os.truncate(path, 0)

    def serve(self, directory: Path, identity: dict[str, int]) -> None:
        """Answer one JSON line per connection, for ever."""
        waker, wakened = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakened, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(SOCKET)
            server.listen()
            stage = directory / ".supervisor.json"
            stage.write_text(json.dumps(identity))
            stage.rename(directory / "supervisor.json")
            listening = server.fileno()
            while True:
                ready, _, _ = select.select([listening, waker], [], [], 10)
                if waker in ready:
                    os.read(waker, 4096)
                self.reap()
                self.trim()
                if listening in ready:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError, ValueError), connection.makefile("rw") as stream:
                        # A client that hangs or was killed must not hold up the others.
                        connection.settimeout(10)
                        stream.write(json.dumps(self.answer(json.loads(stream.readline()))) + "\n")


if __name__ == "__main__":
    Supervisor().serve(Path("/run/cluster"), enter(Path(sys.argv[1])))
