"""Agents of one world, as processes or as threads of one process, which do with their handler what torch's agent does.

They are forked from the benchmark, which has imported torch: a start costs milliseconds, and no memory that they do not
write. All times are seconds of CLOCK_MONOTONIC, which processes share.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from support.parent import end_with_parent

Report = dict[str, Any]
CREATE, JOIN, FOLLOW, END = b"c", b"j", b"f", b"e"
"""Commands to an agent: create the handler; call next_rendezvous; the same, and then follow the world as an agent does
(looking every MONITOR_INTERVAL whether nodes wait); shut down."""
MONITOR_INTERVAL = 0.1
_STACK_BYTES = 512 * 1024
_DESCRIPTORS_EACH, _DESCRIPTORS_MORE = 4, 1024
"""For each agent two ends of a pipe, and a connection to the coordinator and to the store, perhaps one process; as threads two each."""


@dataclass(frozen=True)
class Plan:
    """What one agent does its rendezvous with.

    Attributes:
        attend: called with the means to wait for a command and to report; `handlers` for a RendezvousHandler.
        environ: set in its process; alike for all agents that are threads of one.
    """

    attend: Callable[[Commands], None]
    environ: Mapping[str, str] = field(default_factory=dict)


def readable(descriptor: int, seconds: float | None) -> bool:
    """Whether there is something to read, in time. Not by `select`, which knows no descriptor above 1,023."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def raise_descriptors(needed: int) -> None:
    """Lets this process, and those that it starts, have so many descriptors.

    Raises:
        RuntimeError: it may not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (needed, hard if hard == resource.RLIM_INFINITY else max(hard, needed))
        )
    except (ValueError, OSError) as error:
        raise RuntimeError(f"{needed} descriptors are needed, the limit is {hard}: ulimit -n {needed}") from error


class Commands:
    """An agent's side of the pipes."""

    def __init__(self, index: int, commands: int, reports: int) -> None:
        self.index, self._commands, self._reports = index, commands, reports

    def wait(self, seconds: float | None = None) -> bytes:
        """The next command; nothing when there is none in time."""
        if not readable(self._commands, seconds):
            return b""
        return os.read(self._commands, 1) or END

    def say(self, what: str, **more: Any) -> None:
        # Below PIPE_BUF a line is written as a whole, whoever else writes.
        line = json.dumps({"agent": self.index, "what": what, "at": time.monotonic(), **more})
        os.write(self._reports, line[:4000].encode() + b"\n")


class World:
    """Use as a context manager: at its end nothing of it runs any more."""

    def __init__(self, plans: Sequence[Plan], *, threads: bool, log: Path) -> None:
        self._log = log
        raise_descriptors(_DESCRIPTORS_EACH * len(plans) + _DESCRIPTORS_MORE)
        self._reports, writer = os.pipe()
        pipes = [os.pipe() for _ in plans]
        self._commands = [pipe[1] for pipe in pipes]
        members = [(plan, Commands(i, pipes[i][0], writer)) for i, plan in enumerate(plans)]
        gc.freeze()  # A collection in a child would copy every page.
        groups = [members] if threads else [[member] for member in members]
        self._pids = [self._fork(group) for group in groups]
        os.close(writer)
        for reader, _ in pipes:
            os.close(reader)
        self._buffer = b""
        self._queue: list[Report] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for index, pid in enumerate(self._pids):
            self.signal(index, signal.SIGKILL)
            os.waitpid(pid, 0)
        for end in [self._reports, *self._commands]:
            os.close(end)

    def command(self, command: bytes, agents: Sequence[int] | None = None) -> None:
        for index in range(len(self._commands)) if agents is None else agents:
            try:
                os.write(self._commands[index], command)
            except BrokenPipeError:
                raise AgentFailedError(f"agent {index} has ended") from None

    def signal(self, index: int, number: int) -> None:
        """To the process of an agent (of all of them, when they are threads)."""
        os.kill(self._pids[index], number)  # Not reaped before __exit__, so the id is nobody else's.

    def next(self, deadline: float) -> Report | None:
        """The next report; None when there is none until `deadline`, or there are no agents any more."""
        while not self._queue:
            left = deadline - time.monotonic()
            if left <= 0 or not readable(self._reports, left):
                return None
            chunk = os.read(self._reports, 1 << 16)
            if not chunk:
                return None
            *lines, self._buffer = (self._buffer + chunk).split(b"\n")
            self._queue = [json.loads(line) for line in lines]
        return self._queue.pop(0)

    def gather(self, what: str, count: int, seconds: float) -> list[Report]:
        """`count` reports of that kind, fewer when time runs out or an agent fails."""
        found: list[Report] = []
        deadline = time.monotonic() + seconds
        while len(found) < count and (report := self.next(deadline)) is not None:
            if report["what"] == "failed":
                raise AgentFailedError(report["error"])
            if report["what"] == what:
                found.append(report)
        return found

    def _fork(self, group: list[tuple[Plan, Commands]]) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        try:
            atexit._clear()  # Those of the benchmark, such as that its directory be removed.
            end_with_parent()  # Nothing outlives the benchmark.
            os.close(self._reports)
            for end in self._commands:
                os.close(end)
            log = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(group[0][0].environ)
            signal.signal(signal.SIGTERM, _told_to_stop)
            _attend_all(group)
            atexit._run_exitfuncs()  # As at the end of a real agent.
        finally:
            os._exit(0)


class AgentFailedError(Exception):
    """An agent got an exception from its handler."""


def _told_to_stop(number: int, frame: FrameType | None) -> None:
    """torch's agent answers SIGTERM with an exception that ends it without a word to the handler."""
    raise SystemExit(128 + number)


def _attend_all(group: list[tuple[Plan, Commands]]) -> None:
    if len(group) == 1:
        _attend(*group[0])
        return
    threading.stack_size(_STACK_BYTES)
    threads = [threading.Thread(target=_attend, args=member, daemon=True) for member in group]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _attend(plan: Plan, commands: Commands) -> None:
    try:
        plan.attend(commands)
    except SystemExit:
        commands.say("ended")
    except BaseException as error:  # Whatever it is, the one who waits for this agent is to know.
        commands.say("failed", error=f"{type(error).__name__}: {error}"[:1000])
        raise
