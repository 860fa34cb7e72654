"""The address that an agent tells the others is a literal: what is looked up is looked up here, not by each of them."""

from __future__ import annotations

import pytest

from rdzv.agent.identity import _address


@pytest.mark.parametrize(
    ("given", "told"), [("10.0.0.1", "10.0.0.1"), ("fd00::0:1", "fd00::1"), ("localhost", ("127.0.0.1", "::1"))]
)
def test_a_local_address_becomes_a_literal(given: str, told: str | tuple[str, ...]) -> None:
    assert _address(given) in told if isinstance(told, tuple) else _address(given) == told


def test_a_name_that_is_none_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match=r"the local address 'no such host' is no IP address, and no name of one"):
        _address("no such host")
