"""The example in the ADR is what the real functions do."""

from __future__ import annotations

from unit.protocol import worked_example


def test_the_worked_example_of_the_adr_is_what_happens() -> None:
    assert worked_example.documented() == worked_example.example(), (
        "run PYTHONPATH=src:tests python -m unit.protocol.worked_example"
    )
