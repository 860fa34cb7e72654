"""The tables of docs/reliability.md, from what the campaigns wrote down. A row that was not run keeps its figures and their day."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from faults.tally import BUGS, RESULTS, Result

PAGE = Path(__file__).parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- begin: written by make faults -->", "<!-- end: written by make faults -->"
GROUPS = ("Operator", "Operator: changes of a Rendezvous", "Store", "Agents", "Webhook", "Hostile input", BUGS)
_HEADS = {BUGS: ("put in", "caught", "")}
_HEAD = ("injected", "survived", "slowest recovery")

Rows = dict[tuple[str, str], Result]


def added_up(results: Iterable[Result]) -> Rows:
    """One row of each kind of fault, whatever number of tests there were."""
    rows: Rows = {}
    for new in results:
        row = rows.setdefault((new.group, new.what), Result(new.group, new.what, 0, day=new.day))
        row.injected += new.injected
        row.survived += new.survived
        row.day = max(row.day, new.day)
        if new.slowest is not None:
            row.took(new.slowest)
    return rows


def read(page: str) -> Rows:
    """The rows that the page has."""
    rows: Rows = {}
    group = ""
    for line in page.partition(BEGIN)[2].partition(END)[0].splitlines():
        if line.startswith("## "):
            group = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[1].isdecimal():
            what, injected, survived, slowest, day = cells
            seconds = float(slowest.removesuffix(" s")) if slowest else None
            rows[group, what] = Result(group, what, int(injected), int(survived), seconds, day)
    return rows


def tables(rows: Rows) -> str:
    """All rows as Markdown, by group."""
    parts = []
    for group in (*GROUPS, *sorted({row.group for row in rows.values()} - {*GROUPS})):
        of_group = sorted((row for row in rows.values() if row.group == group), key=lambda row: row.what)
        if of_group:
            head = ("", *_HEADS.get(group, _HEAD), "run")
            lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|"]
            lines += [f"| {' | '.join(_cells(row))} |" for row in of_group]
            parts.append(f"## {group}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _cells(row: Result) -> tuple[str, ...]:
    slowest = "" if row.slowest is None else f"{row.slowest:.1f} s"
    return (row.what, str(row.injected), str(row.survived), slowest, row.day)


def write(results: Path, page: Path) -> None:
    """Into the page, between its marks. `results` are used up; there are none if nothing was run."""
    if not results.exists():
        return
    new = added_up(Result(**json.loads(line)) for line in results.read_text().splitlines())
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{tables(read(text) | new)}\n{END}{after}")
    results.unlink()


if __name__ == "__main__":
    write(RESULTS, PAGE)
