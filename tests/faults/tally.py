"""What campaigns put in and what survived it, for docs/reliability.md (`faults.report` writes it).

    with tally.injected("Operator", "killed before each write", 31) as recovery:
        ...                     # raises if something did not survive
        recovery.took(2.5)

Each use is one line of `RESULTS`, in the long form only: a short form is no measurement.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

LONG = os.environ.get("RDZV_FAULTS") == "long"
RESULTS = Path(__file__).parents[2] / ".local/faults.jsonl"
BUGS = "Seeded bugs"
"""The group of campaigns that must fail."""


@dataclass
class Result:
    """What one test did.

    `slowest`: seconds of the slowest recovery, None where nothing was timed. `test`: which one, as pytest names it.
    """

    group: str
    what: str
    injected: int
    survived: int = 0
    slowest: float | None = None
    day: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))
    test: str = field(default_factory=lambda: os.environ.get("PYTEST_CURRENT_TEST", "").partition(" (")[0])

    def took(self, seconds: float) -> None:
        """A recovery ended."""
        self.slowest = max(seconds, self.slowest or 0.0)


class Tally:
    """Writes to `results`; None: nowhere."""

    def __init__(self, results: Path | None) -> None:
        self._results = results

    @contextmanager
    def injected(self, group: str, what: str, times: int = 1) -> Iterator[Result]:
        """Faults of one kind, of which all survive unless the block raises. The count may be corrected inside.

        Whoever interrupts the run has found nothing.
        """
        result = Result(group, what, times)
        try:
            yield result
        except KeyboardInterrupt:
            raise
        except BaseException:
            self._write(result)
            raise
        result.survived = result.injected
        self._write(result)

    def caught(self, where: str, bug: str) -> None:
        """A seeded bug was seen."""
        self._write(Result(BUGS, f"{where}: {bug}", 1, 1))

    def _write(self, result: Result) -> None:
        if self._results is not None:
            self._results.parent.mkdir(exist_ok=True)
            with self._results.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")


@pytest.fixture(scope="session")
def tally() -> Tally:
    """Of this session."""
    return Tally(RESULTS if LONG else None)
