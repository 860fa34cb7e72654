"""Agents without torch: the pod's side of backend `kubernetes` as it is, hundreds of them as threads of a few processes.

with LightAgents(kubeconfig, "namespace/name", 1000) as crowd:
    crowd.join()  # all at once; again: each asks for the next world
    crowd.worlds(1, timeout=60)  # waits until all of them are in it
"""

from __future__ import annotations

import json
import logging
import os
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rdzv.agent.agent import Agent
from rdzv.agent.interface import AgentError, AgentSettings
from rdzv.agent.store_port import StorePort
from rdzv.kube.api import Call
from rdzv.kube.client import Client
from rdzv.kube.config import Config, from_kubeconfig
from rdzv.kube.retry import pauses
from rdzv.kube.transport import Connection
from rdzv.protocol.coordinator_state import Policy
from rdzv.protocol.events import Accept, Identity, Timing
from rdzv.protocol.records import incarnation

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1"
_STACK_BYTES = 256 * 1024
_DESCRIPTORS = 20  # Of an agent at its most, with room.


@dataclass(frozen=True)
class Share:
    """What one process has: the agents `first` to `last`, without it, of a world of `size`."""

    kubeconfig: str
    endpoint: str
    first: int
    last: int
    size: int


class LightAgent:
    """One agent, which joins each time that it is told to."""

    def __init__(self, share: Share, slot: int, config: Config, start: threading.Event) -> None:
        """`start`: it connects to nothing before, so that many can start at one moment."""

        def connect(config: Config, call: Call | None) -> Connection:
            start.wait()
            return Connection(config, call)

        self.slot = slot
        namespace, name = share.endpoint.split("/")
        own = f"agent-{slot}"
        incarnated, key = incarnation(own, "", secrets.token_hex(4)), secrets.token_hex(32)
        identity = Identity(name, "run-1", own, incarnated, ADDRESS, 0, slot=slot, owned=False, key=key)
        self._port = StorePort(ADDRESS)
        policy = Policy(share.size, share.size, last_call=1.0)
        client = Client(config, connect)
        client.agents = share.size  # As the handler does.
        first, longest = pauses(share.size, Timing.retry, Timing.retry_max)
        timing = Timing(join_timeout=900.0, retry=first, retry_max=longest)
        self.agent = Agent(client, AgentSettings(namespace, identity, timing, policy, self._port.rebind))
        self._accepted: Accept | None = None
        self._turn = threading.Semaphore(0)
        threading.Thread(target=self._live, daemon=True).start()

    def join(self) -> None:
        """Ask for a world, in a thread of its own."""
        self._turn.release()

    def _live(self) -> None:
        while self._turn.acquire():
            self._join()

    def _join(self) -> None:
        """Until there is a world, which is reported, or an error, which is too."""
        try:
            before = self._accepted
            port = self._port.rebind()
            # A world that is left on purpose: as if its store had not been there.
            found = self.agent.join(port) if before is None else self.agent.rejoin(before.round, None)
        except AgentError as error:
            say(what="error", agent=self.slot, text=str(error))
            return
        self._accepted = found
        say(what="world", agent=self.slot, round=found.round, rank=found.rank, size=found.size)


def say(**report: Any) -> None:
    """A line of the report."""
    # In one write, below PIPE_BUF: agents are threads.
    os.write(1, (json.dumps({"at": time.time(), **report}) + "\n")[:4000].encode())


def main() -> None:
    """Makes the agents of a share, which join with each line of the standard input."""
    share = Share(**json.loads(sys.argv[1]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    threading.stack_size(_STACK_BYTES)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 256 + _DESCRIPTORS * share.size
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(most, wanted), most))
    # Hundreds of threads that wait for the interpreter ask for it this often each.
    sys.setswitchinterval(0.2)
    config, start = from_kubeconfig(share.kubeconfig), threading.Event()
    agents = [LightAgent(share, slot, config, start) for slot in range(share.first, share.last)]
    say(what="ready")
    for _line in sys.stdin:
        start.set()
        for each in agents:
            each.join()
        say(what="told")
    os._exit(0)  # Nobody says goodbye: thousands of threads are not waited for.


class LightAgents:
    """So many agents of one world in a few processes, which end with this context."""

    def __init__(
        self,
        kubeconfig: Path,
        endpoint: str,
        count: int,
        processes: int = 16,
        log: Path = Path(os.devnull),
    ) -> None:
        """`log` takes what they say."""
        self.count, self._log = count, log
        each = -(-count // processes)
        self._shares = [
            Share(str(kubeconfig), endpoint, first, min(first + each, count), count) for first in range(0, count, each)
        ]
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        self._changed = threading.Condition()
        self.reports: list[dict[str, Any]] = []

    def __enter__(self) -> LightAgents:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("src", "tests", "."))}
        for share in self._shares:
            command = [sys.executable, "-m", "support.light_agents", json.dumps(asdict(share))]
            with self._log.open("ab") as log:
                process = subprocess.Popen(
                    command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
            self._processes.append(process)
            reader = threading.Thread(target=self._read, args=(process,), daemon=True)
            reader.start()
            self._readers.append(reader)
        self._wait(lambda: self._number("ready") == len(self._shares), 60, "the processes have started")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process, reader in zip(self._processes, self._readers, strict=True):
            process.wait(30)
            reader.join(30)
            assert process.stdin
            assert process.stdout
            process.stdin.close()
            process.stdout.close()

    def send(self, what: signal.Signals) -> None:
        """A signal to all of them."""
        for process in self._processes:
            process.send_signal(what)

    def join(self) -> float:
        """All of them ask for a world; returns the seconds until the last one was told to."""
        began, before = time.time(), self._number("told")
        for process in self._processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        self._wait(lambda: self._number("told") == before + len(self._shares), 120, "all were told")
        return max(float(report["at"]) for report in self.reports if report["what"] == "told") - began

    def worlds(self, round_: int, timeout: float) -> list[dict[str, Any]]:
        """Waits until each of them is in a world of this number or a later one; returns their last reports, by agent."""
        self._wait(
            lambda: bool(self.errors()) or len(self._in(round_)) == self.count,
            timeout,
            f"all are in round {round_}",
        )
        assert self.errors() == []
        found = self._in(round_)
        return [found[agent] for agent in sorted(found)]

    def errors(self) -> list[str]:
        """What agents said that got no world."""
        return [report["text"] for report in self.reports if report["what"] == "error"]

    def _in(self, round_: int) -> dict[int, dict[str, Any]]:
        return {r["agent"]: r for r in list(self.reports) if r["what"] == "world" and r["round"] >= round_}

    def _number(self, what: str) -> int:
        return sum(report["what"] == what for report in list(self.reports))

    def _wait(self, condition: Any, seconds: float, what: str) -> None:
        with self._changed:
            there = self._changed.wait_for(condition, seconds)
        assert there, f"not within {seconds:g} s: {what}; {len(self.reports)} reports, the last {self.reports[-3:]}"

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            with self._changed:
                self.reports.append(json.loads(line))
                self._changed.notify_all()


if __name__ == "__main__":
    main()
