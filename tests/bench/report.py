"""The table of all figures, and the part of docs/benchmarks.md that is written from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.plot import COLOURS, plot
from bench.records import Record

_BEGIN, _END = "<!-- begin: written by the benchmark -->", "<!-- end: written by the benchmark -->"
_FLOOR, _OURS, _OURS_BY_ETCD = "api-floor", "kubernetes", "etcd-v3"
_LIGHT, _START = "light-", "pods-start"
_TITLE = "### "
_LAW_FROM = 256
"""Agents: with fewer, most of a figure may be what does not grow with their number."""
_FORETOLD = 10_000
_TORCHS = ("c10d", "c10d-tuned", "etcd", "etcd-v2")


def markdown(records: Sequence[Record], context: Mapping[str, object]) -> str:
    """All figures as Markdown tables."""
    return "\n".join([f"{_conditions(context)}\n", *_titled(_sections(records))])


def _conditions(context: Mapping[str, object]) -> str:
    return f"Conditions: {'; '.join(f'{key}: {value}' for key, value in context.items())}."


def _titled(sections: Mapping[str, str]) -> Iterator[str]:
    return (f"{_TITLE}{title}\n\n{text}" for title, text in sections.items())


def _sections(records: Sequence[Record]) -> dict[str, str]:
    """The tables, by title: those that there are records for."""
    fixed = [record for record in records if (record.scenario, record.metric) == ("form-fixed", "seconds")]
    rest = [record for record in records if record not in fixed]
    sections = {"Forming a fixed world, seconds": "\n".join([_grid(fixed), _ratios(fixed)])} if fixed else {}
    for title, scenario, table in (
        ("Elastic world", "form-elastic", _matrix),
        ("Recovery", "recover", _matrix),
        ("API requests", "api-", _matrix),
        ("API server away for 60 s", "outage-", _matrix),
        ("Real pods", "pods-", _pods),
        ("Thousands of light agents", _LIGHT, _light),
        ("The operator", "operator-", _list),
    ):
        chosen = [record for record in rest if record.scenario.startswith(scenario)]
        if chosen:
            sections[title] = table(chosen)
            rest = [record for record in rest if record not in chosen]
    if rest:
        sections["Stores and the library"] = _list(rest)
    return sections


def write(records: Sequence[Record], context: Mapping[str, object], page: Path) -> None:
    """Into the page, between its marks, and the plots beside it. Tables of the page for which there are no records stay as they are."""
    before, _, rest = page.read_text().partition(_BEGIN)
    written, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n{_merged(written, records, context)}\n{_END}{after}")
    fixed = [record for record in records if record.scenario == "form-fixed"]
    if fixed:
        page.with_suffix(".svg").write_text(plot(fixed, "Forming a fixed world (hollow: longer than the limit)"))
    of_light = [record for record in records if record.scenario.startswith(_LIGHT)]
    if of_light:
        page.with_name(f"{page.stem}-light.svg").write_text(_light_plot(of_light))


def _merged(written: str, records: Sequence[Record], context: Mapping[str, object]) -> str:
    """What the page says between its marks, with the tables of these records in place of its own.

    When some of its own are left, the conditions of the run are said in the new ones only.
    """
    conditions, *old = f"\n{written.strip()}\n".split(f"\n{_TITLE}")
    kept = dict(section.split("\n\n", 1) for section in old)
    new = _sections(records)
    if kept.keys() <= new.keys():
        return markdown(records, context)
    kept |= {title: f"{_conditions(context)}\n\n{text}" for title, text in new.items()}
    return "\n".join([f"{conditions.strip()}\n", *_titled(kept)])


@dataclass(frozen=True)
class Law:
    """The power law that figures follow: factor · n^exponent."""

    factor: float
    exponent: float

    @classmethod
    def of(cls, records: Sequence[Record]) -> Law | None:
        """By least squares of logarithms; None of fewer than two sizes."""
        points = [
            (math.log(r.n), math.log(r.median)) for r in records if r.n >= _LAW_FROM and r.median > 0 and not r.timeout
        ]
        if len({x for x, _ in points}) < 2:
            return None
        mean_x, mean_y = (sum(each) / len(points) for each in zip(*points, strict=True))
        exponent = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
        return cls(math.exp(mean_y - exponent * mean_x), exponent)

    def at(self, n: int) -> float:
        """What it says for so many agents."""
        return float(self.factor * n**self.exponent)


def _light(records: Sequence[Record]) -> str:
    """Agents across, what each phase takes down; then the law, and what it says for more agents than were measured."""
    sizes = sorted({record.n for record in records})
    lines = [
        f"| agents | {' | '.join(map(str, sizes))} | law | {_FORETOLD}, by the law |",
        f"|---|{'---|' * (len(sizes) + 2)}",
    ]
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(f"{record.scenario.removeprefix(_LIGHT)}: {record.metric} ({record.unit})", []).append(record)
    for name, row in rows.items():
        cells = {record.n: record.text for record in row}
        law = Law.of(row)
        said = [f"n^{law.exponent:.2f}", f"{law.at(_FORETOLD):.3g}"] if law is not None else ["", ""]
        lines.append(f"| {name} | {' | '.join([*(cells.get(size, '') for size in sizes), *said])} |")
    return "\n".join(lines) + "\n"


def _light_plot(records: Sequence[Record]) -> str:
    """Seconds of the phases, and processor time of those who bear the load."""
    chosen = []
    for what in (
        ("forming", "seconds"),
        ("loss", "seconds"),
        ("coordinator", "seconds"),
        ("forming", "API server and etcd"),
        ("loss", "coordinator"),
        ("loss", "longest step"),
    ):
        row = [r for r in records if (r.scenario.removeprefix(_LIGHT), r.metric) == what]
        law = Law.of(row)
        label = f"{what[0]}: {what[1]}" + (f", n^{law.exponent:.1f}" if law is not None else "")
        chosen += [replace(record, backend=label) for record in row]
    colours = dict(zip(dict.fromkeys(record.backend for record in chosen), COLOURS.values(), strict=False))
    return plot(chosen, "Light agents: what a world takes", colours)


def _grid(records: Sequence[Record]) -> str:
    """Agents across, backends down."""
    sizes = sorted({record.n for record in records})
    lines = [f"| agents | {' | '.join(map(str, sizes))} |", f"|---|{'---|' * len(sizes)}"]
    for backend in dict.fromkeys(record.backend for record in records):
        cells = {record.n: record.text for record in records if record.backend == backend}
        lines.append(f"| {backend} | {' | '.join(cells.get(size, '') for size in sizes)} |")
    return "\n".join(lines)


def _ratios(records: Sequence[Record]) -> str:
    """Of medians of this run: the best of torch's backends over ours, and ours over the floor and over each other."""
    lines = []
    sizes = sorted({record.n for record in records})
    by = {(record.backend, record.n): record for record in records}
    for name, top, bottom in (
        ("best of torch's / kubernetes", _TORCHS, (_OURS,)),
        ("kubernetes / api-floor", (_OURS,), (_FLOOR,)),
        ("best of torch's etcds / etcd-v3", ("etcd", "etcd-v2"), (_OURS_BY_ETCD,)),
        ("etcd-v3 / kubernetes", (_OURS_BY_ETCD,), (_OURS,)),
    ):
        cells = []
        for size in sizes:
            above = [by[b, size] for b in top if (b, size) in by]
            below = [by[b, size] for b in bottom if (b, size) in by]
            best = min(above, key=lambda record: record.median, default=None)
            cells.append(_over(best, below[0] if below else None))
        if any(cells):
            lines.append(f"| *{name}* | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _matrix(records: Sequence[Record]) -> str:
    """Scenarios down, backends across; what needs saying is below."""
    backends = list(dict.fromkeys(record.backend for record in records))
    lines = [f"| | {' | '.join(backends)} |", f"|---|{'---|' * len(backends)}"]
    notes: dict[str, None] = {}
    for row in dict.fromkeys((record.scenario, record.n, record.metric, record.unit) for record in records):
        cells = dict.fromkeys(backends, "")
        for record in records:
            if (record.scenario, record.n, record.metric, record.unit) == row:
                cells[record.backend] = record.text
                if record.note:
                    notes[f"{record.scenario}, {record.metric}, {record.backend}: {record.note}"] = None
        scenario, agents, metric, unit = row
        name = f"{scenario}, {agents} agents: {metric}" + (f" ({unit})" if unit != "s" else "")
        lines.append(f"| {name} | {' | '.join(cells.values())} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def _pods(records: Sequence[Record]) -> str:
    """All figures; then ratios of medians of this run, each of two figures under the same load."""
    by = {(record.scenario, record.backend, record.metric): record for record in records}
    losses = [name for name in dict.fromkeys(record.scenario for record in records) if not name.startswith(_START)]
    lines = [f"| | {' | '.join(losses)} |", f"|---|{'---|' * len(losses)}"]
    # A loss is compared with ours, or with what our first start took.
    for name, backend, metric, of_start in (
        ("pytorchjob / kubernetes: seconds", "pytorchjob", "seconds", ""),
        ("pytorchjob / kubernetes: seconds-whole", "pytorchjob", "seconds-whole", ""),
        ("kubernetes: seconds / pods-start: seconds", _OURS, "seconds", "seconds"),
        ("kubernetes: seconds / pods-start: workers", _OURS, "seconds", "workers"),
    ):
        cells = []
        for loss in losses:
            start = _START + ("-loaded" if loss.endswith("-loaded") else "")
            below = (start, _OURS, of_start) if of_start else (loss, _OURS, metric)
            cells.append(_over(by.get((loss, backend, metric)), by.get(below)))
        if any(cells):
            lines.append(f"| *{name}* | {' | '.join(cells)} |")
    ratios = ["\n".join([*lines, ""])] if len(lines) > 2 else []
    return "\n".join([f"{_matrix(records).rstrip()}\n", *ratios])


def _over(top: Record | None, bottom: Record | None) -> str:
    """The ratio of two medians; a lower bound, where the upper one is."""
    if top is None or bottom is None or bottom.timeout or not bottom.median:
        return ""
    return f"{'> ' if top.timeout else ''}{top.median / bottom.median:.1f}"


def _list(records: Sequence[Record]) -> str:
    lines = ["| | | clients | | |", "|---|---|---|---|---|"]
    lines += [f"| {r.scenario} | {r.backend} | {r.n} | {r.metric} | {r.text} {r.unit} |" for r in records]
    return "\n".join([*lines, ""])
