"""The benchmark's agents: many of them, each with its own pipes."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator

import pytest
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
