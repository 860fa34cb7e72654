"""The table of all figures, and the part of docs/benchmarks.md that is written from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.plot import plot
from bench.records import Record

_BEGIN, _END = "<!-- begin: written by the benchmark -->", "<!-- end: written by the benchmark -->"
_FLOOR, _OURS, _OURS_BY_ETCD = "api-floor", "kubernetes", "etcd-v3"
_TORCHS = ("c10d", "c10d-tuned", "etcd", "etcd-v2")


def markdown(records: Sequence[Record], context: Mapping[str, object]) -> str:
    """All figures as Markdown tables."""
    said = "; ".join(f"{key}: {value}" for key, value in context.items())
    parts = [f"Conditions: {said}.\n"]
    fixed = [record for record in records if (record.scenario, record.metric) == ("form-fixed", "seconds")]
    if fixed:
        parts += ["### Forming a fixed world, seconds\n", _grid(fixed), _ratios(fixed)]
    rest = [record for record in records if record not in fixed]
    sections = (
        ("Elastic world", "form-elastic"),
        ("Recovery", "recover"),
        ("API requests", "api-"),
        ("API server away for 60 s", "outage-"),
        ("Real pods", "pods-"),
    )
    for title, scenario in sections:
        chosen = [record for record in rest if record.scenario.startswith(scenario)]
        if chosen:
            parts += [f"### {title}\n", _matrix(chosen)]
            rest = [record for record in rest if record not in chosen]
    of_operator = [record for record in rest if record.scenario.startswith("operator-")]
    if of_operator:
        parts += ["### The operator\n", _list(of_operator)]
        rest = [record for record in rest if record not in of_operator]
    if rest:
        parts += ["### Stores and the library\n", _list(rest)]
    return "\n".join(parts)


def write(records: Sequence[Record], context: Mapping[str, object], page: Path) -> None:
    """Into the page, between its marks, and the plot beside it."""
    text = page.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n{markdown(records, context)}\n{_END}{after}")
    fixed = [record for record in records if record.scenario == "form-fixed"]
    if fixed:
        page.with_suffix(".svg").write_text(plot(fixed, "Forming a fixed world (hollow: longer than the limit)"))


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
            if best is None or not below:
                cells.append("")
                continue
            cells.append(f"{'> ' if best.timeout else ''}{best.median / below[0].median:.1f}")
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


def _list(records: Sequence[Record]) -> str:
    lines = ["| | | clients | | |", "|---|---|---|---|---|"]
    lines += [f"| {r.scenario} | {r.backend} | {r.n} | {r.metric} | {r.text} {r.unit} |" for r in records]
    return "\n".join([*lines, ""])
