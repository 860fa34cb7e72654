"""Histories of operations on a store, and whether an order of them explains what everybody saw (porcupine, a Go module).

The program in tests/faults/porcupine is built once per version and kept in the cache of deploy/local.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from deploy.local.cluster.common import cached, digest, run

SOURCE = Path(__file__).parent / "porcupine"


@dataclass(frozen=True)
class Operation:
    """One call on a store: by whom, when (nanoseconds of the monotonic clock, which all processes share), and its result.

    Keys are numbers below 8; a key and a queue of one number are two things. `returned` is 0 when the call never returned,
    or said that its outcome is unknown: then it may have taken effect at any time since, or never.
    """

    client: int
    op: str
    """Name of the store's method."""
    keys: Sequence[int]
    values: Sequence[str] = ()
    """compare_set: expected, desired."""
    amount: int = 0
    call: int = 0
    returned: int = 0
    result: Sequence[str] = field(default=())
    """Values as text; queue_pop: "empty", or "value" and the value."""


def porcupine() -> Path:
    """The program, built if need be."""
    if not shutil.which("go"):
        pytest.fail("Go is needed to build the linearizability checker: https://go.dev/dl")
    sources = [path.read_bytes() for path in sorted(SOURCE.iterdir())]

    def build(stage: Path) -> None:
        environ = {
            **os.environ,
            "CGO_ENABLED": "0",
            "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -mod=readonly".strip(),
        }
        run(["go", "build", "-trimpath", "-o", stage / "check", "."], cwd=SOURCE, env=environ)

    return cached(f"tools/porcupine-{digest(*sources)}", build) / "check"


def verdicts(histories: Sequence[Sequence[Operation]]) -> list[str]:
    """For each history: ok, illegal, or unknown (the search took more than a minute)."""
    lines = "".join(json.dumps([_record(op) for op in history]) + "\n" for history in histories)
    done = subprocess.run([porcupine()], input=lines, capture_output=True, text=True, check=True)
    return done.stdout.split()


def _record(op: Operation) -> dict[str, object]:
    record = asdict(op)
    return {**record, "return": record.pop("returned")}
