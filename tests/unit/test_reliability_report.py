"""docs/reliability.md: a run replaces the rows that it ran, and no others; what did not survive is seen in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faults import report
from faults.report import BEGIN, END, PAGE
from faults.tally import Tally


def test_a_row_that_was_not_run_keeps_its_figures_and_its_day(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text(f"# Title\n{BEGIN}\n## Store\n\n| killed | 7 | 7 | 1.5 s | 2026-01-02 |\n{END}\nmore\n")
    tally = Tally(results)
    for seconds in (1.0, 3.25):
        with tally.injected("Operator", "killed", 4) as recovery:
            recovery.took(seconds)
    tally.caught("store", "a bug")
    report.write(results, page)
    rows = report.read(page.read_text())
    old = rows["Store", "killed"]
    assert (old.injected, old.survived, old.slowest, old.day) == (7, 7, 1.5, "2026-01-02")
    new = rows["Operator", "killed"]
    assert (new.injected, new.survived, new.slowest) == (8, 8, 3.2)
    assert rows["Seeded bugs", "store: a bug"].survived == 1
    assert page.read_text().startswith("# Title\n")
    assert page.read_text().endswith("\nmore\n")


def test_a_run_that_was_interrupted_is_reported_once(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text(f"{BEGIN}\n{END}\n")
    tally = Tally(results)
    with tally.injected("Operator", "killed", 4):
        pass
    with pytest.raises(KeyboardInterrupt), tally.injected("Operator", "stopped", 3):
        raise KeyboardInterrupt
    for _ in range(2):
        report.write(results, page)
        assert {what: row.injected for (_, what), row in report.read(page.read_text()).items()} == {"killed": 4}


def test_what_does_not_survive_is_in_the_report(tmp_path: Path) -> None:
    results = tmp_path / "results"
    with pytest.raises(AssertionError), Tally(results).injected("Operator", "killed", 3):
        raise AssertionError
    (line,) = results.read_text().splitlines()
    assert (json.loads(line)["injected"], json.loads(line)["survived"]) == (3, 0)


def test_nothing_of_the_page_did_not_survive() -> None:
    rows = report.read(PAGE.read_text())
    assert rows
    assert [what for what, row in rows.items() if row.survived != row.injected] == []
