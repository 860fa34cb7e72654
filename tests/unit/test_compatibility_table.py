"""The tables that `make compat` writes, row by row: what was not run again keeps what it said."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from support.compatibility import KUBERNETES, MUSL, NODES, PAGE, PYTHON, TORCH, Table, run, said

from deploy.local.cluster import pytorch
from deploy.local.cluster.tools import OLDER_KUBERNETES, PARTS

SNAKES = Table("Snakes", ("1.9", "1.10"))
EMPTY = "Above.\n\n<!-- begin of Snakes -->\n<!-- end of Snakes -->\n\nBelow.\n"


def test_a_page_without_rows_says_which_were_not_run() -> None:
    assert (
        SNAKES.written(EMPTY, "1.10.3", "7 passed", "2026-11-26")
        == """Above.

<!-- begin of Snakes -->

| Snakes | tests | day |
|---|---|---|
| 1.9 | not run yet | |
| 1.10.3 | 7 passed | 2026-11-26 |

<!-- end of Snakes -->

Below.
"""
    )


def test_a_row_that_is_run_again_leaves_the_others_as_they_are() -> None:
    first = SNAKES.written(EMPTY, "1.9.0", "**1 failed**, 6 passed", "2026-01-01")
    second = SNAKES.written(first, "1.10.3", "7 passed", "2026-01-02")
    again = SNAKES.written(second, "1.10.4", "8 passed", "2026-01-03")
    assert re.findall(r"^\| 1.*$", again, re.MULTILINE) == [
        "| 1.9.0 | **1 failed**, 6 passed | 2026-01-01 |",
        "| 1.10.4 | 8 passed | 2026-01-03 |",
    ]
    assert SNAKES.written(again, "1.10.4", "8 passed", "2026-01-03") == again


@pytest.mark.parametrize(("page", "version"), [("Above.\n", "1.9.0"), (EMPTY, "1.1.0"), (EMPTY, "2.0")])
def test_a_row_without_a_place_is_an_error(page: str, version: str) -> None:
    with pytest.raises(ValueError, match="no row"):
        SNAKES.written(page, version, "7 passed", "2026-11-26")


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "a PASSED\n=== 7 passed, 2 skipped, 1 warning in 3.1s ===\n", "7 passed"),
        (1, "FAILED a - 3 passed\n=== 2 failed, 5 passed, 1 error in 3.1s ===\n", "**3 failed**, 5 passed"),
        (0, "=== 7 skipped in 0.1s ===\n", "**all failed**, 0 passed"),
        (4, "ERROR: not found\n\n", "**all failed**, 0 passed"),
        (-9, "", "**all failed**, 0 passed"),
    ],
)
def test_what_pytest_came_to(status: int, output: str, expected: str) -> None:
    assert said(status, output) == expected


LEAVES_A_CHILD = """
import os, time

def test_a_child_stays() -> None:
    if not os.fork():
        time.sleep(600)
        os._exit(0)
"""


@pytest.mark.timeout(300)
def test_a_run_is_over_when_pytest_is_and_ends_a_child_that_its_tests_left(tmp_path: Path) -> None:
    leaves = tmp_path / "test_leaves.py"
    leaves.write_text(LEAVES_A_CHILD)
    # The child has the pipe too, so that it is read to its end only when the child has gone.
    assert run(sys.executable, [str(leaves)], {}) == "1 passed"


@pytest.mark.parametrize("table", [KUBERNETES, NODES, TORCH, PYTHON, MUSL], ids=lambda table: table.of)
def test_the_page_has_a_row_for_each_version(table: Table) -> None:
    inside = PAGE.read_text().partition(f"<!-- begin of {table.of} -->")[2].partition("<!-- end")[0]
    assert re.findall(r"^\| (\d+\.\d+)", inside, re.MULTILINE) == list(table.minors)


def test_what_can_be_built_has_a_row() -> None:
    (newest,) = [part.version for part in PARTS if part.name == "kubernetes"]
    assert [*OLDER_KUBERNETES, newest.lstrip("v").rpartition(".")[0]] == list(KUBERNETES.minors)
    assert NODES.minors == (KUBERNETES.minors[0], KUBERNETES.minors[-1])
    assert pytorch.VERSION.rpartition(".")[0] == TORCH.minors[-1]
    assert [minor for minor, part in OLDER_KUBERNETES.items() if not part.version.startswith(f"v{minor}.")] == []
