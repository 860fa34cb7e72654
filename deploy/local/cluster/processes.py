"""Start and find a cluster's processes through its supervisor (process 1 of the cluster's namespaces)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cgroups
from .common import Command, LocalError, read_json, wait_for

INSIDE = Path("/run/cluster")  # what a cluster's directory is called by its own processes


def start_time(pid: int) -> int | None:
    """Return when a process was started (clock ticks since boot), or None: pid and this name one process for ever."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def namespace_members(pid: int) -> dict[int, int]:
    """Map the pids of all processes in the PID namespace of `pid`, as seen inside, to those seen from here."""
    try:
        namespace = os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return {}
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns/pid") == namespace:
                    inside = next(
                        x for x in (entry / "status").read_text().splitlines() if x.startswith("NSpid:")
                    ).split()[-1]
                    found[int(inside)] = int(entry.name)
    return found


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log file, indented."""
    with contextlib.suppress(FileNotFoundError):
        return "\n".join("    " + line[:400] for line in path.read_text(errors="replace").splitlines()[-lines:])
    return "    (no log)"


@dataclass(frozen=True)
class Supervisor:
    """A handle on the supervisor of the cluster in `directory`; `pid` and `start` as the machine sees them."""

    directory: Path
    pid: int
    start_time: int

    @classmethod
    def launch(cls, directory: Path, cgroup: str, *, network: bool) -> Supervisor:
        """Start a supervisor in fresh namespaces, with a network namespace of its own on request."""
        log = directory / "logs" / "supervisor.log"
        (directory / "supervisor.json").unlink(missing_ok=True)
        spaces = [
            "--pid",
            "--mount",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            *(["--net"] if network else []),
        ]
        script = Path(__file__).with_name("supervisor.py")
        with log.open("ab") as output:
            outer = subprocess.Popen(
                ["unshare", *spaces, sys.executable, "-I", str(script), str(directory)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: Path(cgroups.tracker(), cgroup, "cgroup.procs").write_text("0") and None,  # noqa: PLW1509
            )

        def died() -> None:
            if outer.poll() is not None:
                raise LocalError(
                    f"the cluster's namespaces could not be made (root is needed); {log} ends:\n{tail(log)}"
                )

        wait_for("starting the supervisor", (directory / "supervisor.json").exists, 10, died)
        found = cls.find(directory)
        if found is None:
            raise LocalError(f"the supervisor ended at once; {log} ends:\n{tail(log)}")
        return found

    @classmethod
    def find(cls, directory: Path) -> Supervisor | None:
        """Return the running supervisor of the cluster in `directory`, if there is one."""
        known = read_json(directory / "supervisor.json")
        if known and start_time(known["pid"]) == known["start"]:
            return cls(directory, known["pid"], known["start"])
        return None

    @property
    def root(self) -> Path:
        """The cluster's file system as seen from outside; also good for connecting to its Unix sockets."""
        return Path(f"/proc/{self.pid}/root")

    def _ask(self, **request: Any) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                connection.connect(str(self.root / "run/supervisor.sock"))
                with connection.makefile("rw") as stream:
                    stream.write(json.dumps(request) + "\n")
                    stream.flush()
                    answer: dict[str, Any] = json.loads(stream.readline())
        except (OSError, ValueError) as error:
            raise LocalError(f"the supervisor (pid {self.pid}) of {self.directory} does not answer: {error}") from error
        if "error" in answer:
            raise LocalError(str(answer["error"]))
        return answer

    def answers(self) -> bool:
        """Tell whether it does its work; one that is being killed is there for a moment, and does not."""
        try:
            self._ask(op="list")
        except LocalError:
            return False
        return True

    def log(self, name: str) -> Path:
        """Return the log file of the process called `name`."""
        return self.directory / "logs" / f"{name}.log"

    def start(self, name: str, argv: Command, env: dict[str, str] | None = None, cgroup: str | None = None) -> None:
        """Start a process inside (no-op while one of that name runs); `cgroup` is relative to the tracking hierarchy."""
        self._ask(
            op="start",
            name=name,
            argv=[str(word) for word in argv],
            log=str(INSIDE / "logs" / f"{name}.log"),
            env=env or {},
            cgroup=cgroup and str(cgroups.tracker() / cgroup),
        )

    def processes(self) -> dict[str, int | None]:
        """Map names to the pid inside, or None for a process that has ended."""
        return {name: None if of["exit"] is not None else of["pid"] for name, of in self._ask(op="list").items()}

    def check(self, *names: str) -> None:
        """Make sure that processes run.

        Raises:
            LocalError: one has ended; with the end of its log and where the rest is.
        """
        for name, of in self._ask(op="list").items():
            if name in names and of["exit"] is not None:
                raise LocalError(
                    f"{name} ended with status {of['exit']}; {self.log(name)} ends:\n{tail(self.log(name))}"
                )

    def inside(self, argv: Command) -> Command:
        """Return a command that runs `argv` in the cluster's mount, PID and network namespaces."""
        return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--", *argv]

    def kill(self) -> None:
        """Kill the supervisor, and so everything in its namespaces, and wait for all of it to be gone."""
        pids = {pid: start_time(pid) for pid in namespace_members(self.pid).values()}
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        wait_for(
            f"the end of the processes of {self.directory}",
            lambda: all(start is None or start_time(pid) != start for pid, start in pids.items()),
            20,
        )
