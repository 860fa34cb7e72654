"""The dashboard as a picture, without Grafana: its panels, their queries' answers by a real Prometheus, as an SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

#: `(seconds since the begin, value)`, in order.
Points = Sequence[tuple[float, float]]
#: The series of a query, with their labels.
Answer = Sequence[tuple[Mapping[str, str], Points]]

_UNIT, _GAP = 40.0, 8.0
"""Pixels of a grid's column, and between panels. A row of the grid is as high as 30."""
_ROW = 30.0
_COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#b877d9", "#e02f44", "#8ab8ff", "#ca95e5")
_DAY = 86400.0
_SUFFIXES = {"s": " s", "cps": "/s", "reqps": "/s", "short": ""}


def picture(dashboard: Mapping[str, Any], ask: Callable[[str], Answer], seconds: float, caption: str) -> str:
    """The whole dashboard; `ask` answers a query over the last `seconds`."""
    panels = dashboard["panels"]
    width = 24 * _UNIT
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * _ROW + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width:g}" height="{height:g}" fill="#f4f5f5"/>',
        f'<text x="12" y="25" font-size="15">{escape(dashboard["title"])} — {escape(caption)}</text>',
    ]
    for panel in panels:
        series = [
            (_legend(target["legendFormat"], labels), points)
            for target in panel["targets"]
            for labels, points in ask(target["expr"])
        ]
        parts += _panel(panel, series, seconds)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(form: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        form = form.replace("{{" + name + "}}", value)
    return form


def _panel(panel: Mapping[str, Any], series: Sequence[tuple[str, Points]], seconds: float) -> list[str]:
    at = panel["gridPos"]
    left, top = at["x"] * _UNIT + _GAP / 2, at["y"] * _ROW + 40
    width, height = at["w"] * _UNIT - _GAP, at["h"] * _ROW - _GAP
    x0, y0, x1, y1 = left + 60, top + 32, left + width - 14, top + height - 72
    values = [value for _, points in series for _, value in points]
    unit, top_value = panel["fieldConfig"]["defaults"]["unit"], _scale(max(values, default=0.0))
    parts = [
        f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="2" fill="white" stroke="#d8d9da"/>',
        f'<text x="{left + 10:g}" y="{top + 20:g}" font-weight="bold">{escape(panel["title"])}</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        y = y1 - share * (y1 - y0)
        parts.append(f'<line x1="{x0:g}" y1="{y:.1f}" x2="{x1:g}" y2="{y:.1f}" stroke="#e4e5e6"/>')
        parts.append(
            f'<text x="{x0 - 6:g}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{_said(share * top_value, unit)}</text>'
        )
    for share in (0.0, 0.5, 1.0):
        x, anchor = x0 + share * (x1 - x0), ("start", "middle", "end")[int(2 * share)]
        when = f"-{(1 - share) * seconds:.0f} s" if share < 1 else "now"
        parts.append(f'<text x="{x:.1f}" y="{y1 + 16:g}" text-anchor="{anchor}" fill="#555">{when}</text>')
    spot, line_top = x0, y1 + 25
    for number, (name, points) in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(
            f"{x0 + at / seconds * (x1 - x0):.1f},{y1 - min(value / top_value, 1) * (y1 - y0):.1f}"
            for at, value in points
        )
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if spot + 14 + 6.2 * len(name) > left + width:
            spot, line_top = x0, line_top + 14
        parts.append(f'<rect x="{spot:g}" y="{line_top:g}" width="10" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{spot + 14:g}" y="{line_top + 7:g}" font-size="11">{escape(name)}</text>')
        spot += 24 + 6.2 * len(name)
    return parts


def _scale(highest: float) -> float:
    """The upper end of the axis."""
    step = 10.0 ** (len(str(int(highest))) - 1) if highest >= 1 else 0.1
    top = step
    while top < highest:
        top += step
    return top


def _said(value: float, unit: str) -> str:
    return f"{value / _DAY:.3g} d" if unit == "s" and value > _DAY else f"{value:.3g}{_SUFFIXES[unit]}"
