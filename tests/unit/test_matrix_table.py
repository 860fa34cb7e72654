"""The table that `make matrix` writes, cell by cell: what was not run again keeps what it said."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.matrix_table import BEGIN, END, read, written

from deploy.local.cluster.tools import CONTROLLERS

ROOT = Path(__file__).parents[2]
KINDS, BACKENDS = ["Job", "Deployment"], ["kubernetes", "static"]
EMPTY = f"Above.\n\n{BEGIN}\n{END}\n\nBelow.\n"


def after(page: str, **cells: str) -> str:
    """The page after cells of Jobs."""
    found = {("Job", backend): said for backend, said in cells.items()}
    return written(page, KINDS, BACKENDS, {("Deployment", "static"): "has no index"}, found)


def test_a_page_without_cells_says_which_were_not_run_and_which_never_are() -> None:
    assert (
        after(EMPTY)
        == f"""Above.

{BEGIN}
| | `kubernetes` | `static` |
|---|---|---|
| Job | not run yet | not run yet |
| Deployment | not run yet | – (has no index) |
{END}

Below.
"""
    )


def test_a_cell_that_was_run_leaves_the_others_as_they_are() -> None:
    page = after(after(EMPTY, kubernetes="yes"), static="**fails**")
    assert read(page) == {
        ("Job", "kubernetes"): "yes",
        ("Job", "static"): "**fails**",
        ("Deployment", "static"): "– (has no index)",
    }
    assert after(page) == page
    assert read(after(page, static="yes"))["Job", "static"] == "yes"


def test_a_new_backend_and_a_new_kind_take_nothing_from_cells_that_were_run() -> None:
    page = written(after(EMPTY, static="yes"), ["Pod", *KINDS], ["etcd", *BACKENDS], {}, {})
    assert read(page)["Job", "static"] == "yes"
    assert "| Pod | not run yet | not run yet | not run yet |" in page


def test_a_page_without_a_place_for_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no"):
        after("Above.\n")


def test_the_page_names_the_versions_of_the_controllers_that_were_run() -> None:
    page = (ROOT / "docs/workloads.md").read_text()
    assert [part.name for part in CONTROLLERS if part.version.lstrip("v") not in page] == []
