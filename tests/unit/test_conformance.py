"""What `rdzv conformance` concludes from histories, and what it writes."""

from __future__ import annotations

import yaml
from hypothesis import given
from hypothesis import strategies as st

from rdzv.cli.conformance_histories import Swap, wrong_adds, wrong_swaps
from rdzv.cli.conformance_report import FAILED, PASSED, SKIPPED, Result, report, to_yaml


def test_additions_that_overlap_may_be_seen_in_any_order() -> None:
    assert wrong_adds([(0, 9, 3), (1, 9, 1), (2, 9, 2)]) == ""


def test_a_lost_and_a_late_addition_are_found() -> None:
    assert "2 additions of 1 returned 1 different values" in wrong_adds([(0, 1, 1), (0, 1, 1)])
    assert "returned 2 had ended before" in wrong_adds([(0, 1, 2), (2, 3, 1)])
    assert "returned 3 had ended before" in wrong_adds([(0, 1, 3), (2, 9, 1), (0.5, 9, 2)])


WON: list[Swap] = [(0, 1, "first", "a", "a"), (2, 3, "a", "b", "b")]


def test_compare_sets_that_follow_each_other() -> None:
    assert wrong_swaps(WON, "first") == ""
    assert wrong_swaps([*WON, (0.5, 2.5, "first", "c", "a")], "first") == ""


def test_compare_sets_that_no_order_explains() -> None:
    assert "an update was lost" in wrong_swaps([*WON, (0, 9, "first", "c", "c")], "first")
    assert "'x' was replaced" in wrong_swaps([*WON, (0, 9, "x", "c", "c")], "first")
    assert "'x' was returned, which the key never held" in wrong_swaps([*WON, (0, 9, "first", "c", "x")], "first")
    assert "as expected, and was not set" in wrong_swaps([*WON, (0, 9, "a", "c", "a")], "first")
    assert "'b' was returned before" in wrong_swaps([*WON, (0, 1.5, "first", "c", "b")], "first")
    assert "'a' was returned after" in wrong_swaps([*WON, (4, 5, "first", "c", "a")], "first")
    assert "had ended before an earlier change" in wrong_swaps(
        [(5, 6, "first", "a", "a"), (2, 3, "a", "b", "b")], "first"
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_every_history_of_a_register_is_right(clients: list[int], data: st.DataObject) -> None:
    """Each client's operation takes effect at a moment of its own, `number`, and lasts around it."""
    value, seen, history = "first", dict.fromkeys(range(4), "first"), []
    for number, client in enumerate(clients):
        expected, desired = seen[client], f"{client}-{number}"
        value = desired if value == expected else value
        early, late = (data.draw(st.floats(0, 5)) for _ in range(2))
        history.append((100 + number - early, 100 + number + late, expected, desired, value))
        seen[client] = value
    assert wrong_swaps(data.draw(st.permutations(history)), "first") == ""


def test_the_report_is_yaml_with_every_outcome() -> None:
    text = 'it: said "no"\n# \u2192 - x'
    results = [
        Result("core", "form", PASSED),
        Result("core", "close", FAILED, "they wait", text),
        Result("store", "add", PASSED),
        Result("elastic", "loss", SKIPPED, "", "fixed"),
    ]
    made = report("c10d", {"torch": "2.15.0"}, "2026-01-01T00:00:00Z", results)
    assert yaml.safe_load(to_yaml(made)) == made
    core, store, elastic = made["profiles"]
    assert (core["result"], store["result"], elastic["result"]) == ("failure", "success", "skipped")
    assert core["statistics"] == {"passed": 1, "failed": 1, "skipped": 0}
    assert core["failed"] == [{"check": "close", "means": "they wait", "seen": text}]
    assert elastic["skipped"] == [{"check": "loss", "reason": "fixed"}]
