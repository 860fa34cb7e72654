"""What it costs: requests to the API server, from its audit log, and what the library adds to a process with torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.forming import settle
from bench.handlers import CREATE, FOLLOW, JOIN, KUBERNETES, plan
from bench.lab import Lab, requests_in
from bench.records import Results, Sample
from bench.world import World

from rdzv.spec import GROUP

AGENTS = 64
QUIET_SECONDS = 60
_WRITES = {"create", "update", "patch", "delete"}
_READS = {"get", "list"}
_LIMIT_SECONDS = 60.0


def requests(lab: Lab, results: Results) -> None:
    """Of 64 agents that form a fixed world, stay in it for a minute, and form it again because one asks for it."""
    log, name = lab.servers.audit_log, lab.name()
    lab.new_namespace()
    meeting = lab.meeting(KUBERNETES.registered, name, AGENTS, AGENTS)
    plans = [plan(KUBERNETES, "form-fixed", meeting, slot, f"{name}-{slot}") for slot in range(AGENTS)]
    start, sizes = log.stat().st_size, lab.servers.bytes_of(GROUP)
    with World(plans, threads=True, log=lab.log) as world:
        world.command(CREATE)
        world.gather("created", AGENTS, _LIMIT_SECONDS)
        settle(AGENTS)
        world.command(FOLLOW)
        for phase, seconds in (("forming", 5.0), ("quiet", float(QUIET_SECONDS)), ("reforming", 5.0)):
            if phase == "reforming":
                world.command(JOIN, [AGENTS // 2])
            if phase != "quiet":
                formed = world.gather("world", AGENTS, _LIMIT_SECONDS)
                assert len(formed) == AGENTS, f"{len(formed)} of {AGENTS} agents in the {phase} world"
            time.sleep(seconds)
            found = requests_in(log, lab.namespace, start)
            start = log.stat().st_size
            _count(results, f"api-requests-{phase}", found)
            before, sizes = sizes, lab.servers.bytes_of(GROUP)
            results.add(
                f"api-requests-{phase}", "kubernetes", AGENTS, "bytes", "per agent", [Sample((sizes - before) / AGENTS)]
            )


def _count(results: Results, scenario: str, found: list[dict[str, object]]) -> None:
    kinds: Counter[str] = Counter()
    for item in found:
        verb = str(item["verb"])
        kinds["writes" if verb in _WRITES else "reads" if verb in _READS else "watches"] += 1
        status = item.get("responseStatus")
        if isinstance(status, dict) and status.get("code") == 409:
            kinds["conflicts"] += 1
    for kind in ("writes", "reads", "watches"):
        results.add(scenario, "kubernetes", AGENTS, kind, "per agent", [Sample(kinds[kind] / AGENTS)])
    results.add(scenario, "kubernetes", AGENTS, "conflicts", "in all", [Sample(kinds["conflicts"])])


_IMPORT = """
import json, os, sys, time
import torch.distributed
import torch.distributed.elastic.rendezvous.dynamic_rendezvous
import torch.distributed.elastic.agent.server.local_elastic_agent
import torch.distributed.run
def rss():
    with open("/proc/self/smaps_rollup") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Private_Dirty")) / 1024
began, cpu, before = time.monotonic(), time.process_time(), rss()
import rdzv.agent.handler
print(json.dumps([(time.monotonic() - began) * 1000, (time.process_time() - cpu) * 1000, rss() - before]))
"""


def library(results: Results, runs: int) -> None:
    """Import time and memory of `rdzv.agent.handler` in a process that has imported what torchrun imports."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs.
    metrics = (("import", "ms over torch"), ("import-cpu", "ms over torch"), ("memory", "MB over torch"))
    samples: list[list[Sample]] = [[] for _ in metrics]
    command = [sys.executable, "-W", "ignore", "-c", _IMPORT]
    with tempfile.TemporaryDirectory(prefix="rdzv-bench-pyc-") as cache:
        env["PYTHONPYCACHEPREFIX"] = cache
        for run in range(max(runs, 5) + 1):
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
            if run:  # The first one compiles.
                for column, value in zip(samples, json.loads(done.stdout.strip().splitlines()[-1]), strict=True):
                    column.append(Sample(value))
    for (metric, unit), column in zip(metrics, samples, strict=True):
        results.add("library", "kubernetes", 1, metric, unit, column)
