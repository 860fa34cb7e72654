"""The table of docs/workloads.md: what each kind of workload came to with each backend, as `make matrix` saw it last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BEGIN, END = "<!-- begin of the matrix -->", "<!-- end of the matrix -->"
NOT_RUN = "not run yet"

Cell = tuple[str, str]
"""A kind of workload and a backend."""


def read(page: str) -> dict[Cell, str]:
    """What the table of a page says, without cells that were not run."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in _parts(page)[1].split("\n") if line[:1] == "|"]
    header = [name.strip("`") for name in rows[0][1:]] if rows else []
    cells = {(row[0], backend): cell for row in rows[2:] for backend, cell in zip(header, row[1:], strict=True)}
    return {cell: said for cell, said in cells.items() if said != NOT_RUN}


def written(
    page: str, kinds: Sequence[str], backends: Sequence[str], impossible: Mapping[Cell, str], found: Mapping[Cell, str]
) -> str:
    """The page with `found` in its table; other cells keep what they say. `impossible` are not run, and say why.

    Raises:
        ValueError: the page has no place for a table.
    """
    said = {**read(page), **{cell: f"– ({why})" for cell, why in impossible.items()}, **found}
    rows = [["", *(f"`{backend}`" for backend in backends)]]
    rows += [[kind, *(said.get((kind, backend), NOT_RUN) for backend in backends)] for kind in kinds]
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    table = "\n".join([lines[0], "|---" * (len(backends) + 1) + "|", *lines[1:]])
    before, _, after = _parts(page)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _parts(page: str) -> tuple[str, str, str]:
    """What is before the table, in its place, and after it."""
    before, begin, rest = page.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return before, inside, after
