"""The benchmark: many agents, each with its own pipes, and the law that their figures follow."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.records import Record
from bench.report import Law, markdown, write
from bench.world import raise_descriptors, readable

ABOVE_SELECT = 1500


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its reader's number is one that `select` does not know."""
    raise_descriptors(2 * ABOVE_SELECT)
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD, ABOVE_SELECT)
    os.close(reader)
    yield high, writer
    os.close(high)
    os.close(writer)


def test_a_descriptor_above_1023_is_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert reader >= ABOVE_SELECT
    assert not readable(reader, 0.01)
    os.write(writer, b"x")
    assert readable(reader, 10.0)


def test_more_descriptors_than_there_can_be_are_refused_with_their_number() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(RuntimeError, match="ulimit -n 4000000000"):
        raise_descriptors(4_000_000_000)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def record(n: int, value: float, metric: str = "seconds") -> Record:
    return Record("light-forming", "kubernetes", n, metric, value, value, value, "s")


def test_the_law_of_figures_is_found_and_said_for_ten_thousand() -> None:
    law = Law.of([record(n, 0.01 * n**1.5) for n in (10, 300, 1000, 3000)])
    assert law is not None
    assert law.exponent == pytest.approx(1.5)
    assert law.at(10_000) == pytest.approx(10_000.0)


def test_one_size_has_no_law() -> None:
    assert Law.of([record(1000, 1.0)]) is None
    assert Law.of([record(100, 1.0), record(1000, 1.0)]) is None


def test_the_table_of_light_agents_has_sizes_across_and_the_law() -> None:
    table = markdown([record(300, 3.0), record(3000, 30.0), record(300, 0.0, "writes")], {"load": 1})
    assert "| agents | 300 | 3000 | law | 10000, by the law |" in table
    assert "| forming: seconds (s) | 3 | 30 | n^1.00 | 100 |" in table
    assert "| forming: writes (s) | 0 |  |  |  |" in table


def of_pods(scenario: str, backend: str, value: float, metric: str = "seconds", *, late: bool = False) -> Record:
    return Record(f"pods-{scenario}", backend, 4, metric, value, value, value, "s", timeout=late)


def test_a_loss_of_pods_is_compared_under_the_same_load() -> None:
    table = markdown(
        [
            of_pods("start", "kubernetes", 8.0),
            of_pods("start", "kubernetes", 2.0, "workers"),
            of_pods("delete", "kubernetes", 4.0),
            of_pods("delete", "pytorchjob", 40.0),
            of_pods("start-loaded", "kubernetes", 5.0),
            of_pods("delete-loaded", "kubernetes", 10.0),
            of_pods("delete-loaded", "pytorchjob", 180.0, late=True),
        ],
        {"load": 1},
    )
    assert "| | pods-delete | pods-delete-loaded |" in table
    assert "| *pytorchjob / kubernetes: seconds* | 10.0 | > 18.0 |" in table
    assert "| *kubernetes: seconds / pods-start: seconds* | 0.5 | 2.0 |" in table
    assert "| *kubernetes: seconds / pods-start: workers* | 2.0 |  |" in table
    assert "seconds-whole*" not in table


def test_tables_that_were_not_measured_again_stay_on_the_page_as_they_are(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Above.\n<!-- begin: written by the benchmark -->\n<!-- end: written by the benchmark -->\nBelow.\n"
    )
    earlier = [Record("outage-training", "kubernetes", 4, "re-formed", 0, 0, 0, "agents"), record(300, 3.0)]
    write([*earlier, of_pods("delete", "kubernetes", 4.0)], {"load": 1}, page)
    before = page.read_text()
    again = of_pods("delete", "kubernetes", 7.0)
    write([again], {"load": 2}, page)
    after = page.read_text()
    assert after == before.replace("### Real pods\n", "### Real pods\n\nConditions: load: 2.\n").replace(
        "seconds | 4 |", "seconds | 7 |"
    )
    write([*earlier, again], {"load": 3}, page)
    assert page.read_text() == before.replace("load: 1", "load: 3").replace("seconds | 4 |", "seconds | 7 |")
