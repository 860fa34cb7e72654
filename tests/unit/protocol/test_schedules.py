"""Random schedules of the kubernetes protocol: 30,000, 100,000 by `make faults`, RDZV_SCHEDULES of them when that is set.

A failing one is printed with the command that shows it step by step.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
from faults.tally import LONG, Tally
from unit.protocol.scenarios import play_many

CHUNK = 500
_USUAL = "100000" if LONG else "30000"
COUNT = int(os.environ.get("RDZV_SCHEDULES", _USUAL))
#: RDZV_SCHEDULES_FROM=N begins at another seed, for schedules that were never tried.
FIRST = int(os.environ.get("RDZV_SCHEDULES_FROM", "0"))


@pytest.mark.timeout(1800)
def test_random_schedules(capsys: pytest.CaptureFixture[str], tally: Tally) -> None:
    started, last = time.monotonic(), FIRST + COUNT
    chunks = [range(first, min(first + CHUNK, last)) for first in range(FIRST, last, CHUNK)]
    with ProcessPoolExecutor() as pool:
        failures = [text for texts in pool.map(play_many, chunks) for text in texts]
    seconds = time.monotonic() - started
    with capsys.disabled():
        print(
            f"\n{COUNT} schedules in {seconds:.0f} s ({COUNT / max(seconds, 1e-9):.0f}/s), {len(failures)} violations"
        )
    with tally.injected("Agents", "random schedules of the protocol in the simulator", COUNT):
        assert not failures, "\n".join([f"{len(failures)} of {COUNT} schedules:", *failures[:20]])
