"""The tables of docs/reliability.md, from what the campaigns wrote down. A row that was not run keeps its figures and their day.

So does one that was run in part: a row may be the sum of several tests, of which some can be run by name. What did not survive is shown
in any case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from faults.tally import BUGS, RESULTS, Result

PAGE = Path(__file__).parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- begin: written by make faults -->", "<!-- end: written by make faults -->"
GROUPS = ("Operator", "Operator: changes of a Rendezvous", "Store", "Agents", "Webhook", "Hostile input", BUGS)
_HEADS = {BUGS: ("put in", "caught", "")}
_HEAD = ("injected", "survived", "slowest recovery")


@dataclass
class Row(Result):
    """What `tests` tests of one kind of fault did together. `of`: which, where they have just been run."""

    tests: int = 1
    of: set[str] = field(default_factory=set)


Rows = dict[tuple[str, str], Row]


def added_up(results: Iterable[Result]) -> Rows:
    """One row of each kind of fault, whatever number of tests there were."""
    rows: Rows = {}
    for new in results:
        row = rows.setdefault((new.group, new.what), Row(new.group, new.what, 0, day=new.day))
        row.of.add(new.test)
        row.tests = len(row.of)
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
        if len(cells) == 6 and cells[1].isdecimal():
            what, injected, survived, slowest, tests, day = cells
            seconds = float(slowest.removesuffix(" s")) if slowest else None
            rows[group, what] = Row(group, what, int(injected), int(survived), seconds, day, tests=int(tests))
    return rows


def in_part(old: Rows, new: Rows) -> Rows:
    """Of the new rows those of fewer tests than the old ones, which they would make look like less; all of them survived."""
    return {
        key: row
        for key, row in new.items()
        if key in old and row.tests < old[key].tests and row.survived == row.injected
    }


def tables(rows: Rows) -> str:
    """All rows as Markdown, by group."""
    parts = []
    for group in (*GROUPS, *sorted({row.group for row in rows.values()} - {*GROUPS})):
        of_group = sorted((row for row in rows.values() if row.group == group), key=lambda row: row.what)
        if of_group:
            head = ("", *_HEADS.get(group, _HEAD), "tests", "run")
            lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|"]
            lines += [f"| {' | '.join(_cells(row))} |" for row in of_group]
            parts.append(f"## {group}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    slowest = "" if row.slowest is None else f"{row.slowest:.1f} s"
    return (row.what, str(row.injected), str(row.survived), slowest, str(row.tests), row.day)


def write(results: Path, page: Path) -> None:
    """Into the page, between its marks. `results` are used up; there are none if nothing was run."""
    if not results.exists():
        return
    new = added_up(Result(**json.loads(line)) for line in results.read_text().splitlines())
    text = page.read_text()
    old = read(text)
    for key, row in in_part(old, new).items():
        print(
            f"{row.what}: {row.tests} of {old[key].tests} tests were run, so its row stays. To have fewer, remove it first"
        )
        del new[key]
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{tables(old | new)}\n{END}{after}")
    results.unlink()


if __name__ == "__main__":
    write(RESULTS, PAGE)
