"""The API server killed, and back after a minute: what a world that runs notices of it, and when one that forms goes on."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from bench.handlers import CREATE, FOLLOW, KUBERNETES, plan
from bench.lab import NAMESPACES, Lab
from bench.records import Results, Sample
from bench.world import World

from rdzv.kube.api import ApiError
from rdzv.kube.client import Client

AGENTS = 4
AWAY_SECONDS = 60.0
_AFTER_SECONDS = 30.0
_FORM_SECONDS = 60.0


@dataclass
class Watcher:
    """Notes when the API server answers again, and allows what it is asked."""

    client: Client
    at: float | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watcher:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while self.at is None and not self._stop.wait(0.05):
            try:
                self.client.get(NAMESPACES, None, "default")
                self.at = time.monotonic()
            except ApiError:
                pass


def outage(lab: Lab, results: Results) -> None:
    """One world runs; of another all but one have joined, and the last one comes while the server is away."""

    def world() -> World:
        name = lab.name()
        meeting = lab.meeting(KUBERNETES.registered, name, AGENTS, AGENTS)
        plans = [plan(KUBERNETES, "outage", meeting, slot, f"{name}-{slot}") for slot in range(AGENTS)]
        return World(plans, threads=False, log=lab.log)

    with world() as running, world() as forming:
        running.command(CREATE + FOLLOW)
        assert len(running.gather("world", AGENTS, _FORM_SECONDS)) == AGENTS
        forming.command(CREATE)
        forming.gather("created", AGENTS, _FORM_SECONDS)
        forming.command(FOLLOW, range(AGENTS - 1))
        time.sleep(3)
        lab.servers.kill_api_server()
        time.sleep(AWAY_SECONDS / 2)
        forming.command(FOLLOW, [AGENTS - 1])
        time.sleep(AWAY_SECONDS / 2)
        with Watcher(lab.client) as back:
            lab.servers.start_again()
            formed = forming.gather("world", AGENTS, _FORM_SECONDS)
        assert back.at is not None
        late = len(formed) < AGENTS
        seconds = _FORM_SECONDS if late else max(report["at"] for report in formed) - back.at
        note = f"{len(formed)} of {AGENTS} had a rank" if late else ""
        results.add("outage-forming", KUBERNETES.name, AGENTS, "seconds", "s", [Sample(seconds, late, note)])
        again = running.gather("world", AGENTS, _AFTER_SECONDS)
    results.add("outage-training", KUBERNETES.name, AGENTS, "re-formed", "agents", [Sample(len(again))])
