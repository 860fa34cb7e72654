"""docs/reliability.md: a run replaces the rows that it ran, and no others; what did not survive is seen in it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from faults import report
from faults.report import BEGIN, END, PAGE
from faults.tally import Tally


def test_a_row_that_was_not_run_keeps_its_figures_and_its_day(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text(f"# Title\n{BEGIN}\n## Store\n\n| killed | 7 | 7 | 1.5 s | 1 | 2026-01-02 |\n{END}\nmore\n")
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


def run(results: Path, page: Path, monkeypatch: pytest.MonkeyPatch, survives: bool = True, **rounds: int) -> None:
    """Tests that have one row between them, each with as many faults, and what the page says then."""
    for kind, number in rounds.items():
        monkeypatch.setenv("PYTEST_CURRENT_TEST", f"tests/faults/test_agents.py::test_soon[{kind}] (call)")
        with contextlib.suppress(AssertionError), Tally(results).injected("Agents", "rounds", number):
            assert survives
    report.write(results, page)


def test_a_row_of_several_tests_is_not_made_less_by_a_run_of_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text(f"{BEGIN}\n{END}\n")

    def row() -> Any:
        return report.read(page.read_text())["Agents", "rounds"]

    run(results, page, monkeypatch, killed=150, stopped=150)
    assert (row().injected, row().tests) == (300, 2)
    run(results, page, monkeypatch, killed=160)
    assert (row().injected, row().tests) == (300, 2)
    assert "rounds: 1 of 2 tests were run, so its row stays" in capsys.readouterr().out
    run(results, page, monkeypatch, killed=160, stopped=150, late=10)
    assert (row().injected, row().tests) == (320, 3)
    run(results, page, monkeypatch, survives=False, killed=5)
    assert (row().injected, row().survived) == (5, 0)


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
