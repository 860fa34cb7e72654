"""The benchmark: many agents, each with its own pipes, and the law that their figures follow."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator

import pytest
from bench.records import Record
from bench.report import Law, markdown
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
