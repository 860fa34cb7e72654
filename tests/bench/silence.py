"""How long agents that live are silent on a machine that has no time for them: what a limit on silence would cost in false alarms.

    python tests/bench/silence.py --agents 32 --seconds 600 --busy 4

Each agent is a process with the product's own side of a liveness connection; one of them coordinates. Beside them run busy loops, and
what else the machine does. Each silence is a stretch without a word of one agent, as the coordinator's judgement counts it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src")]

from rdzv.agent import liveness  # noqa: E402 - it is found by the line above
from rdzv.agent.liveness import Callbacks, Liveness  # noqa: E402
from rdzv.agent.liveness_server import LivenessServer  # noqa: E402
from rdzv.agent.loop import Loop  # noqa: E402
from rdzv.protocol.records import Coordinator  # noqa: E402

ADDRESS, KEY = "127.0.0.1", "key"
LIMITS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0)
STEADY_SECONDS = 20.0
NICE = 15


class Listening(LivenessServer):
    """Notes the longest silence before each word, as often as the coordinator judges."""

    silence: dict[str, float]
    silences: Counter[float]
    longest: float
    starved: list[float]

    def judge(self) -> None:
        now = self._loop.clock()
        for who, heard in self._last_heard.items():
            self.silence[who] = max(self.silence.get(who, 0.0), now - heard)
            if now - heard < self.silence[who]:
                self.over(who)
        super().judge()

    def slept(self, seconds: float) -> None:
        self.starved.append(seconds)
        super().slept(seconds)

    def over(self, who: str) -> None:
        """It has said a word."""
        longest = self.silence.pop(who)
        self.silences.update(limit for limit in LIMITS if longest >= limit)
        self.longest = max(self.longest, longest)

    def begin(self) -> None:
        """Forgets what was noted."""
        self.silence, self.silences, self.longest, self.starved = {}, Counter(), 0.0, []


def agent(number: int, target: Coordinator, end: Event) -> None:
    loop = Loop(f"agent-{number}")
    member = Liveness(loop, f"agent-{number}", ADDRESS, _callbacks(), KEY)
    loop.start()
    member.follow(target)
    end.wait()
    os._exit(0)


def busy(end: Event) -> None:
    os.nice(NICE - os.nice(0))
    while not end.is_set():
        sum(range(100_000))


def _callbacks() -> Callbacks:
    return Callbacks(lost=_nothing, found=_nothing, peers=lambda: None)


def _nothing(_coordinator: Coordinator) -> None: ...


def _start(function: Callable[..., None], *arguments: object) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--busy", type=int, default=4, help="busy loops, of niceness 15")
    parser.add_argument("--nice", type=int, default=0, help="of all agents")
    given = parser.parse_args()
    os.nice(given.nice)
    end = multiprocessing.get_context("fork").Event()
    loads = [_start(busy, end) for _ in range(given.busy)]
    loop = Loop("coordinator")
    with mock.patch.object(liveness, "LivenessServer", Listening):
        coordinator = Liveness(loop, "coordinator", ADDRESS, _callbacks(), KEY)
    target = Coordinator(0, "coordinator", ADDRESS, coordinator.port, 1, KEY)
    agents = [_start(agent, number, target, end) for number in range(given.agents)]
    server = coordinator._server
    assert isinstance(server, Listening)
    server.begin()
    loop.start()
    expected = {f"agent-{number}" for number in range(given.agents)}
    while coordinator.connected < expected:
        time.sleep(0.1)
    coordinator.expect(expected)
    time.sleep(STEADY_SECONDS)
    server.begin()
    began, loadavg = time.monotonic(), []
    while time.monotonic() < began + given.seconds:
        time.sleep(min(10.0, given.seconds))
        loadavg.append(os.getloadavg()[0])
    found = {
        "agents": given.agents,
        "seconds": round(time.monotonic() - began),
        "busy": given.busy,
        "nice": given.nice,
        "load": [round(min(loadavg), 1), round(sum(loadavg) / len(loadavg), 1), round(max(loadavg), 1)],
        "silences": {f"{limit:g}": server.silences[limit] for limit in LIMITS},
        "longest": round(server.longest, 2),
        "starved": [round(seconds, 2) for seconds in server.starved],
    }
    print(json.dumps(found))
    end.set()
    for process in (*agents, *loads):
        process.join(5)


if __name__ == "__main__":
    main()
